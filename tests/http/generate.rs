use serde_json::{Value, json};

use crate::server::{Server, greedy, options, with};
use ladle::config::MergeMode;

fn sum(object: &Value) -> f64 {
    object.as_object().unwrap().values().map(|value| value.as_f64().unwrap()).sum()
}

#[test]
fn an_answer_echoes_what_was_solved_and_how_it_ran() {
    let answer = Server::shared().generate(with(greedy(), json!({"preference": [0.2, 0.3, 0.5]})));
    // β = 0.7, n = 3 (`docs/algorithms.md` §1.2): λ = (1/11, 3/11, 7/11).
    for (objective, mu, lambda) in
        [("helpful", 0.2, 1.0), ("harmless", 0.3, 3.0), ("brief", 0.5, 7.0)]
    {
        assert!((answer["preference"][objective].as_f64().unwrap() - mu).abs() < 1e-12, "{answer}");
        assert!(
            (answer["lambda"][objective].as_f64().unwrap() - lambda / 11.0).abs() < 1e-12,
            "{answer}"
        );
        assert_eq!(answer["lambda"][objective], answer["coefficients"][objective]);
    }
    assert_eq!(answer["coefficients"]["sft"], 0.0);
    assert_eq!(answer["alpha"], 0.0);
    assert!((sum(&answer["coefficients"]) - 1.0).abs() < 1e-12);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
    assert!(["fused", "mixed"].contains(&answer["mode"].as_str().unwrap()));
    let timings = &answer["timings"];
    for name in ["queue_ms", "merge_ms", "first_token_ms", "total_ms"] {
        assert!(timings[name].as_f64().unwrap() >= 0.0, "{name}: {answer}");
    }
    assert!(timings["first_token_ms"].as_f64() <= timings["total_ms"].as_f64());
    assert_eq!(answer["soup"]["name"], "soup-tiny");
    assert_eq!(answer["soup"]["digest"].as_str().unwrap().len(), 64);
    assert!(!answer["text"].as_str().unwrap().is_empty());
}

#[test]
fn extrapolation_moves_the_coefficients_away_from_the_start() {
    let server = Server::shared();
    let ask = |alpha: Value| {
        server.generate(with(greedy(), json!({"preference": [1, 0, 0], "alpha": alpha})))
    };
    let scalar = ask(json!(0.5));
    assert_eq!(scalar["coefficients"]["sft"], -0.5);
    assert!((sum(&scalar["coefficients"]) - 1.0).abs() < 1e-12);
    let ratio = scalar["coefficients"]["helpful"].as_f64().unwrap()
        / scalar["lambda"]["helpful"].as_f64().unwrap();
    assert!((ratio - 1.5).abs() < 1e-12);
    let each = ask(json!({"helpful": 0.5}));
    assert_eq!(each["coefficients"], scalar["coefficients"], "μ is all on helpful");
    assert_eq!(each["alpha"], json!({"helpful": 0.5, "harmless": 0.0, "brief": 0.0}));
}

#[test]
fn the_preference_changes_the_model() {
    let server = Server::shared();
    let text = |preference: Value| {
        let body = with(greedy(), json!({"preference": preference, "max_tokens": 24}));
        server.generate(body)["text"].as_str().unwrap().to_owned()
    };
    let corners = [text(json!([1, 0, 0])), text(json!([0, 1, 0])), text(json!([0, 0, 1]))];
    assert_ne!(corners[0], corners[1]);
    assert_ne!(corners[1], corners[2]);
    assert_eq!(corners[0], text(json!({"helpful": 5})));
}

#[test]
fn fused_and_mixed_give_the_same_text_and_say_how_they_ran() {
    let server =
        |mode| Server::start(ladle::config::ServeOptions { merge_mode: Some(mode), ..options() });
    let (fused, mixed) = (server(MergeMode::Fused), server(MergeMode::Mixed));
    let body = || with(greedy(), json!({"preference": [0.6, 0.1, 0.3], "max_tokens": 32}));
    let (first, second, other) =
        (fused.generate(body()), fused.generate(body()), mixed.generate(body()));
    assert_eq!((&first["mode"], &first["cache"]), (&json!("fused"), &json!("miss")));
    assert_eq!((&second["mode"], &second["cache"]), (&json!("fused"), &json!("hit")));
    assert_eq!((&other["mode"], &other["cache"]), (&json!("mixed"), &Value::Null));
    assert_eq!(first["text"], second["text"]);
    assert_eq!(first["text"], other["text"]);
    assert_eq!(fused.metric("ladle_merge_cache_misses_total"), 1.0);
    assert!(fused.metric("ladle_merge_cache_bytes") > 0.0);
    assert!(fused.metric("ladle_steps_total{mode=\"fused\"}") >= 32.0);
    assert_eq!(fused.metric("ladle_steps_total{mode=\"mixed\"}"), 0.0);
}

