//! JSON Schemas: checked for what a grammar cannot express, and bounded, before they are compiled.

use serde_json::{Map, Value, json};

use super::GrammarError;

/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 64;
/// Most objects, lists and scalars of a schema.
const MAX_VALUES: usize = 20_000;
/// Whitespace between two tokens of an answer: enough for any indentation, and an end to it, which a
/// model that only goes on with whitespace needs.
const WHITESPACE: &str = r"[ \n\r\t]{1,40}";

/// Keywords under which a grammar cannot decide whether an answer is right: what they ask depends on
/// another part of it, or on what it is not.
const UNSUPPORTED: &[&str] = &[
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "x-guidance",
];
/// Keywords whose value is a schema, a list of schemas or either.
const ONE: &[&str] =
    &["additionalItems", "additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// Keywords whose value has a schema under each name.
const NAMED: &[&str] = &["$defs", "definitions", "patternProperties", "properties"];

/// Years from 0001.
const YEAR: &str = "^([1-9]|0[1-9]|00[1-9]|000[1-9])";
/// No 29 February but in leap years.
const CALENDAR: &str = "^([0-9]{4}-(0[13-9]|1[0-2]|02-[01]|02-2[0-8])|\
    ([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";
/// No leap seconds, which occur in some years only.
const SECONDS: [&str; 2] = ["^[0-9:]{6}[0-5]", "^.{17}[0-5]"];

/// What a format asks beyond what llguidance takes it for, as patterns.
fn patterns(format: &str) -> &'static [&'static str] {
    match format {
        "date" => &[YEAR, CALENDAR],
        "time" => &[SECONDS[0]],
        "date-time" => &[YEAR, CALENDAR, SECONDS[1]],
        _ => &[],
    }
}

/// A schema as it is compiled: bounded, with supported keywords alone. Fails naming the part that is
/// not supported.
pub fn prepare(schema: Value) -> Result<Value, GrammarError> {
    let mut left = MAX_VALUES;
    if !within(&schema, MAX_DEPTH, &mut left) {
        let reason =
            format!("expected at most {MAX_VALUES} values, nested at most {MAX_DEPTH} deep");
        return Err(GrammarError::Invalid(reason));
    }
    let mut map = match schema {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        other => {
            return Err(GrammarError::Invalid(format!(
                "it is {}, expected an object",
                kind(&other)
            )));
        }
    };
    check(&mut map, "")?;
    map.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITESPACE}));
    Ok(map.into())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "false, which nothing satisfies",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether a value is nested at most `depth` deep and holds at most as many values as are `left`.
pub fn within(value: &Value, depth: usize, left: &mut usize) -> bool {
    let (Some(depth), Some(rest)) = (depth.checked_sub(1), left.checked_sub(1)) else {
        return false;
    };
    *left = rest;
    match value {
        Value::Array(items) => items.iter().all(|item| within(item, depth, left)),
        Value::Object(map) => map.values().all(|item| within(item, depth, left)),
        _ => true,
    }
}

/// Checks the keywords of a schema and of those in it. Keywords that ask for nothing are removed.
fn check(schema: &mut Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    let below =
        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if schema.get("uniqueItems") == Some(&Value::Bool(false)) {
        schema.shift_remove("uniqueItems");
    }
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    let patterns = patterns(format).iter().map(|pattern| json!({"pattern": pattern}));
    let patterns: Vec<Value> = patterns.collect();
    if !patterns.is_empty()
        && let Value::Array(all) = schema.entry("allOf").or_insert_with(|| json!([]))
    {
        all.extend(patterns);
    }
    for (name, value) in schema.iter_mut() {
        let path = below(name);
        if UNSUPPORTED.contains(&name.as_str()) {
            let reason = "no grammar can hold an answer to it; leave it out, or check the answer";
            return Err(GrammarError::Unsupported { path, reason: reason.to_owned() });
        }
        match value {
            Value::Object(inner) if ONE.contains(&name.as_str()) => check(inner, &path)?,
            Value::Array(items) if ONE.contains(&name.as_str()) => {
                for (index, item) in items.iter_mut().enumerate() {
                    if let Value::Object(inner) = item {
                        check(inner, &format!("{path}[{index}]"))?;
                    }
                }
            }
            Value::Object(named) if NAMED.contains(&name.as_str()) => {
                for (name, inner) in named.iter_mut() {
                    if let Value::Object(inner) = inner {
                        check(inner, &format!("{path}.{name}"))?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsupported_part_is_named_by_its_path() {
        for (schema, path) in [
            (json!({"not": {}}), "not"),
            (
                json!({"properties": {"a": {"items": {"uniqueItems": true}}}}),
                "properties.a.items.uniqueItems",
            ),
            (json!({"anyOf": [{}, {"if": {}}]}), "anyOf[1].if"),
            (json!({"$defs": {"not": {"contains": {}}}}), "$defs.not.contains"),
            (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
        ] {
            let Err(GrammarError::Unsupported { path: got, .. }) = prepare(schema.clone()) else {
                panic!("{schema} was taken");
            };
            assert_eq!(got, path, "{schema}");
        }
        for schema in [
            json!({"uniqueItems": false}),
            json!({"properties": {"not": {"type": "string"}}}),
            json!({"enum": [{"not": 1}], "const": {"if": 1}}),
            json!(true),
        ] {
            assert!(prepare(schema.clone()).is_ok(), "{schema}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = |n| (0..n).fold(json!({}), |inner, _| json!({"items": inner}));
        assert!(prepare(deep(60)).is_ok());
        assert!(prepare(deep(70)).is_err());
        let wide = json!({"enum": (0..MAX_VALUES).collect::<Vec<_>>()});
        assert!(prepare(wide).is_err());
    }
}
