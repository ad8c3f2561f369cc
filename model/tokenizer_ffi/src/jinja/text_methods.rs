//! The methods of str.

use super::eval::Given;
use super::format;
use super::lexer::is_space;
use super::print::{all_printable, split_lines, words};
use super::value::{fail, Error, Res, Value};

pub const NAMES: [&str; 45] = [
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    "zfill", "translate",
];

const MAX_WIDTH: i128 = 1 << 24;

fn needed(value: Option<Value>, name: &str) -> Res<Value> {
    value.ok_or_else(|| Error::new(format!("{name}() takes at least one argument")))
}

fn text_of(value: Option<Value>, name: &str) -> Res<String> {
    match &needed(value, name)? {
        Value::Str(text) => Ok(text.to_string()),
        other => {
            other.defined()?;
            fail(format!("{name}: must be str, not {}", other.type_name()))
        }
    }
}

fn int_of(value: &Value, name: &str) -> Res<i128> {
    value.defined()?;
    value.as_int().ok_or_else(|| Error::new(format!("{name}: '{}' object cannot be interpreted as an integer", value.type_name())))
}

fn strings(parts: impl IntoIterator<Item = impl AsRef<str>>) -> Value {
    Value::list(parts.into_iter().map(Value::str).collect())
}

pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => titled(first) + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

// Where upper case is several letters, only the first is a capital: ß -> Ss.
fn titled(c: char) -> String {
    let mut upper = c.to_uppercase();
    let first: String = upper.next().into_iter().collect();
    first + &upper.flat_map(char::to_lowercase).collect::<String>()
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.push_str(&titled(c));
        }
        inside = is_cased(c);
    }
    out
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}

fn is_title(text: &str) -> bool {
    let (mut any, mut inside) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() {
            if inside {
                return false;
            }
            (any, inside) = (true, true);
        } else if c.is_lowercase() {
            if !inside {
                return false;
            }
        } else {
            inside = false;
        }
    }
    any
}

/// Bytes of the range [start, end) that the method searches; None: it is empty because start lies beyond the end.
fn range(text: &str, start: Option<Value>, end: Option<Value>, name: &str) -> Res<Option<(usize, usize, usize)>> {
    let size = text.chars().count() as i128;
    let bound = |value: Option<Value>, default: i128| -> Res<i128> {
        match value {
            None | Some(Value::None) => Ok(default),
            Some(value) => {
                let at = int_of(&value, name)?;
                Ok(if at < 0 { (at + size).max(0) } else { at })
            }
        }
    };
    let (start, end) = (bound(start, 0)?, bound(end, size)?.min(size));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i128| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    Ok(Some((byte(start), byte(end), start as usize)))
}

fn stripped<'a>(text: &'a str, name: &str, characters: Option<Value>) -> Res<&'a str> {
    let set: Option<String> = match characters {
        None | Some(Value::None) => None,
        Some(value) => Some(text_of(Some(value), name)?),
    };
    let matches = |c: char| match &set {
        Some(set) => set.contains(c),
        None => is_space(c),
    };
    let text = if name == "rstrip" { text } else { text.trim_start_matches(matches) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(matches) })
}

pub fn strip(text: &str, characters: Option<Value>) -> Res<&str> {
    stripped(text, "strip", characters)
}

fn split(text: &str, name: &str, given: Given) -> Res<Value> {
    let [separator, limit] = given.bind(name, ["sep", "maxsplit"])?;
    let limit = limit.map_or(Ok(-1), |limit| int_of(&limit, name))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
    let right = name == "rsplit";
    let separator = match separator {
        None | Some(Value::None) => None,
        Some(value) => Some(text_of(Some(value), name)?),
    };
    if let Some(separator) = separator {
        if separator.is_empty() {
            return fail("empty separator");
        }
        if right {
            let mut parts: Vec<&str> = text.rsplitn(limit.saturating_add(1), separator.as_str()).collect();
            parts.reverse();
            return Ok(strings(parts));
        }
        return Ok(strings(text.splitn(limit.saturating_add(1), separator.as_str())));
    }
    let mut parts = Vec::new();
    let mut rest = if right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() {
        if parts.len() == limit {
            parts.push(if right { rest.trim_end_matches(is_space) } else { rest });
            break;
        }
        if right {
            let at = rest.rfind(is_space);
            let start = at.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
            parts.push(&rest[start..]);
            rest = rest[..start].trim_end_matches(is_space);
        } else {
            let end = rest.find(is_space).unwrap_or(rest.len());
            parts.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_space);
        }
    }
    if right {
        parts.reverse();
    }
    Ok(strings(parts))
}

