use serde_json::{Value, json};

use crate::{
    routes::POSTS,
    server::{Server, greedy, with},
};

/// Asks, checks the error, and checks that the next good request is unharmed.
fn refused(
    path: &str,
    body: impl Into<Vec<u8>>,
    status: u16,
    code: &str,
    param: Option<&str>,
    parts: &[&str],
) {
    let server = Server::shared();
    let body = body.into();
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    let reply = server.post_bytes(path, body);
    assert_eq!(reply.status, status, "{path} {shown}: {}", reply.body);
    let (got, got_param, message) = reply.error();
    assert_eq!((got, got_param), (code, param), "{path} {shown}: {message}");
    for part in parts {
        assert!(message.contains(part), "{path} {shown}: {part:?} is not in {message:?}");
    }
    assert!(message.len() < 600, "{message}");
    unharmed();
}

fn unharmed() {
    use std::sync::OnceLock;
    static BASELINE: OnceLock<Value> = OnceLock::new();
    let text = || Server::shared().generate(greedy())["text"].clone();
    assert_eq!(*BASELINE.get_or_init(text), text());
}

/// A good request with these fields changed is a 400.
fn field(change: Value, param: &str, parts: &[&str]) {
    let body = with(greedy(), change).to_string();
    refused("/generate", body, 400, "invalid_value", Some(param), parts);
}

#[test]
fn preferences_that_are_none() {
    let objectives = "helpful, harmless, brief";
    field(json!({"preference": {"funny": 1}}), "preference.funny", &["\"funny\"", objectives]);
    field(json!({"preference": "mean"}), "preference", &["\"mean\"", "balanced, terse"]);
    field(json!({"preference": {"helpful": -0.1}}), "preference.helpful", &["-0.1", "≥ 0"]);
    field(json!({"preference": [0, 0, 0]}), "preference", &["all zero"]);
    field(json!({"preference": {}}), "preference", &["all zero"]);
    field(json!({"preference": [1, 2]}), "preference", &["list of 2", "expected 3", objectives]);
    field(json!({"preference": []}), "preference", &["list of 0"]);
    field(json!({"preference": 3}), "preference", &["is 3", "object of weights"]);
    field(json!({"preference": {"helpful": "much"}}), "preference.helpful", &["\"much\""]);
    field(json!({"preference": [1, true, 0]}), "preference[1]", &["true"]);
    field(json!({"preference": {"helpful": null}}), "preference", &["all zero"]);
    field(json!({"preference": [1, null, 0]}), "preference[1]", &["null"]);
}

#[test]
fn preferences_in_model_and_header_that_are_none() {
    for (model, parts) in [
        ("soup-tiny:helpful=NaN", &["model.helpful is NaN"][..]),
        ("soup-tiny:helpful=inf", &["model.helpful is inf"]),
        ("soup-tiny:helpful=-1", &["model.helpful is -1"]),
        ("soup-tiny:mean", &["\"mean\"", "balanced, terse"]),
        ("soup-tiny:1,2", &["list of 2 weights"]),
        ("soup-tiny:helpful=1,helpful=2", &["twice"]),
        ("soup-tiny:", &["a preset"]),
    ] {
        let body = json!({"model": model, "prompt": "x"});
        let reply = Server::shared().post("/v1/completions", body);
        assert_eq!(reply.status, 400, "{model}: {}", reply.body);
        parts.iter().for_each(|part| {
            assert!(reply.error().2.contains(part), "{model}: {:?}", reply.error())
        });
    }
    let server = Server::shared();
    for header in [&b"helpful=NaN"[..], b"mean", b"helpful=1,,", b"\xff\xfe"] {
        let request = server.client.post(format!("{}/generate", server.url)).json(&greedy());
        let value = ureq::http::HeaderValue::from_bytes(header).unwrap();
        let reply = crate::server::Reply::of(request.header("x-preference", value).send().unwrap());
        assert_eq!((reply.status, reply.error().0), (400, "invalid_value"), "{}", reply.body);
        assert!(reply.error().2.starts_with("X-Preference"), "{}", reply.body);
    }
    unharmed();
}

