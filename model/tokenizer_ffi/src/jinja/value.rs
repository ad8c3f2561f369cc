//! The values of Python that templates meet, with Python's equality, order, truth and hashing.
//!
//! Lists and dicts are immutable: transformers runs templates in Jinja's ImmutableSandboxedEnvironment.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{For, MacroDef};
use super::scope::Scope;

pub enum ErrorKind {
    Invalid,
    Exhausted,
}

pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    pub line: u32, // 0: not known yet
}

impl Error {
    pub fn new(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Invalid, message: message.into(), line: 0 }
    }

    pub fn exhausted(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Exhausted, message: message.into(), line: 0 }
    }

    pub fn at(mut self, line: u32) -> Error {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

pub type Res<T> = Result<T, Error>;

pub fn fail<T>(message: impl Into<String>) -> Res<T> {
    Err(Error::new(message))
}

#[derive(Clone, Copy, PartialEq)]
pub enum View {
    Keys,
    Values,
    Items,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
}

pub struct Macro {
    pub definition: Arc<MacroDef>,
    pub scope: Rc<Scope>,
}

/// The `loop` of a for.
pub struct Loop {
    pub items: Rc<Vec<Value>>,
    pub index0: Cell<usize>,
    pub depth0: usize,
    pub changed: RefCell<Option<Vec<Value>>>,
    pub recursive: Option<(Arc<For>, Rc<Scope>)>,
}

#[derive(Clone)]
pub enum Value {
    Undefined(Rc<str>), // what an operation on it is refused with
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    List(Rc<Vec<Value>>),
    Tuple(Rc<Vec<Value>>),
    Dict(Rc<Dict>),
    Range(i64, i64, i64), // start, stop, step
    View(View, Rc<Dict>),
    Generator(Rc<RefCell<VecDeque<Value>>>),
    Namespace(Rc<RefCell<Dict>>),
    Macro(Rc<Macro>),
    Method(Rc<(Value, String)>),
    Function(Function),
    Loop(Rc<Loop>),
    Cycler(Rc<(Vec<Value>, Cell<usize>)>),
    Joiner(Rc<(Rc<str>, Cell<bool>)>),
}

thread_local! {
    // Values whose parents are being dropped; None: nothing is.
    static DROPPED: RefCell<Option<Vec<Value>>> = const { RefCell::new(None) };
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

// Python's own recursion ends sooner.
const MAX_DEPTH: usize = 5000;

/// One level of recursion over values or over the tree; beyond the last one it unwinds, which ends the rendering.
pub struct Depth;

impl Depth {
    pub fn enter() -> Depth {
        DEPTH.with(|depth| {
            if depth.get() >= MAX_DEPTH {
                std::panic::resume_unwind(Box::new(format!("nested deeper than {MAX_DEPTH} levels")));
            }
            depth.set(depth.get() + 1);
        });
        Depth
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Drops children one after the other, not each inside its parent: a list can be nested a million times.
fn drop_flat(children: impl Iterator<Item = Value>) {
    let first = DROPPED.with(|dropped| {
        let mut dropped = dropped.borrow_mut();
        let first = dropped.is_none();
        dropped.get_or_insert_with(Vec::new).extend(children);
        first
    });
    if !first {
        return;
    }
    while let Some(value) = DROPPED.with(|dropped| dropped.borrow_mut().as_mut().and_then(Vec::pop)) {
        drop(value);
    }
    DROPPED.with(|dropped| *dropped.borrow_mut() = None);
}

impl Drop for Value {
    fn drop(&mut self) {
        match self {
            Value::List(items) | Value::Tuple(items) => {
                if let Some(items) = Rc::get_mut(items) {
                    if items.iter().any(Value::holds_others) {
                        drop_flat(items.drain(..));
                    }
                }
            }
            Value::Dict(dict) | Value::View(_, dict) => {
                if let Some(dict) = Rc::get_mut(dict) {
                    drop_flat(dict.entries.drain(..).flat_map(|(key, value)| [key, value]).filter(Value::holds_others));
                }
            }
            Value::Namespace(dict) => {
                if let Some(dict) = Rc::get_mut(dict) {
                    drop_flat(dict.get_mut().entries.drain(..).map(|(_, value)| value).filter(Value::holds_others));
                }
            }
            Value::Generator(items) => {
                if let Some(items) = Rc::get_mut(items) {
                    drop_flat(items.get_mut().drain(..).filter(Value::holds_others));
                }
            }
            _ => {}
        }
    }
}

impl Value {
    fn holds_others(&self) -> bool {
        matches!(
            self,
            Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::View(..)
                | Value::Generator(_)
                | Value::Namespace(_)
                | Value::Method(_)
                | Value::Cycler(_)
                | Value::Loop(_)
                | Value::Macro(_)
        )
    }

    pub fn str(text: impl AsRef<str>) -> Value {
        Value::Str(Rc::from(text.as_ref()))
    }

    pub fn list(items: Vec<Value>) -> Value {
        Value::List(Rc::new(items))
    }

    pub fn tuple(items: Vec<Value>) -> Value {
        Value::Tuple(Rc::new(items))
    }

    pub fn generator(items: Vec<Value>) -> Value {
        Value::Generator(Rc::new(RefCell::new(items.into())))
    }

    pub fn undefined(hint: impl AsRef<str>) -> Value {
        Value::Undefined(Rc::from(hint.as_ref()))
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An int or a bool.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(number) => Some(*number),
            Value::Bool(flag) => Some(*flag as i128),
            _ => None,
        }
    }

    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(number) => Some(*number),
            other => other.as_int().map(|number| number as f64),
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(flag) => *flag,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Str(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => !dict.entries.is_empty(),
            Value::Range(..) => self.len().unwrap_or(0) > 0,
            _ => true,
        }
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Range(..) => "range",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Generator(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Macro(_) => "Macro",
            Value::Method(_) => "builtin_function_or_method",
            Value::Function(_) => "function",
            Value::Loop(_) => "LoopContext",
            Value::Cycler(_) => "Cycler",
            Value::Joiner(_) => "Joiner",
        }
    }

    pub fn len(&self) -> Option<usize> {
        Some(match self {
            Value::Undefined(_) => 0,
            Value::Str(text) => text.chars().count(),
            Value::List(items) | Value::Tuple(items) => items.len(),
            Value::Dict(dict) | Value::View(_, dict) => dict.entries.len(),
            Value::Range(start, stop, step) => {
                let span = if *step > 0 { *stop as i128 - *start as i128 } else { *start as i128 - *stop as i128 };
                if span <= 0 {
                    0
                } else {
                    ((span - 1) / (*step as i128).abs() + 1) as usize
                }
            }
            Value::Loop(state) => state.items.len(),
            _ => return None,
        })
    }

    /// list(x). A generator is used up by it.
    pub fn iterate(&self) -> Res<Rc<Vec<Value>>> {
        Ok(Rc::new(match self {
            Value::List(items) | Value::Tuple(items) => return Ok(Rc::clone(items)),
            Value::Undefined(_) => Vec::new(),
            Value::Str(text) => {
                let mut buffer = [0u8; 4];
                text.chars().map(|c| Value::str(c.encode_utf8(&mut buffer))).collect()
            }
            Value::Dict(dict) | Value::View(View::Keys, dict) => dict.entries.iter().map(|(key, _)| key.clone()).collect(),
            Value::View(View::Values, dict) => dict.entries.iter().map(|(_, value)| value.clone()).collect(),
            Value::View(View::Items, dict) => {
                dict.entries.iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])).collect()
            }
            Value::Range(start, _, step) => {
                (0..self.len().unwrap_or(0)).map(|i| Value::Int(*start as i128 + i as i128 * *step as i128)).collect()
            }
            Value::Generator(items) => items.borrow_mut().drain(..).collect(),
            Value::Loop(state) => {
                let first = (state.index0.get() + 1).min(state.items.len());
                state.items[first..].to_vec()
            }
            other => return fail(format!("'{}' object is not iterable", other.type_name())),
        }))
    }

    /// Refuses what Python's Undefined refuses.
    pub fn defined(&self) -> Res<()> {
        match self {
            Value::Undefined(hint) => fail(hint.to_string()),
            _ => Ok(()),
        }
    }
}

