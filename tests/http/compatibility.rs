//! What clients of other servers send: absent fields as null, whole numbers with a fraction of
//! zero, fields that exist elsewhere, preflights, and the errors that they look for.

use ladle::config::ServeOptions;
use serde_json::{Value, json};
use ureq::http::HeaderMap;

use crate::server::{Reply, Server, events, greedy, options, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const GENERATE: &str = "/generate";

/// A greedy request of each generating route.
fn base(path: &str) -> Value {
    let common = json!({"max_tokens": 4, "temperature": 0, "ignore_eos": true});
    let prompt = match path {
        CHAT => json!({"messages": [{"role": "user", "content": "Hello"}]}),
        _ => json!({"prompt": "The soup is"}),
    };
    with(common, prompt)
}

fn text(path: &str, answer: &Value) -> String {
    let text = match path {
        CHAT => &answer["choices"][0]["message"]["content"],
        COMPLETIONS => &answer["choices"][0]["text"],
        _ => &answer["text"],
    };
    text.as_str().unwrap().to_owned()
}

/// The text of a route's greedy request with these fields.
#[track_caller]
fn answered(path: &str, more: Value) -> String {
    let shown = more.to_string();
    let reply = Server::shared().post(path, with(base(path), more));
    assert_eq!(reply.status, 200, "{path} {shown}: {}", reply.body);
    text(path, &reply.body)
}

/// A 400 that names the field.
#[track_caller]
fn refused(path: &str, more: Value, code: &str, param: &str) -> String {
    let shown = more.to_string();
    let reply = Server::shared().post(path, with(base(path), more));
    assert_eq!(reply.status, 400, "{path} {shown}: {}", reply.body);
    let (got, got_param, message) = reply.error();
    assert_eq!((got, got_param), (code, Some(param)), "{path} {shown}: {message}");
    message.to_owned()
}

#[test]
fn null_means_absent_in_every_field_of_every_route() {
    let server = Server::shared();
    let document = server.get("/openapi.json").ok();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(body) = methods["post"].get("requestBody") else { continue };
        let reference = body["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
        let schema = document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        let base = match path.as_str() {
            "/detokenize" => json!({"tokens": [5, 6]}),
            "/tokenize" => json!({"prompt": "The soup is"}),
            "/v1/solve" => json!({}),
            "/v1/messages/count_tokens" => json!({"messages": base(CHAT)["messages"]}),
            "/v1/messages" => base(CHAT),
            "/v1/embeddings" => json!({"input": "x"}),
            "/v1/responses" => json!({"input": "x", "max_output_tokens": 4, "temperature": 0,
                "ignore_eos": true}),
            path => base(path),
        };
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

/// Fields of OpenAI, vLLM, SGLang, llama.cpp, TGI, mistral.rs and others with values under which
/// they change nothing.
fn neutral() -> Vec<Value> {
    vec![
        json!({"user": "u-1", "metadata": {"team": "x"}, "safety_identifier": "s", "store": false}),
        json!({"service_tier": "auto", "prompt_cache_key": "k", "prompt_cache_retention": "24h"}),
        json!({"prediction": {"type": "content", "content": "x"}, "reasoning_effort": "medium"}),
        json!({"verbosity": "medium", "parallel_tool_calls": true, "tools": [], "tool_choice": "none"}),
        json!({"functions": [], "function_call": "auto", "logit_bias": {}, "modalities": ["text"]}),
        json!({"logit_bias": {"5": 0, "6": 0.0}, "audio": {}, "response_format": {"type": "text"}}),
        json!({"tool_choice": "auto", "parallel_tool_calls": false, "web_search_options": {}}),
        json!({"stop": [], "n": 1.0, "seed": 7, "presence_penalty": 0, "top_p": 1, "min_p": 0.0}),
        json!({"skip_special_tokens": true, "min_tokens": 0, "use_beam_search": false}),
        json!({"length_penalty": 1.0, "early_stopping": false, "stop_token_ids": []}),
        json!({"include_stop_str_in_output": false, "spaces_between_special_tokens": true}),
        json!({"allowed_token_ids": [], "bad_words": [], "add_generation_prompt": true}),
        json!({"continue_final_message": false, "documents": [], "chat_template_kwargs": {}}),
        json!({"guided_choice": [], "guided_regex": "", "guided_decoding_backend": "xgrammar"}),
        json!({"request_id": "r", "session_id": "s", "return_token_ids": false, "cache_salt": ""}),
        json!({"return_tokens_as_token_ids": false, "include_reasoning": true, "vllm_xargs": {}}),
        json!({"thinking_token_budget": -1, "watermarking": false, "stream_interval": 1}),
        json!({"kv_transfer_params": {}, "mm_processor_kwargs": {}, "truncation_side": "left"}),
        json!({"regex": "", "ebnf": "", "stop_regex": [], "no_stop_trim": false, "rid": "1"}),
        json!({"return_hidden_states": false, "separate_reasoning": true, "stream_reasoning": true}),
        json!({"custom_params": {}, "routed_experts_start_len": 0, "return_meta_info": false}),
        json!({"n_predict": -1, "n_keep": 0, "n_discard": 0, "cache_prompt": true, "id_slot": -1}),
        json!({"typical_p": 1.0, "repeat_penalty": 1.0, "repeat_last_n": -1, "tfs_z": 1}),
        json!({"dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2}),
        json!({"dry_penalty_last_n": -1, "dry_sequence_breakers": ["\n"], "xtc_probability": 0}),
        json!({"xtc_threshold": 0.1, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}),
        json!({"dynatemp_range": 0, "dynatemp_exponent": 1.0, "top_n_sigma": -1, "min_keep": 0}),
        json!({"n_probs": 0, "post_sampling_probs": false, "timings_per_token": false}),
        json!({"return_tokens": false, "return_progress": false, "response_fields": []}),
        json!({"samplers": [], "lora": [], "grammar": "", "t_max_predict_ms": -1}),
        json!({"do_sample": true, "watermark": false, "details": false, "top_n_tokens": 0}),
        json!({"decoder_input_details": false, "return_full_text": false, "adapter_id": ""}),
        json!({"keep_alive": "5m", "options": {}, "format": "", "think": false, "images": []}),
        json!({"enable_thinking": false, "adapters": [], "min_length": 0, "num_beams": 1}),
        json!({"no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "cache_control": {"type": "ephemeral"}}),
        json!({"stream_options": {"include_usage": true, "include_obfuscation": false}}),
        json!({"stream_options": {"continuous_usage_stats": false}, "best_of": 1, "suffix": ""}),
        json!({"logprobs": false, "timeout": 60, "priority": 0, "repetition_penalty": 1}),
    ]
}

#[test]
fn fields_of_other_servers_are_accepted_where_they_change_nothing() {
    for path in [GENERATE, CHAT, COMPLETIONS] {
        let expected = answered(path, json!({}));
        for fields in neutral() {
            assert_eq!(answered(path, fields.clone()), expected, "{path} {fields}");
        }
    }
    let expected = answered(CHAT, json!({}));
    let fields =
        json!({"logprobs": false, "top_logprobs": 0, "echo": false, "max_completion_tokens": 4});
    assert_eq!(answered(CHAT, fields), expected);
    for more in [
        json!({"id": "msg_1", "name": "Ann", "cache_control": {"type": "ephemeral"}}),
        json!({"tool_calls": [], "annotations": [], "refusal": "", "images": [], "metadata": {"a": 1}}),
        json!({"prefix": false, "partial": false, "reasoning_content": "", "type": "message"}),
        json!({"content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]}),
    ] {
        let message = with(json!({"role": "user", "content": "Hello"}), more);
        assert_eq!(answered(CHAT, json!({"messages": [message]})), expected);
    }
}

#[test]
fn a_field_of_other_servers_that_asks_for_what_does_not_happen_is_refused_by_name() {
    for (name, value) in [
        ("skip_special_tokens", json!(false)),
        ("min_tokens", json!(5)),
        ("use_beam_search", json!(true)),
        ("best_of", json!(3)),
        ("stop_token_ids", json!([5])),
        ("include_stop_str_in_output", json!(true)),
        ("allowed_token_ids", json!([1])),
        ("bad_words", json!(["x"])),
        ("regex", json!("a+")),
        ("grammar", json!("root ::= \"a\"")),
        ("json_schema", json!({})),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("modalities", json!(["text", "audio"])),
        ("verbosity", json!("low")),
        ("reasoning_effort", json!(true)),
        ("typical_p", json!(0.9)),
        ("mirostat", json!(2)),
        ("dry_multiplier", json!(0.8)),
        ("xtc_probability", json!(0.5)),
        ("repeat_penalty", json!(1.1)),
        ("samplers", json!(["top_k"])),
        ("n_predict", json!(16)),
        ("max_new_tokens", json!(16)),
        ("do_sample", json!(false)),
        ("truncate_prompt_tokens", json!(10)),
        ("prompt_logprobs", json!(1)),
        ("return_token_ids", json!(true)),
        ("cache_salt", json!("secret")),
        ("lora", json!([{"id": 0, "scale": 1}])),
        ("chat_template", json!("{{ messages }}")),
        ("stream_interval", json!(4)),
        ("num_beams", json!(true)),
    ] {
        for path in [GENERATE, CHAT, COMPLETIONS] {
            let message = refused(path, json!({name: value}), "unsupported", name);
            assert!(message.contains(name) && message.len() < 600, "{message}");
        }
    }
    for path in [GENERATE, CHAT] {
        refused(path, json!({"echo": true}), "unsupported", "echo");
    }
    for path in [GENERATE, COMPLETIONS] {
        refused(path, json!({"tool_choice": "required"}), "unsupported", "tool_choice");
    }
    refused(
        COMPLETIONS,
        json!({"continue_final_message": true}),
        "unsupported",
        "continue_final_message",
    );
    refused(
        GENERATE,
        json!({"continue_final_message": true}),
        "invalid_value",
        "continue_final_message",
    );
    refused(CHAT, json!({"tool_choice": "required"}), "invalid_value", "tool_choice");
    for (more, param) in [
        (json!({"tool_calls": [{"id": "1"}]}), "messages[0].tool_calls"),
        (json!({"role": "tool"}), "messages[0].role"),
        (json!({"prefix": true}), "messages[0].prefix"),
        (json!({"images": ["aGk="]}), "messages[0].images"),
    ] {
        let message = with(json!({"role": "user", "content": "Hello"}), more);
        refused(CHAT, json!({"messages": [message]}), "unsupported", param);
    }
}

#[test]
fn a_misspelt_field_of_ladle_is_an_error_that_suggests_the_right_one() {
    for (wrong, right) in [
        ("preferance", "preference"),
        ("prefrence", "preference"),
        ("Preference", "preference"),
        ("alhpa", "alpha"),
        ("temprature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("max_token", "max_tokens"),
        ("topP", "top_p"),
        ("top-k", "top_k"),
        ("repetition_penality", "repetition_penalty"),
        ("ignore_eso", "ignore_eos"),
        ("combin", "combine"),
        ("steam", "stream"),
    ] {
        for path in [GENERATE, CHAT, COMPLETIONS] {
            let message = refused(path, json!({wrong: 1}), "unknown_field", wrong);
            let suggestion = format!("did you mean {right:?}?");
            assert!(message.contains(&suggestion), "{path} {wrong}: {message}");
        }
    }
    let message = refused(GENERATE, json!({"colour": 1}), "unknown_field", "colour");
    assert!(!message.contains("did you mean"), "{message}");
    let misspelt = json!({"messages": [{"role": "user", "contnet": "x", "content": "x"}]});
    let message = refused(CHAT, misspelt, "unknown_field", "messages[0].contnet");
    assert!(message.contains("did you mean \"messages[0].content\"?"), "{message}");
    let misspelt = json!({"stream_options": {"include_usge": true}});
    refused(CHAT, misspelt, "unknown_field", "stream_options.include_usge");
    // Comparing costs no more for a name of megabytes.
    let long = "x".repeat(1 << 20);
    let reply = Server::shared().post(GENERATE, with(base(GENERATE), json!({long: 1})));
    assert_eq!((reply.status, reply.error().0), (400, "unknown_field"));
}

#[test]
fn an_encoded_body_is_refused_by_the_name_of_its_encoding() {
    let server = Server::shared();
    let ask = |encodings: &[&str]| {
        let mut request = server.client.post(format!("{}{GENERATE}", server.url)).json(&greedy());
        for encoding in encodings {
            request = request.header("content-encoding", *encoding);
        }
        Reply::of(request.send().unwrap())
    };
    for encodings in [&["gzip"][..], &["br"], &["identity, zstd"], &["identity", "deflate"]] {
        let reply = ask(encodings);
        assert_eq!((reply.status, reply.error().0), (415, "unsupported_content_encoding"));
        assert_eq!(reply.error().1, Some("content-encoding"));
        let name = encodings.last().unwrap().rsplit(", ").next().unwrap();
        assert!(reply.error().2.contains(name), "{}", reply.body);
    }
    assert_eq!(ask(&["identity"]).status, 200);
    assert_eq!(ask(&["Identity"]).status, 200);
    assert_eq!(ask(&[""]).status, 200);
}

/// Whether a chunk comes with the first token is seen by what it says was used so far.
#[test]
fn the_first_chunk_comes_with_the_first_token() {
    // The prompt takes many steps, so a chunk that came with the first of them would come early.
    let few = Some(8.try_into().unwrap());
    let server =
        Server::start(ServeOptions { max_step_tokens: few, max_sequences: few, ..options() });
    let long = "soup ".repeat(60);
    for (path, prompt) in [
        (CHAT, json!({"messages": [{"role": "user", "content": long}]})),
        (COMPLETIONS, json!({"prompt": long})),
    ] {
        let usage = json!({"include_usage": true, "continuous_usage_stats": true});
        let body = with(base(path), with(prompt, json!({"stream": true, "stream_options": usage})));
        let mut chunks = server.stream(path, body);
        assert_eq!(chunks.pop().unwrap().1, "[DONE]");
        let chunks: Vec<Value> =
            chunks.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
        let used: Vec<u64> = chunks
            .iter()
            .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap())
            .collect();
        assert_eq!((used[0], *used.last().unwrap()), (1, 4), "{path}: {used:?}");
        assert!(used.is_sorted(), "{used:?}");
        let prompt = &chunks.last().unwrap()["usage"]["prompt_tokens"];
        assert!(chunks.iter().all(|chunk| chunk["usage"]["prompt_tokens"] == *prompt));
        assert_eq!(chunks[0]["choices"].as_array().unwrap().len(), 1);
        assert!(chunks[0]["ladle"]["lambda"].is_object());
        if path == CHAT {
            assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
            let roles = chunks.iter().filter(|c| c["choices"][0]["delta"]["role"].is_string());
            assert_eq!(roles.count(), 1);
        }
    }
    let refused = with(
        base(GENERATE),
        json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}}),
    );
    assert_eq!(server.post(GENERATE, refused).error().0, "unsupported");
}

#[test]
fn event_streams_say_that_they_are_utf_8() {
    let server = Server::shared();
    for path in [GENERATE, CHAT, COMPLETIONS] {
        let response = server.send(path, with(base(path), json!({"stream": true})));
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert!(events(response).count() > 2);
    }
}

#[test]
fn a_preflight_mirrors_the_headers_that_are_asked_for() {
    let server = Server::start(ServeOptions {
        allow_origin: Some(vec!["https://page.example".into()]),
        ..options()
    });
    let preflight = |origin: &str| -> HeaderMap {
        let url = format!("{}{CHAT}", server.url);
        let asked = "authorization,content-type,x-preference,x-stainless-arch,x-stainless-lang";
        let request =
            server.client.request(ureq::http::Method::OPTIONS, url).header("origin", origin);
        let request = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", asked);
        let response = request.send().unwrap();
        assert_eq!(response.status().as_u16(), 200);
        response.headers().clone()
    };
    let headers = preflight("https://page.example");
    assert_eq!(headers["access-control-allow-origin"], "https://page.example");
    let allowed = headers["access-control-allow-headers"].to_str().unwrap().to_lowercase();
    for name in ["authorization", "x-preference", "x-stainless-arch", "x-stainless-lang"] {
        assert!(allowed.contains(name), "{allowed}");
    }
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    let stranger = preflight("https://other.example");
    assert!(!stranger.contains_key("access-control-allow-origin"));
}

#[test]
fn whatever_exceeds_the_context_is_told_in_openais_words() {
    let server = Server::shared();
    let long = "soup ".repeat(2000);
    let conversation = json!([{"role": "user", "content": long}]);
    let hello = json!({"messages": [{"role": "user", "content": "Hello"}]});
    for (path, body, param) in [
        (GENERATE, json!({"prompt": long}), "prompt"),
        (GENERATE, json!({"messages": conversation}), "messages"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 256}), "max_tokens"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 1e18}), "max_tokens"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 1e300}), "max_tokens"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 256, "combine": "logits"}), "max_tokens"),
        (CHAT, json!({"messages": conversation}), "messages"),
        (CHAT, json!({"messages": conversation, "max_completion_tokens": 5}), "messages"),
        (CHAT, with(hello.clone(), json!({"max_tokens": 4096})), "max_tokens"),
        (CHAT, with(hello, json!({"max_completion_tokens": 4096})), "max_completion_tokens"),
        (COMPLETIONS, json!({"prompt": ["x", long]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [5, 6, 7], "max_tokens": 254}), "max_tokens"),
        (COMPLETIONS, json!({"prompt": long, "echo": true, "max_tokens": 0}), "prompt"),
    ] {
        let reply = server.post(path, body.clone());
        assert_eq!(reply.status, 400, "{path} {param}: {}", reply.body);
        let (code, got, message) = reply.error();
        assert_eq!((code, got), ("context_length_exceeded", Some(param)), "{message}");
        let sentence = "This model's maximum context length is 256 tokens.";
        assert!(message.starts_with(sentence), "{message}");
    }
    let reply = server.post(COMPLETIONS, json!({"prompt": [5, 6, 7], "max_tokens": 254}));
    assert!(
        reply.error().2.contains("257 tokens (3 in the prompt, 254 in the completion)"),
        "{}",
        reply.body
    );
    server.post(COMPLETIONS, json!({"prompt": [5, 6, 7], "max_tokens": 253})).ok();
}

