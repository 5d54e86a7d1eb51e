//! Python's operators.

use std::cmp::Ordering;

use minijinja::{Environment, Error, State, Value, value::ValueKind};

use super::{
    printf, text,
    values::{
        check_hashable, error, is_dict, is_tuple, iterate, pairs, sequence, type_name, undefined,
    },
};
use crate::chat::limits;

/// Longest string (in bytes) or list (in items) that `*` may make.
const MAX_REPEATED: usize = 16 << 20;
/// Deepest nesting of lists and mappings that a template may build: values are walked and dropped
/// recursively.
const MAX_DEPTH: usize = 200;

/// Registers the operators under the names that compiled templates call; no template can write
/// these names.
pub fn install(environment: &mut Environment<'static>) {
    environment.add_function("+", add);
    environment.add_function("*", multiply);
    environment.add_function("%", remainder);
    environment.add_function("~", concatenate);
    environment.add_function("-", |a: &Value, b: &Value| {
        arithmetic("-", a, b, i128::checked_sub, |a, b| a - b)
    });
    environment.add_function("/", divide);
    environment.add_function("//", |a: &Value, b: &Value| {
        let floats = |a, b| ((a - float_remainder(a, b)) / b).round();
        arithmetic("//", a, b, |a, b| Some(floor_division(a, b)?.0), floats)
    });
    environment.add_function("**", power);
    environment.add_function("negative", negative);
    environment.add_function("==", |a: &Value, b: &Value| equal(a, b));
    environment.add_function("!=", |a: &Value, b: &Value| !equal(a, b));
    environment.add_function("<", |a: &Value, b: &Value| Ok::<_, Error>(order("<", a, b)?.is_lt()));
    environment
        .add_function("<=", |a: &Value, b: &Value| Ok::<_, Error>(order("<=", a, b)?.is_le()));
    environment.add_function(">", |a: &Value, b: &Value| Ok::<_, Error>(order(">", a, b)?.is_gt()));
    environment
        .add_function(">=", |a: &Value, b: &Value| Ok::<_, Error>(order(">=", a, b)?.is_ge()));
    environment.add_function("in", contains);
    environment.add_function("iterate", |state: &mut State, value: &Value| {
        let items = iterate(value)?;
        limits::work(state, items.len() * size_of::<Value>())?;
        Ok::<_, Error>(Value::from(items))
    });
    environment.add_function("assign", assign);
}

/// A Python number; `True` and `False` count as 1 and 0.
#[derive(Clone, Copy)]
enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        match value.kind() {
            ValueKind::Bool => Some(Self::Integer(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => {
                i128::try_from(value.clone()).ok().map(Self::Integer)
            }
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Self::Float),
            _ => None,
        }
    }

    fn float(self) -> f64 {
        match self {
            Self::Integer(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

fn unsupported(operator: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return undefined();
    }
    let (a, b) = (type_name(a), type_name(b));
    error(format!("unsupported operand type(s) for {operator}: '{a}' and '{b}'"))
}

fn integer(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

fn arithmetic(
    operator: &str,
    a: &Value,
    b: &Value,
    integers: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Integer(a)), Some(Number::Integer(b))) => integers(a, b)
            .map(integer)
            .ok_or_else(|| error(format!("{a} {operator} {b} divides by zero or is too large"))),
        (Some(a), Some(b)) if b.float() == 0.0 && matches!(operator, "/" | "//" | "%") => {
            Err(error(format!("{} {operator} 0 divides by zero", a.float())))
        }
        (Some(a), Some(b)) => Ok(Value::from(floats(a.float(), b.float()))),
        _ => Err(unsupported(operator, a, b)),
    }
}