/// a == b
pub fn equal(a: &Value, b: &Value) -> bool {
    let _depth = Depth::enter();
    match (a, b) {
        (Value::Str(x), Value::Str(y)) => x == y,
        (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            x.len() == y.len() && x.iter().zip(y.iter()).all(|(x, y)| equal(x, y))
        }
        (Value::Dict(x), Value::Dict(y)) => {
            x.entries.len() == y.entries.len()
                && x.entries.iter().all(|(key, value)| y.get(key).is_some_and(|other| equal(value, other)))
        }
        (Value::Range(..), Value::Range(..)) => match (a.iterate(), b.iterate()) {
            (Ok(x), Ok(y)) => x.len() == y.len() && x.iter().zip(y.iter()).all(|(x, y)| equal(x, y)),
            _ => false,
        },
        (Value::Float(x), _) => b.as_float().is_some_and(|y| *x == y),
        (_, Value::Float(y)) => a.as_float().is_some_and(|x| x == *y),
        (Value::Namespace(x), Value::Namespace(y)) => Rc::ptr_eq(x, y),
        (Value::Macro(x), Value::Macro(y)) => Rc::ptr_eq(x, y),
        (Value::Function(x), Value::Function(y)) => x == y,
        _ => match (a.as_int(), b.as_int()) {
            (Some(x), Some(y)) => x == y,
            _ => false,
        },
    }
}

