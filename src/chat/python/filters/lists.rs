//! Filters of lists and dicts.

use minijinja::{
    Error, State, Value,
    value::{Tuple, ValueKind},
};

use crate::chat::python::{
    access,
    arguments::Arguments,
    operators, text,
    values::{Group, check_hashable, error, is_dict, iterate, pairs, type_name, undefined},
};

/// Stands for a Python generator: items that can be iterated once.
fn generator(items: Vec<Value>) -> Value {
    Value::make_one_shot_iterator(items.into_iter())
}

/// The items of a value for filters over items; a false value has none.
fn items_if_any(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_true() { iterate(value) } else { Ok(Vec::new()) }
}

fn optional(arguments: &Arguments, index: usize, name: &str) -> Option<Value> {
    arguments.get(index, name).filter(|value| !value.is_none())
}

pub fn dict_sort(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    let case_sensitive = arguments.flag(1, "case_sensitive");
    let by = arguments.text(2, "by")?.unwrap_or_else(|| "key".to_owned());
    let reverse = arguments.flag(3, "reverse");
    arguments.finish(4)?;
    if value.is_undefined() {
        return Err(undefined());
    }
    if !is_dict(&value) {
        return Err(error(format!("'{}' object has no items", type_name(&value))));
    }
    let mut items = pairs(&value);
    order_by(&mut items, reverse, |(key, value)| {
        let by = if by == "value" { value } else { key };
        Ok(if case_sensitive { by.clone() } else { ignoring_case(by) })
    })?;
    Ok(items.into_iter().map(|(key, value)| Value::from(Tuple::from([key, value]))).collect())
}

fn ignoring_case(value: &Value) -> Value {
    match value.kind() {
        ValueKind::String => Value::from(text::str(value).to_lowercase()),
        _ => value.clone(),
    }
}

/// Sorts stably by a key that is computed once per item.
fn order_by<T: Clone>(
    items: &mut Vec<T>,
    reverse: bool,
    key: impl Fn(&T) -> Result<Value, Error>,
) -> Result<(), Error> {
    let keyed = items.drain(..).map(|item| Ok((key(&item)?, item)));
    let mut keyed = keyed.collect::<Result<Vec<_>, Error>>()?;
    // Reversed before and after, so that equal items keep their order.
    if reverse {
        keyed.reverse();
    }
    operators::sort(&mut keyed, |(key, _)| key.clone())?;
    if reverse {
        keyed.reverse();
    }
    items.extend(keyed.into_iter().map(|(_, item)| item));
    Ok(())
}

/// The key that `sort`, `min` and `max` compare by.
fn sort_key(item: &Value, attribute: &Option<Value>, case_sensitive: bool) -> Result<Value, Error> {
    let key = match attribute {
        Some(path) => access::path(item, path)?,
        None => item.clone(),
    };
    Ok(if case_sensitive { key } else { ignoring_case(&key) })
}

pub fn sort(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let mut items = iterate(&arguments.value()?)?;
    let reverse = arguments.flag(1, "reverse");
    let case_sensitive = arguments.flag(2, "case_sensitive");
    let attribute = optional(arguments, 3, "attribute");
    arguments.finish(4)?;
    let paths: Vec<Option<Value>> = match attribute.as_ref().and_then(Value::as_str) {
        Some(paths) => paths.split(',').map(|path| Some(Value::from(path.trim()))).collect(),
        None => vec![attribute],
    };
    // Keys are lists: comparing lists orders only the first unequal items, so equal values of an
    // unordered type are accepted.
    order_by(&mut items, reverse, |item| {
        let keys = paths.iter().map(|path| sort_key(item, path, case_sensitive));
        Ok(Value::from(keys.collect::<Result<Vec<_>, _>>()?))
    })?;
    Ok(Value::from(items))
}

