//! Methods of strings, lists, tuples and dicts.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Tuple, ValueKind},
};

use super::{
    arguments::Arguments,
    operators, strings,
    values::{error, is_dict, is_tuple, iterate, pairs, type_name, undefined},
};
use crate::chat::limits;

const OF_LISTS: &[&str] = &["copy", "count", "index"];
const OF_TUPLES: &[&str] = &["count", "index"];
const OF_DICTS: &[&str] = &["copy", "get", "items", "keys", "values"];
/// Methods that change a list, which the sandbox forbids.
const CHANGE_LISTS: &[&str] =
    &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
/// Methods that change a dict, which the sandbox forbids.
const CHANGE_DICTS: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];

/// Whether values of this type have the method.
pub fn exists(value: &Value, name: &str) -> bool {
    match value.kind() {
        ValueKind::String => strings::METHODS.contains(&name),
        ValueKind::Seq if is_tuple(value) => OF_TUPLES.contains(&name),
        ValueKind::Seq => OF_LISTS.contains(&name),
        ValueKind::Map if is_dict(value) => OF_DICTS.contains(&name),
        _ => false,
    }
}

/// Whether the method would change its value, which the sandbox forbids.
pub fn is_mutating(value: &Value, name: &str) -> bool {
    match value.kind() {
        ValueKind::Seq => !is_tuple(value) && CHANGE_LISTS.contains(&name),
        ValueKind::Map => is_dict(value) && CHANGE_DICTS.contains(&name),
        _ => false,
    }
}

/// Calls a method.
pub fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    if is_mutating(value, name) {
        let kind = type_name(value);
        return Err(error(format!("access to attribute '{name}' of '{kind}' object is unsafe.")));
    }
    if !exists(value, name) {
        let kind = type_name(value);
        let reason = format!("'{kind} object' has no attribute '{name}'");
        return Err(Error::new(ErrorKind::UnknownMethod, reason));
    }
    let arguments = Arguments::split(name, args)?;
    match value.as_str() {
        Some(text) => {
            limits::work(state, text.len())?;
            let result = strings::call(text, &arguments)?;
            limits::work(state, result.as_str().map_or(0, str::len))?;
            Ok(result)
        }
        None if is_dict(value) => of_dict(state, value, &arguments),
        None => of_sequence(value, &arguments),
    }
}

fn of_sequence(value: &Value, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(value)?;
    if arguments.function() == "copy" {
        arguments.finish(0)?;
        return Ok(Value::from(items));
    }
    let sought = arguments.required(0, "value")?;
    arguments.finish(1)?;
    let mut found = items.iter().enumerate().filter(|(_, item)| operators::equal(item, &sought));
    match arguments.function() {
        "index" => match found.next() {
            Some((index, _)) => Ok(Value::from(index)),
            None => Err(error(format!("{} is not in list", super::text::repr(&sought)))),
        },
        _ => Ok(Value::from(found.count())),
    }
}

fn of_dict(state: &mut State, value: &Value, arguments: &Arguments) -> Result<Value, Error> {
    if arguments.function() == "get" {
        let key = arguments.required(0, "key")?;
        let default = arguments.get(1, "default").unwrap_or(Value::from(()));
        arguments.finish(2)?;
        let found = value.as_object().and_then(|map| map.get_value(&key));
        return Ok(found.unwrap_or(default));
    }
    arguments.finish(0)?;
    let pairs = pairs(value);
    limits::work(state, pairs.len() * size_of::<(Value, Value)>())?;
    Ok(match arguments.function() {
        "keys" => pairs.into_iter().map(|(key, _)| key).collect(),
        "values" => pairs.into_iter().map(|(_, value)| value).collect(),
        "items" => {
            pairs.into_iter().map(|(key, value)| Value::from(Tuple::from([key, value]))).collect()
        }
        _ => value.clone(),
    })
}
