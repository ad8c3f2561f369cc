//! Jinja2's filters, with transformers' tojson.

use super::ast::Operator;
use super::eval::{Given, Interpreter};
use super::lexer::is_space;
use super::print::{repr, split_lines, to_str, write_json, JsonStyle};
use super::sequence_filters;
use super::text_methods;
use super::value::{fail, Error, Res, Value};
use super::{format, methods, ops};

const NAMES: [&str; 51] = [
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max",
    "min", "pprint", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort",
    "string", "striptags", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
    "wordwrap", "random",
];

const MAX_INDENT: i128 = 1 << 16;

pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

fn flag(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.is_true())
}

pub fn whole(value: Option<Value>, default: i128, what: &str) -> Res<i128> {
    match value {
        None => Ok(default),
        Some(value) => {
            value.defined()?;
            value.as_int().ok_or_else(|| Error::new(format!("{what}: an integer is needed, not {}", value.type_name())))
        }
    }
}

fn text(value: Option<Value>, default: &str) -> Res<String> {
    value.map_or_else(|| Ok(default.to_string()), |value| to_str(&value))
}

/// Runs a filter by its name, also one named in map().
pub fn run(interpreter: &mut Interpreter, name: &str, value: Value, given: Given) -> Res<Value> {
    interpreter.step(value.len().unwrap_or(0) / 64)?;
    if let Some(result) = sequence_filters::run(interpreter, name, &value, &given)? {
        return Ok(result);
    }
    match name {
        "upper" | "lower" | "capitalize" | "title" | "e" | "escape" | "forceescape" | "safe" | "string" | "wordcount"
        | "striptags" | "abs" | "pprint" | "random" => {
            given.bind(name, [])?;
            plain(name, value)
        }
        "default" | "d" => {
            let [default, boolean] = given.bind(name, ["default_value", "boolean"])?;
            if value.is_undefined() || (flag(boolean, false) && !value.is_true()) {
                return Ok(default.unwrap_or_else(|| Value::str("")));
            }
            Ok(value)
        }
        "tojson" => tojson(&value, given),
        "trim" => {
            let [characters] = given.bind(name, ["chars"])?;
            let own = to_str(&value)?;
            Ok(Value::str(text_methods::strip(&own, characters)?))
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else { return fail("replace: needs what to replace and with what") };
            let count = match count {
                Some(Value::None) | None => -1,
                count => whole(count, -1, name)?,
            };
            Ok(Value::str(text_methods::replace(&to_str(&value)?, &to_str(&old)?, &to_str(&new)?, count)))
        }
        "indent" => indent(&value, given),
        "truncate" => truncate(&value, given),
        "center" => {
            let [width] = given.bind(name, ["width"])?;
            let given = Given { positional: vec![width.unwrap_or(Value::Int(80))], keyword: Vec::new() };
            text_methods::padded(&to_str(&value)?, name, given)
        }
        "wordwrap" => {
            let [width, _, separator, _] = given.bind(name, ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
            let width = whole(width, 79, name)?.clamp(1, 1 << 20) as usize;
            let separator = text(separator, "\n")?;
            let lines = split_lines(&to_str(&value)?, false);
            let lines: Vec<String> = lines.iter().map(|line| text_methods::wrapped(line, width, &separator)).collect();
            Ok(Value::str(lines.join(&separator)))
        }
        "format" => {
            if !given.positional.is_empty() && !given.keyword.is_empty() {
                return fail("can't handle positional and keyword arguments at the same time");
            }
            let arguments = if given.keyword.is_empty() {
                Value::tuple(given.positional)
            } else {
                super::functions::call(interpreter, super::value::Function::Dict, given)?
            };
            Ok(Value::str(format::percent(&to_str(&value)?, &arguments)?))
        }
        "int" => to_int(&value, given),
        "float" => {
            let [default] = given.bind(name, ["default"])?;
            let default = default.unwrap_or(Value::Float(0.0));
            value_or(&value, default, |value| match value {
                Value::Str(text) => parse_float(text).map(Value::Float),
                other => other.as_float().map(Value::Float),
            })
        }
        "round" => round(&value, given),
        "attr" => {
            let [attribute] = given.bind(name, ["name"])?;
            let attribute = text(attribute, "")?;
            // The attribute only, never the item.
            match (&value, methods::has(&value, &attribute)) {
                (Value::Dict(_), false) => Ok(Value::undefined(format!("'dict object' has no attribute '{attribute}'"))),
                _ => methods::attribute(&value, &attribute),
            }
        }
        "urlencode" => {
            given.bind(name, [])?;
            urlencode(&value)
        }
        other => fail(format!("No filter named '{other}'.")),
    }
}

fn plain(name: &str, value: Value) -> Res<Value> {
    if name == "abs" {
        value.defined()?;
        return match (&value, value.as_int()) {
            (Value::Float(number), _) => Ok(Value::Float(number.abs())),
            (_, Some(number)) => Ok(Value::Int(number.abs())),
            _ => fail(format!("bad operand type for abs(): '{}'", value.type_name())),
        };
    }
    if name == "safe" || name == "string" {
        return Ok(Value::str(to_str(&value)?));
    }
    let own = to_str(&value)?;
    Ok(match name {
        "upper" => Value::str(own.to_uppercase()),
        "lower" => Value::str(own.to_lowercase()),
        "capitalize" => Value::str(text_methods::capitalize(&own)),
        "title" => {
            let mut out = String::new();
            let mut first = true;
            for c in own.chars() {
                let boundary = is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
                if boundary {
                    out.push(c);
                } else if first {
                    out.extend(c.to_uppercase());
                } else {
                    out.extend(c.to_lowercase());
                }
                first = boundary;
            }
            Value::str(out)
        }
        "e" | "escape" | "forceescape" => {
            let escaped = own.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            Value::str(escaped.replace('\'', "&#39;").replace('"', "&#34;"))
        }
        "wordcount" => Value::Int(text_methods::word_count(&own) as i128),
        "pprint" => Value::str(repr(&value)?),
        "striptags" => {
            let tags = regex::Regex::new(r"(?s)<!--.*?-->|<.*?>").expect("a valid pattern");
            let without = tags.replace_all(&own, "").into_owned();
            let text = super::print::words(&without).join(" ");
            let entities = [("&lt;", "<"), ("&gt;", ">"), ("&#39;", "'"), ("&#34;", "\""), ("&quot;", "\""), ("&amp;", "&")];
            Value::str(entities.iter().fold(text, |text, (entity, c)| text.replace(entity, c)))
        }
        _ => return fail("random: a chat template must give the same text every time"),
    })
}

fn tojson(value: &Value, given: Given) -> Res<Value> {
    let [ensure_ascii, indent, separators, sort_keys] =
        given.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match &indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(other) => Some(" ".repeat(whole(Some(other.clone()), 0, "tojson: indent")?.clamp(0, 1000) as usize)),
    };
    let (item_separator, key_separator) = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some(pair) => match pair.iterate()?.as_slice() {
            [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
            _ => return fail("tojson: separators must be a pair of strings"),
        },
    };
    let style = JsonStyle {
        ensure_ascii: flag(ensure_ascii, false),
        indent,
        item_separator,
        key_separator,
        sort_keys: flag(sort_keys, false),
    };
    let mut out = String::new();
    write_json(value, &style, 0, &mut out)?;
    Ok(Value::str(out))
}

