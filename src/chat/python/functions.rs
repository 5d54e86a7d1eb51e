//! Global functions: `range`, `dict`, `namespace`, `cycler`, `joiner`, `raise_exception`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use minijinja::{
    Environment, Error, ErrorKind, State, Value, functions,
    value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs},
};

use super::{
    text,
    values::{Dict, error, iterate, pairs},
};

/// Source of the error that `raise_exception` raises.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Raised(pub String);

/// Whether `name` is a global function.
pub fn is_function(name: &str) -> bool {
    matches!(name, "cycler" | "dict" | "joiner" | "namespace" | "raise_exception" | "range")
}

/// Registers the functions, and removes those that Jinja does not have.
pub fn install(environment: &mut Environment<'static>) {
    environment.remove_global("debug");
    environment.add_function("range", range);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(error("at least one item has to be provided")),
        false => {
            Ok(Value::from_object(Cycler { items: items.to_vec(), next: AtomicUsize::new(0) }))
        }
    });
    environment.add_function("joiner", |separator: Option<Value>| {
        let separator = separator.unwrap_or_else(|| Value::from(", "));
        Value::from_object(Joiner { separator, used: AtomicBool::new(false) })
    });
    environment.add_function("raise_exception", |message: &Value| {
        let message = text::str(message);
        let raised = Raised(message.clone());
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message).with_source(raised))
    });
}

/// `cycler`: its items in turn, cyclically.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    next: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        let index = self.next.load(Ordering::Relaxed) % self.items.len();
        self.items.get(index).cloned().unwrap_or(Value::UNDEFINED)
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        let current = self.current();
        match method {
            "next" => _ = self.next.fetch_add(1, Ordering::Relaxed),
            "reset" => self.next.store(0, Ordering::Relaxed),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(if method == "next" { current } else { Value::from(()) })
    }
}

/// `joiner`: empty text at the first call, the separator at every later one.
#[derive(Debug)]
struct Joiner {
    separator: Value,
    used: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        let used = self.used.swap(true, Ordering::Relaxed);
        Ok(if used { self.separator.clone() } else { Value::from("") })
    }
}

/// `range(stop)` or `range(start, stop, step)`, as a list of at most 100,000 numbers.
fn range(start: isize, stop: Option<isize>, step: Option<isize>) -> Result<Value, Error> {
    Ok(functions::range(start, stop, step)?.try_iter()?.collect())
}

/// `dict(mapping or pairs, **more)`.
fn dict(from: Option<&Value>, more: Kwargs) -> Result<Value, Error> {
    let mut out = Dict::new();
    match from {
        Some(from) if from.kind() == ValueKind::Map => out.extend(pairs(from)),
        Some(from) => {
            for item in iterate(from)? {
                match iterate(&item)?.as_slice() {
                    [key, value] => _ = out.insert(key.clone(), value.clone()),
                    _ => return Err(error("dict() takes a mapping or pairs")),
                }
            }
        }
        None => {}
    }
    out.extend(pairs(&Value::from(more)));
    Ok(Value::from_object(out))
}

/// `namespace(mapping, **more)`.
fn namespace(_: &mut State, from: Option<&Value>, more: Kwargs) -> Result<Value, Error> {
    let attributes = dict(from, more)?;
    if let Some((name, _)) = pairs(&attributes).iter().find(|(name, _)| is_private(name)) {
        return Err(error(format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got \
             {}.",
            text::repr(name)
        )));
    }
    functions::namespace(Some(ValueOrKwargs::from(attributes)))
}

fn is_private(name: &Value) -> bool {
    name.as_str().is_some_and(|name| name.starts_with('_'))
}
