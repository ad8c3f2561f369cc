//! Python's operators, subscripts and slices.

use std::rc::Rc;

use super::ast::{Comparison, Operator};
use super::format;
use super::value::{compare, equal, fail, hashable, Error, Res, Value};

const MAX_REPEATED: usize = 64 << 20;

fn unsupported<T>(symbol: &str, a: &Value, b: &Value) -> Res<T> {
    fail(format!("unsupported operand type(s) for {symbol}: '{}' and '{}'", a.type_name(), b.type_name()))
}

fn checked(value: Option<i128>) -> Res<Value> {
    value.map(Value::Int).ok_or_else(|| Error::new("a number of more than 127 bits"))
}

fn repeated(items: &[Value], times: usize) -> Vec<Value> {
    items.iter().cycle().take(items.len() * times).cloned().collect()
}

fn repeat(value: &Value, times: i128) -> Res<Value> {
    let times = times.clamp(0, MAX_REPEATED as i128 + 1) as usize;
    let size = match value {
        Value::Str(text) => text.len(),
        Value::List(items) | Value::Tuple(items) => items.len(),
        _ => 0,
    };
    if size.saturating_mul(times) > MAX_REPEATED {
        return Err(Error::exhausted("a repeated value is too large"));
    }
    Ok(match value {
        Value::Str(text) => Value::str(text.repeat(times)),
        Value::List(items) => Value::list(repeated(items, times)),
        Value::Tuple(items) => Value::tuple(repeated(items, times)),
        other => other.clone(),
    })
}

fn is_sequence(value: &Value) -> bool {
    matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_))
}

pub fn binary(operator: Operator, a: &Value, b: &Value) -> Res<Value> {
    a.defined()?;
    match (operator, a, b) {
        (Operator::Mod, Value::Str(text), b) => return Ok(Value::str(format::percent(text, b)?)),
        _ => b.defined()?,
    }
    match (operator, a, b) {
        (Operator::Add, Value::Str(x), Value::Str(y)) => {
            let mut text = String::with_capacity(x.len() + y.len());
            text.push_str(x);
            text.push_str(y);
            return Ok(Value::Str(text.into()));
        }
        (Operator::Add, Value::List(x), Value::List(y)) => return Ok(Value::list(x.iter().chain(y.iter()).cloned().collect())),
        (Operator::Add, Value::Tuple(x), Value::Tuple(y)) => {
            return Ok(Value::tuple(x.iter().chain(y.iter()).cloned().collect()))
        }
        (Operator::Mul, x, y) if is_sequence(x) && y.as_int().is_some() => return repeat(x, y.as_int().unwrap_or(0)),
        (Operator::Mul, x, y) if is_sequence(y) && x.as_int().is_some() => return repeat(y, x.as_int().unwrap_or(0)),
        _ => {}
    }
    let symbol = match operator {
        Operator::Add => "+",
        Operator::Sub => "-",
        Operator::Mul => "*",
        Operator::Div => "/",
        Operator::FloorDiv => "//",
        Operator::Mod => "%",
        Operator::Pow => "** or pow()",
    };
    if let (Operator::Add, Value::Str(_), other) = (operator, a, b) {
        return fail(format!("can only concatenate str (not \"{}\") to str", other.type_name()));
    }
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        match operator {
            Operator::Add => return checked(x.checked_add(y)),
            Operator::Sub => return checked(x.checked_sub(y)),
            Operator::Mul => return checked(x.checked_mul(y)),
            Operator::Div if y == 0 => return fail("division by zero"),
            Operator::Div => return Ok(Value::Float(x as f64 / y as f64)),
            Operator::FloorDiv | Operator::Mod if y == 0 => return fail("integer division or modulo by zero"),
            Operator::FloorDiv => return checked(Some(x.wrapping_div(y) - ((x.wrapping_rem(y) != 0 && (x < 0) != (y < 0)) as i128))),
            Operator::Mod => {
                let rest = x.wrapping_rem(y);
                return checked(Some(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }));
            }
            Operator::Pow if y >= 0 => return checked(u32::try_from(y).ok().and_then(|y| x.checked_pow(y))),
            Operator::Pow if x == 0 => return fail("0.0 cannot be raised to a negative power"),
            Operator::Pow => return Ok(Value::Float((x as f64).powf(y as f64))),
        }
    }
    let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else { return unsupported(symbol, a, b) };
    Ok(Value::Float(match operator {
        Operator::Add => x + y,
        Operator::Sub => x - y,
        Operator::Mul => x * y,
        Operator::Div | Operator::FloorDiv | Operator::Mod if y == 0.0 => return fail("float division by zero"),
        Operator::Div => x / y,
        Operator::FloorDiv => ((x - modulo(x, y)) / y).round(),
        Operator::Mod => modulo(x, y),
        Operator::Pow => x.powf(y),
    }))
}

fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest != 0.0 && (rest < 0.0) != (y < 0.0) {
        rest + y
    } else {
        rest
    }
}

pub fn negative(value: &Value) -> Res<Value> {
    value.defined()?;
    match value {
        Value::Float(number) => Ok(Value::Float(-number)),
        other => match other.as_int() {
            Some(number) => checked(number.checked_neg()),
            None => fail(format!("bad operand type for unary -: '{}'", other.type_name())),
        },
    }
}

