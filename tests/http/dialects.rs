//! `/v1/messages` and `/v1/responses`: the same answers as a chat completion's, in other words.

use serde_json::{Value, json};

use crate::{
    server::{Server, with},
    tools::{ask, hermes, tools},
};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// Greedy, on the shared server.
fn greedy() -> Value {
    json!({"temperature": 0, "ignore_eos": true, "preference": "terse"})
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// The text of a chat completion with these messages.
fn said(messages: Value) -> String {
    let body = with(greedy(), json!({"messages": messages, "max_tokens": 8}));
    let answer = Server::shared().post(CHAT, body).ok();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// Tokens of the prompt of these messages, in OpenAI's shape.
fn tokens(server: &Server, messages: Value) -> Value {
    server.post("/tokenize", messages).ok()["count"].clone()
}

/// The data of a stream whose events bear their type as their name.
fn events(server: &Server, path: &str, body: Value) -> Vec<Value> {
    let events = server.stream(path, with(body, json!({"stream": true})));
    let data = events.into_iter().map(|(name, data)| {
        let data: Value = serde_json::from_str(&data).unwrap();
        assert_eq!(data["type"], name.as_str());
        data
    });
    data.collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_message_is_a_chat_completion_in_anthropics_words() {
    let server = Server::shared();
    let body = with(greedy(), json!({"messages": user("Hello"), "max_tokens": 8}));
    let answer = server.post(MESSAGES, body.clone()).ok();
    let text = said(user("Hello"));
    assert_eq!(answer["content"], json!([{"type": "text", "text": text}]));
    assert_eq!((&answer["type"], &answer["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(answer["stop_reason"], "max_tokens");
    let usage = &answer["usage"];
    let input =
        ["input_tokens", "cache_read_input_tokens"].map(|name| usage[name].as_u64().unwrap());
    let count = server.post("/v1/messages/count_tokens", json!({"messages": user("Hello")})).ok();
    assert_eq!(count["input_tokens"], input.iter().sum::<u64>());
    assert_eq!(usage["output_tokens"], 8);
    assert_eq!(answer["ladle"]["preference"]["brief"], 0.8);

    let events = events(server, MESSAGES, body.clone());
    assert_eq!(
        kinds(&events),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let deltas = events.iter().filter(|event| event["type"] == "content_block_delta");
    let streamed: String = deltas.map(|event| event["delta"]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, text);
    let end = &events[events.len() - 2];
    assert_eq!(
        (&end["delta"]["stop_reason"], &end["usage"]["output_tokens"]),
        (&json!("max_tokens"), &json!(8))
    );

    // A stop string, the beginning of an answer, and a system prompt.
    let stop: String = text.chars().skip(2).take(2).collect();
    let stopped = server.post(MESSAGES, with(body.clone(), json!({"stop_sequences": [stop]}))).ok();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(stop))
    );
    let turns = json!([{"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Well"}]);
    let begun = server.post(MESSAGES, with(body.clone(), json!({"messages": turns}))).ok();
    let same = json!({"messages": turns, "continue_final_message": true});
    let same = server.post("/generate", with(with(greedy(), same), json!({"max_tokens": 8}))).ok();
    assert_eq!(begun["content"][0]["text"], same["text"]);
    for system in [json!("Be brief."), json!([{"type": "text", "text": "Be brief."}])] {
        let answer = server.post(MESSAGES, with(body.clone(), json!({"system": system}))).ok();
        let turns = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]);
        assert_eq!(answer["content"][0]["text"], said(turns).as_str());
    }
    let schema =
        json!({"output_config": {"format": {"type": "json_schema", "schema": {"const": 5}}}});
    let mut held = with(body, schema);
    held["ignore_eos"] = false.into();
    assert_eq!(server.post(MESSAGES, held).ok()["content"][0]["text"], "5");
}

#[test]
fn a_response_is_a_chat_completion_in_other_words() {
    let server = Server::shared();
    let body = with(greedy(), json!({"input": "Hello", "max_output_tokens": 8, "store": true}));
    let answer = server.post(RESPONSES, body.clone()).ok();
    let text = said(user("Hello"));
    assert_eq!(answer["output"][0]["content"][0]["text"], text.as_str());
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&answer["store"], &answer["max_output_tokens"]), (&json!(false), &json!(8)));
    assert_eq!(answer["usage"]["output_tokens"], 8);

    let events = events(server, RESPONSES, body.clone());
    assert_eq!(
        kinds(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    assert!(events.iter().enumerate().all(|(n, event)| event["sequence_number"] == n));
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let streamed: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(streamed, text);
    assert_eq!(
        events.last().unwrap()["response"]["output"][0]["content"],
        answer["output"][0]["content"]
    );

    let items = json!({"instructions": "Be brief.", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": "Go on"}]});
    let turns = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Go on"}]);
    let answer = server.post(RESPONSES, with(body.clone(), items)).ok();
    assert_eq!(answer["output"][0]["content"][0]["text"], said(turns).as_str());
    let format =
        json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": 5}}}});
    let mut held = with(body, format);
    held["ignore_eos"] = false.into();
    let answer = server.post(RESPONSES, held).ok();
    assert_eq!(
        (&answer["output"][0]["content"][0]["text"], &answer["status"]),
        (&json!("5"), &json!("completed"))
    );
}

/// The tools of OpenAI's shape as a route takes them.
fn flat(parameters: &str) -> Value {
    let tools = tools();
    let one = |tool: &Value| {
        let function = &tool["function"];
        let mut flat = json!({"name": function["name"]});
        if let Some(schema) = function.get("parameters") {
            flat[parameters] = schema.clone();
        }
        flat
    };
    tools.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn calls_are_blocks_and_items() {
    let server = hermes();
    let base = ask("<s13>", json!({"tools": null}));
    let claude = with(base.clone(), json!({"tools": flat("input_schema")}));
    let answer = server.post(MESSAGES, claude.clone()).ok();
    assert_eq!(answer["content"][0], json!({"type": "text", "text": "Let me look."}));
    let call = &answer["content"][1];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("count"), &json!({"n": 0}))
    );
    assert_eq!(answer["stop_reason"], "tool_use");
    let stream = events(server, MESSAGES, claude);
    let parts: String = stream
        .iter()
        .filter(|event| event["delta"]["type"] == "input_json_delta")
        .map(|event| event["delta"]["partial_json"].as_str().unwrap())
        .collect();
    assert_eq!(serde_json::from_str::<Value>(&parts).unwrap(), json!({"n": 0}));
    let blocks = stream.iter().filter(|event| event["type"] == "content_block_start");
    let blocks: Vec<_> = blocks.map(|event| event["content_block"]["type"].clone()).collect();
    assert_eq!(blocks, ["text", "tool_use"]);

    let mut openai = with(
        base,
        json!({"tools": flat("parameters"), "input": "<s13>", "max_output_tokens": 200}),
    );
    for gone in ["messages", "max_tokens"] {
        openai.as_object_mut().unwrap().remove(gone);
    }
    let answer = server.post(RESPONSES, openai.clone()).ok();
    assert_eq!(answer["output"][0]["content"][0]["text"], "Let me look.");
    let call = &answer["output"][1];
    assert_eq!(
        (&call["type"], &call["name"], &call["status"]),
        (&json!("function_call"), &json!("count"), &json!("completed"))
    );
    let stream = events(server, RESPONSES, openai);
    let done = stream.iter().find(|event| event["type"] == "response.function_call_arguments.done");
    assert_eq!(done.unwrap()["arguments"], call["arguments"]);
    let items = stream.last().unwrap()["response"]["output"].as_array().unwrap().len();
    assert_eq!(items, 2);
}

#[test]
fn conversations_with_calls_are_the_same_on_every_route() {
    let server = hermes();
    let turns = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "I look.", "tool_calls": [
            {"id": "a1", "type": "function", "function": {"name": "now", "arguments": "{\"zone\": null}"}}]},
        {"role": "tool", "tool_call_id": "a1", "content": "noon"},
        {"role": "user", "content": "y"},
    ]});
    let claude = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "a1", "name": "now", "input": {"zone": null}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a1", "content": [{"type": "text", "text": "noon"}], "is_error": false},
            {"type": "text", "text": "y"}]},
    ]});
    let openai = json!({"max_output_tokens": 1, "input": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "a1", "name": "now", "arguments": "{\"zone\": null}"},
        {"type": "function_call_output", "call_id": "a1", "output": "noon"},
        {"role": "user", "content": "y"},
    ]});
    let count = tokens(server, turns);
    let counted = server.post("/v1/messages/count_tokens", claude).ok();
    assert_eq!(counted["input_tokens"], count);
    assert_eq!(server.post(RESPONSES, openai).ok()["usage"]["input_tokens"], count);
}

