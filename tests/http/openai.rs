use serde_json::{Value, json};

use crate::server::{Server, greedy, with};

fn chat() -> Value {
    json!({"model": "soup-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8,
        "temperature": 0, "ignore_eos": true})
}

fn chunks(path: &str, body: Value) -> Vec<Value> {
    let mut events = Server::shared().stream(path, body);
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    events.into_iter().map(|(_, data)| serde_json::from_str(&data).unwrap()).collect()
}

#[test]
fn a_chat_completion_has_openais_shape_and_what_was_solved() {
    let server = Server::shared();
    let answer =
        server.post("/v1/chat/completions", with(chat(), json!({"preference": "terse"}))).ok();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("soup-tiny"))
    );
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    let native = server
        .generate(json!({"messages": chat()["messages"], "max_tokens": 8, "temperature": 0,
        "ignore_eos": true, "preference": "terse"}));
    assert_eq!(choice["message"]["content"], native["text"]);
    assert_eq!(answer["ladle"]["lambda"], native["lambda"]);
    assert_eq!(answer["ladle"]["coefficients"], native["coefficients"]);
    assert_eq!(answer["ladle"]["soup"], native["soup"]);
    assert!(answer["ladle"]["timings"]["total_ms"].is_number());
}

#[test]
fn the_model_id_can_carry_the_preference() {
    let server = Server::shared();
    let ask = |model: &str| {
        server.post("/v1/chat/completions", with(chat(), json!({"model": model}))).ok()["ladle"]["preference"].clone()
    };
    assert_eq!(ask("soup-tiny:terse"), json!({"helpful": 0.2, "harmless": 0.0, "brief": 0.8}));
    assert_eq!(ask("soup-tiny:harmless=2"), json!({"helpful": 0.0, "harmless": 1.0, "brief": 0.0}));
    let models = server.get("/v1/models").ok();
    let ids: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["soup-tiny", "soup-tiny:balanced", "soup-tiny:terse"]);
    assert_eq!(server.get("/v1/models/soup-tiny:terse").ok()["object"], "model");
}

#[test]
fn a_chat_stream_adds_up_to_the_whole_answer() {
    let whole = Server::shared().post("/v1/chat/completions", chat()).ok();
    let body = with(chat(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = chunks("/v1/chat/completions", body);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk"
                && chunk["id"] == chunks[0]["id"])
    );
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let content: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], content.as_str());
    let (usage, before) = chunks.split_last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &whole["usage"]["total_tokens"])
    );
    assert!(before.iter().all(|chunk| chunk["usage"].is_null()));
    let last = before.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["ladle"]["lambda"], whole["ladle"]["lambda"]);
    assert!(last["ladle"]["timings"]["total_ms"].is_number());
}

#[test]
fn without_being_asked_a_stream_has_no_usage() {
    let chunks = chunks("/v1/chat/completions", with(chat(), json!({"stream": true})));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn streamed_choices_keep_their_index() {
    let body = with(chat(), json!({"n": 3, "temperature": 1.5, "seed": 1}));
    let whole = Server::shared().post("/v1/chat/completions", body.clone()).ok();
    let chunks = chunks("/v1/chat/completions", with(body, json!({"stream": true})));
    for index in 0..3 {
        let content: String = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index)
            .filter_map(|choice| choice["delta"]["content"].as_str())
            .collect();
        assert_eq!(whole["choices"][index]["message"]["content"], content.as_str());
    }
}

/// Equal but for the last bits of numbers: which requests share a step, whether the weights are
/// merged and what the prefix cache holds depend on what other tests do meanwhile.
#[track_caller]
fn assert_same_to_rounding(got: &Value, want: &Value) {
    match (got, want) {
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len());
            got.iter().zip(want).for_each(|(got, want)| assert_same_to_rounding(got, want));
        }
        (Value::Object(got), Value::Object(want)) => {
            assert!(got.keys().eq(want.keys()));
            got.values()
                .zip(want.values())
                .for_each(|(got, want)| assert_same_to_rounding(got, want));
        }
        (Value::Number(got), Value::Number(want)) => {
            let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
            assert!((got - want).abs() < 1e-4, "{got} beside {want}");
        }
        _ => assert_eq!(got, want),
    }
}

