use std::fs;

use ladle::config::{MergeMode, ServeOptions};
use serde_json::{Value, json};

use crate::server::{Reply, Server, copied, fixture, greedy, options, with};

fn solve(body: Value) -> Value {
    Server::shared().post("/v1/solve", body).ok()
}

fn chat_model(model: &str, header: Option<&str>, body: Value) -> Reply {
    let server = Server::shared();
    let mut request = server.client.post(format!("{}/v1/solve", server.url));
    if let Some(header) = header {
        request = request.header("X-Preference", header);
    }
    Reply::of(request.json(&with(json!({"model": model}), body)).send().unwrap())
}

#[test]
fn every_form_of_a_preference_means_the_same() {
    let expected = solve(json!({"preference": {"helpful": 0.2, "brief": 0.8}}));
    assert_eq!(expected["preference"], json!({"helpful": 0.2, "harmless": 0.0, "brief": 0.8}));
    assert_eq!(solve(json!({"preference": [1, 0, 4]})), expected);
    assert_eq!(solve(json!({"preference": "terse"})), expected);
    assert_eq!(chat_model("soup-tiny:terse", None, json!({})).ok(), expected);
    assert_eq!(chat_model("soup-tiny:brief=4,helpful=1", None, json!({})).ok(), expected);
    assert_eq!(chat_model("soup-tiny:1,0,4", None, json!({})).ok(), expected);
    assert_eq!(chat_model("soup-tiny", Some("helpful=1, brief=4"), json!({})).ok(), expected);
    assert_eq!(chat_model("soup-tiny", Some("terse"), json!({})).ok(), expected);
}