fn indent(value: &Value, given: Given) -> Res<Value> {
    let [width, first, blank] = given.bind("indent", ["width", "first", "blank"])?;
    let indention = match &width {
        Some(Value::Str(text)) => text.to_string(),
        width => match whole(width.clone(), 4, "indent")? {
            width if width > MAX_INDENT => return Err(Error::exhausted("an indent is too wide")),
            width => " ".repeat(width.max(0) as usize),
        },
    };
    let lines = split_lines(&(to_str(value)? + "\n"), false);
    let blank = flag(blank, false);
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indention);
            }
        } else if flag(first.clone(), false) {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::str(out))
}

fn truncate(value: &Value, given: Given) -> Res<Value> {
    let [length, killwords, end, leeway] = given.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = whole(length, 255, "truncate")?;
    let end = text(end, "...")?;
    let leeway = match leeway {
        Some(Value::None) | None => 5,
        leeway => whole(leeway, 5, "truncate")?,
    };
    let end_size = end.chars().count() as i128;
    if length < end_size {
        return fail(format!("expected length >= {end_size}, got {length}"));
    }
    if leeway < 0 {
        return fail(format!("expected leeway >= 0, got {leeway}"));
    }
    let own = to_str(value)?;
    if own.chars().count() as i128 <= length + leeway {
        return Ok(Value::str(own));
    }
    let cut: String = own.chars().take((length - end_size) as usize).collect();
    if flag(killwords, false) {
        return Ok(Value::str(cut + &end));
    }
    let at = cut.rfind(' ').unwrap_or(cut.len());
    Ok(Value::str(cut[..at].to_string() + &end))
}