pub fn positive(value: &Value) -> Res<Value> {
    value.defined()?;
    match (value, value.as_int()) {
        (Value::Float(_), _) => Ok(value.clone()),
        (_, Some(number)) => Ok(Value::Int(number)),
        _ => fail(format!("bad operand type for unary +: '{}'", value.type_name())),
    }
}

pub fn compared(comparison: Comparison, a: &Value, b: &Value) -> Res<bool> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    Ok(match comparison {
        Comparison::Eq => equal(a, b),
        Comparison::Ne => !equal(a, b),
        Comparison::Lt => compare(a, b, "<")? == Some(Less),
        Comparison::Le => matches!(compare(a, b, "<=")?, Some(Less | Equal)),
        Comparison::Gt => compare(a, b, ">")? == Some(Greater),
        Comparison::Ge => matches!(compare(a, b, ">=")?, Some(Greater | Equal)),
        Comparison::In => contains(b, a)?,
        Comparison::NotIn => !contains(b, a)?,
    })
}

pub fn contains(container: &Value, item: &Value) -> Res<bool> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => Ok(text.contains(&**part)),
            other => fail(format!("'in <string>' requires string as left operand, not {}", other.type_name())),
        },
        Value::Dict(dict) => {
            hashable(item)?;
            Ok(dict.get(item).is_some())
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(..) | Value::View(..) | Value::Undefined(_) | Value::Generator(_) => {
            Ok(container.iterate()?.iter().any(|own| equal(own, item)))
        }
        other => fail(format!("argument of type '{}' is not iterable", other.type_name())),
    }
}

/// object[key] of lists, texts, dicts; None where Python raises LookupError or TypeError.
pub fn item(object: &Value, key: &Value) -> Option<Value> {
    let at = |size: usize| -> Option<usize> {
        let index = key.as_int()?;
        let index = if index < 0 { index + size as i128 } else { index };
        usize::try_from(index).ok().filter(|index| *index < size)
    };
    match object {
        Value::Dict(dict) => dict.get(key).cloned(),
        Value::List(items) | Value::Tuple(items) => items.get(at(items.len())?).cloned(),
        Value::Str(text) if text.is_ascii() => at(text.len()).map(|index| Value::str(&text[index..index + 1])),
        Value::Str(text) => {
            let c = text.chars().nth(at(text.chars().count())?)?;
            Some(Value::str(c.encode_utf8(&mut [0; 4])))
        }
        Value::Range(start, _, step) => {
            at(object.len()?).map(|index| Value::Int(*start as i128 + index as i128 * *step as i128))
        }
        _ => None,
    }
}

pub fn slice(object: &Value, parts: [Option<Value>; 3]) -> Res<Value> {
    object.defined()?;
    let mut numbers = [None; 3];
    for (number, part) in numbers.iter_mut().zip(&parts) {
        *number = match part {
            None | Some(Value::None) => None,
            Some(value) => match value.as_int() {
                Some(number) => Some(number),
                None => {
                    value.defined()?;
                    return fail("slice indices must be integers or None or have an __index__ method");
                }
            },
        };
    }
    let Some(size) = object.len().filter(|_| is_sequence(object) || matches!(object, Value::Range(..))) else {
        return fail(format!("'{}' object is not subscriptable", object.type_name()));
    };
    if let Value::Range(start, _, step) = object {
        let (from, to, by) = slice_bounds(size as i128, numbers)?;
        let at = |index: i128| (*start as i128 + index * *step as i128).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        return Ok(Value::Range(at(from), at(to), (*step).saturating_mul(by.clamp(-1 << 40, 1 << 40) as i64)));
    }
    let indices = slice_indices(size as i128, numbers)?;
    Ok(match object {
        Value::Str(text) => {
            let chars: Vec<char> = text.chars().collect();
            Value::str(indices.map(|index| chars[index]).collect::<String>())
        }
        Value::Tuple(items) => Value::tuple(indices.map(|index| items[index].clone()).collect()),
        other => {
            let items: Rc<Vec<Value>> = other.iterate()?;
            Value::list(indices.map(|index| items[index].clone()).collect())
        }
    })
}

/// slice.indices()
fn slice_bounds(size: i128, [start, stop, step]: [Option<i128>; 3]) -> Res<(i128, i128, i128)> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let bound = |value: Option<i128>, default: i128| match value {
        None => default,
        Some(value) => {
            let value = if value < 0 { value.saturating_add(size) } else { value };
            if step > 0 {
                value.clamp(0, size)
            } else {
                value.clamp(-1, size - 1)
            }
        }
    };
    let start = bound(start, if step > 0 { 0 } else { size - 1 });
    let stop = bound(stop, if step > 0 { size } else { -1 });
    Ok((start, stop, step))
}

fn slice_indices(size: i128, parts: [Option<i128>; 3]) -> Res<impl Iterator<Item = usize>> {
    let (start, stop, step) = slice_bounds(size, parts)?;
    let mut at = start;
    Ok(std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        if !inside {
            return None;
        }
        let index = at as usize;
        at = at.saturating_add(step);
        Some(index)
    }))
}
