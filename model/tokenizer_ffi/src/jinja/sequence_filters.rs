//! Filters over lists and dicts.

use std::cmp::Ordering;
use std::rc::Rc;

use super::ast::Operator;
use super::eval::{Given, Interpreter};
use super::filters;
use super::methods;
use super::ops;
use super::print::to_str;
use super::tests;
use super::text_methods;
use super::value::{compare, equal, fail, Error, Res, Value, View};

/// None: no filter of this file.
pub fn run(interpreter: &mut Interpreter, name: &str, value: &Value, given: &Given) -> Res<Option<Value>> {
    let given = || Given { positional: given.positional.clone(), keyword: given.keyword.clone() };
    Ok(Some(match name {
        "list" | "first" | "last" | "length" | "count" | "reverse" | "items" => {
            given().bind(name, [])?;
            simple(name, value)?
        }
        "join" => {
            let [separator, attribute] = given().bind(name, ["d", "attribute"])?;
            let separator = separator.map_or(Ok(String::new()), |separator| to_str(&separator))?;
            let mut parts = Vec::new();
            for item in value.iterate()?.iter() {
                let item = match &attribute {
                    Some(attribute) if !matches!(attribute, Value::None) => by_path(item, attribute, None)?,
                    _ => item.clone(),
                };
                parts.push(Value::str(to_str(&item)?));
            }
            text_methods::join(&separator, &Value::list(parts))?
        }
        "map" => map(interpreter, value, given())?,
        "select" | "reject" => {
            let mut own = given();
            let test = take_test(&mut own)?;
            select(value, name == "select", |item| tested(&test, item, &own))?
        }
        "selectattr" | "rejectattr" => {
            let mut own = given();
            if own.positional.is_empty() {
                return fail("Missing parameter for attribute name");
            }
            let attribute = own.positional.remove(0);
            let test = take_test(&mut own)?;
            select(value, name == "selectattr", |item| tested(&test, &by_path(item, &attribute, None)?, &own))?
        }
        "sort" => {
            let [reverse, case_sensitive, attribute] = given().bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let items = value.iterate()?;
            let reverse = reverse.is_some_and(|reverse| reverse.is_true());
            Value::list(sorted(&items, reverse, case_sensitive, attribute.as_ref())?)
        }
        "unique" => {
            let [case_sensitive, attribute] = given().bind(name, ["case_sensitive", "attribute"])?;
            let keep_case = case_sensitive.is_some_and(|flag| flag.is_true());
            let mut seen: Vec<Value> = Vec::new();
            let mut kept = Vec::new();
            for item in value.iterate()?.iter() {
                interpreter.step(seen.len())?;
                let key = sort_key(item, attribute.as_ref(), keep_case)?;
                if !seen.iter().any(|own| equal(own, &key)) {
                    seen.push(key);
                    kept.push(item.clone());
                }
            }
            Value::generator(kept)
        }
        "min" | "max" => {
            let [case_sensitive, attribute] = given().bind(name, ["case_sensitive", "attribute"])?;
            let keep_case = case_sensitive.is_some_and(|flag| flag.is_true());
            let mut best: Option<(Value, Value)> = None;
            for item in value.iterate()?.iter() {
                let key = sort_key(item, attribute.as_ref(), keep_case)?;
                let better = match &best {
                    None => true,
                    Some((own, _)) if name == "min" => compare(&key, own, "<")? == Some(Ordering::Less),
                    Some((own, _)) => compare(&key, own, ">")? == Some(Ordering::Greater),
                };
                if better {
                    best = Some((key, item.clone()));
                }
            }
            match best {
                Some((_, item)) => item,
                None => Value::undefined("No aggregated item, sequence was empty."),
            }
        }
        "sum" => {
            let [attribute, start] = given().bind(name, ["attribute", "start"])?;
            let mut total = start.unwrap_or(Value::Int(0));
            for item in value.iterate()?.iter() {
                let item = match &attribute {
                    Some(attribute) if !matches!(attribute, Value::None) => by_path(item, attribute, None)?,
                    _ => item.clone(),
                };
                total = ops::binary(Operator::Add, &total, &item)?;
            }
            total
        }
        "groupby" => {
            let [attribute, default, case_sensitive] = given().bind(name, ["attribute", "default", "case_sensitive"])?;
            let Some(attribute) = attribute else { return fail("groupby: no attribute") };
            let keep_case = case_sensitive.is_some_and(|flag| flag.is_true());
            let mut keyed = Vec::new();
            for item in value.iterate()?.iter() {
                let own = by_path(item, &attribute, default.as_ref())?;
                keyed.push((fold(&own, keep_case), own, item.clone()));
            }
            stable_sort(&mut keyed, false)?;
            let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
            for (key, own, item) in keyed {
                match groups.last_mut() {
                    Some((last, _, items)) if equal(last, &key) => items.push(item),
                    _ => groups.push((key, own, vec![item])),
                }
            }
            Value::list(groups.into_iter().map(|(_, own, items)| Value::tuple(vec![own, Value::list(items)])).collect())
        }
        "dictsort" => {
            let [case_sensitive, by, reverse] = given().bind(name, ["case_sensitive", "by", "reverse"])?;
            let Value::Dict(dict) = value else {
                value.defined()?;
                return fail(format!("'{}' object has no attribute 'items'", value.type_name()));
            };
            let by_value = match by.as_ref().map(|by| by.as_str()) {
                None | Some(Some("key")) => false,
                Some(Some("value")) => true,
                _ => return fail("You can only sort by either \"key\" or \"value\""),
            };
            let keep_case = case_sensitive.is_some_and(|flag| flag.is_true());
            let mut keyed = Vec::new();
            for (key, value) in &dict.entries {
                let own = if by_value { value } else { key };
                keyed.push((fold(own, keep_case), Value::None, Value::tuple(vec![key.clone(), value.clone()])));
            }
            stable_sort(&mut keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
            Value::list(keyed.into_iter().map(|(_, _, item)| item).collect())
        }
        "batch" => {
            let [count, fill] = given().bind(name, ["linecount", "fill_with"])?;
            let count = filters::whole(count, 0, name)?.max(1) as usize;
            let items = value.iterate()?;
            let mut rows: Vec<Vec<Value>> = items.chunks(count).map(<[Value]>::to_vec).collect();
            if let (Some(last), Some(fill)) = (rows.last_mut(), fill) {
                if !matches!(fill, Value::None) && count < 1 << 16 {
                    last.resize(count, fill);
                }
            }
            Value::generator(rows.into_iter().map(Value::list).collect())
        }
        "slice" => {
            let [count, fill] = given().bind(name, ["slices", "fill_with"])?;
            let count = filters::whole(count, 0, name)?;
            let Some(count) = usize::try_from(count).ok().filter(|count| (1..1 << 16).contains(count)) else {
                return fail("slice: between 1 and 65535 slices");
            };
            let items = value.iterate()?;
            let (size, longer) = (items.len() / count, items.len() % count);
            let mut at = 0;
            let mut rows = Vec::new();
            for index in 0..count {
                let own = size + (index < longer) as usize;
                let mut row = items[at..at + own].to_vec();
                at += own;
                if let (Some(fill), true) = (&fill, index >= longer) {
                    if !matches!(fill, Value::None) {
                        row.push(fill.clone());
                    }
                }
                rows.push(Value::list(row));
            }
            Value::generator(rows)
        }
        _ => return Ok(None),
    }))
}

fn simple(name: &str, value: &Value) -> Res<Value> {
    Ok(match name {
        "list" => Value::list(value.iterate()?.to_vec()),
        "first" => match value {
            Value::Generator(items) => items.borrow_mut().pop_front(),
            other => other.iterate()?.first().cloned(),
        }
        .unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")),
        "last" => match value {
            Value::Generator(_) => return fail("'generator' object is not reversible"),
            other => other.iterate()?.last().cloned(),
        }
        .unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")),
        "length" | "count" => match value.len() {
            Some(size) => Value::Int(size as i128),
            None => return fail(format!("object of type '{}' has no len()", value.type_name())),
        },
        "reverse" => match value {
            Value::Str(text) => Value::str(text.chars().rev().collect::<String>()),
            other => Value::generator(other.iterate()?.iter().rev().cloned().collect()),
        },
        _ => match value {
            Value::Dict(dict) => Value::generator(Value::View(View::Items, Rc::clone(dict)).iterate()?.to_vec()),
            Value::Undefined(_) => Value::generator(Vec::new()),
            _ => return fail("Can only get item pairs from a mapping."),
        },
    })
}

/// "a.b.0" from an item.
fn by_path(item: &Value, path: &Value, default: Option<&Value>) -> Res<Value> {
    let steps: Vec<Value> = match path {
        Value::Str(path) => path
            .split('.')
            .map(|step| match step.bytes().all(|byte| byte.is_ascii_digit()) && !step.is_empty() {
                true => step.parse().map_or_else(|_| Value::str(step), Value::Int),
                false => Value::str(step),
            })
            .collect(),
        other => vec![other.clone()],
    };
    let mut value = item.clone();
    for step in &steps {
        value = methods::item(&value, step)?;
        if value.is_undefined() {
            if let Some(default) = default {
                value = default.clone();
            }
        }
    }
    Ok(value)
}

fn fold(value: &Value, keep_case: bool) -> Value {
    match value {
        Value::Str(text) if !keep_case => Value::str(text.to_lowercase()),
        other => other.clone(),
    }
}

fn sort_key(item: &Value, attribute: Option<&Value>, keep_case: bool) -> Res<Value> {
    match attribute {
        Some(attribute) if !matches!(attribute, Value::None) => Ok(fold(&by_path(item, attribute, None)?, keep_case)),
        _ => Ok(fold(item, keep_case)),
    }
}

fn stable_sort(keyed: &mut Vec<(Value, Value, Value)>, reverse: bool) -> Res<()> {
    let mut failure: Option<Error> = None;
    keyed.sort_by(|a, b| {
        if failure.is_some() {
            return Ordering::Equal;
        }
        match compare(&a.0, &b.0, "<") {
            Ok(order) if reverse => order.unwrap_or(Ordering::Equal).reverse(),
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(error) => {
                failure = Some(error);
                Ordering::Equal
            }
        }
    });
    failure.map_or(Ok(()), Err)
}

fn sorted(items: &[Value], reverse: bool, case_sensitive: Option<Value>, attribute: Option<&Value>) -> Res<Vec<Value>> {
    let keep_case = case_sensitive.is_some_and(|flag| flag.is_true());
    let mut keyed = Vec::new();
    for item in items {
        let key = match attribute {
            Some(Value::Str(paths)) if paths.contains(',') => {
                let keys: Res<Vec<Value>> =
                    paths.split(',').map(|path| Ok(fold(&by_path(item, &Value::str(path), None)?, keep_case))).collect();
                Value::list(keys?)
            }
            attribute => sort_key(item, attribute, keep_case)?,
        };
        keyed.push((key, Value::None, item.clone()));
    }
    stable_sort(&mut keyed, reverse)?;
    Ok(keyed.into_iter().map(|(_, _, item)| item).collect())
}

fn map(interpreter: &mut Interpreter, value: &Value, mut given: Given) -> Res<Value> {
    let items = if value.is_true() { value.iterate()? } else { Rc::default() };
    let mut mapped = Vec::with_capacity(items.len());
    if given.positional.is_empty() {
        let [attribute, default] = given.bind("map", ["attribute", "default"])?;
        let Some(attribute) = attribute else { return fail("map requires a filter argument") };
        for item in items.iter() {
            interpreter.step(0)?;
            mapped.push(by_path(item, &attribute, default.as_ref())?);
        }
        return Ok(Value::generator(mapped));
    }
    let name = to_str(&given.positional.remove(0))?;
    for item in items.iter() {
        interpreter.step(0)?;
        let own = Given { positional: given.positional.clone(), keyword: given.keyword.clone() };
        mapped.push(filters::run(interpreter, &name, item.clone(), own)?);
    }
    Ok(Value::generator(mapped))
}

fn take_test(given: &mut Given) -> Res<Option<String>> {
    if given.positional.is_empty() {
        return Ok(None);
    }
    let name = to_str(&given.positional.remove(0))?;
    if !tests::exists(&name) {
        return fail(format!("No test named '{name}'."));
    }
    Ok(Some(name))
}

fn tested(test: &Option<String>, item: &Value, given: &Given) -> Res<bool> {
    match test {
        None => Ok(item.is_true()),
        Some(name) => {
            let own = Given { positional: given.positional.clone(), keyword: given.keyword.clone() };
            tests::run(name, item, own)
        }
    }
}

fn select(value: &Value, wanted: bool, mut test: impl FnMut(&Value) -> Res<bool>) -> Res<Value> {
    let mut kept = Vec::new();
    if !value.is_true() {
        return Ok(Value::generator(kept));
    }
    for item in value.iterate()?.iter() {
        if test(item)? == wanted {
            kept.push(item.clone());
        }
    }
    Ok(Value::generator(kept))
}
