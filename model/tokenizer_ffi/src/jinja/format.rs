//! text % values and str.format().

use super::ops;
use super::print::{exponent, repr, to_str};
use super::value::{fail, Error, Res, Value};

const MAX_WIDTH: usize = 1 << 20;

struct Spec {
    fill: char,
    align: Option<char>, // < > ^ =
    sign: Option<char>,
    alternate: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: char, // ' ': none given
}

fn pad(body: String, sign_size: usize, spec: &Spec, default: char) -> String {
    let size = body.chars().count();
    let missing = spec.width.saturating_sub(size);
    let fill = |count: usize| spec.fill.to_string().repeat(count);
    match spec.align.unwrap_or(default) {
        '<' => body + &fill(missing),
        '^' => fill(missing / 2) + &body + &fill(missing - missing / 2),
        '=' => {
            let (sign, rest) = body.split_at(sign_size);
            format!("{sign}{}{rest}", fill(missing))
        }
        _ => fill(missing) + &body,
    }
}

fn grouped(digits: &str, separator: char) -> String {
    let mut out = String::new();
    for (index, c) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

fn general(magnitude: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let scientific = format!("{magnitude:.*e}", precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let (mut digits, power) = if power < -4 || power >= precision as i32 {
        let text = exponent(&scientific);
        let (digits, power) = text.split_once('e').unwrap_or((&text, ""));
        (digits.to_string(), format!("e{power}"))
    } else {
        (format!("{magnitude:.*}", (precision as i32 - 1 - power).max(0) as usize), String::new())
    };
    if !alternate && digits.contains('.') {
        digits = digits.trim_end_matches('0').trim_end_matches('.').to_string();
    }
    digits + &power
}

fn number(value: &Value, spec: &Spec) -> Res<String> {
    let upper = spec.kind.is_ascii_uppercase();
    let (negative, mut digits) = match spec.kind.to_ascii_lowercase() {
        'd' | 'i' | 'u' | 'x' | 'o' | 'b' => {
            let whole = match value {
                Value::Float(number) if matches!(spec.kind, 'd' | 'i' | 'u') && number.is_finite() => number.trunc() as i128,
                other => match other.as_int() {
                    Some(whole) => whole,
                    None => return fail(format!("%{} format: a real number is required, not {}", spec.kind, other.type_name())),
                },
            };
            let magnitude = whole.unsigned_abs();
            let digits = match spec.kind.to_ascii_lowercase() {
                'x' => format!("{}{magnitude:x}", if spec.alternate { "0x" } else { "" }),
                'o' => format!("{}{magnitude:o}", if spec.alternate { "0o" } else { "" }),
                'b' => format!("{}{magnitude:b}", if spec.alternate { "0b" } else { "" }),
                _ => magnitude.to_string(),
            };
            (whole < 0, digits)
        }
        kind => {
            let Some(real) = value.as_float() else {
                return fail(format!("must be real number, not {}", value.type_name()));
            };
            let magnitude = real.abs();
            let precision = spec.precision.unwrap_or(6);
            let digits = if !real.is_finite() {
                if real.is_nan() { "nan".to_string() } else { "inf".to_string() }
            } else {
                match kind {
                    'e' => exponent(&format!("{magnitude:.precision$e}")),
                    'f' => format!("{magnitude:.precision$}"),
                    '%' => format!("{:.precision$}%", magnitude * 100.0),
                    _ => general(magnitude, precision, spec.alternate),
                }
            };
            (real.is_sign_negative() && !real.is_nan(), digits)
        }
    };
    if let Some(separator) = spec.group {
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits = grouped(&digits[..end], separator) + &digits[end..];
    }
    if upper {
        digits = digits.to_uppercase();
    }
    let sign = if negative { "-" } else { spec.sign.map_or("", |sign| if sign == '+' { "+" } else { " " }) };
    Ok(pad(format!("{sign}{digits}"), sign.len(), spec, '>'))
}

/// text % value
pub fn percent(text: &str, value: &Value) -> Res<String> {
    let single = [value.clone()];
    let (items, mapping): (&[Value], bool) = match value {
        Value::Tuple(items) => (items, false),
        Value::Dict(_) => (&single, true),
        _ => (&single, false),
    };
    let mut used = 0;
    let mut named = false;
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut key = None;
        if chars.peek() == Some(&'(') {
            chars.next();
            let mut name = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some(c) => name.push(c),
                    None => return fail("incomplete format key"),
                }
            }
            if !mapping {
                return fail("format requires a mapping");
            }
            key = Some(name);
        }
        let mut spec =
            Spec { fill: ' ', align: None, sign: None, alternate: false, width: 0, group: None, precision: None, kind: ' ' };
        while let Some(flag) = chars.peek().copied().filter(|c| matches!(c, '-' | '+' | ' ' | '0' | '#')) {
            chars.next();
            match flag {
                '-' => spec.align = Some('<'),
                '0' if spec.align.is_none() => {
                    spec.fill = '0';
                    spec.align = Some('=');
                }
                '#' => spec.alternate = true,
                '0' => {}
                sign if sign == '+' || spec.sign.is_none() => spec.sign = Some(sign),
                _ => {}
            }
        }
        if spec.align == Some('<') {
            spec.fill = ' ';
        }
        let mut take = |used: &mut usize| -> Res<Value> {
            let value = items.get(*used).cloned().ok_or_else(|| Error::new("not enough arguments for format string"))?;
            *used += 1;
            Ok(value)
        };
        let mut width = |used: &mut usize, take: &mut dyn FnMut(&mut usize) -> Res<Value>| -> Res<Option<i128>> {
            if chars.peek() == Some(&'*') {
                chars.next();
                return take(used)?.as_int().map(Some).ok_or_else(|| Error::new("* wants int"));
            }
            let mut number = None;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                number = Some((number.unwrap_or(0i128) * 10 + digit as i128).min(1 << 40));
            }
            Ok(number)
        };
        let given = width(&mut used, &mut take)?.unwrap_or(0);
        if given < 0 {
            spec.align = Some('<');
        }
        spec.width = bounded(given.abs())?;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut number = 0i128;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                number = (number * 10 + digit as i128).min(1 << 40);
            }
            spec.precision = Some(bounded(number)?);
        }
        while matches!(chars.peek(), Some('h' | 'l' | 'L')) {
            chars.next();
        }
        let Some(kind) = chars.next() else { return fail("incomplete format") };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let item = match &key {
            Some(name) => {
                named = true;
                match ops::item(value, &Value::str(name)) {
                    Some(item) => item,
                    None => return fail(format!("KeyError: {name}")),
                }
            }
            None => take(&mut used)?,
        };
        spec.kind = kind;
        match kind {
            's' | 'r' | 'a' => {
                let text = if kind == 's' { to_str(&item)? } else { repr(&item)? };
                let text = match spec.precision {
                    Some(precision) => text.chars().take(precision).collect(),
                    None => text,
                };
                spec.fill = ' ';
                if spec.align == Some('=') {
                    spec.align = None;
                }
                out.push_str(&pad(text, 0, &spec, '>'));
            }
            'c' => {
                let c = match &item {
                    Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                    other => match other.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32) {
                        Some(c) => c.to_string(),
                        None => return fail("%c requires int or char"),
                    },
                };
                out.push_str(&pad(c, 0, &spec, '>'));
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                item.defined()?;
                out.push_str(&number(&item, &spec)?);
            }
            other => return fail(format!("unsupported format character '{other}'")),
        }
    }
    if !named && !mapping && used < items.len() && !matches!(value, Value::List(_)) {
        return fail("not all arguments converted during string formatting");
    }
    Ok(out)
}

