//! How values are written: absent fields as null, whole numbers with a fraction of zero, numbers that
//! switch something off.

use serde_json::{Value, json};

use crate::{
    ask::{CHAT, COMPLETIONS, GENERATE, answered, base, refused},
    routes::POSTS,
    server::{Server, with},
};

#[test]
fn null_means_absent_in_every_field_of_every_route() {
    let server = Server::shared();
    let document = server.get("/openapi.json").ok();
    for (path, base) in POSTS.iter() {
        let body = &document["paths"][path]["post"]["requestBody"];
        let reference = body["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
        let schema = document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        let strip = |answer: Value| {
            let mut answer = answer;
            for changing in
                ["id", "created", "created_at", "timings", "ladle", "cache", "mode", "usage"]
            {
                answer.as_object_mut().unwrap().remove(changing);
            }
            for item in answer.get_mut("output").and_then(Value::as_array_mut).into_iter().flatten()
            {
                item.as_object_mut().unwrap().remove("id");
            }
            answer
        };
        let expected = strip(server.post(path, base.clone()).ok());
        let names = schema["properties"].as_object().unwrap().keys().map(String::as_str);
        for name in names.chain(["tools", "colour", "use_beam_search"]) {
            if base.get(name).is_some() {
                continue;
            }
            let reply = server.post(path, with(base.clone(), json!({name: null})));
            assert_eq!(reply.status, 200, "{path} {name}: {}", reply.body);
            assert_eq!(strip(reply.body), expected, "{path} {name}");
        }
    }
}

#[test]
fn null_means_absent_inside_objects_too() {
    let chat = answered(CHAT, json!({}));
    let message = |more: Value| json!({"messages": [with(json!({"role": "user"}), more)]});
    for more in [
        json!({"stream_options": {"include_usage": null, "colour": null}}),
        message(json!({"content": "Hello", "name": null, "tool_calls": null, "colour": null})),
        message(json!({"content": [{"type": "text", "text": "Hello", "cache_control": null}]})),
        json!({"logit_bias": {"5": null}}),
        json!({"response_format": {"type": "text", "json_schema": null}}),
        json!({"structured_outputs": {"json": null, "regex": null}}),
    ] {
        assert_eq!(answered(CHAT, more), chat);
    }
    let corner = answered(GENERATE, json!({"preference": {"brief": 1}, "alpha": {"brief": 0.5}}));
    let nulls = json!({"preference": {"brief": 1, "helpful": null, "funny": null},
        "alpha": {"brief": 0.5, "harmless": null}});
    assert_eq!(answered(GENERATE, nulls), corner);
    refused(GENERATE, json!({"preference": {"brief": null}}), "invalid_value", "preference");
    // A place in a list cannot be absent.
    for (more, param) in [
        (json!({"stop": ["x", null]}), "stop"),
        (json!({"preference": [1, null, 0]}), "preference[1]"),
        (json!({"prompt": [5, null]}), "prompt[1]"),
    ] {
        refused(GENERATE, more, "invalid_value", param);
    }
    refused(CHAT, json!({"messages": [null]}), "invalid_value", "messages[0]");
    let absent = message(json!({"content": null}));
    assert!(refused(CHAT, absent, "invalid_value", "messages[0].content").contains("is absent"));
    // Two values of one key are a guess, also where one of them is null.
    for body in [
        r#"{"prompt": "x", "n": null, "n": 2}"#,
        r#"{"prompt": "x", "n": 2, "n": null}"#,
        r#"{"prompt": "x", "n": null, "n": null}"#,
    ] {
        let reply = Server::shared().post_bytes(GENERATE, body);
        assert_eq!((reply.status, reply.error().0), (400, "invalid_json"), "{body}");
    }
}

#[test]
fn top_k_zero_and_minus_one_are_off() {
    let ask = |path: &str, top_k: Value| {
        answered(path, json!({"temperature": 1.5, "seed": 3, "max_tokens": 16, "top_k": top_k}))
    };
    for path in [GENERATE, CHAT, COMPLETIONS] {
        let all = ask(path, Value::Null);
        for off in [json!(0), json!(-1), json!(0.0), json!(-0.0), json!(-1.0), json!(512)] {
            assert_eq!(ask(path, off.clone()), all, "{path} {off}");
        }
        assert_ne!(ask(path, json!(1)), all, "{path}");
        for bad in [json!(-2), json!(513), json!(1.5), json!("0")] {
            let message = refused(path, json!({"top_k": bad}), "invalid_value", "top_k");
            assert!(message.contains("[1, 512], or 0 or -1 for all"), "{message}");
        }
    }
}

#[test]
fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
    let server = Server::shared();
    let ask = |numbers: &str| {
        let body = format!(r#"{{"prompt": "The soup is", "temperature": 1.5, {numbers}}}"#);
        let reply = server.post_bytes(COMPLETIONS, body);
        assert_eq!(reply.status, 200, "{numbers}: {}", reply.body);
        let choices = reply.body["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>()
    };
    let plain = ask(
        r#""max_tokens": 10, "seed": 42, "n": 2, "top_k": 50, "logprobs": 2, "priority": 0, "best_of": 2"#,
    );
    for numbers in [
        r#""max_tokens": 10.0, "seed": 42.0, "n": 2.0, "top_k": 50.0, "logprobs": 2.0, "priority": -0.0, "best_of": 2.0"#,
        r#""max_tokens": 1e1, "seed": 4.2e1, "n": 2e0, "top_k": 500e-1, "logprobs": 0.2E+1, "priority": 0e9, "best_of": 20e-1"#,
    ] {
        assert_eq!(ask(numbers), plain, "{numbers}");
    }
    let two = |prompt: &str| {
        let body = format!(r#"{{"prompt": {prompt}, "temperature": 0, "max_tokens": 4}}"#);
        server.post_bytes(GENERATE, body).ok()["text"].clone()
    };
    assert_eq!(two("[5.0, 6e0]"), two("[5, 6]"));
    let negative = ask(r#""seed": -1"#);
    assert_eq!(ask(r#""seed": -1.0"#), negative);
    assert_eq!(ask(r#""seed": 18446744073709551615"#), negative, "two's complement");
    for (numbers, param) in [
        (r#""n": 1.5"#, "n"),
        (r#""n": 1e300"#, "n"),
        (r#""n": true"#, "n"),
        (r#""n": "2""#, "n"),
        (r#""seed": 1e300"#, "seed"),
        (r#""seed": 0.5"#, "seed"),
        (r#""seed": -9223372036854775809"#, "seed"),
        (r#""seed": 18446744073709551616"#, "seed"),
        (r#""priority": -100.5"#, "priority"),
        (r#""logprobs": 1e-9"#, "logprobs"),
    ] {
        let reply = server.post_bytes(COMPLETIONS, format!(r#"{{"prompt": "x", {numbers}}}"#));
        assert_eq!(
            (reply.status, reply.error().1),
            (400, Some(param)),
            "{numbers}: {}",
            reply.body
        );
    }
}

#[test]
fn special_tokens_can_be_chosen() {
    let server = Server::shared();
    let tokens = |more: Value| {
        let body = with(json!({"prompt": "The soup is"}), more);
        server.post("/tokenize", body).ok()["tokens"].clone()
    };
    let plain = tokens(json!({"add_special": false}));
    assert_eq!(tokens(json!({"add_special_tokens": false})), plain);
    let both = json!({"prompt": "x", "add_special": true, "add_special_tokens": false});
    let reply = server.post("/tokenize", both);
    assert_eq!((reply.status, reply.error().1), (400, Some("add_special_tokens")));
    for special in [true, false] {
        let expected = tokens(json!({"add_special": special})).as_array().unwrap().len();
        let body = with(base(COMPLETIONS), json!({"add_special_tokens": special}));
        let used = server.post(COMPLETIONS, body).ok()["usage"]["prompt_tokens"].clone();
        assert_eq!(used, expected);
    }
}