#[test]
fn chat_log_probabilities_cover_every_token() {
    let body = with(chat(), json!({"logprobs": true, "top_logprobs": 2}));
    let answer = Server::shared().post("/v1/chat/completions", body.clone()).ok();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 8);
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    // Special tokens have bytes but no text; in their absence the two are the same.
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    if !String::from_utf8_lossy(&bytes).contains("<|") {
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }
    let streamed = chunks("/v1/chat/completions", with(body, json!({"stream": true})));
    let pieces: Vec<&Value> = streamed
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_same_to_rounding(&json!(pieces), &json!(content));
}

#[test]
fn the_newer_name_of_max_tokens_counts() {
    let server = Server::shared();
    let mut body = with(chat(), json!({"max_completion_tokens": 3}));
    let reply = server.post("/v1/chat/completions", body.clone());
    assert_eq!(
        (reply.status, reply.error().1),
        (400, Some("max_completion_tokens")),
        "both, and they differ"
    );
    body.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(server.post("/v1/chat/completions", body).ok()["usage"]["completion_tokens"], 3);
}

#[test]
fn completions_take_every_form_of_prompt() {
    let server = Server::shared();
    let knobs = json!({"max_tokens": 4, "temperature": 0, "ignore_eos": true});
    let ask = |prompt: Value| {
        server.post("/v1/completions", with(json!({"prompt": prompt}), knobs.clone())).ok()
    };
    let ids = |text: &str| server.post("/tokenize", json!({"prompt": text})).ok()["tokens"].clone();
    let (one, two) = (ask(json!("The soup is")), ask(json!("A spoon")));
    let texts = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect()
    };
    assert_eq!(texts(&ask(ids("The soup is"))), texts(&one));
    let both = [texts(&one), texts(&two)].concat();
    let answer = ask(json!(["The soup is", "A spoon"]));
    assert_eq!(texts(&answer), both);
    assert_eq!(texts(&ask(json!([ids("The soup is"), ids("A spoon")]))), both);
    let prompt_tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt_tokens(&answer), prompt_tokens(&one) + prompt_tokens(&two));
    assert_eq!(answer["object"], "text_completion");
    let many = server.post("/v1/completions", json!({"prompt": ["a", "b", "c"], "n": 6}));
    assert_eq!((many.status, many.error().1), (400, Some("n")));
}

