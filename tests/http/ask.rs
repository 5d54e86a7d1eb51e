//! Greedy requests of the generating routes, and what they get.

use serde_json::{Value, json};

use crate::server::{Server, with};

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";
pub const GENERATE: &str = "/generate";

/// A greedy request of each generating route.
pub fn base(path: &str) -> Value {
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
pub fn answered(path: &str, more: Value) -> String {
    let shown = more.to_string();
    let reply = Server::shared().post(path, with(base(path), more));
    assert_eq!(reply.status, 200, "{path} {shown}: {}", reply.body);
    text(path, &reply.body)
}

/// A 400 that names the field.
#[track_caller]
pub fn refused(path: &str, more: Value, code: &str, param: &str) -> String {
    let shown = more.to_string();
    let reply = Server::shared().post(path, with(base(path), more));
    assert_eq!(reply.status, 400, "{path} {shown}: {}", reply.body);
    let (got, got_param, message) = reply.error();
    assert_eq!((got, got_param), (code, Some(param)), "{path} {shown}: {message}");
    message.to_owned()
}