pub fn extreme(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    let case_sensitive = arguments.flag(1, "case_sensitive");
    let attribute = optional(arguments, 2, "attribute");
    arguments.finish(3)?;
    let mut best: Option<(Value, Value)> = None;
    for item in items {
        let key = sort_key(&item, &attribute, case_sensitive)?;
        let better = match &best {
            None => true,
            Some((other, _)) if arguments.function() == "min" => {
                operators::order("<", &key, other)?.is_lt()
            }
            Some((other, _)) => operators::order(">", &key, other)?.is_gt(),
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

pub fn first(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    arguments.finish(1)?;
    Ok(items.into_iter().next().unwrap_or(Value::UNDEFINED))
}

pub fn last(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    arguments.finish(1)?;
    Ok(items.into_iter().next_back().unwrap_or(Value::UNDEFINED))
}

pub fn reverse(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    if value.kind() == ValueKind::String {
        return Ok(Value::from(text::str(&value).chars().rev().collect::<String>()));
    }
    let mut items = iterate(&value)?;
    items.reverse();
    Ok(generator(items))
}

pub fn list(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    arguments.finish(1)?;
    Ok(Value::from(items))
}

pub fn items(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    if !value.is_undefined() && !is_dict(&value) {
        return Err(error("Can only get item pairs from a mapping."));
    }
    let pair = |(key, value)| Value::from(Tuple::from([key, value]));
    Ok(generator(pairs(&value).into_iter().map(pair).collect()))
}

pub fn length(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(0)),
        ValueKind::String | ValueKind::Seq | ValueKind::Map => {
            Ok(Value::from(value.len().unwrap_or(0)))
        }
        _ => Err(error(format!("object of type '{}' has no len()", type_name(&value)))),
    }
}

pub fn join(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    let separator = arguments.get(1, "d").map(|d| text::str(&d)).unwrap_or_default();
    let attribute = optional(arguments, 2, "attribute");
    arguments.finish(3)?;
    let one = |item: &Value| match &attribute {
        Some(path) => access::path(item, path).map(|item| text::str(&item)),
        None => Ok(text::str(item)),
    };
    let texts = items.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::from(texts.join(&separator)))
}