fn affixed(text: &str, name: &str, given: Given) -> Res<Value> {
    let [affix, start, end] = given.bind(name, ["prefix", "start", "end"])?;
    let candidates = match &needed(affix, name)? {
        Value::Tuple(items) => items.to_vec(),
        value @ Value::Str(_) => vec![value.clone()],
        other => {
            other.defined()?;
            return fail(format!("{name} first arg must be str or a tuple of str, not {}", other.type_name()));
        }
    };
    let Some((start, end, _)) = range(text, start, end, name)? else { return Ok(Value::Bool(false)) };
    let part = &text[start..end];
    for candidate in candidates {
        let Value::Str(affix) = &candidate else { return fail(format!("tuple for {name} must only contain str")) };
        if if name == "startswith" { part.starts_with(&**affix) } else { part.ends_with(&**affix) } {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn find(text: &str, name: &str, given: Given) -> Res<Value> {
    let [sought, start, end] = given.bind(name, ["sub", "start", "end"])?;
    let sought = text_of(sought, name)?;
    let found = match range(text, start, end, name)? {
        None => None,
        Some((from, to, first)) => {
            let part = &text[from..to];
            if name == "count" {
                let count = if sought.is_empty() { part.chars().count() + 1 } else { part.matches(sought.as_str()).count() };
                return Ok(Value::Int(count as i128));
            }
            let at = if name.starts_with('r') { part.rfind(&sought) } else { part.find(&sought) };
            at.map(|at| first + part[..at].chars().count())
        }
    };
    match found {
        Some(at) => Ok(Value::Int(at as i128)),
        None if name == "count" => Ok(Value::Int(0)),
        None if name.ends_with("index") => fail("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}

pub fn padded(text: &str, name: &str, given: Given) -> Res<Value> {
    let [width, fill] = given.bind(name, ["width", "fillchar"])?;
    let width = int_of(&needed(width, name)?, name)?;
    if width > MAX_WIDTH {
        return Err(Error::exhausted(format!("{name}: a width of {width}")));
    }
    let fill = fill.map_or(Ok(" ".to_string()), |fill| text_of(Some(fill), name))?;
    if fill.chars().count() != 1 {
        return fail("The fill character must be exactly one character long");
    }
    let size = text.chars().count();
    let missing = (width.max(0) as usize).saturating_sub(size);
    // As CPython: an odd rest goes to the left where the width is odd.
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width.max(0) as usize & 1),
    };
    Ok(Value::str(fill.repeat(left) + text + &fill.repeat(missing - left)))
}

/// The first `count` occurrences; negative: all.
pub fn replace(text: &str, old: &str, new: &str, count: i128) -> String {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if old.is_empty() {
        let mut out = String::new();
        let mut left = count;
        for c in text.chars() {
            if left > 0 {
                out.push_str(new);
                left -= 1;
            }
            out.push(c);
        }
        if left > 0 {
            out.push_str(new);
        }
        return out;
    }
    text.replacen(old, new, count)
}

pub fn join(separator: &str, items: &Value) -> Res<Value> {
    let items = items.iterate()?;
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        match item {
            Value::Str(text) => out.push_str(text),
            other => return fail(format!("sequence item {index}: expected str instance, {} found", other.type_name())),
        }
    }
    Ok(Value::str(out))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat(' ').take(spaces));
                column += spaces;
            }
            c => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    out
}

pub fn call(text: &str, name: &str, given: Given) -> Res<Value> {
    match name {
        "split" | "rsplit" => return split(text, name, given),
        "startswith" | "endswith" => return affixed(text, name, given),
        "find" | "rfind" | "index" | "rindex" | "count" => return find(text, name, given),
        "center" | "ljust" | "rjust" => return padded(text, name, given),
        "format" => return format::braces(text, &given.positional, &given.keyword).map(Value::str),
        "strip" | "lstrip" | "rstrip" => {
            let [characters] = given.bind(name, ["chars"])?;
            return Ok(Value::str(stripped(text, name, characters)?));
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
            let (old, new) = (text_of(old, name)?, text_of(new, name)?);
            let count = count.map_or(Ok(-1), |count| int_of(&count, name))?;
            return Ok(Value::str(replace(text, &old, &new, count)));
        }
        "splitlines" => {
            let [keep] = given.bind(name, ["keepends"])?;
            return Ok(strings(split_lines(text, keep.is_some_and(|keep| keep.is_true()))));
        }
        "expandtabs" => {
            let [size] = given.bind(name, ["tabsize"])?;
            let size = size.map_or(Ok(8), |size| int_of(&size, name))?;
            return Ok(Value::str(expand_tabs(text, size.clamp(0, 1000) as usize)));
        }
        "join" | "partition" | "rpartition" | "removeprefix" | "removesuffix" | "zfill" | "format_map" | "translate" => {
            let [argument] = given.bind(name, ["value"])?;
            return one_argument(text, name, argument);
        }
        _ => {}
    }
    given.bind(name, [])?;
    let all = |test: fn(char) -> bool| Value::Bool(!text.is_empty() && text.chars().all(test));
    Ok(match name {
        "upper" => Value::str(text.to_uppercase()),
        "lower" | "casefold" => Value::str(if name == "casefold" { text.to_lowercase().replace('ß', "ss") } else { text.to_lowercase() }),
        "capitalize" => Value::str(capitalize(text)),
        "title" => Value::str(title(text)),
        "swapcase" => {
            let mut out = String::new();
            for c in text.chars() {
                if c.is_uppercase() {
                    out.extend(c.to_lowercase());
                } else {
                    out.extend(c.to_uppercase());
                }
            }
            Value::str(out)
        }
        "isalpha" => all(|c| c.is_alphabetic() && !c.is_numeric()),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" => all(|c| is_decimal(c) || "²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(c)),
        "isdecimal" => all(is_decimal),
        "isnumeric" => all(char::is_numeric),
        "isascii" => Value::Bool(text.is_ascii()),
        "isspace" => all(is_space),
        "isprintable" => Value::Bool(all_printable(text)),
        "isidentifier" => {
            let first = text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Value::Bool(first && text.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "islower" => Value::Bool(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)),
        "isupper" => Value::Bool(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)),
        "istitle" => Value::Bool(is_title(text)),
        other => return fail(format!("'str' object has no attribute '{other}'")),
    })
}

