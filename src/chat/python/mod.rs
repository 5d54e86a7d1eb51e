//! Python's semantics for the values of a template: operators, attributes, methods, filters, tests
//! and functions, as `transformers` gives them to chat templates (Jinja's
//! `ImmutableSandboxedEnvironment`).

use minijinja::Environment;

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
mod values;

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

/// Installs Python's semantics in an environment.
pub fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call);
    operators::install(environment);
    access::install(environment);
    filters::install(environment);
    tests::install(environment);
    functions::install(environment);
}