#[test]
fn a_rule_for_lambda_that_does_not_exist() {
    for wrong in [json!("clip"), json!(true), json!({"helpful": 1}), json!([1, 0, 0]), json!("")] {
        let given = wrong.to_string();
        field(json!({"lambda": wrong}), "lambda", &[&given, "\"exact\"", "\"clamp\""]);
    }
}

#[test]
fn alpha_out_of_the_soups_bounds() {
    field(json!({"alpha": 2.5}), "alpha", &["2.5", "[0, 2]"]);
    field(json!({"alpha": -0.1}), "alpha", &["-0.1", "[0, 2]"]);
    field(json!({"alpha": [0, 0]}), "alpha", &["list of 2", "1 or 3"]);
    field(json!({"alpha": {"brief": 9}}), "alpha", &["9", "[0, 2]"]);
    field(
        json!({"alpha": {"funny": 0.1}}),
        "alpha.funny",
        &["\"funny\"", "helpful, harmless, brief"],
    );
    field(json!({"alpha": "high"}), "alpha", &["\"high\""]);
    field(json!({"alpha": 0.5, "combine": "logits"}), "alpha", &["logits"]);
}

#[test]
fn numbers_out_of_bounds_or_of_the_wrong_type() {
    for (name, values, expected) in [
        (
            "temperature",
            vec![json!(-0.1), json!(2.1), json!("hot"), json!([1]), json!(true)],
            "[0, 2]",
        ),
        ("top_p", vec![json!(-0.1), json!(1.1), json!("x")], "[0, 1]"),
        ("top_k", vec![json!(-2), json!(1.5), json!(513)], "[1, 512]"),
        ("min_p", vec![json!(-0.1), json!(1.1)], "[0, 1]"),
        ("repetition_penalty", vec![json!(0), json!(-1), json!(11)], "[0.01, 10]"),
        ("frequency_penalty", vec![json!(-2.1), json!(2.1)], "[-2, 2]"),
        ("presence_penalty", vec![json!(-2.1), json!(2.1)], "[-2, 2]"),
        ("max_tokens", vec![json!(0), json!(-5), json!(1.5), json!("8")], "[1, 255]"),
        ("n", vec![json!(0), json!(17), json!(1e300), json!(-1)], "[1, 16]"),
        ("logprobs", vec![json!(21), json!(-1), json!(true)], "[0, 20]"),
        ("timeout", vec![json!(0), json!(601), json!(-1)], "[0.001, 600]"),
        ("priority", vec![json!(101), json!(0.5), json!("high")], "[-100, 100]"),
        ("seed", vec![json!(1.5), json!("x"), json!(1e30)], "64 bits"),
        ("stream", vec![json!("yes"), json!(1)], "true or false"),
        ("ignore_eos", vec![json!(0)], "true or false"),
        ("combine", vec![json!("both")], "\"weights\" or \"logits\""),
        (
            "stop",
            vec![
                json!(""),
                json!([""]),
                json!([1]),
                json!({}),
                json!(vec!["x"; 17]),
                json!("x".repeat(513)),
            ],
            "16 strings",
        ),
    ] {
        for value in values {
            field(json!({name: value}), name, &[name, expected]);
        }
    }
}

#[test]
fn prompts_that_are_none_or_do_not_fit() {
    field(json!({"prompt": ""}), "prompt", &["\"\"", "at least one character"]);
    field(json!({"prompt": []}), "prompt", &["empty list"]);
    field(json!({"prompt": 5}), "prompt", &["is 5", "a string or a list of token ids"]);
    field(json!({"prompt": [1, 512]}), "prompt[1]", &["512", "token id below 512"]);
    field(json!({"prompt": [1, -1]}), "prompt[1]", &["-1"]);
    field(json!({"prompt": ["x"]}), "prompt[0]", &["\"x\""]);
    field(
        json!({"messages": [{"role": "user", "content": "x"}]}),
        "prompt",
        &["messages", "either"],
    );
    refused(
        "/generate",
        "{}",
        400,
        "invalid_value",
        Some("prompt"),
        &["absent", "either prompt or messages"],
    );
    let long = with(greedy(), json!({"prompt": "soup ".repeat(2000)})).to_string();
    refused(
        "/generate",
        long,
        400,
        "context_length_exceeded",
        Some("prompt"),
        &["maximum context length is 256 tokens", "your prompt resulted in"],
    );
    let full = with(greedy(), json!({"max_tokens": 255, "prompt": [5, 6, 7]})).to_string();
    refused(
        "/generate",
        full,
        400,
        "context_length_exceeded",
        Some("max_tokens"),
        &["maximum context length is 256 tokens", "258 tokens (3 in the prompt, 255 in the"],
    );
}