#[test]
fn what_these_routes_cannot_do_is_named() {
    let server = hermes();
    for (path, more, code, param) in [
        (
            MESSAGES,
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "invalid_value",
            "messages[0].role",
        ),
        (
            MESSAGES,
            json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (MESSAGES, json!({"n": 2}), "invalid_value", "n"),
        (MESSAGES, json!({"tool_choice": {"type": "some"}}), "invalid_value", "tool_choice.type"),
        (
            MESSAGES,
            json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}),
            "invalid_value",
            "tools[0].type",
        ),
        (MESSAGES, json!({"colour": 1}), "unknown_field", "colour"),
        (
            RESPONSES,
            json!({"previous_response_id": "resp_1"}),
            "unsupported",
            "previous_response_id",
        ),
        (RESPONSES, json!({"background": true}), "unsupported", "background"),
        (
            RESPONSES,
            json!({"input": [{"type": "computer_call"}]}),
            "invalid_value",
            "input[0].type",
        ),
        (RESPONSES, json!({"tools": [{"type": "web_search"}]}), "invalid_value", "tools[0].type"),
        (RESPONSES, json!({"text": {"verbosity": "low"}}), "unsupported", "text.verbosity"),
        (RESPONSES, json!({"truncation": "auto"}), "unsupported", "truncation"),
    ] {
        let base = match path {
            MESSAGES => json!({"messages": user("x"), "max_tokens": 4}),
            _ => json!({"input": "x", "max_output_tokens": 4}),
        };
        let shown = more.to_string();
        let reply = server.post(path, with(base, more));
        let (got, got_param, message) = reply.error();
        assert_eq!(
            (reply.status, got, got_param),
            (400, code, Some(param)),
            "{path} {shown}: {message}"
        );
    }
}

#[test]
fn the_tokenizer_is_described() {
    let server = Server::shared();
    let info = server.get("/tokenizer_info").ok();
    assert_eq!(info["eos_token"], "<|im_end|>");
    assert!(info["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"][0]["max_model_len"], 256);
    let tokens = server.post("/tokenize", json!({"prompt": "soup"})).ok();
    assert_eq!(tokens["max_model_len"], 256);
    let text = server.post("/detokenize", json!({"tokens": tokens["tokens"]})).ok();
    assert_eq!((&text["prompt"], &text["text"]), (&json!("soup"), &json!("soup")));
}
