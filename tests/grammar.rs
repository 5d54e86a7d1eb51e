//! Grammars token by token, on a tokenizer of bytes.

#[allow(dead_code)]
#[path = "support/hash_soup.rs"]
mod hash_soup;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hash_soup::{EOS, VOCABULARY, byte_tokenizer};
use ladle::grammar::{Compiler, Constraint, Grammar, GrammarError, Mask};
use serde_json::{Value, json};

fn compiler() -> Compiler {
    Compiler::new(byte_tokenizer(), VOCABULARY)
}

fn allows(mask: &Mask, token: u32) -> bool {
    mask.bits().get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Whether the text is a whole answer under the grammar.
fn takes(grammar: &Grammar, text: &str) -> bool {
    let mut guide = grammar.start(Arc::new(|| ()));
    let far = Instant::now() + Duration::from_secs(60);
    for byte in text.bytes() {
        let mask = guide.mask(far).expect("the mask came").unwrap();
        if !allows(mask, u32::from(byte)) {
            return false;
        }
        guide.accept(byte.into());
    }
    allows(guide.mask(far).expect("the mask came").unwrap(), EOS)
}

/// The JSON Schema Test Suite: an instance that is not valid is no answer under any schema that is
/// taken; a valid one is, unless what it holds stands in another order or is written in another way.
#[test]
fn no_answer_breaks_a_schema_of_the_public_suite() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/json-schema-suite.json");
    let cases: Vec<(String, Value, Vec<(Value, bool)>)> =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let compiler = compiler();
    let (mut taken, mut refused) = (0, 0);
    let (mut held, mut valid, mut told) = (0, 0, String::new());
    let mut missed: BTreeMap<String, usize> = BTreeMap::new();
    for (name, schema, tests) in &cases {
        let grammar = match compiler.compile(Constraint::Schema(schema.clone())) {
            Ok(grammar) => grammar,
            Err(error) => {
                assert!(!error.to_string().is_empty(), "{name}");
                refused += 1;
                continue;
            }
        };
        taken += 1;
        for (instance, right) in tests {
            let accepted = takes(&grammar, &instance.to_string());
            match (accepted, right) {
                (true, false) => told += &format!("{name}: {schema} gives {instance}\n"),
                (false, true) => *missed.entry(name.clone()).or_default() += 1,
                _ => {}
            }
            held += usize::from(!right);
            valid += usize::from(*right);
        }
    }
    assert!(told.is_empty(), "\n{told}");
    let missing: usize = missed.values().sum();
    assert!(taken >= 150 && held >= 300, "{taken} taken, {refused} refused, {held} held");
    assert!(
        missing * 10 <= valid,
        "{missing} of {valid} valid instances are no answer: {missed:#?}"
    );
}

#[test]
fn each_kind_of_constraint_takes_what_it_describes_and_nothing_else() {
    let compiler = compiler();
    let text = |text: &str| text.to_owned();
    for (constraint, right, wrong) in [
        (Constraint::Regex(text("[a-c]{2,3}")), vec!["ab", "abc"], vec!["a", "abca", "xab", ""]),
        (Constraint::Regex(text("a/b|\\d+")), vec!["a/b", "17"], vec!["a", "b"]),
        (Constraint::Regex(text("(é|日)+")), vec!["é", "日é"], vec!["e", ""]),
        (
            Constraint::Choice(vec![text("yes"), text("no \"way\""), text("né\n")]),
            vec!["yes", "no \"way\"", "né\n"],
            vec!["ye", "yess", "no", "né"],
        ),
        (
            Constraint::Lark(text("start: \"a\" item+\nitem: /[0-9]/ \"!\"")),
            vec!["a1!", "a1!2!"],
            vec!["a", "a1", "1!"],
        ),
        (
            Constraint::Schema(json!({"enum": ["a", null, 1.5, {"b": [true]}]})),
            vec!["\"a\"", "null", "1.5", "{\"b\":[true]}", "{\"b\": [ true ]}"],
            vec!["\"b\"", "2", "nul"],
        ),
        (Constraint::Schema(json!({"const": null})), vec!["null"], vec!["1", "\"null\"", "{}"]),
        (
            Constraint::Schema(json!({"type": "object", "properties": {"n": {"type": "integer",
                "minimum": 3}, "t": {"type": ["string", "null"], "maxLength": 2}},
                "required": ["n"], "additionalProperties": false})),
            vec![
                "{\"n\":3}",
                "{\"n\": 12, \"t\": null}",
                "{\"n\":3,\"t\":\"né\"}",
                "{\n \"n\": 5\n}",
            ],
            vec!["{}", "{\"n\":2}", "{\"n\":3,\"t\":\"abc\"}", "{\"n\":3,\"x\":1}"],
        ),
    ] {
        let grammar = compiler.compile(constraint.clone()).unwrap();
        for text in right {
            assert!(takes(&grammar, text), "{constraint:?} does not take {text:?}");
        }
        for text in wrong {
            assert!(!takes(&grammar, text), "{constraint:?} takes {text:?}");
        }
    }
}