/// `a + b`: numbers, or two strings, lists or tuples.
pub fn add(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => {
            let (left, right) = (a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default());
            limits::work(state, left.len() + right.len())?;
            // A string marked safe is `Markup`, which escapes what is added to it.
            if a.is_safe() == b.is_safe() {
                let joined = [left, right].concat();
                return Ok(if a.is_safe() {
                    Value::from_safe_string(joined)
                } else {
                    joined.into()
                });
            }
            let escaped = |value: &Value, text: &str| {
                if value.is_safe() { text.to_owned() } else { text::escape(text) }
            };
            Ok(Value::from_safe_string(escaped(a, left) + &escaped(b, right)))
        }
        (ValueKind::Seq, ValueKind::Seq) if is_tuple(a) == is_tuple(b) => {
            let mut items: Vec<Value> = a.try_iter()?.collect();
            items.extend(b.try_iter()?);
            limits::work(state, items.len() * size_of::<Value>())?;
            Ok(sequence(items, is_tuple(a)))
        }
        (ValueKind::String, _) if !b.is_undefined() => {
            Err(error(format!("can only concatenate str (not \"{}\") to str", type_name(b))))
        }
        _ => arithmetic("+", a, b, i128::checked_add, |a, b| a + b),
    }
}

/// `a * b`: numbers, or a string or list times an integer.
fn multiply(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    let (repeated, times) = match (Number::of(a), Number::of(b)) {
        (None, Some(Number::Integer(times))) => (a, times),
        (Some(Number::Integer(times)), None) => (b, times),
        _ => return arithmetic("*", a, b, i128::checked_mul, |a, b| a * b),
    };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let allowed = |length: usize| match length.checked_mul(times) {
        Some(total) if total <= MAX_REPEATED => limits::work(state, total),
        _ => Err(error(format!("{length} times {times} is more than {MAX_REPEATED}"))),
    };
    match repeated.kind() {
        ValueKind::String => {
            let text = repeated.as_str().unwrap_or_default();
            allowed(text.len())?;
            Ok(Value::from(text.repeat(times)))
        }
        ValueKind::Seq => {
            let items: Vec<Value> = repeated.try_iter()?.collect();
            allowed(items.len() * size_of::<Value>())?;
            let count = items.len() * times;
            Ok(sequence(items.into_iter().cycle().take(count).collect(), is_tuple(repeated)))
        }
        _ => Err(unsupported("*", a, b)),
    }
}

/// `a / b`, a float.
fn divide(a: &Value, b: &Value) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(a), Some(b)) if b.float() != 0.0 => Ok(Value::from(a.float() / b.float())),
        (Some(a), Some(_)) => Err(error(format!("{} / 0 divides by zero", a.float()))),
        _ => Err(unsupported("/", a, b)),
    }
}

/// Quotient and remainder; the remainder has the divisor's sign.
fn floor_division(a: i128, b: i128) -> Option<(i128, i128)> {
    let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
    match rest != 0 && (rest < 0) != (b < 0) {
        true => Some((quotient - 1, rest + b)),
        false => Some((quotient, rest)),
    }
}

/// `a % b`: the remainder of numbers, or a format with its arguments.
pub fn remainder(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    if a.kind() == ValueKind::String {
        return printf::format(state, a.as_str().unwrap_or_default(), b);
    }
    arithmetic("%", a, b, |a, b| Some(floor_division(a, b)?.1), float_remainder)
}

/// The remainder with the divisor's sign.
fn float_remainder(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

fn power(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(Number::Integer(a)), Some(Number::Integer(b))) = (Number::of(a), Number::of(b))
        && b < 0
    {
        return match a {
            0 => Err(error("0 cannot be raised to a negative power")),
            _ => Ok(Value::from((a as f64).powf(b as f64))),
        };
    }
    let integers = |a: i128, b: i128| a.checked_pow(u32::try_from(b).ok()?);
    arithmetic("**", a, b, integers, f64::powf)
}

fn negative(a: &Value) -> Result<Value, Error> {
    match Number::of(a) {
        Some(Number::Integer(a)) => Ok(integer(a.saturating_neg())),
        Some(Number::Float(a)) => Ok(Value::from(-a)),
        None if a.is_undefined() => Err(undefined()),
        None => Err(error(format!("bad operand type for unary -: '{}'", type_name(a)))),
    }
}

/// `a ~ b`: the operands as strings, joined.
fn concatenate(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    let joined = text::str(a) + &text::str(b);
    limits::work(state, joined.len())?;
    Ok(Value::from(joined))
}

