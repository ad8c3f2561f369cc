//! Attributes and methods of Python's types, as far as the sandbox allows them: nothing private, nothing that changes a value.

use std::rc::Rc;

use super::eval::{Given, Interpreter};
use super::ops;
use super::text_methods;
use super::value::*;

const DICT: [&str; 5] = ["get", "items", "keys", "values", "copy"];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const LIST: [&str; 3] = ["index", "count", "copy"];
const LIST_CHANGES: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];

pub fn has(object: &Value, name: &str) -> bool {
    match object {
        Value::Str(_) => text_methods::NAMES.contains(&name),
        Value::Dict(_) => DICT.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) | Value::Range(..) => matches!(name, "index" | "count"),
        Value::Float(_) => name == "is_integer",
        Value::Int(_) | Value::Bool(_) => matches!(name, "bit_length" | "is_integer"),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        _ => false,
    }
}

/// getattr(object, name); None: there is none.
fn own_attribute(object: &Value, name: &str) -> Option<Value> {
    if has(object, name) {
        return Some(Value::Method(Rc::new((object.clone(), name.to_string()))));
    }
    let changes = match object {
        Value::Dict(_) => DICT_CHANGES.contains(&name),
        Value::List(_) => LIST_CHANGES.contains(&name),
        _ => false,
    };
    if changes {
        let hint = format!("access to attribute '{name}' of '{}' object is unsafe.", object.type_name());
        return Some(Value::undefined(hint));
    }
    let count = |count: usize| Value::Int(count as i128);
    match object {
        Value::Namespace(dict) => dict.borrow().get_str(name).cloned(),
        Value::Loop(state) => {
            let (index0, size) = (state.index0.get(), state.items.len());
            Some(match name {
                "index" => count(index0 + 1),
                "index0" => count(index0),
                "revindex" => count(size - index0),
                "revindex0" => count(size - index0 - 1),
                "first" => Value::Bool(index0 == 0),
                "last" => Value::Bool(index0 + 1 == size),
                "length" => count(size),
                "depth" => count(state.depth0 + 1),
                "depth0" => count(state.depth0),
                "previtem" if index0 == 0 => Value::undefined("there is no previous item"),
                "previtem" => state.items[index0 - 1].clone(),
                "nextitem" => match state.items.get(index0 + 1) {
                    Some(item) => item.clone(),
                    None => Value::undefined("there is no next item"),
                },
                _ => return None,
            })
        }
        Value::Cycler(cycler) if name == "current" => Some(cycler.0[cycler.1.get()].clone()),
        Value::Macro(own) => match name {
            "name" => Some(Value::str(&own.definition.name)),
            "caller" => Some(Value::Bool(own.definition.uses_caller)),
            "catch_kwargs" => Some(Value::Bool(own.definition.uses_kwargs)),
            "catch_varargs" => Some(Value::Bool(own.definition.uses_varargs)),
            _ => None,
        },
        Value::Int(_) | Value::Bool(_) if matches!(name, "numerator" | "real") => object.as_int().map(Value::Int),
        Value::Int(_) | Value::Bool(_) if name == "denominator" => Some(Value::Int(1)),
        Value::Int(_) | Value::Bool(_) if name == "imag" => Some(Value::Int(0)),
        // What groupby gives has names.
        Value::Tuple(items) if items.len() == 2 && name == "grouper" => Some(items[0].clone()),
        Value::Tuple(items) if items.len() == 2 && name == "list" => Some(items[1].clone()),
        Value::Float(_) if name == "real" => Some(object.clone()),
        Value::Range(start, stop, step) => match name {
            "start" => Some(Value::Int((*start).into())),
            "stop" => Some(Value::Int((*stop).into())),
            "step" => Some(Value::Int((*step).into())),
            _ => None,
        },
        _ => None,
    }
}

/// object.name: the attribute, else the item.
pub fn attribute(object: &Value, name: &str) -> Res<Value> {
    object.defined()?;
    if let Some(value) = own_attribute(object, name) {
        return Ok(value);
    }
    if let Value::Dict(dict) = object {
        if let Some(value) = dict.get_str(name) {
            return Ok(value.clone());
        }
    }
    Ok(Value::undefined(format!("'{} object' has no attribute '{name}'", object.type_name())))
}

