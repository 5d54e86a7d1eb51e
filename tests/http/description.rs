//! /openapi.json against what the server really takes and gives.

use std::collections::HashSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    routes::POSTS,
    server::{Server, with},
    structured::validate,
    tools::{ask as ask_for_tools, hermes, tools},
};

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
        let path = path.replace("{id}", "soup-tiny").replace("{name}", "soup-tiny");
        for method in ["get", "post", "put", "delete"] {
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
    for (path, example) in POSTS.iter() {
        let body = &document["paths"][path]["post"]["requestBody"];
        let request = schema(&document, &body["content"]["application/json"]["schema"]);
        for name in request["properties"].as_object().unwrap().keys() {
            // An object with a strange key is no right value of any field but a schema.
            let wrong = if name == "guided_json" { json!(5) } else { json!({"\u{0}": {}}) };
            let reply = server.post(path, with(example.clone(), json!({name: wrong})));
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
        let reply = server.post(path, with(example.clone(), json!({"undescribed": 1})));
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
fn every_operation_has_a_name_of_its_own_and_a_tag() {
    let document = Server::shared().get("/openapi.json").ok();
    let tags: Vec<&Value> =
        document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    let mut names = HashSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{path}");
            assert!(tags.contains(&&operation["tags"][0]), "{path}");
        }
    }
}

#[test]
fn answers_are_what_is_described() {
    let server = Server::shared();
    let document = server.get("/openapi.json").ok();
    let described = |path: &str, method: &str, status: u16| {
        let response = &document["paths"][path][method]["responses"][status.to_string()];
        let content = &schema(&document, response)["content"]["application/json"]["schema"];
        with(content.clone(), json!({"components": document["components"]}))
    };
    let mut answers = Vec::new();
    let mut ask = |server: &Server, path: &str, body: Value, status: u16| {
        let reply = server.post(path, body);
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        answers.push((described(path, "post", status), reply.body.to_string()));
    };
    for (path, example) in POSTS.iter() {
        ask(server, path, example.clone(), 200);
        ask(server, path, with(example.clone(), json!({"model": 5})), 400);
        ask(server, path, with(example.clone(), json!({"model": "another"})), 404);
    }
    let example = |path: &str| &POSTS.iter().find(|(post, _)| post == path).unwrap().1;
    for (path, more) in [
        ("/generate", json!({"n": 2, "logprobs": 2})),
        ("/generate", json!({"preferences": ["terse", "balanced"], "alpha": 0.5})),
        ("/v1/chat/completions", json!({"n": 2, "logprobs": true, "top_logprobs": 2})),
        ("/v1/completions", json!({"echo": true, "logprobs": 2, "n": 2})),
        ("/v1/embeddings", json!({"encoding_format": "base64", "weights": "sft"})),
        ("/v1/solve", json!({"preference": "terse", "alpha": {"brief": 1}})),
    ] {
        ask(server, path, with(example(path).clone(), more), 200);
    }
    let chat = ask_for_tools("<s13>", json!({}));
    ask(hermes(), "/v1/chat/completions", chat, 200);
    let functions = tools();
    let functions = functions.as_array().unwrap().iter().map(|tool| tool["function"].clone());
    let functions: Vec<Value> = functions.collect();
    let called = json!({"max_output_tokens": 200, "tools": functions, "tool_choice": "required"});
    ask(hermes(), "/v1/responses", with(example("/v1/responses").clone(), called), 200);
    let named = |mut tool: Value| match tool.as_object_mut().unwrap().remove("parameters") {
        Some(schema) => with(tool, json!({"input_schema": schema})),
        None => tool,
    };
    let blocks: Vec<Value> = functions.into_iter().map(named).collect();
    let called = json!({"max_tokens": 200, "tools": blocks, "tool_choice": {"type": "any"}});
    ask(hermes(), "/v1/messages", with(example("/v1/messages").clone(), called), 200);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let answer = &methods["get"]["responses"]["200"]["content"];
        // What asks for a right is looked at where there are keys.
        if answer.get("application/json").is_some() && !path.starts_with("/admin/") {
            let reply = server.get(&path.replace("{id}", "soup-tiny:terse")).ok();
            answers.push((described(path, "get", 200), reply.to_string()));
        }
    }
    validate(&answers);
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
