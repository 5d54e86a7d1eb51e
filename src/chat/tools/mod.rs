//! Calls of tools as the model's own template writes them.
//!
//! A template that can render a former turn's calls shows how its model was taught to write them. The
//! format is read off such a rendering, so that a new model needs no code: what stands before the
//! name, between the name and the arguments, after them, and between two calls.

use serde_json::{Map, Value, json};

use super::{ChatTemplate, Content, Conversation, Message};

mod reader;

pub use reader::{CallReader, Piece};

/// Name and id of the call that is looked for in a rendering. The id is one that every template
/// takes.
const NAME: &str = "ladle_probe";
const ID: &str = "LadlePr01";
/// A text that no template writes by itself.
const MARK: &str = "ladle-probe";
/// Name of the tool that is offered in a probe.
const OFFERED: &str = "ladle_offer";

/// How a model writes a call: `before NAME between ARGUMENTS after`, arguments as a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFormat {
    /// `<tool_call>\n{"name": "` for Hermes and Qwen, `{"name": "` for Llama 3.
    pub before: String,
    /// `", "arguments": `, or `", "parameters": `.
    pub between: String,
    /// `}\n</tool_call>`, or `}`.
    pub after: String,
    /// What stands between two calls of one turn; `None`: the template takes one call a turn.
    pub separator: Option<String>,
}

impl CallFormat {
    /// What tells a call from text: the beginning of `before`, up to the JSON in it. Empty where a
    /// call is an answer that begins with `before`.
    pub fn trigger(&self) -> &str {
        let end = self.before.find(|c: char| c.is_whitespace() || "{\"[".contains(c));
        &self.before[..end.unwrap_or(self.before.len())]
    }

    /// All that it writes beside names and arguments.
    pub fn literals(&self) -> String {
        let separator = self.separator.as_deref().unwrap_or_default();
        [&self.before, &self.between, &self.after, separator].concat()
    }
}

/// A former call as templates read it, with its arguments as an object.
pub fn call(id: Option<&str>, name: &str, arguments: Map<String, Value>) -> Value {
    let mut call = json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    if let Some(id) = id {
        call["id"] = id.into();
    }
    call
}

impl ChatTemplate {
    /// How this template writes calls, or why it cannot be told.
    pub fn call_format(&self) -> Result<CallFormat, &'static str> {
        if !self.knows("tools") {
            return Err("the chat template of this model has no place for tools");
        }
        let arguments = Map::from_iter([("ladle_argument".to_owned(), Value::from("x"))]);
        let calls = |n| (0..n).map(|_| call(Some(ID), NAME, arguments.clone())).collect::<Vec<_>>();
        let plain = self.turn(MARK, Vec::new()).ok_or("the chat template fails on tools")?;
        if !plain.contains(OFFERED) {
            return Err("the chat template of this model has no place for tools");
        }
        let unknown = "the chat template writes calls in a way that is not known here";
        let (head, tail) = plain.split_once(MARK).ok_or(unknown)?;
        let one = self.turn("", calls(1)).ok_or(unknown)?;
        let written =
            one.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)).ok_or(unknown)?;
        let (before, rest) = written.split_once(NAME).ok_or(unknown)?;
        let (between, length) = object(rest).ok_or(unknown)?;
        let after = &rest[between.len() + length..];
        let separator = self.turn("", calls(2)).and_then(|two| {
            let rest = two.strip_prefix(head)?.strip_suffix(tail)?.strip_prefix(written)?;
            rest.strip_suffix(written).map(str::to_owned)
        });
        // White space before a call is not part of it, but of what it stands behind.
        let (space, before) = before.split_at(before.len() - before.trim_start().len());
        let format = CallFormat {
            before: before.to_owned(),
            between: between.to_owned(),
            after: after.to_owned(),
            separator: separator.map(|separator| separator + space),
        };
        if format.literals().contains(ID) {
            return Err("the chat template writes calls with their ids, which are not known here");
        }
        Ok(format)
    }

    /// A conversation that ends with this turn of the assistant.
    fn turn(&self, content: &str, calls: Vec<Value>) -> Option<String> {
        let mut turn = Message::new("assistant", self.content(Content::from(content)));
        if !calls.is_empty() {
            turn.more.insert("tool_calls".to_owned(), calls.into());
        }
        let tool = json!({"type": "function", "function": {"name": OFFERED, "description": "A tool.",
            "parameters": {"type": "object", "properties": {}}}});
        let messages = vec![Message::new("user", self.content(Content::from("Go."))), turn];
        let variables = Map::from_iter([("tools".to_owned(), json!([tool]))]);
        self.render(&Conversation { messages, add_generation_prompt: false, variables }).ok()
    }
}

/// The text before the first JSON object that is the probe's arguments, and the object's length.
fn object(text: &str) -> Option<(&str, usize)> {
    let start = text.match_indices('{').map(|(at, _)| at).find_map(|at| {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let is_arguments = value.get("ladle_argument").is_some();
        is_arguments.then(|| (at, values.byte_offset()))
    });
    start.map(|(at, length)| (&text[..at], length))
}
