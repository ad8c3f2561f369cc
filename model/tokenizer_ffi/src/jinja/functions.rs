//! The global functions of Jinja2 and of transformers.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::rc::Rc;

use chrono::DateTime;

use super::eval::{Given, Interpreter};
use super::print::to_str;
use super::value::{fail, hashable, Dict, Function, Res, Value};

const MAX_RANGE: usize = 100_000;

pub fn global(name: &str) -> Option<Function> {
    Some(match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        _ => return None,
    })
}

fn dict(given: Given) -> Res<Dict> {
    let mut dict = Dict::default();
    if given.positional.len() > 1 {
        return fail(format!("dict expected at most 1 argument, got {}", given.positional.len()));
    }
    match given.positional.first() {
        None => {}
        Some(Value::Dict(other)) => other.entries.iter().for_each(|(key, value)| dict.insert(key.clone(), value.clone())),
        Some(pairs) => {
            for pair in pairs.iterate()?.iter() {
                let pair = pair.iterate()?;
                let [key, value] = pair.as_slice() else { return fail("dictionary update sequence element is no pair") };
                hashable(key)?;
                dict.insert(key.clone(), value.clone());
            }
        }
    }
    for (name, value) in given.keyword {
        dict.insert(Value::str(name), value);
    }
    Ok(dict)
}

pub fn call(interpreter: &mut Interpreter, function: Function, given: Given) -> Res<Value> {
    match function {
        Function::Range => {
            let [first, second, step] = given.bind("range", ["start", "stop", "step"])?;
            let whole = |value: &Value| match value.as_int().and_then(|number| i64::try_from(number).ok()) {
                Some(number) => Ok(number),
                None => {
                    value.defined()?;
                    fail(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
                }
            };
            let Some(first) = first else { return fail("range expected at least 1 argument, got 0") };
            let first = whole(&first)?;
            let (start, stop) = match second {
                Some(stop) => (first, whole(&stop)?),
                None => (0, first),
            };
            let step = step.map_or(Ok(1), |step| whole(&step))?;
            if step == 0 {
                return fail("range() arg 3 must not be zero");
            }
            let range = Value::Range(start, stop, step);
            if range.len().unwrap_or(0) > MAX_RANGE {
                return fail(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."));
            }
            Ok(range)
        }
        Function::Dict => Ok(Value::Dict(Rc::new(dict(given)?))),
        Function::Namespace => Ok(Value::Namespace(Rc::new(RefCell::new(dict(given)?)))),
        Function::Cycler => {
            if given.positional.is_empty() {
                return fail("at least one item has to be provided");
            }
            Ok(Value::Cycler(Rc::new((given.positional, Cell::new(0)))))
        }
        Function::Joiner => {
            let [separator] = given.bind("joiner", ["sep"])?;
            let separator = separator.map_or(Ok(", ".into()), |separator| to_str(&separator))?;
            Ok(Value::Joiner(Rc::new((separator.into(), Cell::new(false)))))
        }
        Function::RaiseException => {
            let [message] = given.bind("raise_exception", ["message"])?;
            match message {
                Some(message) => fail(to_str(&message)?),
                None => fail("raise_exception() missing 1 required positional argument: 'message'"),
            }
        }
        Function::StrftimeNow => {
            let [format] = given.bind("strftime_now", ["format"])?;
            let Some(Value::Str(format)) = &format else { return fail("strftime_now: no format") };
            let Some(now) = DateTime::from_timestamp(interpreter.now, 0) else { return fail("strftime_now: no such time") };
            let mut text = String::new();
            if write!(text, "{}", now.format(format)).is_err() {
                return fail(format!("strftime_now: bad format {format:?}"));
            }
            Ok(Value::str(text))
        }
    }
}