/// `a == b`.
pub fn equal(a: &Value, b: &Value) -> bool {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return match (a, b) {
            (Number::Integer(a), Number::Integer(b)) => a == b,
            _ => a.float() == b.float(),
        };
    }
    match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => a.as_str() == b.as_str(),
        (ValueKind::Seq, ValueKind::Seq) => {
            let items = |value: &Value| value.try_iter().into_iter().flatten().collect::<Vec<_>>();
            let (left, right) = (items(a), items(b));
            is_tuple(a) == is_tuple(b)
                && left.len() == right.len()
                && left.iter().zip(&right).all(|(a, b)| equal(a, b))
        }
        (ValueKind::Map, ValueKind::Map) if is_dict(a) && is_dict(b) => {
            let (left, right) = (pairs(a), pairs(b));
            let same = |(key, value): &(Value, Value)| {
                b.get_item(key).is_ok_and(|other| !other.is_undefined() && equal(value, &other))
            };
            left.len() == right.len() && left.iter().all(same)
        }
        (a_kind, b_kind) => a_kind == b_kind && a == b,
    }
}

/// The order of two numbers, strings, lists or tuples; other pairs have none.
pub fn order(operator: &str, a: &Value, b: &Value) -> Result<Ordering, Error> {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(match (a, b) {
            (Number::Integer(a), Number::Integer(b)) => a.cmp(&b),
            _ => a.float().total_cmp(&b.float()),
        });
    }
    match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => Ok(a.as_str().cmp(&b.as_str())),
        (ValueKind::Seq, ValueKind::Seq) if is_tuple(a) == is_tuple(b) => {
            let (left, right) = (iterate(a)?, iterate(b)?);
            match left.iter().zip(&right).find(|(a, b)| !equal(a, b)) {
                Some((a, b)) => order(operator, a, b),
                None => Ok(left.len().cmp(&right.len())),
            }
        }
        _ if a.is_undefined() || b.is_undefined() => Err(undefined()),
        _ => {
            let (a, b) = (type_name(a), type_name(b));
            Err(error(format!("'{operator}' not supported between instances of '{a}' and '{b}'")))
        }
    }
}

/// Sorts by a key, stably.
pub fn sort<T>(items: &mut [T], key: impl Fn(&T) -> Value) -> Result<(), Error> {
    let mut failed = None;
    items.sort_by(|a, b| {
        order("<", &key(a), &key(b)).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            Ordering::Equal
        })
    });
    failed.map_or(Ok(()), Err)
}

/// `item in container`.
pub fn contains(state: &mut State, item: &Value, container: &Value) -> Result<bool, Error> {
    match container.kind() {
        ValueKind::String => {
            let text = container.as_str().unwrap_or_default();
            limits::work(state, text.len())?;
            match item.kind() {
                ValueKind::String => Ok(text.contains(item.as_str().unwrap_or_default())),
                _ => Err(error(format!(
                    "'in <string>' requires string as left operand, not {}",
                    type_name(item)
                ))),
            }
        }
        ValueKind::Map if is_dict(container) => {
            check_hashable(item)?;
            Ok(container.as_object().is_some_and(|map| map.get_value(item).is_some()))
        }
        ValueKind::Undefined => Ok(false),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = iterate(container)?;
            limits::work(state, items.len() * size_of::<Value>())?;
            Ok(items.iter().any(|other| equal(item, other)))
        }
        _ => Err(error(format!("argument of type '{}' is not iterable", type_name(container)))),
    }
}

/// Refuses values that are nested too deeply to be walked.
fn assign(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.as_object().is_some() && depth(state, &value, MAX_DEPTH)?.is_none() {
        return Err(error(format!("a value is nested more than {MAX_DEPTH} levels deep")));
    }
    Ok(value)
}

/// How deeply a value is nested, if at most `limit` levels.
fn depth(state: &mut State, value: &Value, limit: usize) -> Result<Option<usize>, Error> {
    let Some(object) = value.as_object() else { return Ok(Some(0)) };
    let Some(limit) = limit.checked_sub(1) else { return Ok(None) };
    let items: Vec<Value> = match value.kind() {
        ValueKind::Map => object.try_iter_pairs().into_iter().flatten().map(|(_, v)| v).collect(),
        ValueKind::Seq => object.try_iter().into_iter().flatten().collect(),
        _ => return Ok(Some(1)),
    };
    limits::work(state, items.len() * size_of::<Value>())?;
    let mut deepest = 0;
    for item in &items {
        match depth(state, item, limit)? {
            None => return Ok(None),
            Some(depth) => deepest = deepest.max(depth),
        }
    }
    Ok(Some(deepest + 1))
}
