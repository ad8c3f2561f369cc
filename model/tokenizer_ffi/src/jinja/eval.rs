//! Runs a template.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::*;
use super::print::write_str;
use super::scope::Scope;
use super::value::*;
use super::{filters, functions, methods, ops, tests};

pub const MAX_OUTPUT_BYTES: usize = 64 << 20;
pub const INSTRUCTIONS: u64 = 20_000_000;
// Python's own stack ends a little sooner.
const MAX_CALLS: usize = 300;

#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

pub struct Rendered {
    pub text: String,
    /// What {% generation %} wrote, in characters, in the order in which the blocks ended.
    pub spans: Vec<(usize, usize)>,
}

pub struct Interpreter<'t> {
    template: &'t Template,
    pub now: i64,
    buffers: Vec<String>, // the last is written to; the first is the template's own
    written: usize,       // characters in the first
    spans: Vec<(usize, usize)>,
    fuel: u64,
    calls: usize,
    kept: Vec<Rc<Scope>>, // scopes that their own macros keep alive
}

#[derive(Default)]
pub struct Given {
    pub positional: Vec<Value>,
    pub keyword: Vec<(String, Value)>,
}

impl Given {
    /// In the order of `names`, as Python binds them.
    pub fn bind<const N: usize>(self, what: &str, names: [&str; N]) -> Res<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return fail(format!("{what}() takes at most {N} arguments but {} were given", self.positional.len()));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keyword {
            match names.iter().position(|own| *own == name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value),
                Some(_) => return fail(format!("{what}() got multiple values for argument '{name}'")),
                None => return fail(format!("{what}() got an unexpected keyword argument '{name}'")),
            }
        }
        Ok(bound)
    }
}

pub fn render(template: &Template, variables: &serde_json::Map<String, serde_json::Value>, now: i64) -> Res<Rendered> {
    let root = Scope::new(None);
    for (number, name) in template.names.iter().enumerate() {
        if let Some(value) = variables.get(name) {
            root.set(number as u32, Value::from(value));
        }
    }
    let mut interpreter = Interpreter {
        template,
        now,
        buffers: vec![String::new()],
        written: 0,
        spans: Vec::new(),
        fuel: INSTRUCTIONS,
        calls: 0,
        kept: vec![Rc::clone(&root)],
    };
    let result = interpreter.run(&template.body, &root);
    for scope in &interpreter.kept {
        scope.clear();
    }
    result?;
    Ok(Rendered { text: interpreter.buffers.swap_remove(0), spans: interpreter.spans })
}

