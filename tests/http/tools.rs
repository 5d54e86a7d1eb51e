//! Calls of tools: what the template is offered, what an answer may call, and how calls come.

use std::{fs, sync::OnceLock};

use ladle::config::ServeOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, copied, options, with};

const CHAT: &str = "/v1/chat/completions";

/// A template that writes calls as those of Hermes and Qwen do, and what it is offered at the
/// beginning. It opens no turn, so that a scripted soup goes on from the last message.
const HERMES: &str = r#"{%- if tools %}[{% for tool in tools %}{{ tool.function.name }} {% endfor %}]{% endif -%}
{%- for m in messages -%}
{{ '<|turn|>' if m.role != 'user' }}{{ m.tool_call_id }}{{ m.content }}
{%- for c in m.tool_calls or [] -%}
{{ '\n' if m.content or not loop.first }}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
{%- endfor -%}"#;

/// A template that writes calls as those of Llama 3 do, one a turn.
const LLAMA: &str = r#"{%- if tools %}[{% for tool in tools %}{{ tool.function.name }} {% endfor %}]{% endif -%}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length > 1 %}{{ raise_exception('one call a turn') }}{% endif -%}
<|turn|>{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}
{%- else -%}
{{ '<|turn|>' if m.role != 'user' }}{{ m.content }}
{%- endif -%}
{%- endfor -%}"#;

struct Scripted {
    server: Server,
    _soup: TempDir,
}

/// A server of a soup with this template.
fn serve(soup: &str, template: &str) -> Scripted {
    let dir = copied(soup);
    fs::write(dir.path().join("base/chat_template.jinja"), template).unwrap();
    let server = Server::start(ServeOptions { soup: Some(dir.path().to_owned()), ..options() });
    Scripted { server, _soup: dir }
}

pub fn hermes() -> &'static Server {
    static SERVER: OnceLock<Scripted> = OnceLock::new();
    &SERVER.get_or_init(|| serve("scripted-bytes", HERMES)).server
}

fn llama() -> &'static Server {
    static SERVER: OnceLock<Scripted> = OnceLock::new();
    &SERVER.get_or_init(|| serve("scripted-bytes", LLAMA)).server
}

/// A soup of random weights.
fn random() -> &'static Server {
    static SERVER: OnceLock<Scripted> = OnceLock::new();
    &SERVER.get_or_init(|| serve("soup-tiny", HERMES)).server
}