fn bounded(width: i128) -> Res<usize> {
    usize::try_from(width).ok().filter(|width| *width <= MAX_WIDTH).ok_or_else(|| Error::exhausted("a format width is too large"))
}

fn parse_spec(text: &str) -> Res<Spec> {
    let mut chars: Vec<char> = text.chars().collect();
    let mut spec = Spec { fill: ' ', align: None, sign: None, alternate: false, width: 0, group: None, precision: None, kind: ' ' };
    let is_align = |c: &char| matches!(c, '<' | '>' | '^' | '=');
    if chars.get(1).is_some_and(is_align) {
        spec.fill = chars[0];
        spec.align = Some(chars[1]);
        chars.drain(..2);
    } else if chars.first().is_some_and(is_align) {
        spec.align = Some(chars.remove(0));
    }
    let mut at = 0;
    if let Some(sign) = chars.get(at).filter(|c| matches!(c, '+' | '-' | ' ')) {
        spec.sign = Some(*sign).filter(|sign| *sign != '-');
        at += 1;
    }
    if chars.get(at) == Some(&'#') {
        spec.alternate = true;
        at += 1;
    }
    if chars.get(at) == Some(&'0') && spec.align.is_none() {
        spec.fill = '0';
        spec.align = Some('=');
        at += 1;
    }
    let number = |at: &mut usize| {
        let mut number = None;
        while let Some(digit) = chars.get(*at).and_then(|c| c.to_digit(10)) {
            number = Some((number.unwrap_or(0i128) * 10 + digit as i128).min(1 << 40));
            *at += 1;
        }
        number
    };
    spec.width = bounded(number(&mut at).unwrap_or(0))?;
    if let Some(group) = chars.get(at).filter(|c| matches!(c, ',' | '_')) {
        spec.group = Some(*group);
        at += 1;
    }
    if chars.get(at) == Some(&'.') {
        at += 1;
        spec.precision = Some(bounded(number(&mut at).ok_or_else(|| Error::new("Format specifier missing precision"))?)?);
    }
    if let Some(kind) = chars.get(at) {
        spec.kind = *kind;
        at += 1;
    }
    if at < chars.len() {
        return fail(format!("Invalid format specifier '{text}'"));
    }
    Ok(spec)
}

