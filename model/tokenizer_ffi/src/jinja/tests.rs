//! `is ...`

use super::ast::Comparison;
use super::eval::Given;
use super::ops;
use super::value::{fail, Res, Value};

const NAMES: [&str; 38] = [
    "odd", "even", "divisibleby", "defined", "undefined", "filter", "test", "none", "boolean", "false", "true", "integer",
    "float", "lower", "upper", "string", "mapping", "number", "sequence", "iterable", "callable", "sameas", "escaped", "in",
    "eq", "equalto", "ne", "gt", "greaterthan", "ge", "lt", "lessthan", "le", "==", "!=", ">", "<", ">=",
];

pub fn exists(name: &str) -> bool {
    NAMES.contains(&name) || name == "<="
}

pub fn run(name: &str, value: &Value, given: Given) -> Res<bool> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Eq),
        "ne" | "!=" => Some(Comparison::Ne),
        "gt" | "greaterthan" | ">" => Some(Comparison::Gt),
        "ge" | ">=" => Some(Comparison::Ge),
        "lt" | "lessthan" | "<" => Some(Comparison::Lt),
        "le" | "<=" => Some(Comparison::Le),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if comparison.is_some() || matches!(name, "divisibleby" | "sameas") {
        let [other] = given.bind(name, ["other"])?;
        let Some(other) = other else { return fail(format!("{name}() missing 1 required positional argument")) };
        return match comparison {
            Some(comparison) => ops::compared(comparison, value, &other),
            None if name == "sameas" => Ok(same(value, &other)),
            None => remainder(value, &other).map(|rest| rest == 0.0),
        };
    }
    given.bind(name, [])?;
    Ok(match name {
        "odd" => remainder(value, &Value::Int(2))? == 1.0,
        "even" => remainder(value, &Value::Int(2))? == 0.0,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.as_str().is_some_and(super::filters::exists),
        "test" => value.as_str().is_some_and(exists),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "lower" | "upper" => {
            let text = super::print::to_str(value)?;
            let cased = text.chars().any(|c| c.is_lowercase() || c.is_uppercase());
            cased && !text.chars().any(|c| if name == "lower" { c.is_uppercase() } else { c.is_lowercase() })
        }
        // Whatever has a length and can be subscripted; a missing value has the first and refuses the second.
        "sequence" => match value {
            Value::Undefined(_) => true,
            other => matches!(other, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Range(..)),
        },
        "iterable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(..)
                | Value::View(..)
                | Value::Generator(_)
                | Value::Loop(_)
        ),
        "callable" => matches!(
            value,
            Value::Macro(_) | Value::Method(_) | Value::Function(_) | Value::Loop(_) | Value::Joiner(_) | Value::Undefined(_)
        ),
        "escaped" => false,
        _ => return fail(format!("No test named '{name}'.")),
    })
}

fn remainder(value: &Value, by: &Value) -> Res<f64> {
    match ops::binary(super::ast::Operator::Mod, value, by)? {
        Value::Int(rest) => Ok(rest as f64),
        Value::Float(rest) => Ok(rest),
        _ => Ok(f64::NAN),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Bool(x), Value::Bool(y)) => x == y,
        (Value::Int(x), Value::Int(y)) => x == y && (-5..=256).contains(x),
        (Value::None, Value::None) => true,
        (Value::Str(x), Value::Str(y)) => std::rc::Rc::ptr_eq(x, y),
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => std::rc::Rc::ptr_eq(x, y),
        (Value::Dict(x), Value::Dict(y)) => std::rc::Rc::ptr_eq(x, y),
        _ => false,
    }
}