pub fn tools() -> Value {
    let weather = json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let count = json!({"properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "…", "parameters": weather}},
        {"type": "function", "function": {"name": "count", "parameters": count, "strict": true}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// A request that continues a script, without white space between the tokens of JSON.
pub fn ask(start: &str, more: Value) -> Value {
    let server = hermes();
    let space = |text: &str| {
        server.post("/tokenize", json!({"prompt": text})).ok()["tokens"][0].to_string()
    };
    let biases = ["\t", "\n", "\r", " "].map(|text| (space(text), json!(-20)));
    let biases: serde_json::Map<String, Value> = biases.into_iter().collect();
    let body = json!({"messages": [{"role": "user", "content": start}], "temperature": 0,
        "max_tokens": 200, "tools": tools(), "logit_bias": biases, "parse_special": true});
    with(body, more)
}

/// Content, calls as name and arguments, and reason of the first choice.
fn seen(answer: &Value) -> (Option<String>, Vec<(String, Value)>, String) {
    let choice = &answer["choices"][0];
    let message = &choice["message"];
    assert_eq!(message["role"], "assistant");
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let mut ids = std::collections::HashSet::new();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(ids.insert(call["id"].as_str().unwrap().to_owned()), "ids differ: {answer}");
        let text = call["function"]["arguments"].as_str().unwrap();
        let name = call["function"]["name"].as_str().unwrap().to_owned();
        (name, serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}")))
    };
    (
        message["content"].as_str().map(str::to_owned),
        calls.iter().map(call).collect(),
        choice["finish_reason"].as_str().unwrap().to_owned(),
    )
}

/// The same of a stream, put together as clients do.
fn streamed(server: &Server, body: Value) -> (Option<String>, Vec<(String, Value)>, String) {
    let mut events = server.stream(CHAT, with(body, json!({"stream": true})));
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    let (mut content, mut reason) = (String::new(), None);
    let mut calls: Vec<(String, String)> = Vec::new();
    for (_, data) in events {
        let data: Value = serde_json::from_str(&data).unwrap();
        let choice = &data["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if let Some(name) = call["function"]["name"].as_str() {
                assert_eq!(index, calls.len());
                assert!(call["id"].as_str().unwrap().starts_with("call_"));
                assert_eq!(call["type"], "function");
                calls.push((name.to_owned(), String::new()));
            }
            calls[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
        reason = choice["finish_reason"].as_str().map(str::to_owned).or(reason);
    }
    let parsed = calls.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).unwrap()));
    let calls: Vec<_> = parsed.collect();
    let content = (calls.is_empty() || !content.is_empty()).then_some(content);
    (content, calls, reason.unwrap())
}

/// The answer of a request, whole and as a stream, which are the same.
#[track_caller]
fn answered(server: &Server, body: Value) -> (Option<String>, Vec<(String, Value)>, String) {
    let whole = seen(&server.post(CHAT, body.clone()).ok());
    assert_eq!(streamed(server, body), whole);
    whole
}

fn count() -> (String, Value) {
    ("count".to_owned(), json!({"n": 0}))
}

#[test]
fn an_answer_says_something_and_then_calls() {
    let (content, calls, reason) = answered(hermes(), ask("<s13>", json!({})));
    assert_eq!((content.as_deref(), reason.as_str()), (Some("Let me look."), "tool_calls"));
    // The first of equally likely names and numbers.
    assert_eq!(calls[0], count());
    let (content, calls, reason) = answered(llama(), ask("<s14>", json!({})));
    assert_eq!((content, reason.as_str()), (None, "tool_calls"));
    assert_eq!(calls, [count()]);
}

#[test]
fn an_answer_without_a_call_is_text() {
    for server in [hermes(), llama()] {
        let (content, calls, reason) = answered(server, ask("<s1>", json!({})));
        assert_eq!(content.as_deref(), Some("alpha beta gamma delta"));
        assert_eq!((calls.len(), reason.as_str()), (0, "stop"));
    }
}

#[test]
fn a_tool_that_is_required_or_named_is_called() {
    for (server, choice, names, reason) in [
        (hermes(), json!("required"), vec!["count"], "tool_calls"),
        (llama(), json!("required"), vec!["count"], "tool_calls"),
        (
            hermes(),
            json!({"type": "function", "function": {"name": "weather"}}),
            vec!["weather"],
            "stop",
        ),
        (llama(), json!({"type": "function", "function": {"name": "now"}}), vec!["now"], "stop"),
    ] {
        let body = json!({"tool_choice": choice, "parallel_tool_calls": false});
        let (content, calls, got) = answered(server, ask("<s1>", body));
        let called: Vec<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((content, called, got.as_str()), (None, names, reason));
        let expected = match calls[0].0.as_str() {
            "count" => json!({"n": 0}),
            "weather" => json!({"city": "Oslo"}),
            _ => json!({}),
        };
        assert_eq!(calls[0].1, expected);
    }
}

#[test]
fn tools_that_may_not_be_called_are_not_offered() {
    let prompt = |more: Value| {
        let body =
            with(json!({"messages": [{"role": "user", "content": "x"}], "tools": tools()}), more);
        let ids = hermes().post("/tokenize", body).ok()["tokens"].clone();
        let text = hermes().post("/detokenize", json!({"tokens": ids})).ok()["text"].clone();
        text.as_str().unwrap().to_owned()
    };
    assert_eq!(prompt(json!({})), "[weather count now ]x");
    assert_eq!(prompt(json!({"tool_choice": "none"})), "x");
    let body = ask("<s13>", json!({"tool_choice": "none"}));
    let (content, calls, _) = answered(hermes(), body);
    assert_eq!((content.as_deref(), calls.len()), (Some("Let me look.\n<tool_call>\n{"), 0));
}

#[test]
fn a_conversation_with_calls_reaches_the_template() {
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "a1", "type": "function", "index": 0,
                "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\", \"day\": null}"}},
            {"id": "a2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ]},
        {"role": "tool", "tool_call_id": "a1", "content": "rain"},
        {"role": "user", "content": [{"type": "text", "text": "y"}]},
    ]);
    let ids = hermes().post("/tokenize", json!({"messages": messages})).ok()["tokens"].clone();
    let text = hermes().post("/detokenize", json!({"tokens": ids})).ok()["text"].clone();
    assert_eq!(
        text,
        "x<|turn|><tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\", \"day\": null}}\n\
         </tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call><|turn|>a1rainy"
    );
}

#[test]
fn random_answers_call_only_what_is_offered_and_as_it_is_described() {
    let server = random();
    for seed in 0..6 {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools(), "seed": seed,
            "max_tokens": 150, "tool_choice": "required", "preference": [seed, 1, 2], "n": 2});
        let answer = server.post(CHAT, body.clone()).ok();
        for choice in answer["choices"].as_array().unwrap() {
            if choice["finish_reason"] == "length" {
                continue;
            }
            let one = json!({"choices": [choice]});
            let (_, calls, reason) = seen(&one);
            assert!(reason == "tool_calls" && !calls.is_empty(), "{choice}");
            for (name, arguments) in calls {
                let members = arguments.as_object().unwrap();
                match name.as_str() {
                    "weather" => {
                        assert!(["Oslo", "Rome"].contains(&members["city"].as_str().unwrap()))
                    }
                    "count" => assert!(members["n"].as_u64().unwrap() < 100),
                    "now" => assert!(members.is_empty()),
                    other => panic!("{other} was not offered"),
                }
            }
        }
        let once = with(body, json!({"parallel_tool_calls": false, "n": 1}));
        let (_, calls, reason) = seen(&server.post(CHAT, once).ok());
        assert!(calls.len() == 1 || reason == "length");
    }
}