#[test]
fn messages_that_are_none() {
    for (messages, param, parts) in [
        (json!([]), "messages", &["a list of 1 to"][..]),
        (json!("hi"), "messages", &["\"hi\""]),
        (json!(["hi"]), "messages[0]", &["an object"]),
        (
            json!([{"role": "robot", "content": "x"}]),
            "messages[0].role",
            &["\"robot\"", "\"assistant\""],
        ),
        (json!([{"content": "x"}]), "messages[0].role", &["absent"]),
        (json!([{"role": "user"}]), "messages[0].content", &["absent", "a string"]),
        (
            json!([{"role": "user", "content": "a"}, {"role": "user", "content": 7}]),
            "messages[1].content",
            &["is 7"],
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0].type",
            &["\"image_url\"", "\"text\""],
        ),
    ] {
        let body = json!({"messages": messages}).to_string();
        refused("/generate", body.clone(), 400, "invalid_value", Some(param), parts);
        refused("/v1/chat/completions", body, 400, "invalid_value", Some(param), parts);
    }
    let unknown = json!({"messages": [{"role": "user", "content": "x", "colour": 1}]}).to_string();
    refused(
        "/generate",
        unknown,
        400,
        "unknown_field",
        Some("messages[0].colour"),
        &["role, content"],
    );
    let calls =
        json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}).to_string();
    refused(
        "/v1/chat/completions",
        calls,
        400,
        "unsupported",
        Some("messages[0].tool_calls"),
        &["calls"],
    );
}

#[test]
fn bodies_that_are_not_json() {
    for path in POSTS.iter().map(|(path, _)| path.as_str()) {
        refused(
            path,
            "{\"prompt\": \"x\",\n \"n\": }",
            400,
            "invalid_json",
            None,
            &["line 2 column 7"],
        );
        refused(path, "", 400, "invalid_json", None, &["line 1 column 0"]);
        refused(path, "[1, 2]", 400, "invalid_json", None, &["expected an object"]);
        refused(path, "null", 400, "invalid_json", None, &["expected an object"]);
        refused(path, "{\"prompt\": NaN}", 400, "invalid_json", None, &["line 1"]);
        refused(
            path,
            "{\"temperature\": 1e999}",
            400,
            "invalid_json",
            None,
            &["number out of range", "line 1"],
        );
        refused(path, "{\"alpha\": -Infinity}", 400, "invalid_json", None, &["line 1"]);
        refused(path, "{\"n\": 1, \"n\": 2}", 400, "invalid_json", None, &["\"n\" occurs twice"]);
        let inner = "{\"preference\": {\"helpful\": 1, \"helpful\": 2}}";
        refused(path, inner, 400, "invalid_json", None, &["\"helpful\" occurs twice"]);
        refused(path, &b"{\"prompt\": \"\xc3\x28\"}"[..], 400, "invalid_json", None, &["line 1"]);
        let deep = format!("{{\"prompt\": {}", "[".repeat(200_000));
        refused(path, deep, 400, "invalid_json", None, &["recursion limit"]);
        let (code, param) = match path {
            "/v1/solve" => ("unknown_field", "colour"),
            "/generate" | "/tokenize" | "/v1/completions" => ("invalid_value", "prompt"),
            "/v1/responses" | "/v1/embeddings" => ("invalid_value", "input"),
            "/detokenize" => ("invalid_value", "tokens"),
            _ => ("invalid_value", "messages"),
        };
        refused(path, "{\"colour\": 1}", 400, code, Some(param), &[]);
    }
}