#[test]
fn days_and_seconds_exist() {
    let compiler = compiler();
    for (format, right, wrong) in [
        (
            "date",
            vec!["2024-02-29", "2000-02-29", "2023-02-28", "0001-12-31"],
            vec!["2023-02-29", "1900-02-29", "2024-02-30", "0000-01-01"],
        ),
        ("time", vec!["23:59:59Z", "08:30:06.283185+01:00"], vec!["23:59:60Z", "24:00:00Z"]),
        (
            "date-time",
            vec!["2024-02-29T00:00:00Z"],
            vec!["2025-02-29T00:00:00Z", "2016-12-31T23:59:60Z"],
        ),
    ] {
        let schema = json!({"type": "string", "format": format});
        let grammar = compiler.compile(Constraint::Schema(schema)).unwrap();
        let quoted = |text: &str| format!("\"{text}\"");
        assert!(right.iter().all(|text| takes(&grammar, &quoted(text))), "{format}");
        assert!(!wrong.iter().any(|text| takes(&grammar, &quoted(text))), "{format}");
    }
}

#[test]
fn whitespace_ends() {
    let grammar = compiler().compile(Constraint::Schema(json!({"type": "array"}))).unwrap();
    let spaces = |n| format!("[{}1]", " ".repeat(n));
    assert!(takes(&grammar, &spaces(40)));
    assert!(!takes(&grammar, &spaces(41)));
}

#[test]
fn what_is_no_grammar_is_refused_with_a_reason() {
    let compiler = compiler();
    for (constraint, reason) in [
        (Constraint::Regex("(".to_owned()), "regex"),
        (Constraint::Regex("a(?=b)".to_owned()), "look"),
        (Constraint::Choice(Vec::new()), "1 to"),
        (Constraint::Choice(vec![String::new()]), "empty"),
        (Constraint::Lark("root ::= \"a\"".to_owned()), "GBNF"),
        (Constraint::Lark("start: missing".to_owned()), "missing"),
        (Constraint::Schema(json!({"type": "colour"})), "colour"),
        (Constraint::Schema(json!({"$ref": "#/$defs/absent"})), "absent"),
        (Constraint::Schema(json!({"$ref": "https://example.com/x"})), "example.com"),
        (Constraint::Schema(json!(false)), "false"),
        (Constraint::Schema(json!({"$ref": "#"})), "finite"),
        (Constraint::Schema(json!({"type": "string", "format": "colour"})), "colour"),
        (Constraint::Schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "minimum"),
    ] {
        let error = compiler.compile(constraint.clone()).unwrap_err();
        let GrammarError::Invalid(text) = &error else { panic!("{constraint:?}: {error:?}") };
        assert!(
            text.to_lowercase().contains(reason) || text.contains(reason),
            "{constraint:?}: {text}"
        );
        assert!(text.len() < 600 && !text.contains('\n'), "{text}");
    }
}

/// Constraints made to be expensive are refused, or cheap enough to serve.
#[test]
fn bombs_do_not_go_off() {
    let compiler = compiler();
    let nested = (0..30).fold("a".to_owned(), |inner, _| format!("({inner}){{1,30}}"));
    let wide: Vec<Value> = (0..2000).map(|i| json!({"const": format!("value-{i}")})).collect();
    let all: Vec<Value> = (0..200)
        .map(|i| json!({"properties": {format!("p{i}"): {"pattern": format!("^[a-z]{{{i},500}}$")}}}))
        .collect();
    let defs: serde_json::Map<String, Value> = (0..60)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({"type": "object", "properties": {"a": next, "b": next}, "required": ["a", "b"]}))
        })
        .chain([("d60".to_owned(), json!({"type": "string"}))])
        .collect();
    for constraint in [
        Constraint::Regex(nested),
        Constraint::Regex("(a?){5000}a{5000}".to_owned()),
        Constraint::Regex("(x+x+)+y".to_owned()),
        Constraint::Regex("[a-z]{1,100000}".to_owned()),
        Constraint::Regex(format!("({})*z", "(a|b|ab)*".repeat(200))),
        Constraint::Schema(json!({"anyOf": wide})),
        Constraint::Schema(json!({"allOf": all})),
        Constraint::Schema(json!({"type": "string", "minLength": 100_000, "maxLength": 1_000_000})),
        Constraint::Schema(
            json!({"type": "array", "minItems": 100_000, "items": {"type": "object"}}),
        ),
        Constraint::Schema(json!({"type": "array", "maxItems": 4_000_000_000u64})),
        Constraint::Schema(json!({"$defs": defs, "$ref": "#/$defs/d0"})),
        Constraint::Schema(json!({"$ref": "#"})),
        Constraint::Schema(json!({"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]})),
        Constraint::Schema(json!({"multipleOf": 0.000_000_1, "minimum": 1e-300, "maximum": 1e300})),
        Constraint::Lark(format!("start: {}", "start ".repeat(50))),
        Constraint::Lark(format!(
            "start: a\n{}z: \"x\"",
            ('a'..='y')
                .map(|c| {
                    let next = char::from(c as u8 + 1);
                    format!("{c}: {next} {next}\n")
                })
                .collect::<String>()
        )),
    ] {
        let shown: String = format!("{constraint:?}").chars().take(80).collect();
        let begin = Instant::now();
        let grammar = compiler.compile(constraint);
        let took = begin.elapsed();
        // The compiler itself gives up after five seconds; the rest is for a busy machine.
        assert!(took < Duration::from_secs(30), "{shown}: {took:?}");
        let Ok(grammar) = grammar else { continue };
        let mut guide = grammar.start(Arc::new(|| ()));
        for _ in 0..20 {
            let far = Instant::now() + Duration::from_secs(60);
            let Ok(mask) = guide.mask(far).expect("the mask came") else { break };
            let Some(token) = (0..EOS).find(|&token| allows(mask, token)) else { break };
            guide.accept(token);
        }
    }
}