#[test]
fn text_beside_tools_can_be_held_to_a_schema() {
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Oslo"]}}});
    let (content, calls, reason) =
        answered(hermes(), ask("<s1>", json!({"response_format": format})));
    assert_eq!((content.as_deref(), calls.len(), reason.as_str()), (Some("\"Oslo\""), 0, "stop"));
    let body = ask("<s1>", json!({"response_format": format}));
    let reply = llama().post(CHAT, body);
    assert_eq!(reply.error().1, Some("response_format.json_schema.schema"), "both begin alike");
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let call = |function: Value| {
        let turn = json!({"role": "assistant", "tool_calls": [{"function": function}]});
        json!({"messages": [turn]})
    };
    for (more, code, param) in [
        (json!({"tools": [{"type": "retrieval"}]}), "invalid_value", "tools[0].type"),
        (json!({"tools": [{}]}), "invalid_value", "tools[0].function"),
        (function(json!({"name": "a b"})), "invalid_value", "tools[0].function.name"),
        (
            function(json!({"name": "a", "parameters": {"type": "string"}})),
            "invalid_value",
            "tools[0].function.parameters.type",
        ),
        (
            function(json!({"name": "a", "parameters": {"properties": {"b": {"not": {}}}}})),
            "unsupported",
            "tools[0].function.parameters.properties.b.not",
        ),
        (function(json!({"name": "a", "colour": 1})), "unknown_field", "tools[0].function.colour"),
        (json!({"tools": [tools()[0], tools()[0]]}), "invalid_value", "tools"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "absent"}}}),
            "invalid_value",
            "tool_choice",
        ),
        (json!({"tool_choice": "maybe"}), "invalid_value", "tool_choice"),
        (json!({"tools": [], "tool_choice": "required"}), "invalid_value", "tool_choice"),
        (json!({"guided_regex": "a"}), "invalid_value", "guided_regex"),
        (
            call(json!({"name": "a", "arguments": "[1]"})),
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (call(json!({})), "invalid_value", "messages[0].tool_calls[0].function.name"),
    ] {
        let shown = more.to_string();
        let reply = hermes().post(CHAT, ask("<s1>", more));
        let (got, got_param, message) = reply.error();
        assert_eq!((reply.status, got, got_param), (400, code, Some(param)), "{shown}: {message}");
    }
    // A template without a place for tools.
    let message = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools()});
    let reply = Server::shared().post(CHAT, message);
    assert_eq!((reply.error().0, reply.error().1), ("unsupported", Some("tools")));
}

#[test]
fn the_last_turn_can_be_continued() {
    let server = Server::shared();
    let text = |body: Value| {
        let ids = server.post("/tokenize", body).ok()["tokens"].clone();
        server.post("/detokenize", json!({"tokens": ids})).ok()["text"].clone()
    };
    let turns =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, so "}]);
    let begun = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nWell, so ";
    let body =
        json!({"messages": turns, "continue_final_message": true, "add_generation_prompt": false});
    assert_eq!(text(body.clone()), begun);
    let closed = json!({"messages": turns, "add_generation_prompt": false});
    assert_eq!(text(closed), format!("{begun}<|im_end|>\n"));
    // The answer is what follows, on every kind of soup.
    for soup in ["soup-tiny", "soup-tiny-answer"] {
        let soup = crate::server::fixture(soup);
        let server = Server::start(ServeOptions { soup: Some(soup), ..options() });
        let greedy = json!({"temperature": 0, "max_tokens": 6, "preference": [1, 2, 0]});
        let chat = server.post(CHAT, with(body.clone(), greedy.clone())).ok();
        let native = server.post("/generate", with(body.clone(), greedy)).ok();
        assert_eq!(chat["choices"][0]["message"]["content"], native["text"]);
        assert!(native["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    }
    for (more, param) in [
        (json!({"add_generation_prompt": true}), "continue_final_message"),
        (json!({"messages": [{"role": "user", "content": "hi"}]}), "continue_final_message"),
        (json!({"messages": [{"role": "assistant", "content": " "}]}), "continue_final_message"),
    ] {
        let reply = server.post(CHAT, with(body.clone(), more));
        assert_eq!((reply.status, reply.error().1), (400, Some(param)), "{}", reply.body);
    }
}