#[test]
fn a_seed_makes_sampling_reproducible_and_choices_differ() {
    let server = Server::shared();
    let body = |seed: i64| json!({"prompt": "The soup is", "max_tokens": 16, "temperature": 1.5, "seed": seed, "n": 3, "ignore_eos": true});
    let texts = |seed| -> Vec<String> {
        let answer = server.generate(body(seed));
        let choices = answer["choices"].as_array().unwrap().clone();
        assert_eq!(answer["text"], choices[0]["text"]);
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    let first = texts(7);
    assert_eq!(first, texts(7));
    assert_ne!(first[0], first[1]);
    assert_eq!(first[1..], texts(8)[..2], "choice i uses seed + i");
    assert_ne!(first, texts(-1));
}

#[test]
fn usage_counts_a_prompt_once_and_all_its_answers() {
    let server = Server::shared();
    let one = server.generate(greedy());
    let three = server.generate(with(greedy(), json!({"n": 3})));
    assert_eq!(one["usage"]["prompt_tokens"], three["usage"]["prompt_tokens"]);
    assert_eq!(three["usage"]["completion_tokens"], 24);
}

#[test]
fn a_stop_string_ends_the_answer_before_itself() {
    let server = Server::shared();
    let whole = server.generate(with(greedy(), json!({"max_tokens": 32})));
    let text = whole["text"].as_str().unwrap();
    // A piece from the middle, two characters long so that it is likely to cross a token border.
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let end = text.find(&stop).unwrap();
    for form in [json!(stop), json!(["not in there at all", stop])] {
        let cut = server.generate(with(greedy(), json!({"max_tokens": 32, "stop": form})));
        assert_eq!(cut["text"], text[..end]);
        assert_eq!(cut["finish_reason"], "stop");
    }
}

#[test]
fn a_stream_carries_the_whole_answer_piece_by_piece() {
    let server = Server::shared();
    let whole = server.generate(with(greedy(), json!({"preference": "terse", "max_tokens": 24})));
    let body = with(greedy(), json!({"preference": "terse", "max_tokens": 24, "stream": true}));
    let events = server.stream("/generate", body);
    let parsed: Vec<(String, Value)> = events
        .into_iter()
        .map(|(name, data)| (name, serde_json::from_str(&data).unwrap()))
        .collect();
    assert_eq!(parsed[0].0, "start");
    assert_eq!(parsed[0].1["lambda"], whole["lambda"]);
    let (last, done) = parsed.last().unwrap();
    assert_eq!(last, "done");
    assert_eq!((&done["text"], &done["usage"]), (&whole["text"], &whole["usage"]));
    assert_eq!(done["finish_reason"], "length");
    let pieces: String = parsed
        .iter()
        .filter(|(name, _)| name == "token")
        .map(|(_, data)| data["text"].as_str().unwrap())
        .collect();
    assert_eq!(pieces, whole["text"].as_str().unwrap());
    assert!(parsed.len() > 4, "it came in pieces");
}

#[test]
fn log_probabilities_belong_to_the_chosen_tokens() {
    let answer = Server::shared().generate(with(greedy(), json!({"logprobs": 3})));
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 8);
    for token in tokens {
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the chosen token is the likeliest one.
        assert_eq!((&top[0]["id"], &top[0]["logprob"]), (&token["id"], &token["logprob"]));
        let probabilities: Vec<f64> =
            top.iter().map(|t| t["logprob"].as_f64().unwrap().exp()).collect();
        assert!(
            probabilities.is_sorted_by(|a, b| a >= b)
                && probabilities.iter().sum::<f64>() <= 1.0 + 1e-6
        );
    }
}

/// A stream wrote each log-probability with the digits of a wider type.
#[test]
fn a_stream_writes_log_probabilities_as_the_whole_answer_does() {
    let server = Server::shared();
    let body = with(greedy(), json!({"logprobs": 1}));
    let whole = server.generate(body.clone());
    let events = server.stream("/generate", with(body, json!({"stream": true})));
    let tokens = events.iter().filter(|(name, _)| name == "token");
    let tokens = tokens.map(|(_, data)| serde_json::from_str::<Value>(data).unwrap());
    let tokens: Vec<Value> = tokens.map(|event| event["token"].clone()).collect();
    assert_eq!(Value::from(tokens), whole["tokens"]);
}

#[test]
fn messages_go_through_the_chat_template() {
    let server = Server::shared();
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}]});
    let rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let knobs = json!({"max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let (chat, plain) = (
        server.generate(with(chat, knobs.clone())),
        server.generate(with(json!({"prompt": server.post("/tokenize", json!({"prompt": rendered, "add_special": false})).ok()["tokens"]}), knobs)),
    );
    assert_eq!(chat["text"], plain["text"]);
    assert_eq!(chat["usage"], plain["usage"]);
}

#[test]
fn the_default_answer_is_cut_to_what_fits_the_context() {
    let server = Server::shared();
    let answer =
        server.generate(json!({"prompt": "The soup is", "temperature": 0, "ignore_eos": true}));
    assert_eq!(answer["usage"]["total_tokens"], 256, "the tiny model's context");
    assert_eq!(answer["finish_reason"], "length");
}

#[test]
fn backbones_can_be_mixed_at_their_logits_instead() {
    let server = Server::shared();
    let corner = json!({"preference": {"helpful": 0.7, "harmless": 0.15, "brief": 0.15}});
    // This μ is column 1 of B: λ is one-hot, so both ways give backbone 1 alone.
    let weights = server.generate(with(greedy(), corner.clone()));
    assert!((weights["lambda"]["helpful"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{weights}");
    let logits = server.generate(with(with(greedy(), corner), json!({"combine": "logits"})));
    assert_eq!(weights["text"], logits["text"]);
}
