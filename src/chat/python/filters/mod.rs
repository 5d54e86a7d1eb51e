//! Jinja's filters.

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, Rest},
};

use super::{arguments::Arguments, json};
use crate::chat::limits;

mod lists;
mod scalars;

/// A filter; the value that it is applied to is its first argument.
type Filter = fn(&mut State, &Arguments) -> Result<Value, Error>;

const FILTERS: &[(&str, Filter)] = &[
    ("abs", scalars::abs),
    ("attr", scalars::attr),
    ("batch", lists::batch),
    ("capitalize", scalars::in_case),
    ("center", scalars::center),
    ("count", lists::length),
    ("d", scalars::default),
    ("default", scalars::default),
    ("dictsort", lists::dict_sort),
    ("e", scalars::escape),
    ("escape", scalars::escape),
    ("first", lists::first),
    ("float", scalars::float),
    ("forceescape", scalars::escape),
    ("format", scalars::format),
    ("groupby", lists::group_by),
    ("indent", scalars::indent),
    ("int", scalars::int),
    ("items", lists::items),
    ("join", lists::join),
    ("last", lists::last),
    ("length", lists::length),
    ("list", lists::list),
    ("lower", scalars::in_case),
    ("map", lists::map),
    ("max", lists::extreme),
    ("min", lists::extreme),
    ("reject", lists::choose),
    ("rejectattr", lists::choose),
    ("replace", scalars::replace),
    ("reverse", lists::reverse),
    ("round", scalars::round),
    ("safe", scalars::safe),
    ("select", lists::choose),
    ("selectattr", lists::choose),
    ("slice", lists::slice),
    ("sort", lists::sort),
    ("string", scalars::string),
    ("sum", lists::sum),
    ("title", scalars::title),
    ("tojson", json::to_json),
    ("trim", scalars::trim),
    ("truncate", scalars::truncate),
    ("unique", lists::unique),
    ("upper", scalars::in_case),
    ("wordcount", scalars::word_count),
];

/// Registers the filters, and removes those that Jinja does not have.
pub fn install(environment: &mut Environment<'static>) {
    for name in ["bool", "chain", "lines", "pprint", "split", "urlencode", "zip"] {
        environment.remove_filter(name);
    }
    for &(name, filter) in FILTERS {
        environment.add_filter(
            name,
            move |state: &mut State, values: Rest<Value>, named: Kwargs| {
                limits::work(state, values.first().map_or(0, size))?;
                let result = filter(state, &Arguments::new(name, &values, named))?;
                limits::work(state, size(&result))?;
                Ok::<_, Error>(result)
            },
        );
    }
}

/// Approximate number of bytes that an operation on a value touches.
fn size(value: &Value) -> usize {
    match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0) * size_of::<Value>(),
    }
}
