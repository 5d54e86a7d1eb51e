//! `value.name`, `value[key]` and `value[start:stop:step]`.

use std::sync::Arc;

use minijinja::{
    Environment, Error, State, Value,
    value::{Object, ObjectRepr, ValueKind},
};

use super::{
    methods,
    values::{error, is_tuple, iterate, sequence, type_name, undefined},
};
use crate::chat::limits;

/// Registers access under the names that compiled templates call.
pub fn install(environment: &mut Environment<'static>) {
    environment.add_function(".", attribute);
    environment.add_function("[]", item);
    environment.add_function("[:]", slice);
}

/// `value.name`: an attribute of the Python object (of which built-in types have only methods), else
/// the item of that name, else undefined.
pub fn attribute(value: &Value, name: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    let Some(name) = name.as_str() else { return Ok(Value::UNDEFINED) };
    if methods::is_mutating(value, name) {
        return Ok(Value::UNDEFINED);
    }
    if methods::exists(value, name) {
        return Ok(Value::from_object(Method { of: value.clone(), name: name.to_owned() }));
    }
    match value.kind() {
        ValueKind::Map | ValueKind::Plain | ValueKind::Seq => value.get_attr(name),
        _ => Ok(Value::UNDEFINED),
    }
}

/// `value[key]`: the item, else the attribute of that name, else undefined.
pub fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::Map => value.get_item(key)?,
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            index(key, || text.chars().count())
                .and_then(|index| text.chars().nth(index))
                .map_or(Value::UNDEFINED, Value::from)
        }
        ValueKind::Seq => match index(key, || value.len().unwrap_or(0)) {
            Some(index) => value.get_item_by_index(index)?,
            None => Value::UNDEFINED,
        },
        _ => Value::UNDEFINED,
    };
    match key.kind() {
        ValueKind::String if found.is_undefined() => attribute(value, key),
        _ => Ok(found),
    }
}

/// Position of an index; negative indices count from the end.
fn index(key: &Value, length: impl Fn() -> usize) -> Option<usize> {
    if !key.is_integer() && key.kind() != ValueKind::Bool {
        return None;
    }
    let key = key.as_i64()?;
    match usize::try_from(key) {
        Ok(index) => Some(index),
        Err(_) => length().checked_sub(usize::try_from(key.unsigned_abs()).ok()?),
    }
}

/// `value[start:stop:step]` of a string, list or tuple.
fn slice(
    state: &mut State,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let bound = |bound: &Value| match bound.kind() {
        ValueKind::None => Ok(None),
        ValueKind::Bool | ValueKind::Number if !is_float(bound) => {
            Ok(Some(bound.as_i64().unwrap_or(i64::MAX)))
        }
        ValueKind::Undefined => Err(undefined()),
        _ => Err(error("slice indices must be integers or None")),
    };
    let bounds = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    match value.kind() {
        ValueKind::Undefined => Err(undefined()),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            limits::work(state, text.len())?;
            let characters: Vec<char> = text.chars().collect();
            Ok(Value::from(sliced(&characters, bounds)?.into_iter().collect::<String>()))
        }
        ValueKind::Seq => {
            let items = iterate(value)?;
            limits::work(state, items.len() * size_of::<Value>())?;
            Ok(sequence(sliced(&items, bounds)?, is_tuple(value)))
        }
        _ => Err(error(format!("'{}' object is not subscriptable", type_name(value)))),
    }
}

fn is_float(value: &Value) -> bool {
    value.is_number() && !value.is_integer()
}

/// Python's `items[start:stop:step]`.
fn sliced<T: Clone>(
    items: &[T],
    (start, stop, step): (Option<i64>, Option<i64>, i64),
) -> Result<Vec<T>, Error> {
    if step == 0 {
        return Err(error("slice step cannot be zero"));
    }
    let length = items.len() as i64;
    // The positions before the first item and after the last one, for the direction of the step.
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let position = |bound: i64| match bound < 0 {
        true => bound.saturating_add(length).max(low),
        false => bound.min(high),
    };
    let (first, end) = if step > 0 { (low, high) } else { (high, low) };
    let mut at = start.map_or(first, position);
    let stop = stop.map_or(end, position);
    let mut taken = Vec::new();
    while if step > 0 { at < stop } else { at > stop } {
        taken.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
        at = at.saturating_add(step);
    }
    Ok(taken)
}

/// A method that is named but not called: true, defined and callable.
#[derive(Debug)]
struct Method {
    of: Value,
    name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        methods::call(state, &self.of, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<built-in method {} of {} object>", self.name, type_name(&self.of))
    }
}

/// Whether the value is a method, and so callable.
pub fn is_method(value: &Value) -> bool {
    value.downcast_object_ref::<Method>().is_some()
}

/// Follows `a.b.0` from a value, as filters read their `attribute`.
pub fn path(value: &Value, path: &Value) -> Result<Value, Error> {
    let Some(names) = path.as_str() else { return item(value, path) };
    names.split('.').try_fold(value.clone(), |value, name| match name.parse::<i64>() {
        Ok(index) => item(&value, &Value::from(index)),
        Err(_) => item(&value, &Value::from(name)),
    })
}
