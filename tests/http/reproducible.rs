//! Equal requests that can be repeated get equal answers through the server's door.

use ladle::{
    config::{MergeMode, ServeOptions},
    http::{bind, serve},
};
use serde_json::{Value, json};

use crate::server::{Server, options};

/// An answer without times and without how much of the prompt was found in the cache.
fn seen(mut answer: Value) -> Value {
    let fields = answer.as_object_mut().unwrap();
    for field in ["timings", "id", "created", "usage"] {
        fields.remove(field);
    }
    if let Some(echo) = fields.get_mut("ladle").and_then(Value::as_object_mut) {
        echo.remove("timings");
    }
    answer
}

const PREFERENCE: [f64; 3] = [0.6, 0.3, 0.1];

/// Requests that can be repeated: route and body.
fn repeatable() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Tell me about soup."}]);
    vec![
        (
            "/v1/chat/completions",
            json!({"messages": messages, "preference": PREFERENCE, "seed": 7, "max_tokens": 24,
                   "logprobs": true, "top_logprobs": 3}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "The soup is", "preference": PREFERENCE, "temperature": 0,
                   "max_tokens": 24, "logprobs": 3, "n": 2}),
        ),
        (
            "/generate",
            json!({"prompt": "A ladle holds", "preference": PREFERENCE, "seed": -3, "n": 3,
                   "temperature": 1.3, "top_p": 0.9, "max_tokens": 24, "logprobs": 2}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "The soup is", "preference": PREFERENCE, "max_tokens": 0,
                   "echo": true, "logprobs": 2}),
        ),
        (
            "/generate",
            json!({"prompt": "The soup is", "preference": PREFERENCE, "combine": "logits",
                   "alpha": 0, "temperature": 0, "max_tokens": 16, "logprobs": 1}),
        ),
    ]
}

fn answers(server: &Server) -> Vec<Value> {
    let answer = |(route, body): (&str, Value)| seen(server.post(route, body).ok());
    repeatable().into_iter().map(answer).collect()
}

/// Of the same preference, drawn afresh: such requests make it hot.
fn make_hot(server: &Server) {
    for _ in 0..4 {
        let body = json!({"prompt": "The soup is", "preference": PREFERENCE, "max_tokens": 60,
                          "ignore_eos": true});
        server.post("/generate", body).ok();
    }
}

#[test]
fn equal_requests_get_one_answer_from_a_default_server_and_from_the_next() {
    let first = Server::start(options());
    let expected = answers(&first);
    for _ in 0..14 {
        make_hot(&first);
        assert_eq!(answers(&first), expected);
    }
    // Other budgets of time and memory, and nothing that ran before.
    let second = Server::start(ServeOptions {
        threads: Some(1.try_into().unwrap()),
        max_step_tokens: Some(64.try_into().unwrap()),
        max_sequences: Some(16.try_into().unwrap()),
        ..options()
    });
    make_hot(&second);
    assert_eq!(answers(&second), expected);
}

#[test]
fn equal_requests_get_one_answer_beside_others() {
    let server = Server::start(options());
    let expected = answers(&server);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| make_hot(&server));
        }
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(answers(&server), expected));
        }
    });
}

#[test]
fn a_pinned_preset_runs_fused_from_the_first_request_on_and_says_so() {
    let pin = Some(vec!["terse".to_owned()]);
    let server = Server::start(ServeOptions { pin: pin.clone(), ..options() });
    assert_eq!(server.metric("ladle_merge_cache_misses_total"), 1.0, "merged before the start");
    let body = |preference: Value| {
        json!({"prompt": "The soup is", "preference": preference, "temperature": 0, "n": 2,
               "max_tokens": 8})
    };
    for preference in [json!("terse"), json!({"brief": 4, "helpful": 1})] {
        let answer = server.generate(body(preference));
        assert_eq!((&answer["mode"], &answer["cache"]), (&json!("fused"), &json!("hit")));
    }
    let other = server.generate(body(json!("balanced")));
    assert_eq!((&other["mode"], &other["cache"]), (&json!("mixed"), &Value::Null));
    // Another extrapolation is another model.
    let mut further = body(json!("terse"));
    further["alpha"] = json!(0.5);
    assert_eq!(server.generate(further)["mode"], "mixed");

    let fused = ServeOptions { merge_mode: Some(MergeMode::Fused), ..options() };
    let fused = Server::start(fused).generate(body(json!("terse")));
    let pinned = server.generate(body(json!("terse")));
    assert_eq!(pinned["choices"], fused["choices"]);
}

#[test]
fn a_pin_that_is_no_preset_or_cannot_be_merged_stops_the_start_with_the_reason() {
    let refused = |options: ServeOptions| {
        let config = options.check().unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let listener = bind(&config).await.unwrap();
            serve(config, listener, std::future::pending()).await.unwrap_err().to_string()
        })
    };
    let pin = |name: &str| Some(vec![name.to_owned()]);
    let error = refused(ServeOptions { pin: pin("curt"), ..options() });
    assert_eq!(error, "pin is \"curt\", expected a preset of the soup: balanced, terse");
    let mixed = Some(MergeMode::Mixed);
    let error = refused(ServeOptions { pin: pin("terse"), merge_mode: mixed, ..options() });
    assert!(error.starts_with("pin is terse, expected none: "), "{error}");
}