#[test]
fn body_beats_model_beats_header_beats_default() {
    let mu = |reply: Reply| reply.ok()["preference"].clone();
    let only = |name: &str| {
        with(json!({"helpful": 0.0, "harmless": 0.0, "brief": 0.0}), json!({name: 1.0}))
    };
    let body = json!({"preference": {"brief": 1}});
    assert_eq!(mu(chat_model("soup-tiny:harmless=1", Some("helpful=1"), body)), only("brief"));
    assert_eq!(
        mu(chat_model("soup-tiny:harmless=1", Some("helpful=1"), json!({}))),
        only("harmless")
    );
    assert_eq!(mu(chat_model("soup-tiny", Some("helpful=1"), json!({}))), only("helpful"));
    let default = mu(chat_model("soup-tiny", None, json!({})));
    assert!((default["brief"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12, "{default}");
}

#[test]
fn a_vertex_of_the_simplex_gives_negative_coefficients() {
    // `docs/algorithms.md` §1.2, closed form with n = 3, β = 0.7: λ = (2(1) − 0.3)/1.1, −0.3/1.1, −0.3/1.1.
    let solved = solve(json!({"preference": {"helpful": 1}}));
    for (objective, lambda) in
        [("helpful", 1.7 / 1.1), ("harmless", -0.3 / 1.1), ("brief", -0.3 / 1.1)]
    {
        assert!((solved["lambda"][objective].as_f64().unwrap() - lambda).abs() < 1e-12, "{solved}");
    }
}

#[test]
fn a_sweep_of_eleven_preferences_moves_lambda_and_the_text() {
    let server = Server::shared();
    let mut texts = std::collections::BTreeSet::new();
    let mut last = f64::NEG_INFINITY;
    for step in 0..=10 {
        let mu = f64::from(step) / 10.0;
        let preference = json!({"helpful": mu, "brief": 1.0 - mu});
        let answer =
            server.generate(with(greedy(), json!({"preference": preference, "max_tokens": 32})));
        let lambda = answer["lambda"]["helpful"].as_f64().unwrap();
        assert!(lambda > last, "λ rises with μ");
        last = lambda;
        texts.insert(answer["text"].as_str().unwrap().to_owned());
    }
    assert!(texts.len() >= 5, "{} different texts", texts.len());
}

#[test]
fn the_soup_describes_itself() {
    let soup = Server::shared().get("/v1/soup").ok();
    assert_eq!(soup["name"], "soup-tiny");
    assert_eq!(soup["objectives"][2]["name"], "brief");
    assert_eq!(soup["objectives"][2]["description"], "Says it in few words.");
    let row: Vec<f64> =
        soup["matrix"][1].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert!((row[0] - 0.15).abs() < 1e-12 && (row[1] - 0.7).abs() < 1e-12, "{row:?}");
    assert_eq!(soup["presets"]["terse"], json!({"helpful": 0.2, "harmless": 0.0, "brief": 0.8}));
    assert_eq!((&soup["alpha"]["min"], &soup["alpha"]["max"]), (&json!(0.0), &json!(2.0)));
    assert_eq!((&soup["front"], &soup["examples"]), (&Value::Null, &json!([])));
    assert_eq!(soup["lambda_rule"], "exact");
}

fn close(map: &Value, expected: [f64; 3]) {
    for (objective, expected) in ["helpful", "harmless", "brief"].into_iter().zip(expected) {
        let got = map[objective].as_f64().unwrap();
        assert!((got - expected).abs() < 1e-12, "{objective}: {got}, expected {expected}");
    }
}

#[test]
fn a_clamped_lambda_is_the_projection_on_the_simplex() {
    // B⁻¹(1, 0, 0) = (17, −3, −3)/11: the nearest point of the simplex is its first corner.
    let clamped = solve(json!({"preference": {"helpful": 1}, "lambda": "clamp", "alpha": 0.25}));
    assert_eq!(clamped["lambda_rule"], "clamp");
    close(&clamped["lambda"], [1.0, 0.0, 0.0]);
    close(&clamped["coefficients"], [1.25, 0.0, 0.0]);
    assert_eq!(clamped["coefficients"]["sft"], -0.25);
    // B⁻¹(.6, .4, 0) = (9, 5, −3)/11: the others share evenly what makes the last one 0.
    let edge = solve(json!({"preference": [3, 2, 0], "lambda": "clamp"}));
    close(&edge["lambda"], [7.5 / 11.0, 3.5 / 11.0, 0.0]);
    // Inside the hull nothing changes.
    let wish = json!({"preference": [0.2, 0.3, 0.5], "alpha": [0.1, 0.2, 0.3]});
    let [exact, clamped] = ["exact", "clamp"].map(|rule| {
        let solved = solve(with(wish.clone(), json!({"lambda": rule})));
        assert_eq!(solved["lambda_rule"], rule);
        solved
    });
    assert_eq!(solve(wish), exact);
    close(&clamped["lambda"], [1.0 / 11.0, 3.0 / 11.0, 7.0 / 11.0]);
    let c = |name: &str| exact["coefficients"][name].as_f64().unwrap();
    close(&clamped["coefficients"], [c("helpful"), c("harmless"), c("brief")]);
}

#[test]
fn a_clamped_lambda_with_an_alpha_of_each_objective() {
    // k = (1.5, 1, 2), μ = (.8, .2, 0): s = 1.4 and ν = (6/7, 1/7, 0); B⁻¹ν = (ν − .15)/.55 lies
    // outside, and its projection is the first corner: c = (1.4, 0, 0), of θ_sft −.4.
    let wish = json!({"preference": [4, 1, 0], "alpha": [0.5, 0.0, 1.0], "lambda": "clamp"});
    let solved = solve(wish);
    close(&solved["coefficients"], [1.4, 0.0, 0.0]);
    assert!((solved["coefficients"]["sft"].as_f64().unwrap() + 0.4).abs() < 1e-12);
}

#[test]
fn every_route_answers_with_the_lambda_that_was_asked_for() {
    let server = Server::shared();
    let wish = json!({"preference": {"helpful": 1}, "lambda": "clamp", "max_tokens": 4});
    let own = server.generate(with(greedy(), wish.clone()));
    assert_eq!((&own["lambda_rule"], &own["lambda"]["helpful"]), (&json!("clamp"), &json!(1.0)));
    // The corner is that backbone alone: the same text as of any preference that B maps there.
    let column = json!({"preference": [0.7, 0.15, 0.15], "max_tokens": 4});
    assert_eq!(server.generate(with(greedy(), column))["text"], own["text"]);
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0});
    let completion = json!({"prompt": "Hello", "temperature": 0});
    for (route, body) in [("/v1/chat/completions", chat), ("/v1/completions", completion)] {
        let answer = server.post(route, with(body, wish.clone())).ok();
        assert_eq!(answer["ladle"]["lambda_rule"], "clamp", "{route}");
        assert_eq!(answer["ladle"]["lambda"]["helpful"], 1.0, "{route}");
    }
}