pub fn sum(state: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    let attribute = optional(arguments, 1, "attribute");
    let start = arguments.get(2, "start").unwrap_or(Value::from(0));
    arguments.finish(3)?;
    if start.kind() == ValueKind::String {
        return Err(error("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    items.iter().try_fold(start, |sum, item| match &attribute {
        Some(path) => operators::add(state, &sum, &access::path(item, path)?),
        None => operators::add(state, &sum, item),
    })
}

pub fn map(state: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = items_if_any(&arguments.value()?)?;
    let given = arguments.values().get(1..).unwrap_or_default();
    if let ([], Some(path)) = (given, arguments.get(1, "attribute")) {
        let default = arguments.get(2, "default");
        arguments.finish(1)?;
        let one = |item: &Value| {
            let found = access::path(item, &path)?;
            Ok(default.clone().filter(|_| found.is_undefined()).unwrap_or(found))
        };
        return Ok(generator(items.iter().map(one).collect::<Result<_, Error>>()?));
    }
    let Some((name, rest)) = given.split_first() else {
        return Err(error("map requires a filter argument"));
    };
    let name = text::str(name);
    let mut mapped = Vec::with_capacity(items.len());
    for item in items {
        let named = Value::from(arguments.named().clone());
        let values: Vec<Value> = [item].into_iter().chain(rest.iter().cloned()).collect();
        let named = (arguments.named().args().next().is_some()).then_some(named);
        mapped.push(state.apply_filter(&name, &[values, Vec::from_iter(named)].concat())?);
    }
    Ok(generator(mapped))
}

/// `select`, `reject`, `selectattr` and `rejectattr`.
pub fn choose(state: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let function = arguments.function();
    let wanted = function.starts_with("select");
    let items = items_if_any(&arguments.value()?)?;
    let mut given = arguments.values().get(1..).unwrap_or_default();
    let mut path = None;
    if function.ends_with("attr") {
        let (first, rest) =
            given.split_first().ok_or_else(|| error("Missing parameter for attribute name"))?;
        (path, given) = (Some(first), rest);
    }
    let mut chosen = Vec::new();
    for item in items {
        let tested = match path {
            Some(path) => access::path(&item, path)?,
            None => item.clone(),
        };
        let holds = match given.split_first() {
            None => tested.is_true(),
            Some((test, rest)) => {
                let values: Vec<Value> = [tested].into_iter().chain(rest.iter().cloned()).collect();
                state.perform_test(&text::str(test), &values)?
            }
        };
        if holds == wanted {
            chosen.push(item);
        }
    }
    Ok(generator(chosen))
}

pub fn unique(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    let case_sensitive = arguments.flag(1, "case_sensitive");
    let attribute = optional(arguments, 2, "attribute");
    arguments.finish(3)?;
    let mut kept: Vec<(Value, Value)> = Vec::new();
    for item in items {
        let key = sort_key(&item, &attribute, case_sensitive)?;
        check_hashable(&key)?;
        if !kept.iter().any(|(other, _)| operators::equal(other, &key)) {
            kept.push((key, item));
        }
    }
    Ok(generator(kept.into_iter().map(|(_, item)| item).collect()))
}

/// Lists of `linecount` items; the last one is filled up with `fill_with`.
pub fn batch(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    let count = count(arguments, "linecount")?;
    let fill = optional(arguments, 2, "fill_with");
    arguments.finish(3)?;
    let filled = |chunk: &[Value]| {
        let missing = fill.iter().cycle().take(count - chunk.len()).cloned();
        Value::from(chunk.iter().cloned().chain(missing).collect::<Vec<_>>())
    };
    Ok(generator(items.chunks(count).map(filled).collect()))
}

/// `slices` lists that hold all items in order; shorter ones are filled up with `fill_with`.
pub fn slice(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.value()?)?;
    let count = count(arguments, "slices")?;
    let fill = optional(arguments, 2, "fill_with");
    arguments.finish(3)?;
    let (each, longer) = (items.len() / count, items.len() % count);
    let part = |index: usize| {
        let start = index * each + index.min(longer);
        let end = start + each + usize::from(index < longer);
        let mut part = items.get(start..end).unwrap_or_default().to_vec();
        part.extend(fill.clone().filter(|_| index >= longer));
        Value::from(part)
    };
    Ok(generator((0..count).map(part).collect()))
}

/// A number of items or lists, from 1 to 65,536.
fn count(arguments: &Arguments, name: &str) -> Result<usize, Error> {
    let count = arguments.integer(1, name)?.unwrap_or(0);
    usize::try_from(count)
        .ok()
        .filter(|count| (1..=1 << 16).contains(count))
        .ok_or_else(|| error(format!("{name} is {count}, expected 1 to 65536")))
}

/// The items with equal attributes: `for key, items in list | groupby("name")`.
pub fn group_by(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let mut items = iterate(&arguments.value()?)?;
    let path = arguments.required(1, "attribute")?;
    let default = optional(arguments, 2, "default");
    let case_sensitive = arguments.flag(3, "case_sensitive");
    arguments.finish(4)?;
    let own = |item: &Value| {
        let found = access::path(item, &path)?;
        Ok::<_, Error>(default.clone().filter(|_| found.is_undefined()).unwrap_or(found))
    };
    let key =
        |item: &Value| Ok(if case_sensitive { own(item)? } else { ignoring_case(&own(item)?) });
    order_by(&mut items, false, key)?;
    let mut groups: Vec<(Value, Group)> = Vec::new();
    for item in items {
        match groups.last_mut() {
            Some((last, group)) if operators::equal(last, &key(&item)?) => group.list.push(item),
            _ => groups.push((key(&item)?, Group { grouper: own(&item)?, list: vec![item] })),
        }
    }
    Ok(groups.into_iter().map(|(_, group)| Value::from_object(group)).collect())
}