fn formatted(value: &Value, spec_text: &str) -> Res<String> {
    if spec_text.is_empty() {
        return to_str(value);
    }
    let mut spec = parse_spec(spec_text)?;
    match value {
        Value::Str(text) => {
            if !matches!(spec.kind, ' ' | 's') || spec.align == Some('=') || spec.sign.is_some() || spec.group.is_some() {
                return fail(format!("Invalid format specifier '{spec_text}' for object of type 'str'"));
            }
            let text = match spec.precision {
                Some(precision) => text.chars().take(precision).collect(),
                None => text.to_string(),
            };
            Ok(pad(text, 0, &spec, '<'))
        }
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            match (spec.kind, value) {
                (' ', Value::Float(real)) if spec.precision.is_none() => {
                    let text = super::print::float(real.abs());
                    let end = text.find('.').unwrap_or(text.len());
                    let text = match spec.group {
                        Some(separator) => grouped(&text[..end], separator) + &text[end..],
                        None => text,
                    };
                    let sign = if real.is_sign_negative() { "-" } else { spec.sign.map_or("", |sign| if sign == '+' { "+" } else { " " }) };
                    return Ok(pad(format!("{sign}{text}"), sign.len(), &spec, '>'));
                }
                (' ', Value::Float(_)) => spec.kind = 'g',
                ('n', Value::Float(_)) => spec.kind = 'g',
                (' ' | 'n', _) => spec.kind = 'd',
                ('d' | 'x' | 'X' | 'o' | 'b', Value::Float(_)) => {
                    return fail(format!("Unknown format code '{}' for object of type 'float'", spec.kind))
                }
                ('d' | 'x' | 'X' | 'o' | 'b' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%', _) => {}
                (kind, value) => {
                    return fail(format!("Unknown format code '{kind}' for object of type '{}'", value.type_name()))
                }
            }
            number(value, &spec)
        }
        other => fail(format!("unsupported format string passed to {}.__format__", other.type_name())),
    }
}

/// text.format(*positional, **keyword)
pub fn braces(text: &str, positional: &[Value], keyword: &[(String, Value)]) -> Res<String> {
    let mut next = 0;
    expand(text, positional, keyword, &mut next, 0)
}

fn expand(text: &str, positional: &[Value], keyword: &[(String, Value)], next: &mut usize, depth: usize) -> Res<String> {
    if depth > 2 {
        return fail("Max string recursion exceeded");
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                out.push(c);
            }
            '}' => return fail("Single '}' encountered in format string"),
            '{' => {
                let mut field = String::new();
                let mut open = 1;
                for c in chars.by_ref() {
                    open += (c == '{') as usize;
                    open -= (c == '}') as usize;
                    if open == 0 {
                        break;
                    }
                    field.push(c);
                }
                if open > 0 {
                    return fail("Single '{' encountered in format string");
                }
                out.push_str(&replaced(&field, positional, keyword, next, depth)?);
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn replaced(field: &str, positional: &[Value], keyword: &[(String, Value)], next: &mut usize, depth: usize) -> Res<String> {
    let (name, spec) = field.split_once(':').unwrap_or((field, ""));
    let (name, conversion) = match name.split_once('!') {
        Some((name, conversion)) => (name, Some(conversion)),
        None => (name, None),
    };
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let mut value = if first.is_empty() || first.bytes().all(|byte| byte.is_ascii_digit()) {
        let index = first.parse().unwrap_or(*next);
        *next += first.is_empty() as usize;
        match positional.get(index) {
            Some(value) => value.clone(),
            None => return fail(format!("Replacement index {index} out of range for positional args tuple")),
        }
    } else {
        match keyword.iter().find(|(own, _)| own == first) {
            Some((_, value)) => value.clone(),
            None => return fail(format!("KeyError: '{first}'")),
        }
    };
    while !path.is_empty() {
        let (key, rest) = if let Some(inner) = path.strip_prefix('[') {
            inner.split_once(']').ok_or_else(|| Error::new("Missing ']' in format string"))?
        } else {
            let inner = &path[1..];
            inner.split_at(inner.find(['.', '[']).unwrap_or(inner.len()))
        };
        let key = match key.parse::<i128>() {
            Ok(index) => Value::Int(index),
            Err(_) => Value::str(key),
        };
        value = match ops::item(&value, &key) {
            Some(value) => value,
            None => return fail(format!("{name}: no such item")),
        };
        path = rest;
    }
    match conversion {
        Some("s") => value = Value::str(to_str(&value)?),
        Some("r" | "a") => value = Value::str(repr(&value)?),
        Some(other) => return fail(format!("Unknown conversion specifier '{other}'")),
        None => {}
    }
    let spec = expand(spec, positional, keyword, next, depth + 1)?;
    formatted(&value, &spec)
}