fn is_decimal(c: char) -> bool {
    use std::sync::OnceLock;
    static DECIMAL: OnceLock<regex::Regex> = OnceLock::new();
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    DECIMAL.get_or_init(|| regex::Regex::new(r"^\p{Nd}$").expect("a valid pattern")).is_match(c.encode_utf8(&mut [0; 4]))
}

fn one_argument(text: &str, name: &str, argument: Option<Value>) -> Res<Value> {
    if name == "join" {
        return join(text, &needed(argument, name)?);
    }
    if name == "format_map" {
        let Some(Value::Dict(dict)) = &argument else { return fail("format_map: a mapping is needed") };
        let keyword: Vec<(String, Value)> =
            dict.entries.iter().filter_map(|(key, value)| key.as_str().map(|key| (key.to_string(), value.clone()))).collect();
        return format::braces(text, &[], &keyword).map(Value::str);
    }
    if name == "zfill" {
        let width = int_of(&needed(argument, name)?, name)?;
        if width > MAX_WIDTH {
            return Err(Error::exhausted(format!("{name}: a width of {width}")));
        }
        let missing = (width.max(0) as usize).saturating_sub(text.chars().count());
        let (sign, digits) = text.split_at(text.starts_with(['-', '+']) as usize);
        return Ok(Value::str(format!("{sign}{}{digits}", "0".repeat(missing))));
    }
    if name == "translate" {
        let Some(Value::Dict(dict)) = &argument else { return fail("translate: a dict is needed") };
        let mut out = String::new();
        for c in text.chars() {
            match dict.get(&Value::Int(c as i128)) {
                None => out.push(c),
                Some(Value::None) => {}
                Some(Value::Str(new)) => out.push_str(new),
                Some(other) => match other.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32) {
                    Some(c) => out.push(c),
                    None => return fail("character mapping must return integer, None or str"),
                },
            }
        }
        return Ok(Value::str(out));
    }
    let part = text_of(argument, name)?;
    Ok(match name {
        "removeprefix" => Value::str(text.strip_prefix(part.as_str()).unwrap_or(text)),
        "removesuffix" => Value::str(text.strip_suffix(part.as_str()).unwrap_or(text)),
        _ if part.is_empty() => return fail("empty separator"),
        _ => {
            let first = name == "partition";
            let found = if first { text.split_once(part.as_str()) } else { text.rsplit_once(part.as_str()) };
            let parts = match found {
                Some((before, after)) => [before, part.as_str(), after],
                None if first => [text, "", ""],
                None => ["", "", text],
            };
            Value::tuple(parts.into_iter().map(Value::str).collect())
        }
    })
}

/// How many words the wordcount filter sees.
pub fn word_count(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

/// The wordwrap filter without breaking words is textwrap's; this joins words up to `width`.
pub fn wrapped(line: &str, width: usize, separator: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in words(line) {
        let size = word.chars().count();
        if column > 0 && column + 1 + size > width {
            out.push_str(separator);
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += size;
    }
    out
}
