//! Jinja's tests (`value is name`). Tests that are not defined here are minijinja's.

use minijinja::{Environment, Error, State, Value, value::ValueKind};

use super::{
    access, operators, text,
    values::{is_dict, type_name},
};

/// Registers the tests, and removes those that Jinja does not have.
pub fn install(environment: &mut Environment<'static>) {
    for name in ["startingwith", "endingwith", "safe", "int"] {
        environment.remove_test(name);
    }
    let kinds: [(&str, fn(&Value) -> bool); 12] = [
        ("boolean", |value| value.kind() == ValueKind::Bool),
        ("callable", is_callable),
        ("escaped", Value::is_safe),
        ("float", |value| value.is_number() && !value.is_integer()),
        ("integer", Value::is_integer),
        ("iterable", |value| {
            !matches!(
                value.kind(),
                ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain
            )
        }),
        ("lower", |value| has_case(value, char::is_lowercase, char::is_uppercase)),
        ("mapping", is_dict),
        ("number", |value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool)),
        ("sequence", |value| {
            is_dict(value)
                || matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Undefined)
        }),
        ("string", |value| value.kind() == ValueKind::String),
        ("upper", |value| has_case(value, char::is_uppercase, char::is_lowercase)),
    ];
    for (name, test) in kinds {
        environment.add_test(name, move |value: &Value| test(value));
    }
    environment.add_test("odd", |state: &mut State, value: &Value| rest(state, value, 2, 1));
    environment.add_test("even", |state: &mut State, value: &Value| rest(state, value, 2, 0));
    environment.add_test("divisibleby", |state: &mut State, value: &Value, by: &Value| {
        rest(state, value, by.clone(), 0)
    });
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, |a: &Value, b: &Value| operators::equal(a, b));
    }
    for name in ["ne", "!="] {
        environment.add_test(name, |a: &Value, b: &Value| !operators::equal(a, b));
    }
    for name in ["lt", "lessthan", "<"] {
        environment.add_test(name, |a: &Value, b: &Value| {
            Ok::<_, Error>(operators::order("<", a, b)?.is_lt())
        });
    }
    for name in ["le", "<="] {
        environment.add_test(name, |a: &Value, b: &Value| {
            Ok::<_, Error>(operators::order("<=", a, b)?.is_le())
        });
    }
    for name in ["gt", "greaterthan", ">"] {
        environment.add_test(name, |a: &Value, b: &Value| {
            Ok::<_, Error>(operators::order(">", a, b)?.is_gt())
        });
    }
    for name in ["ge", ">="] {
        environment.add_test(name, |a: &Value, b: &Value| {
            Ok::<_, Error>(operators::order(">=", a, b)?.is_ge())
        });
    }
    environment.add_test("in", |state: &mut State, item: &Value, container: &Value| {
        operators::contains(state, item, container)
    });
}

fn is_callable(value: &Value) -> bool {
    access::is_method(value)
        || value.is_undefined()
        || (value.as_object().is_some()
            && matches!(type_name(value), "object")
            && value.kind() != ValueKind::Iterable
            && value
                .get_attr("arguments")
                .is_ok_and(|macro_arguments| !macro_arguments.is_undefined()))
        || value.kind() == ValueKind::Plain
}

fn has_case(value: &Value, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    let text = text::str(value);
    text.chars().any(wanted) && !text.chars().any(other)
}

/// Whether `value % by` is `expected`.
fn rest(
    state: &mut State,
    value: &Value,
    by: impl Into<Value>,
    expected: i64,
) -> Result<bool, Error> {
    let rest = operators::remainder(state, value, &by.into())?;
    Ok(operators::equal(&rest, &Value::from(expected)))
}