/// What `<` and its like compare by; None: NaN.
pub fn compare(a: &Value, b: &Value, operator: &str) -> Res<Option<Ordering>> {
    let _depth = Depth::enter();
    a.defined()?;
    b.defined()?;
    Ok(match (a, b) {
        (Value::Str(x), Value::Str(y)) => Some(x.cmp(y)),
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (x, y) in x.iter().zip(y.iter()) {
                if !equal(x, y) {
                    return compare(x, y, operator);
                }
            }
            Some(x.len().cmp(&y.len()))
        }
        _ => match (a.as_int(), b.as_int(), a.as_float(), b.as_float()) {
            (Some(x), Some(y), _, _) => Some(x.cmp(&y)),
            (_, _, Some(x), Some(y)) => x.partial_cmp(&y),
            _ => {
                return fail(format!(
                    "'{operator}' not supported between instances of '{}' and '{}'",
                    a.type_name(),
                    b.type_name()
                ))
            }
        },
    })
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Key>),
    Other(usize),
}

fn key_of(value: &Value) -> Option<Key> {
    let _depth = Depth::enter();
    Some(match value {
        Value::None => Key::None,
        Value::Str(text) => Key::Str(Rc::clone(text)),
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e30 => Key::Int(*number as i128),
        Value::Float(number) => Key::Float(number.to_bits()),
        Value::Tuple(items) => Key::Tuple(items.iter().map(key_of).collect::<Option<_>>()?),
        Value::Undefined(_) => Key::Other(0),
        Value::Function(function) => Key::Other(1 + *function as usize),
        other => Key::Int(other.as_int()?),
    })
}

pub fn hashable(value: &Value) -> Res<()> {
    match key_of(value) {
        Some(_) => Ok(()),
        None => fail(format!("unhashable type: '{}'", value.type_name())),
    }
}

/// In the order of insertion. Small ones are searched, large ones indexed.
#[derive(Default)]
pub struct Dict {
    pub entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
}

const SEARCHED: usize = 12;

impl Dict {
    fn find(&self, key: &Value) -> Option<usize> {
        if self.entries.len() <= SEARCHED {
            return self.entries.iter().position(|(own, _)| equal(own, key));
        }
        self.index.get(&key_of(key)?).copied()
    }

    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.find(key).map(|at| &self.entries[at].1)
    }

    pub fn get_str(&self, key: &str) -> Option<&Value> {
        if self.entries.len() <= SEARCHED {
            return self.entries.iter().find(|(own, _)| own.as_str() == Some(key)).map(|(_, value)| value);
        }
        self.get(&Value::str(key))
    }

    /// `key` must be hashable.
    pub fn insert(&mut self, key: Value, value: Value) {
        if let Some(at) = self.find(&key) {
            self.entries[at].1 = value;
            return;
        }
        self.entries.push((key, value));
        if self.entries.len() == SEARCHED + 1 {
            for at in 0..self.entries.len() {
                self.index_entry(at);
            }
        } else if self.entries.len() > SEARCHED {
            self.index_entry(self.entries.len() - 1);
        }
    }

    fn index_entry(&mut self, at: usize) {
        if let Some(key) = key_of(&self.entries[at].0) {
            self.index.insert(key, at);
        }
    }
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Value {
        match json {
            serde_json::Value::Null => Value::None,
            serde_json::Value::Bool(flag) => Value::Bool(*flag),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Value::Int(number.into()),
                (_, Some(number)) => Value::Int(number.into()),
                _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::str(text),
            serde_json::Value::Array(items) => Value::list(items.iter().map(Value::from).collect()),
            serde_json::Value::Object(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    dict.insert(Value::str(key), Value::from(value));
                }
                Value::Dict(Rc::new(dict))
            }
        }
    }
}
