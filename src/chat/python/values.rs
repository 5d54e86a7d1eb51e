//! Types of values, and their items.

use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::{
    Error, ErrorKind, Value,
    value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind},
};

/// Mappings that templates build or are given.
pub type Dict = IndexMap<Value, Value>;

pub fn is_dict(value: &Value) -> bool {
    value.downcast_object_ref::<Dict>().is_some() || value.is_kwargs()
}

/// The name of a value's type in Python.
pub fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq if is_tuple(value) => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Iterable => "generator",
        ValueKind::Map if is_dict(value) => "dict",
        _ => "object",
    }
}

pub fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The error of every operation on an undefined value, except tests and printing.
pub fn undefined() -> Error {
    Error::new(ErrorKind::UndefinedError, "a value that is used here is undefined")
}

/// The key-value pairs of a mapping.
pub fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let object = value.as_object();
    object.and_then(|object| object.try_iter_pairs()).into_iter().flatten().collect()
}

/// A group of `groupby`: a pair that also has names.
#[derive(Debug)]
pub struct Group {
    pub grouper: Value,
    pub list: Vec<Value>,
}

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_usize(), key.as_str()) {
            (Some(0), _) | (_, Some("grouper")) => Some(self.grouper.clone()),
            (Some(1), _) | (_, Some("list")) => Some(Value::from(self.list.clone())),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

pub fn is_tuple(value: &Value) -> bool {
    value.is_tuple() || value.downcast_object_ref::<Group>().is_some()
}

/// Refuses unhashable values, which cannot be keys of a dict or items of a set.
pub fn check_hashable(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq if is_tuple(value) => iterate(value)?.iter().try_for_each(check_hashable),
        ValueKind::Seq => Err(error("unhashable type: 'list'")),
        ValueKind::Map if is_dict(value) => Err(error("unhashable type: 'dict'")),
        _ => Ok(()),
    }
}

/// The items that a loop over `value` sees: characters, list items, keys; an undefined value has
/// none.
pub fn iterate(value: &Value) -> Result<Vec<Value>, Error> {
    match value.kind() {
        ValueKind::String => {
            Ok(value.as_str().unwrap_or_default().chars().map(Value::from).collect())
        }
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => Ok(value.try_iter()?.collect()),
        _ => Err(error(format!("'{}' object is not iterable", type_name(value)))),
    }
}

/// A list, or a tuple.
pub fn sequence(items: Vec<Value>, tuple: bool) -> Value {
    if tuple { Value::from(Tuple::from(items)) } else { Value::from(items) }
}