/// θ_sft is the model of any preference where the backbones change nothing.
#[test]
fn theta_sft_can_be_asked_for_whatever_the_bounds_of_alpha() {
    let soup = copied("soup-tiny");
    for backbone in ["helpful", "harmless", "brief"] {
        let config = soup.path().join(format!("backbones/{backbone}/adapter_config.json"));
        let text = fs::read_to_string(&config).unwrap();
        let settings: Value = serde_json::from_str(&text).unwrap();
        let still = with(settings, json!({"lora_alpha": 1e-30, "alpha_pattern": {}}));
        fs::write(&config, still.to_string()).unwrap();
    }
    let serve = |soup| {
        let merge_mode = Some(MergeMode::Fused);
        Server::start(ServeOptions { soup: Some(soup), merge_mode, ..options() })
    };
    let (still, server) = (&serve(soup.path().to_owned()), &serve(fixture("soup-tiny")));
    let ask = |server: &Server, more: Value| {
        let answer = server.generate(with(greedy(), with(json!({"logprobs": 0}), more)));
        (answer["tokens"].clone(), answer["coefficients"].clone())
    };
    let (tokens, c) = ask(server, json!({"weights": "sft"}));
    close(&c, [0.0; 3]);
    assert_eq!(c["sft"], 1.0);
    assert_eq!(tokens, ask(still, json!({"preference": "terse"})).0);
    assert_ne!(tokens, ask(server, json!({"weights": "merged"})).0);

    // Its log-probabilities of a text, and an answer of each dialect.
    let echo = json!({"prompt": "The soup is", "echo": true, "logprobs": 0, "max_tokens": 0});
    let of = |server: &Server, more: Value| {
        let answer = server.post("/v1/completions", with(echo.clone(), more)).ok();
        answer["choices"][0]["logprobs"]["token_logprobs"].clone()
    };
    let told = of(server, json!({"weights": "sft"}));
    assert_eq!(told, of(still, json!({})));
    assert_ne!(told, of(server, json!({})));
    let turn = json!([{"role": "user", "content": "Hello"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": turn, "max_tokens": 1})),
        ("/v1/messages", json!({"messages": turn, "max_tokens": 1})),
        ("/v1/responses", json!({"input": "Hello", "max_output_tokens": 1})),
    ] {
        let answer = server.post(path, with(body, json!({"weights": "sft"}))).ok();
        assert_eq!(answer["ladle"]["alpha"], -1.0, "{path}");
    }
    // Nothing has to activate what is not there.
    let invoked = serve(fixture("soup-tiny-answer"));
    assert_eq!(invoked.post("/generate", greedy()).error().1, Some("prompt"));
    ask(&invoked, json!({"weights": "sft"}));

    for (more, param) in [
        (json!({"preference": "terse"}), "preference"),
        (json!({"preferences": ["terse", "balanced"]}), "weights"),
        (json!({"target": {"brief": {"min": 0}}, "maximise": "helpful"}), "target"),
        (json!({"alpha": 0}), "alpha"),
        (json!({"lambda": "exact"}), "lambda"),
        (json!({"combine": "logits"}), "alpha"),
        (json!({"model": "soup-tiny:terse"}), "model"),
        (json!({"weights": "base"}), "weights"),
    ] {
        let body = with(greedy(), with(json!({"weights": "sft"}), more));
        let reply = server.post("/generate", body);
        let (code, got, _) = reply.error();
        assert_eq!((reply.status, code, got), (400, "invalid_value", Some(param)));
    }
}

/// Weights beyond the range of their type, or NaN at the end of a pass: the same request would fail
/// again, so it is the client's, in both modes. Other mixes are answered.
#[test]
fn coefficients_under_which_the_model_breaks_down_are_the_clients_error() {
    let soup = copied("soup-tiny");
    let config = soup.path().join("backbones/helpful/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let far = text.replacen("\"lora_alpha\": 8,", "\"lora_alpha\": 1.3e39,", 1);
    assert_ne!(far, text);
    fs::write(&config, far).unwrap();
    for mode in [MergeMode::Fused, MergeMode::Mixed] {
        let server = Server::start(ServeOptions {
            soup: Some(soup.path().to_owned()),
            merge_mode: Some(mode),
            ..options()
        });
        let matrix = server.get("/v1/soup").ok()["matrix"].clone();
        let others: Vec<_> = (0..3).map(|row| matrix[row][1].clone()).collect();
        for path in ["/generate", "/v1/completions"] {
            for stream in [false, true] {
                let broken = with(greedy(), json!({"preference": [1, 0, 0], "stream": stream}));
                let reply = server.post(path, broken);
                let (code, param, message) = reply.error();
                assert_eq!((reply.status, code, param), (400, "invalid_value", Some("preference")));
                assert!(message.contains("gives no distribution"), "{mode:?} {path}: {message}");
            }
        }
        server.generate(with(greedy(), json!({"preference": others})));
        server.wait_until_idle();
    }
}

#[test]
fn an_effort_is_a_preset_where_the_soup_says_so() {
    let soup = copied("soup-tiny");
    let manifest = soup.path().join("soup.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let mapped = text.replacen("[presets]", "[reasoning_effort]\nhigh = \"terse\"\n\n[presets]", 1);
    fs::write(&manifest, &mapped).unwrap();
    let server = Server::start(ServeOptions { soup: Some(soup.path().to_owned()), ..options() });
    let brief = |path: &str, more: Value| {
        let base = match path {
            "/v1/responses" => json!({"input": "x", "max_output_tokens": 1}),
            _ => json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
        };
        server.post(path, with(base, more)).ok()["ladle"]["preference"]["brief"].clone()
    };
    let chat = "/v1/chat/completions";
    let balanced = json!(1.0 / 3.0);
    assert_eq!(brief(chat, json!({"reasoning_effort": "high"})), 0.8);
    assert_eq!(brief("/v1/responses", json!({"reasoning": {"effort": "high"}})), 0.8);
    assert_eq!(brief(chat, json!({"reasoning_effort": "low"})), balanced);
    assert_eq!(
        brief(chat, json!({"reasoning_effort": "high", "preference": "balanced"})),
        balanced
    );
    assert_eq!(
        brief(chat, json!({"reasoning_effort": "high", "model": "soup-tiny:balanced"})),
        balanced
    );
    for (wrong, told) in [
        ("high = \"absent\"", "reasoning_effort.high"),
        ("much = \"terse\"", "reasoning_effort.much"),
    ] {
        fs::write(&manifest, mapped.replacen("high = \"terse\"", wrong, 1)).unwrap();
        let error = ladle::soup::read_manifest(soup.path()).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_target_is_solved_on_the_measured_front_and_answered_with_what_to_expect() {
    let soup = copied("soup-tiny");
    let reference: Value =
        serde_json::from_str(include_str!("../fixtures/front-reference.json")).unwrap();
    let case = &reference["cases"][1];
    let mut front = case["front"].clone();
    let manifest = ladle::soup::read_manifest(soup.path()).unwrap().1;
    let weights = manifest.weights();
    front["sha256"] = json!(weights);
    fs::write(soup.path().join("front.json"), front.to_string()).unwrap();
    let server = Server::start(ServeOptions { soup: Some(soup.path().into()), ..options() });
    let expected = &case["targets"][0];
    let goal = json!({"target": expected["target"], "maximise": expected["maximise"]});
    let solved = server.post("/v1/solve", goal.clone()).ok();
    let (bounded, bound) = expected["target"].as_object().unwrap().iter().next().unwrap();
    let value = |answer: &Value, name: &str| answer["predicted"][name]["value"].as_f64().unwrap();
    assert!(value(&solved, bounded) >= bound["min"].as_f64().unwrap() - 1e-6, "{solved}");
    let maximised = expected["maximise"].as_str().unwrap();
    assert!((value(&solved, maximised) - expected["best"].as_f64().unwrap()).abs() < 1e-3);

    // The same preference on every route; it answers as if it had been given.
    let answer = server.generate(with(greedy(), goal.clone()));
    assert_eq!(answer["preference"], solved["preference"]);
    let at = |alpha| server.post("/v1/solve", json!({"preference": "terse", "alpha": alpha})).ok();
    assert!(at(0.5)["predicted"]["brief"]["value"].is_f64());
    let beyond = at(1.5);
    assert_eq!(beyond["predicted"], Value::Null);
    assert!(beyond["unpredicted"].as_str().unwrap().contains("one alpha of 0 to 1"), "{beyond}");
    assert_eq!(answer["predicted"], solved["predicted"]);
    let given = server.generate(with(greedy(), json!({"preference": solved["preference"]})));
    assert_eq!((&answer["text"], &given["predicted"]), (&given["text"], &Value::Null));
    let body = json!({"model": "soup-tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
    let chat = server.post("/v1/chat/completions", with(body, goal.clone())).ok();
    assert_eq!(chat["ladle"]["preference"], solved["preference"]);
    let mixed = with(with(greedy(), goal.clone()), json!({"combine": "logits"}));
    let refused = server.post("/generate", mixed);
    assert_eq!(refused.error().1, Some("combine"), "{:?}", refused.error());

    for (body, param, words) in [
        (
            json!({"target": expected["target"]}),
            "maximise",
            "maximise is null, expected the objective",
        ),
        (json!({"maximise": "speed"}), "maximise", "maximise is \"speed\", expected the objective"),
        (
            json!({"maximise": "brief", "target": 5}),
            "target",
            "target is 5, expected bounds by objective",
        ),
        (
            json!({"maximise": "brief", "target": {"speed": {"min": 1}}}),
            "target.speed",
            "names \"speed\"",
        ),
        (
            json!({"maximise": "brief", "target": {"brief": 1}}),
            "target.brief",
            "expected an object with min",
        ),
        (
            json!({"maximise": "brief", "target": {"brief": {"mean": 1}}}),
            "target.brief.mean",
            "min or max",
        ),
        (
            json!({"maximise": "brief", "target": {"brief": {"min": "1"}}}),
            "target.brief.min",
            "a number",
        ),
        (
            json!({"maximise": "brief", "target": {"brief": {"min": 1e9}}}),
            "target.brief.min",
            "predicted to reach",
        ),
        (json!({"maximise": "brief", "alpha": 1.5}), "target", "one alpha of 0 to 1"),
        (
            json!({"maximise": "brief", "preference": "terse"}),
            "preference",
            "either preference or target",
        ),
    ] {
        let refused = server.post("/v1/solve", body.clone());
        assert_eq!(refused.status, 400, "{body}");
        let (_, named, message) = refused.error();
        assert_eq!(named, Some(param), "{body}: {message}");
        assert!(message.contains(words), "{body}: {message}");
    }
    let compared = with(greedy(), json!({"preferences": ["terse", "terse"], "maximise": "brief"}));
    assert!(server.post("/generate", compared).error().2.contains("beside preferences"));
    let without = Server::shared().post("/v1/solve", json!({"maximise": "brief"}));
    assert!(without.error().2.contains("a soup with a measured front"), "{:?}", without.error());
    let unpredicted = |server: &Server| {
        let solved = server.post("/v1/solve", json!({"preference": "terse"})).ok();
        assert_eq!(solved["predicted"], Value::Null);
        solved["unpredicted"].as_str().unwrap().to_owned()
    };
    assert!(unpredicted(Server::shared()).contains("there is none"));
    let description = server.get("/v1/soup").ok();
    assert_eq!(description["unpredicted"], Value::Null);
    let served = front["methods"].as_array().unwrap().iter();
    let served: Vec<&Value> = served.filter(|m| m["kind"] == "bone" && m["alpha"] == 0.0).collect();
    assert_eq!((served.len(), &description["front_method"]), (1, &served[0]["method"]));

    // On another base it was not measured.
    let base = Some(fixture("soup-tiny/base"));
    let own = ServeOptions { soup: Some(soup.path().into()), base, ..options() };
    let server = Server::start(own);
    assert!(unpredicted(&server).contains("on its own base"));
    let description = server.get("/v1/soup").ok();
    assert!(description["unpredicted"].is_string() && description["front_method"].is_null());

    // Measured on other weights, or on a part: the soup is refused, with the file.
    let (file, _) = weights.first_key_value().unwrap();
    for digest in [Some("0".repeat(64)), None] {
        let digests = front["sha256"].as_object_mut().unwrap();
        match digest {
            Some(digest) => digests.insert(file.clone(), digest.into()),
            None => digests.remove(file),
        };
        fs::write(soup.path().join("front.json"), front.to_string()).unwrap();
        let refused = ladle::soup::Soup::open(soup.path(), &Default::default());
        let refused = refused.err().unwrap().to_string();
        assert!(
            refused.contains("measured on other weights") && refused.contains(file),
            "{refused}"
        );
    }
}
