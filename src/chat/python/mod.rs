//! What Python does to the values of a template: operators, attributes, methods, filters, tests
//! and functions, as `transformers` gives them to chat templates (Jinja's
//! `ImmutableSandboxedEnvironment`).

use indexmap::IndexMap;
use minijinja::{Environment, Error, ErrorKind, Value, value::ValueKind};

mod access;
mod arguments;
mod filters;
mod functions;
mod json;
mod methods;
mod operators;
mod printf;
mod strings;
mod tests;
mod text;

pub use functions::{Raised, is_function};
pub use text::print;

/// Filters of Jinja that are not implemented: a template that uses one is refused when loaded.
pub const FILTERS_LEFT_OUT: &[&str] = &[
    "filesizeformat",
    "pprint",
    "random",
    "striptags",
    "urlencode",
    "urlize",
    "wordwrap",
    "xmlattr",
];
/// Methods of Python's strings that are not implemented.
pub const METHODS_LEFT_OUT: &[&str] =
    &["encode", "expandtabs", "format_map", "isidentifier", "maketrans", "translate"];
/// Variables of Jinja that are not implemented.
pub const VARIABLES_LEFT_OUT: &[&str] = &["lipsum", "varargs", "kwargs"];

/// Gives an environment Python's meaning of all values.
pub fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call);
    operators::install(environment);
    access::install(environment);
    filters::install(environment);
    tests::install(environment);
    functions::install(environment);
}

/// Mappings that templates build or are given.
type Dict = IndexMap<Value, Value>;

fn is_dict(value: &Value) -> bool {
    value.downcast_object_ref::<Dict>().is_some() || value.is_kwargs()
}

/// The name of a value's type in Python.
fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq if value.is_tuple() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Iterable => "generator",
        ValueKind::Map if is_dict(value) => "dict",
        _ => "object",
    }
}

fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The error of every operation on an undefined value, except tests and printing.
fn undefined() -> Error {
    Error::new(ErrorKind::UndefinedError, "a value that is used here is undefined")
}

/// The key-value pairs of a mapping.
fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let object = value.as_object();
    object.and_then(|object| object.try_iter_pairs()).into_iter().flatten().collect()
}
