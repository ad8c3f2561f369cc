//! str(), repr() and json.dumps() of Python.

use super::lexer::is_space;
use super::value::{compare, fail, Depth, Res, Value};

/// repr(float): the shortest digits, an exponent below 1e-4 and from 1e16.
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        return exponent(&format!("{number:e}"));
    }
    let text = format!("{number}");
    if text.contains('.') {
        text
    } else {
        text + ".0"
    }
}

/// 1e5 as Python writes it: 1e+05.
pub fn exponent(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

pub fn write_str(value: &Value, out: &mut String) -> Res<()> {
    match value {
        Value::Str(text) => out.push_str(text),
        Value::Undefined(_) => {}
        other => write_repr(other, out)?,
    }
    Ok(())
}

pub fn to_str(value: &Value) -> Res<String> {
    let mut out = String::new();
    write_str(value, &mut out)?;
    Ok(out)
}

pub fn repr(value: &Value) -> Res<String> {
    let mut out = String::new();
    write_repr(value, &mut out)?;
    Ok(out)
}

fn write_items<'a>(items: impl Iterator<Item = &'a Value>, out: &mut String) -> Res<()> {
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(item, out)?;
    }
    Ok(())
}

fn write_repr(value: &Value, out: &mut String) -> Res<()> {
    let _depth = Depth::enter();
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(flag) => out.push_str(if *flag { "True" } else { "False" }),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&float(*number)),
        Value::Str(text) => repr_string(text, out),
        Value::List(items) => {
            out.push('[');
            write_items(items.iter(), out)?;
            out.push(']');
        }
        Value::Tuple(items) => {
            out.push('(');
            write_items(items.iter(), out)?;
            out.push_str(if items.len() == 1 { ",)" } else { ")" });
        }
        Value::Dict(dict) => {
            out.push('{');
            for (index, (key, value)) in dict.entries.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(key, out)?;
                out.push_str(": ");
                write_repr(value, out)?;
            }
            out.push('}');
        }
        Value::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
        Value::Range(start, stop, step) => out.push_str(&format!("range({start}, {stop}, {step})")),
        Value::View(..) => {
            out.push_str(value.type_name());
            out.push_str("([");
            write_items(value.iterate()?.iter(), out)?;
            out.push_str("])");
        }
        Value::Namespace(dict) => {
            out.push_str("<Namespace {");
            for (index, (key, value)) in dict.borrow().entries.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(key, out)?;
                out.push_str(": ");
                match value {
                    Value::Namespace(_) => out.push_str("<Namespace ...>"),
                    value => write_repr(value, out)?,
                }
            }
            out.push_str("}>");
        }
        Value::Macro(own) => out.push_str(&format!("<Macro '{}'>", own.definition.name)),
        Value::Loop(state) => {
            out.push_str(&format!("<LoopContext {}/{}>", state.index0.get() + 1, state.items.len()));
        }
        // Python prints an address.
        other => return fail(format!("a {} cannot be printed", other.type_name())),
    }
    Ok(())
}

fn is_printable(c: char) -> bool {
    use std::sync::OnceLock;
    static UNPRINTABLE: OnceLock<regex::Regex> = OnceLock::new();
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let pattern = UNPRINTABLE.get_or_init(|| regex::Regex::new(r"^[\p{C}\p{Z}]$").expect("a valid pattern"));
    !pattern.is_match(c.encode_utf8(&mut [0; 4]))
}

pub fn all_printable(text: &str) -> bool {
    text.chars().all(is_printable)
}

fn repr_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
}

pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

pub fn write_json(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Res<()> {
    if depth > 900 {
        return fail("tojson: nested too deep");
    }
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&json_float(*number)),
        Value::Str(text) => json_string(text, style.ensure_ascii, out),
        Value::List(items) | Value::Tuple(items) => {
            if items.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(style, index > 0, depth + 1, out);
                write_json(item, style, depth + 1, out)?;
            }
            close(style, depth, ']', out);
        }
        Value::Dict(dict) => {
            if dict.entries.is_empty() {
                out.push_str("{}");
                return Ok(());
            }
            let mut entries: Vec<_> = dict.entries.iter().collect();
            if style.sort_keys {
                let mut failure = None;
                entries.sort_by(|a, b| match compare(&a.0, &b.0, "<") {
                    Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
                    Err(error) => {
                        failure = Some(error);
                        std::cmp::Ordering::Equal
                    }
                });
                if let Some(error) = failure {
                    return Err(error);
                }
            }
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                separate(style, index > 0, depth + 1, out);
                match key {
                    Value::Str(text) => json_string(text, style.ensure_ascii, out),
                    Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                        out.push('"');
                        write_json(key, style, depth, out)?;
                        out.push('"');
                    }
                    other => {
                        return fail(format!(
                            "keys must be str, int, float, bool or None, not {}",
                            other.type_name()
                        ))
                    }
                }
                out.push_str(&style.key_separator);
                write_json(value, style, depth + 1, out)?;
            }
            close(style, depth, '}', out);
        }
        other => return fail(format!("Object of type {} is not JSON serializable", other.type_name())),
    }
    Ok(())
}

fn json_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    float(number)
}

fn separate(style: &JsonStyle, after_another: bool, depth: usize, out: &mut String) {
    if after_another {
        out.push_str(&style.item_separator);
    }
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn close(style: &JsonStyle, depth: usize, bracket: char, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
    out.push(bracket);
}

fn json_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && (c as u32) > 0x7e) => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// str.splitlines(): without the ends of lines.
pub fn split_lines(text: &str, keep_ends: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let ends = matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
        if !ends {
            line.push(c);
            continue;
        }
        if keep_ends {
            line.push(c);
        }
        if c == '\r' && chars.peek() == Some(&'\n') {
            chars.next();
            if keep_ends {
                line.push('\n');
            }
        }
        lines.push(std::mem::take(&mut line));
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// str.split()
pub fn words(text: &str) -> Vec<&str> {
    text.split(is_space).filter(|word| !word.is_empty()).collect()
}