fn value_or(value: &Value, default: Value, convert: impl Fn(&Value) -> Option<Value>) -> Res<Value> {
    value.defined()?;
    Ok(convert(value).unwrap_or(default))
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    if text.contains("__") || text.starts_with('_') || text.ends_with('_') {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (if text.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, text),
    };
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let lower = digits.to_ascii_lowercase();
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    if digits.contains("__") || digits.starts_with('_') || digits.ends_with('_') || digits.starts_with(['-', '+']) {
        return None;
    }
    i128::from_str_radix(&digits.replace('_', ""), base).ok().map(|number| sign * number)
}

fn to_int(value: &Value, given: Given) -> Res<Value> {
    let [default, base] = given.bind("int", ["default", "base"])?;
    let base = whole(base, 10, "int")?;
    let Some(base) = u32::try_from(base).ok().filter(|base| (2..=36).contains(base)) else {
        return fail("int: base must be between 2 and 36");
    };
    let truncated = |number: f64| (number.is_finite() && number.abs() < 1e37).then(|| Value::Int(number.trunc() as i128));
    value_or(value, default.unwrap_or(Value::Int(0)), |value| match value {
        Value::Str(text) => match parse_int(text, base) {
            Some(number) => Some(Value::Int(number)),
            None => parse_float(text).and_then(truncated),
        },
        Value::Float(number) => truncated(*number),
        other => other.as_int().map(Value::Int),
    })
}

fn round(value: &Value, given: Given) -> Res<Value> {
    let [precision, method] = given.bind("round", ["precision", "method"])?;
    let precision = whole(precision, 0, "round")?.clamp(-300, 300) as i32;
    let method = text(method, "common")?;
    value.defined()?;
    let Some(number) = value.as_float() else {
        return fail(format!("type {} doesn't define __round__ method", value.type_name()));
    };
    match method.as_str() {
        "common" => {
            if let Some(whole) = value.as_int() {
                if precision >= 0 {
                    return Ok(Value::Int(whole));
                }
                let unit = ops::binary(Operator::Pow, &Value::Int(10), &Value::Int((-precision).into()))?;
                let unit = unit.as_int().unwrap_or(1);
                let (quotient, rest) = (whole.div_euclid(unit), whole.rem_euclid(unit));
                let up = rest * 2 > unit || (rest * 2 == unit && quotient % 2 != 0);
                return Ok(Value::Int((quotient + up as i128) * unit));
            }
            if precision >= 0 {
                // The decimal expansion is exact, so this rounds as Python does.
                return Ok(Value::Float(format!("{number:.*}", precision as usize).parse().unwrap_or(number)));
            }
            let unit = 10f64.powi(-precision);
            Ok(Value::Float((number / unit).round_ties_even() * unit))
        }
        "ceil" | "floor" => {
            let unit = 10f64.powi(precision);
            let scaled = number * unit;
            let rounded = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
            Ok(Value::Float(rounded / unit))
        }
        _ => fail("method must be common, ceil or floor"),
    }
}

fn urlencode(value: &Value) -> Res<Value> {
    let quote = |text: &str, path: bool| -> String {
        let mut out = String::new();
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || (path && byte == b'/') {
                out.push(byte as char);
            } else if byte == b' ' && !path {
                out.push('+');
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    };
    let pairs = match value {
        Value::Dict(dict) => Value::View(super::value::View::Items, std::rc::Rc::clone(dict)).iterate()?,
        Value::List(items) | Value::Tuple(items) => std::rc::Rc::clone(items),
        other => return Ok(Value::str(quote(&to_str(other)?, true))),
    };
    let mut parts = Vec::new();
    for pair in pairs.iter() {
        let pair = pair.iterate()?;
        let [key, value] = pair.as_slice() else { return fail("urlencode: not a list of pairs") };
        parts.push(format!("{}={}", quote(&to_str(key)?, false), quote(&to_str(value)?, false)));
    }
    Ok(Value::str(parts.join("&")))
}