/// object[key]: the item, else the attribute.
pub fn item(object: &Value, key: &Value) -> Res<Value> {
    object.defined()?;
    if let Some(value) = ops::item(object, key) {
        return Ok(value);
    }
    match key.as_str() {
        Some(name) => match own_attribute(object, name) {
            Some(value) => Ok(value),
            None => Ok(Value::undefined(format!("'{} object' has no attribute '{name}'", object.type_name()))),
        },
        None => {
            let key = super::print::repr(key).unwrap_or_default();
            Ok(Value::undefined(format!("{} object has no element {key}", object.type_name())))
        }
    }
}

pub fn call(interpreter: &mut Interpreter, object: &Value, name: &str, given: Given) -> Res<Value> {
    interpreter.step(object.len().unwrap_or(0) / 64)?;
    match object {
        Value::Str(text) => text_methods::call(text, name, given),
        Value::Dict(dict) => match name {
            "get" => {
                if !given.keyword.is_empty() {
                    return fail("dict.get() takes no keyword arguments");
                }
                let [key, default] = given.bind("get", ["key", "default"])?;
                let Some(key) = key else { return fail("get expected at least 1 argument, got 0") };
                hashable(&key)?;
                Ok(dict.get(&key).cloned().or(default).unwrap_or(Value::None))
            }
            _ => {
                given.bind(name, [])?;
                Ok(match name {
                    "items" => Value::View(View::Items, Rc::clone(dict)),
                    "keys" => Value::View(View::Keys, Rc::clone(dict)),
                    "values" => Value::View(View::Values, Rc::clone(dict)),
                    _ => object.clone(),
                })
            }
        },
        Value::List(_) | Value::Tuple(_) | Value::Range(..) => {
            if name == "copy" {
                given.bind(name, [])?;
                return Ok(object.clone());
            }
            let items = object.iterate()?;
            let [sought, start, stop] = given.bind(name, ["value", "start", "stop"])?;
            let Some(sought) = sought else { return fail(format!("{name} expected at least 1 argument, got 0")) };
            if name == "count" {
                return Ok(Value::Int(items.iter().filter(|item| equal(item, &sought)).count() as i128));
            }
            let bound = |value: Option<Value>, default: usize| match value.and_then(|value| value.as_int()) {
                None => default,
                Some(at) if at < 0 => (at + items.len() as i128).max(0) as usize,
                Some(at) => (at as usize).min(items.len()),
            };
            let (start, stop) = (bound(start, 0), bound(stop, items.len()));
            match items.iter().take(stop).skip(start).position(|item| equal(item, &sought)) {
                Some(at) => Ok(Value::Int((start + at) as i128)),
                None => fail("the value is not in the list"),
            }
        }
        Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
        Value::Int(_) | Value::Bool(_) => Ok(match name {
            "is_integer" => Value::Bool(true),
            _ => Value::Int((128 - object.as_int().unwrap_or(0).unsigned_abs().leading_zeros()).into()),
        }),
        Value::Loop(state) if name == "cycle" => {
            if given.positional.is_empty() {
                return fail("no items for cycling given");
            }
            Ok(given.positional[state.index0.get() % given.positional.len()].clone())
        }
        Value::Loop(state) => {
            let mut last = state.changed.borrow_mut();
            let same = last.as_ref().is_some_and(|last| {
                last.len() == given.positional.len() && last.iter().zip(&given.positional).all(|(a, b)| equal(a, b))
            });
            *last = Some(given.positional);
            Ok(Value::Bool(!same))
        }
        Value::Cycler(cycler) => {
            let at = cycler.1.get();
            cycler.1.set(if name == "reset" { 0 } else { (at + 1) % cycler.0.len() });
            Ok(if name == "reset" { Value::None } else { cycler.0[at].clone() })
        }
        other => fail(format!("'{}' object has no attribute '{name}'", other.type_name())),
    }
}