impl Interpreter<'_> {
    pub fn step(&mut self, cost: usize) -> Res<()> {
        match self.fuel.checked_sub(1 + cost as u64) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => Err(Error::exhausted(format!("does not end within {INSTRUCTIONS} instructions"))),
        }
    }

    fn write(&mut self, text: &str) -> Res<()> {
        if self.buffers.len() == 1 {
            self.written += text.chars().count();
        }
        if let Some(buffer) = self.buffers.last_mut() {
            buffer.push_str(text);
            if buffer.len() > MAX_OUTPUT_BYTES {
                return Err(Error::exhausted(format!("writes more than {MAX_OUTPUT_BYTES} bytes")));
            }
        }
        Ok(())
    }

    fn capture(&mut self, body: &[Statement], scope: &Rc<Scope>) -> Res<String> {
        self.buffers.push(String::new());
        let result = self.run(body, scope);
        let text = self.buffers.pop().unwrap_or_default();
        result.map(|_| text)
    }

    fn run(&mut self, body: &[Statement], scope: &Rc<Scope>) -> Res<Flow> {
        let _depth = Depth::enter();
        for statement in body {
            self.step(0)?;
            let flow = self.statement(&statement.kind, scope).map_err(|error| match statement.line {
                0 => error,
                line => error.at(line),
            })?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &StatementKind, scope: &Rc<Scope>) -> Res<Flow> {
        match statement {
            StatementKind::Text(text) => self.write(text)?,
            StatementKind::Print(expression) => {
                let value = self.value(expression, scope)?;
                match &value {
                    Value::Str(text) => self.write(text)?,
                    other => {
                        let mut text = String::new();
                        write_str(other, &mut text)?;
                        self.write(&text)?;
                    }
                }
            }
            StatementKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.value(test, scope)?.is_true() {
                        return self.run(body, scope);
                    }
                }
                return self.run(otherwise, scope);
            }
            StatementKind::For(definition) => {
                let items = self.value(&definition.iterable, scope)?.iterate()?;
                self.for_loop(definition, scope, items, 0)?;
            }
            StatementKind::Set(target, expression) => {
                let value = self.value(expression, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::SetBlock(target, filters, body) => {
                let text = self.capture(body, &Scope::new(Some(Rc::clone(scope))))?;
                let value = self.filter_all(Value::str(text), filters, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::With(values, body) => {
                let inner = Scope::new(Some(Rc::clone(scope)));
                for (target, expression) in values {
                    let value = self.value(expression, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.run(body, &inner);
            }
            StatementKind::Macro(definition) => {
                let value = self.new_macro(definition, scope);
                if let Some(number) = self.template.names.iter().position(|name| *name == definition.name) {
                    scope.set(number as u32, value);
                }
            }
            StatementKind::Call(call, definition) => {
                let caller = self.new_macro(definition, scope);
                let function = self.value(&call.function, scope)?;
                let mut given = self.given(&call.arguments, scope)?;
                given.keyword.push(("caller".into(), caller));
                let value = self.call(&function, given)?;
                let mut text = String::new();
                write_str(&value, &mut text)?;
                self.write(&text)?;
            }
            StatementKind::FilterBlock(filters, body) => {
                let text = self.capture(body, &Scope::new(Some(Rc::clone(scope))))?;
                let value = self.filter_all(Value::str(text), filters, scope)?;
                let mut text = String::new();
                write_str(&value, &mut text)?;
                self.write(&text)?;
            }
            StatementKind::Scoped(body) => return self.run(body, &Scope::new(Some(Rc::clone(scope)))),
            StatementKind::Generation(body) => {
                let text = self.capture(body, &Scope::new(Some(Rc::clone(scope))))?;
                self.spans.push((self.written, self.written + text.chars().count()));
                self.write(&text)?;
            }
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
            StatementKind::Unsupported(what) => return fail(*what),
        }
        Ok(Flow::Next)
    }

    fn new_macro(&mut self, definition: &Arc<MacroDef>, scope: &Rc<Scope>) -> Value {
        if !self.kept.last().is_some_and(|last| Rc::ptr_eq(last, scope)) {
            self.kept.push(Rc::clone(scope));
        }
        Value::Macro(Rc::new(Macro { definition: Arc::clone(definition), scope: Rc::clone(scope) }))
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Res<()> {
        match target {
            Target::Name(name) => scope.set(*name, value),
            Target::Attribute(name, attribute) => match &self.name(*name, scope) {
                Value::Namespace(dict) => dict.borrow_mut().insert(Value::str(attribute), value),
                _ => return fail("cannot assign attribute on non-namespace object"),
            },
            Target::Tuple(targets) => {
                value.defined()?;
                let Ok(items) = value.iterate() else {
                    return fail(format!("cannot unpack non-iterable {} object", value.type_name()));
                };
                if items.len() < targets.len() {
                    return fail(format!("not enough values to unpack (expected {}, got {})", targets.len(), items.len()));
                }
                if items.len() > targets.len() {
                    return fail(format!("too many values to unpack (expected {})", targets.len()));
                }
                for (target, item) in targets.iter().zip(items.iter()) {
                    self.assign(target, item.clone(), scope)?;
                }
            }
        }
        Ok(())
    }

    fn for_loop(&mut self, definition: &Arc<For>, scope: &Rc<Scope>, items: Rc<Vec<Value>>, depth0: usize) -> Res<()> {
        let mut items = items;
        if let Some(condition) = &definition.condition {
            let mut kept = Vec::new();
            for item in items.iter() {
                self.step(0)?;
                let inner = Scope::new(Some(Rc::clone(scope)));
                self.assign(&definition.target, item.clone(), &inner)?;
                if self.value(condition, &inner)?.is_true() {
                    kept.push(item.clone());
                }
            }
            items = Rc::new(kept);
        }
        let state = (definition.uses_loop || definition.recursive).then(|| {
            Rc::new(Loop {
                items: Rc::clone(&items),
                index0: Cell::new(0),
                depth0,
                changed: RefCell::new(None),
                recursive: definition.recursive.then(|| (Arc::clone(definition), Rc::clone(scope))),
            })
        });
        // As Jinja2: an iteration that ended in break or continue does not count against `else`.
        let mut completed = false;
        for (index, item) in items.iter().enumerate() {
            self.step(0)?;
            let inner = Scope::new(Some(Rc::clone(scope)));
            if let Some(state) = &state {
                state.index0.set(index);
                inner.set(definition.loop_name, Value::Loop(Rc::clone(state)));
            }
            self.assign(&definition.target, item.clone(), &inner)?;
            match self.run(&definition.body, &inner)? {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => completed = true,
            }
        }
        if !completed {
            self.run(&definition.otherwise, &Scope::new(Some(Rc::clone(scope))))?;
        }
        Ok(())
    }

    fn name(&mut self, number: u32, scope: &Rc<Scope>) -> Value {
        if let Some(value) = scope.get(number) {
            return value;
        }
        let name = &self.template.names[number as usize];
        match functions::global(name) {
            Some(function) => Value::Function(function),
            None => Value::undefined(format!("'{name}' is undefined")),
        }
    }

    pub fn value(&mut self, expression: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        let _depth = Depth::enter();
        self.step(0)?;
        Ok(match expression {
            Expr::Constant(constant) => match constant {
                Constant::None => Value::None,
                Constant::Bool(flag) => Value::Bool(*flag),
                Constant::Int(number) => Value::Int(*number),
                Constant::Float(number) => Value::Float(*number),
                Constant::Str(text) => Value::str(text),
            },
            Expr::Name(number) => self.name(*number, scope),
            Expr::List(items) => Value::list(self.values(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.values(items, scope)?),
            Expr::Dict(items) => {
                let mut dict = Dict::default();
                for (key, value) in items {
                    let key = self.value(key, scope)?;
                    hashable(&key)?;
                    dict.insert(key, self.value(value, scope)?);
                }
                Value::Dict(Rc::new(dict))
            }
            Expr::Attribute(object, name) => {
                let object = self.value(object, scope)?;
                methods::attribute(&object, name)?
            }
            Expr::Item(object, key) => {
                let object = self.value(object, scope)?;
                let key = self.value(key, scope)?;
                methods::item(&object, &key)?
            }
            Expr::Slice(object, parts) => {
                let object = self.value(object, scope)?;
                let mut values = [None, None, None];
                for (value, part) in values.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *value = Some(self.value(part, scope)?);
                    }
                }
                self.step(object.len().unwrap_or(0) / 64)?;
                ops::slice(&object, values)?
            }
            Expr::Call(call) => {
                if let Expr::Attribute(object, name) = &call.function {
                    let object = self.value(object, scope)?;
                    if methods::has(&object, name) {
                        let given = self.given(&call.arguments, scope)?;
                        return methods::call(self, &object, name, given);
                    }
                    let function = methods::attribute(&object, name)?;
                    let given = self.given(&call.arguments, scope)?;
                    return self.call(&function, given);
                }
                let function = self.value(&call.function, scope)?;
                let given = self.given(&call.arguments, scope)?;
                self.call(&function, given)?
            }
            Expr::Filter(object, filter) => {
                let object = self.value(object, scope)?;
                self.filter(object, filter, scope)?
            }
            Expr::Test(object, name, arguments, negated) => {
                let object = self.value(object, scope)?;
                let given = self.given(arguments, scope)?;
                Value::Bool(tests::run(name, &object, given)? != *negated)
            }
            Expr::Conditional(test, then, otherwise) => {
                if self.value(test, scope)?.is_true() {
                    self.value(then, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.value(otherwise, scope)?
                } else {
                    Value::undefined("the inline if-expression evaluated to false and no else section was defined.")
                }
            }
            Expr::And(left, right) => {
                let left = self.value(left, scope)?;
                if left.is_true() {
                    self.value(right, scope)?
                } else {
                    left
                }
            }
            Expr::Or(left, right) => {
                let left = self.value(left, scope)?;
                if left.is_true() {
                    left
                } else {
                    self.value(right, scope)?
                }
            }
            Expr::Not(inner) => Value::Bool(!self.value(inner, scope)?.is_true()),
            Expr::Negative(inner) => ops::negative(&self.value(inner, scope)?)?,
            Expr::Positive(inner) => ops::positive(&self.value(inner, scope)?)?,
            Expr::Binary(operator, left, right) => {
                let left = self.value(left, scope)?;
                let right = self.value(right, scope)?;
                ops::binary(*operator, &left, &right)?
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    write_str(&self.value(part, scope)?, &mut text)?;
                }
                Value::str(text)
            }
            Expr::Compare(first, rest) => {
                let mut left = self.value(first, scope)?;
                for (comparison, right) in rest {
                    let right = self.value(right, scope)?;
                    if !ops::compared(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
        })
    }

    fn values(&mut self, expressions: &[Expr], scope: &Rc<Scope>) -> Res<Vec<Value>> {
        expressions.iter().map(|expression| self.value(expression, scope)).collect()
    }

    fn given(&mut self, arguments: &Arguments, scope: &Rc<Scope>) -> Res<Given> {
        let mut given = Given { positional: self.values(&arguments.positional, scope)?, keyword: Vec::new() };
        for (name, expression) in &arguments.keyword {
            given.keyword.push((name.clone(), self.value(expression, scope)?));
        }
        if let Some(rest) = &arguments.rest {
            given.positional.extend(self.value(rest, scope)?.iterate()?.iter().cloned());
        }
        if let Some(rest) = &arguments.keyword_rest {
            let rest = self.value(rest, scope)?;
            let Value::Dict(dict) = &rest else { return fail("argument after ** must be a mapping") };
            for (key, value) in &dict.entries {
                let Some(key) = key.as_str() else { return fail("keywords must be strings") };
                given.keyword.push((key.to_string(), value.clone()));
            }
        }
        Ok(given)
    }

    fn filter_all(&mut self, value: Value, filters: &[FilterCall], scope: &Rc<Scope>) -> Res<Value> {
        filters.iter().try_fold(value, |value, filter| self.filter(value, filter, scope))
    }

    fn filter(&mut self, value: Value, filter: &FilterCall, scope: &Rc<Scope>) -> Res<Value> {
        let given = self.given(&filter.arguments, scope)?;
        filters::run(self, &filter.name, value, given)
    }

    pub fn call(&mut self, function: &Value, given: Given) -> Res<Value> {
        self.step(0)?;
        match function {
            Value::Undefined(hint) => fail(hint.to_string()),
            Value::Macro(own) => self.call_macro(own, given),
            Value::Method(bound) => methods::call(self, &bound.0, &bound.1, given),
            Value::Function(function) => functions::call(self, *function, given),
            Value::Joiner(joiner) => {
                given.bind("joiner", [])?;
                Ok(if joiner.1.replace(true) { Value::Str(Rc::clone(&joiner.0)) } else { Value::str("") })
            }
            Value::Loop(state) => {
                let Some((definition, scope)) = &state.recursive else {
                    return fail("The loop must have the 'recursive' marker to be called recursively.");
                };
                let [iterable] = given.bind("loop", ["iterable"])?;
                let items = iterable.unwrap_or(Value::None).iterate()?;
                let (definition, scope, depth) = (Arc::clone(definition), Rc::clone(scope), state.depth0 + 1);
                self.counted(|interpreter| {
                    interpreter.buffers.push(String::new());
                    let result = interpreter.for_loop(&definition, &scope, items, depth);
                    let text = interpreter.buffers.pop().unwrap_or_default();
                    result.map(|()| Value::str(text))
                })
            }
            other => fail(format!("'{}' object is not callable", other.type_name())),
        }
    }

    fn counted(&mut self, body: impl FnOnce(&mut Self) -> Res<Value>) -> Res<Value> {
        if self.calls >= MAX_CALLS {
            return Err(Error::exhausted(format!("calls nested deeper than {MAX_CALLS}")));
        }
        self.calls += 1;
        let result = body(self);
        self.calls -= 1;
        result
    }

    fn call_macro(&mut self, own: &Macro, given: Given) -> Res<Value> {
        let definition = Arc::clone(&own.definition);
        let scope = Scope::new(Some(Rc::clone(&own.scope)));
        let Given { positional, mut keyword } = given;
        let mut positional = positional.into_iter();
        let mut bound = Vec::with_capacity(definition.parameters.len());
        for (number, _) in &definition.parameters {
            let name = &self.template.names[*number as usize];
            let mut value = positional.next();
            if let Some(at) = keyword.iter().position(|(own, _)| own == name) {
                if value.is_some() {
                    return fail(format!("macro '{}' got multiple values for argument '{name}'", definition.name));
                }
                value = Some(keyword.remove(at).1);
            }
            bound.push(value);
        }
        if definition.uses_caller {
            let at = keyword.iter().position(|(name, _)| name == "caller");
            let caller = at.map(|at| keyword.remove(at).1).unwrap_or_else(|| Value::undefined("No caller defined"));
            scope.set(definition.caller_name, caller);
        }
        if definition.uses_kwargs {
            let mut dict = Dict::default();
            for (name, value) in keyword.drain(..) {
                dict.insert(Value::str(name), value);
            }
            scope.set(definition.kwargs_name, Value::Dict(Rc::new(dict)));
        } else if let Some((name, _)) = keyword.first() {
            return fail(format!("macro '{}' takes no keyword argument '{name}'", definition.name));
        }
        let rest: Vec<Value> = positional.collect();
        if definition.uses_varargs {
            scope.set(definition.varargs_name, Value::tuple(rest));
        } else if !rest.is_empty() {
            let count = definition.parameters.len();
            return fail(format!("macro '{}' takes not more than {count} argument(s)", definition.name));
        }
        self.counted(|interpreter| {
            for ((number, default), value) in definition.parameters.iter().zip(bound) {
                let value = match (value, default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => interpreter.value(default, &scope)?,
                    (None, None) => {
                        let name = &interpreter.template.names[*number as usize];
                        Value::undefined(format!("parameter '{name}' was not provided"))
                    }
                };
                scope.set(*number, value);
            }
            interpreter.capture(&definition.body, &scope).map(Value::str)
        })
    }
}