#[test]
fn a_completion_without_max_tokens_has_openais_sixteen() {
    let answer = Server::shared()
        .post("/v1/completions", json!({"prompt": "The soup is", "ignore_eos": true}))
        .ok();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[test]
fn echo_puts_the_prompt_and_its_log_probabilities_first() {
    let server = Server::shared();
    let body = with(greedy(), json!({"max_tokens": 4, "echo": true, "logprobs": 2}));
    let answer = server.post("/v1/completions", body.clone()).ok();
    let choice = &answer["choices"][0];
    let plain = server.generate(with(greedy(), json!({"max_tokens": 4})));
    let text = choice["text"].as_str().unwrap();
    assert_eq!(text, format!("The soup is{}", plain["text"].as_str().unwrap()));
    let table = &choice["logprobs"];
    let count = answer["usage"]["total_tokens"].as_u64().unwrap() as usize;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(table[name].as_array().unwrap().len(), count, "{name}");
    }
    assert!(table["token_logprobs"][0].is_null() && table["top_logprobs"][0].is_null());
    assert!(
        table["token_logprobs"].as_array().unwrap()[1..].iter().all(|p| p.as_f64().unwrap() <= 0.0)
    );
    // Every offset of the prompt points at its token; those of the answer go on from there.
    let offsets: Vec<usize> = table["text_offset"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o.as_u64().unwrap() as usize)
        .collect();
    assert!(offsets.is_sorted() && *offsets.last().unwrap() <= text.chars().count());
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    let tokens: Vec<&str> =
        table["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let rebuilt: String = tokens[..prompt_tokens].concat();
    assert_eq!(rebuilt, "The soup is");
    assert_eq!(offsets[prompt_tokens], "The soup is".len());
    for (token, offset) in tokens.iter().zip(&offsets).take(prompt_tokens) {
        assert!("The soup is"[*offset..].starts_with(token), "{token} at {offset}");
    }
    // The prompt's part does not depend on what comes after it, nor on streaming.
    let only = server.post("/v1/completions", with(body.clone(), json!({"max_tokens": 0}))).ok();
    assert_eq!(only["choices"][0]["text"], "The soup is");
    assert_eq!(only["usage"]["completion_tokens"], 0);
    // What would end an answer there ends no prompt.
    let next = json!({"max_tokens": 1, "echo": false, "temperature": 0});
    let next = server.post("/v1/completions", with(body.clone(), next)).ok();
    let stop = json!({"max_tokens": 0, "temperature": 0, "stop": next["choices"][0]["text"]});
    let ended = server.post("/v1/completions", with(body.clone(), stop)).ok();
    assert_eq!(ended["choices"][0]["finish_reason"], "length");
    let of_prompt = &table["token_logprobs"].as_array().unwrap()[..prompt_tokens];
    assert_same_to_rounding(&only["choices"][0]["logprobs"]["token_logprobs"], &json!(of_prompt));
    let streamed = chunks("/v1/completions", with(body, json!({"stream": true})));
    let joined: String =
        streamed.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(joined, text);
    let offsets: Vec<&Value> = streamed
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .collect();
    assert_eq!(offsets, table["text_offset"].as_array().unwrap().iter().collect::<Vec<_>>());
}

#[test]
fn a_likely_continuation_scores_higher_than_an_unlikely_one() {
    let server = Server::shared();
    let score = |prompt: Value| {
        let body = json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 0});
        let answer = server.post("/v1/completions", body).ok();
        answer["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .as_f64()
            .unwrap()
    };
    let prompt = server.post("/tokenize", json!({"prompt": "The soup is"})).ok()["tokens"].clone();
    let next = server.generate(with(greedy(), json!({"max_tokens": 1, "logprobs": 1})));
    let likeliest = &next["tokens"][0];
    let followed_by = |id: &Value| {
        let mut ids = prompt.as_array().unwrap().clone();
        ids.push(id.clone());
        score(Value::Array(ids))
    };
    let best = followed_by(&likeliest["id"]);
    assert!((best - likeliest["logprob"].as_f64().unwrap()).abs() < 1e-3, "{best} and {likeliest}");
    assert!(followed_by(&json!(3)) <= best + 1e-6);
}

#[test]
fn tokens_and_text_are_each_others_inverse() {
    let server = Server::shared();
    let text = "Soup, naïve 🥄\n";
    let tokens = server.post("/tokenize", json!({"prompt": text, "add_special": false})).ok();
    assert_eq!(
        tokens["count"].as_u64().unwrap() as usize,
        tokens["tokens"].as_array().unwrap().len()
    );
    assert_eq!(tokens["context"], 256);
    assert_eq!(server.post("/detokenize", json!({"tokens": tokens["tokens"]})).ok()["text"], text);
    let chat =
        server.post("/tokenize", json!({"messages": [{"role": "user", "content": "hi"}]})).ok();
    let text = server.post("/detokenize", json!({"tokens": chat["tokens"]})).ok();
    assert_eq!(text["text"], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(
        server.post("/tokenize", json!({"prompt": "", "add_special": false})).ok()["count"],
        0
    );
}