#[test]
fn a_field_that_does_not_exist_is_named_with_those_that_do() {
    let body = with(greedy(), json!({"preferance": {"helpful": 1}})).to_string();
    refused(
        "/generate",
        body,
        400,
        "unknown_field",
        Some("preferance"),
        &["\"preferance\"", "did you mean \"preference\"?", "preference, alpha"],
    );
}

#[test]
fn a_body_of_ten_megabytes_is_refused_whatever_is_in_it() {
    let text = "x".repeat(10 << 20);
    for body in [format!("{{\"prompt\": \"{text}\"}}"), text.clone(), "[".repeat(10 << 20)] {
        refused("/generate", body, 413, "body_too_large", None, &["4194304 bytes"]);
    }
}

#[test]
fn a_body_must_be_declared_as_json() {
    let server = Server::shared();
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let mut request =
            server.client.post(format!("{}/generate", server.url)).body(greedy().to_string());
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let reply = crate::server::Reply::of(request.send().unwrap());
        assert_eq!((reply.status, reply.error().0), (415, "unsupported_content_type"));
        assert!(reply.error().2.contains("application/json"));
    }
    let request = server.client.post(format!("{}/generate", server.url)).body(greedy().to_string());
    let reply = crate::server::Reply::of(
        request.header("content-type", "Application/JSON; charset=utf-8").send().unwrap(),
    );
    assert_eq!(reply.status, 200);
}

#[test]
fn unknown_routes_and_methods_have_the_same_shape() {
    let server = Server::shared();
    let reply = server.get("/v2/nothing");
    assert_eq!((reply.status, reply.error().0), (404, "route_not_found"));
    assert!(reply.error().2.contains("/v2/nothing"));
    for (method, path) in [
        ("GET", "/generate"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/health"),
        ("DELETE", "/v1/soup"),
    ] {
        let request =
            server.client.request(method.parse().unwrap(), format!("{}{path}", server.url));
        let reply = crate::server::Reply::of(request.send().unwrap());
        assert_eq!((reply.status, reply.error().0), (405, "method_not_allowed"), "{method} {path}");
        assert!(reply.headers.contains_key("allow"), "{method} {path}");
    }
}

#[test]
fn a_model_that_is_not_served() {
    for model in ["gpt-4", "soup-tin", "soup-tinyx", "", "SOUP-TINY"] {
        let body = json!({"model": model, "prompt": "x"}).to_string();
        refused("/v1/completions", body, 404, "model_not_found", Some("model"), &["\"soup-tiny\""]);
    }
    assert_eq!(Server::shared().get("/v1/models/gpt-4").error().0, "model_not_found");
}

#[test]
fn fields_of_openai_that_would_change_the_answer() {
    let base = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2});
    for (name, value) in [
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("modalities", json!(["text", "audio"])),
    ] {
        let body = with(base.clone(), json!({name: value})).to_string();
        refused("/v1/chat/completions", body, 400, "unsupported", Some(name), &[name]);
    }
    let harmless = json!({"user": "u", "metadata": {"a": 1}, "store": false, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "logit_bias": {}, "modalities": ["text"], "top_p": null});
    Server::shared().post("/v1/chat/completions", with(base.clone(), harmless)).ok();
    let top = with(base, json!({"top_logprobs": 2})).to_string();
    refused("/v1/chat/completions", top, 400, "invalid_value", Some("top_logprobs"), &["logprobs"]);
    for (change, param) in
        [(json!({"suffix": "end"}), "suffix"), (json!({"best_of": 3}), "best_of")]
    {
        let body = with(json!({"prompt": "x"}), change).to_string();
        refused("/v1/completions", body, 400, "unsupported", Some(param), &[param]);
    }
}

#[test]
fn token_ids_that_are_none() {
    for (tokens, param) in
        [(json!([512]), "tokens[0]"), (json!([1, "a"]), "tokens[1]"), (json!([1.5]), "tokens[0]")]
    {
        let body = json!({"tokens": tokens}).to_string();
        refused("/detokenize", body, 400, "invalid_value", Some(param), &["token id below 512"]);
    }
}