#[test]
fn a_model_id_with_a_preference_is_a_model() {
    let server = Server::shared();
    for (path, id) in [
        ("soup-tiny", "soup-tiny"),
        ("soup-tiny:terse", "soup-tiny:terse"),
        ("soup-tiny:helpful=0.7,harmless=0.3", "soup-tiny:helpful=0.7,harmless=0.3"),
        ("soup-tiny:1,0,4", "soup-tiny:1,0,4"),
        ("soup-tiny%3Ahelpful%3D0.7%2Cbrief%3D0.3", "soup-tiny:helpful=0.7,brief=0.3"),
    ] {
        let model = server.get(&format!("/v1/models/{path}")).ok();
        assert_eq!((&model["id"], &model["object"]), (&json!(id), &json!("model")));
        let asked = json!({"model": id});
        for path in [CHAT, COMPLETIONS] {
            let body = with(base(path), asked.clone());
            assert_eq!(server.post(path, body.clone()).ok()["model"], id, "{path}");
            let mut chunks = server.stream(path, with(body, json!({"stream": true})));
            assert_eq!(chunks.pop().unwrap().1, "[DONE]");
            for (_, data) in chunks {
                assert_eq!(serde_json::from_str::<Value>(&data).unwrap()["model"], id, "{path}");
            }
        }
        server.post(GENERATE, with(base(GENERATE), asked.clone())).ok();
        server.post("/tokenize", with(json!({"prompt": "x"}), asked.clone())).ok();
        server.post("/detokenize", with(json!({"tokens": [5]}), asked)).ok();
    }
    for (id, part) in [
        ("gpt-4", "this server has \"soup-tiny\""),
        ("soup-tinyx", "this server has \"soup-tiny\""),
        ("soup-tiny:mean", "a preset: balanced, terse"),
        ("soup-tiny:funny=1", "helpful, harmless, brief"),
        ("soup-tiny:1,2", "expected 3, one per objective"),
        ("soup-tiny:helpful=-1", "a finite number"),
        ("soup-tiny:", "a preset"),
        ("%ff", "UTF-8"),
    ] {
        let reply = server.get(&format!("/v1/models/{id}"));
        assert_eq!((reply.status, reply.error().0), (404, "model_not_found"), "{id}");
        assert!(reply.error().2.contains(part), "{id}: {}", reply.body);
    }
    // The model id counts on the native route as on the others.
    let preference =
        |more: Value| server.post(GENERATE, with(base(GENERATE), more)).ok()["preference"].clone();
    let terse = preference(json!({"preference": "terse"}));
    assert_eq!(preference(json!({"model": "soup-tiny:terse"})), terse);
    let both = json!({"model": "soup-tiny:terse", "preference": [1, 0, 0]});
    assert_eq!(preference(both)["helpful"], 1.0);
    let reply = server.post(CHAT, with(base(CHAT), json!({"model": "gpt-4"})));
    assert_eq!((reply.status, reply.error().0), (404, "model_not_found"));
    let long = format!("soup-tiny:{}1,0,0", " ".repeat(5000));
    refused(CHAT, json!({"model": long}), "invalid_value", "model");
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
