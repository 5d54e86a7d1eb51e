//! /openapi.json against what the server really takes and gives.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::{Server, greedy, with};

fn schema<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).expect(reference),
        None => value,
    }
}

/// Every reference of the document leads somewhere.
fn check_references(document: &Value, value: &Value) {
    schema(document, value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| check_references(document, item)),
        Value::Object(map) => map.values().for_each(|item| check_references(document, item)),
        _ => {}
    }
}

#[test]
fn every_described_route_exists_and_only_with_its_methods() {
    let server = Server::shared();
    let document = server.get("/openapi.json").ok();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    check_references(&document, &document);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "soup-tiny");
        for method in ["get", "post"] {
            let request = server
                .client
                .request(method.to_uppercase().parse().unwrap(), format!("{}{path}", server.url));
            let status = request.send().unwrap().status().as_u16();
            let described = methods.get(method).is_some();
            assert_eq!(status != 405, described, "{method} {path}: {status}");
            assert_ne!(status, 404, "{method} {path}");
        }
    }
}

#[test]
fn every_described_field_is_taken_and_no_other() {
    let server = Server::shared();
    let document = server.get("/openapi.json").ok();
    let base = |path: &str| match path {
        "/v1/chat/completions" | "/v1/messages" | "/v1/messages/count_tokens" => {
            json!({"messages": [{"role": "user", "content": "x"}]})
        }
        "/v1/responses" | "/v1/embeddings" => json!({"input": "x"}),
        "/v1/completions" | "/generate" | "/tokenize" => json!({"prompt": "x"}),
        "/detokenize" => json!({"tokens": [1]}),
        _ => json!({}),
    };
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(body) = methods["post"].get("requestBody") else { continue };
        let request = schema(&document, &body["content"]["application/json"]["schema"]);
        for name in request["properties"].as_object().unwrap().keys() {
            // An object with a strange key is no right value of any field but a schema.
            let wrong = if name == "guided_json" { json!(5) } else { json!({"\u{0}": {}}) };
            let reply = server.post(path, with(base(path), json!({name: wrong})));
            assert_eq!(reply.status, 400, "{path} {name}: {}", reply.body);
            let (code, param, _) = reply.error();
            let own = param.is_some_and(|param| param.starts_with(name.as_str()));
            // `messages` beside `prompt` is refused for being beside it.
            assert!(
                own || (name == "messages" && param == Some("prompt")),
                "{path} {name}: {}",
                reply.body
            );
            assert!(
                code == "invalid_value" || param != Some(name),
                "{path} {name}: {}",
                reply.body
            );
        }
        let reply = server.post(path, with(base(path), json!({"undescribed": 1})));
        assert_eq!((reply.status, reply.error().0), (400, "unknown_field"), "{path}");
        let (_, _, message) = reply.error();
        let known: std::collections::BTreeSet<&str> =
            message.split("the fields are ").nth(1).unwrap().split(", ").collect();
        let described =
            request["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(known, described, "{path}");
    }
}

#[test]
fn answers_have_exactly_the_described_fields() {
    let server = Server::shared();
    let document = server.get("/openapi.json").ok();
    let check = |path: &str, method: &str, answer: &Value| {
        let content = &document["paths"][path][method]["responses"]["200"]["content"]["application/json"]
            ["schema"];
        let described = schema(&document, content);
        let properties = described["properties"].as_object().unwrap();
        for name in answer.as_object().unwrap().keys() {
            assert!(properties.contains_key(name), "{path}: {name} is not described");
        }
        for name in described["required"].as_array().into_iter().flatten() {
            assert!(answer.get(name.as_str().unwrap()).is_some(), "{path}: {name} is missing");
        }
    };
    let full = with(greedy(), json!({"n": 2, "logprobs": 1}));
    check("/generate", "post", &server.generate(full));
    let messages = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2});
    check("/v1/chat/completions", "post", &server.post("/v1/chat/completions", messages).ok());
    let messages = json!({"messages": [{"role": "user", "content": "x"}]});
    check("/v1/messages", "post", &server.post("/v1/messages", messages.clone()).ok());
    let tokens = server.post("/v1/messages/count_tokens", messages).ok();
    check("/v1/messages/count_tokens", "post", &tokens);
    check("/v1/embeddings", "post", &server.post("/v1/embeddings", json!({"input": "x"})).ok());
    check("/v1/responses", "post", &server.post("/v1/responses", json!({"input": "x"})).ok());
    check("/v1/completions", "post", &server.post("/v1/completions", greedy()).ok());
    check("/v1/solve", "post", &server.post("/v1/solve", json!({})).ok());
    check("/tokenize", "post", &server.post("/tokenize", json!({"prompt": "x"})).ok());
    check("/detokenize", "post", &server.post("/detokenize", json!({"tokens": [5]})).ok());
    for path in ["/v1/soup", "/v1/models", "/health", "/ready"] {
        check(path, "get", &server.get(path).ok());
    }
}

/// What stands between the first `<tag…>` and its end.
fn inside<'a>(page: &'a str, tag: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<{tag}")).unwrap();
    rest.split_once('>').unwrap().1.split_once(&format!("</{tag}>")).unwrap().0
}

#[test]
fn the_playground_is_one_page_and_its_policy_allows_its_own_style_and_script_alone() {
    let server = Server::shared();
    let page = server.client.get(&server.url).send().unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let text = page.text().unwrap();
    let outside: Vec<&str> = ["src=", "@import", "url(", "{{", "style=\"", "onclick=\""]
        .into_iter()
        .filter(|part| text.contains(part))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    for tag in ["style", "script"] {
        assert_eq!(text.matches(&format!("<{tag}")).count(), 1, "{tag}");
        assert_eq!(text.matches(&format!("</{tag}")).count(), 1, "{tag}");
        let hash = BASE64_STANDARD.encode(Sha256::digest(inside(&text, tag)));
        assert!(policy.contains(&format!("{tag}-src 'sha256-{hash}'")), "{tag} {hash}: {policy}");
    }
    for part in ["default-src 'none'", "connect-src 'self'", "require-trusted-types-for 'script'"] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!text.contains(forbidden), "{forbidden}");
    }
}
