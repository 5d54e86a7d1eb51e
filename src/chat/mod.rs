//! Chat templates: a conversation becomes the prompt that the model was tuned on.
//!
//! Templates are Jinja as `transformers` renders it. A template comes with the model and runs in a
//! sandbox: it sees the messages and the special tokens, reads no files, and stops when it has used
//! up its instructions or its output. Messages are values, never template source.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use minijinja::{
    Environment, Error, ErrorKind, Output, State, UndefinedBehavior, context,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod python;

/// Instructions that one rendering may use: thousands of messages through any published template.
const MAX_INSTRUCTIONS: u64 = 10_000_000;
/// Longest rendering in bytes beyond what the messages themselves hold.
const MAX_OVERHEAD: usize = 16 << 20;
const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A template that cannot be loaded or a conversation that it refuses.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The template is not valid Jinja.
    #[error("chat template: {0}")]
    Syntax(String),
    /// The template itself refuses the conversation (`raise_exception`).
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The rendering takes more than {MAX_INSTRUCTIONS} instructions or writes too much.
    #[error("the chat template exceeds its limit of {limit}")]
    Limit {
        /// What was exceeded, with its unit.
        limit: String,
    },
    /// The template fails on these messages.
    #[error("chat template: {0}")]
    Render(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The template of a Hugging Face model directory: `chat_template.jinja`, else `chat_template`
    /// in `tokenizer_config.json` (of several, the one named `default`). `None` where the model has
    /// none: it answers completions, not chats.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, ChatError> {
        let config_path = dir.join("tokenizer_config.json");
        let config: Value = match read_optional(&config_path)? {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text).map_err(|e| ChatError::Format {
                path: config_path.clone(),
                reason: format!("not JSON: {e}"),
            })?,
        };
        let special = config.as_object().into_iter().flatten().filter_map(|(key, value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            key.ends_with("_token").then(|| (key.clone(), text.to_owned()))
        });
        let special = special.collect();
        if let Some(source) = read_optional(&dir.join("chat_template.jinja"))? {
            return Self::new(&source, special).map(Some);
        }
        let source = match &config["chat_template"] {
            Value::Null => return Ok(None),
            Value::String(source) => Some(source.as_str()),
            Value::Array(named) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str()),
            _ => None,
        };
        let source = source.ok_or_else(|| ChatError::Format {
            path: config_path,
            reason: "chat_template: expected a string, or a list with a template named default"
                .to_owned(),
        })?;
        Self::new(source, special).map(Some)
    }

    /// Compiles a template. `special` are the special tokens by the names templates use, such as
    /// `bos_token`.
    pub fn new(source: &str, special: BTreeMap<String, String>) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| ChatError::Syntax(e.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(print_as_python);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, plain_generation_blocks(source))
            .map_err(|e| ChatError::Syntax(e.to_string()))?;
        Ok(Self { environment, special })
    }

    /// The prompt of a conversation; with `add_generation_prompt` it ends where the assistant's
    /// answer begins. It holds its special tokens as text: encode it without adding others.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// [`render`](Self::render) for templates that write the date, at a given time (in UTC: an
    /// answer does not depend on where the server stands).
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, ChatError> {
        let said: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let limit = MAX_OVERHEAD.saturating_add(said.saturating_mul(4));
        let mut out = Bounded { bytes: Vec::new(), limit, exceeded: false };
        let strftime_now = move |format: &str| {
            python::strftime(now, format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        };
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt => add_generation_prompt,
            strftime_now => minijinja::Value::from_function(strftime_now),
            ..minijinja::Value::from(Serde(&self.special))
        };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut out).map(drop));
        match rendered {
            Ok(()) => String::from_utf8(out.bytes).map_err(|e| ChatError::Render(e.to_string())),
            Err(_) if out.exceeded => Err(ChatError::Limit { limit: format!("{limit} bytes") }),
            Err(e) if e.kind() == ErrorKind::OutOfFuel => {
                Err(ChatError::Limit { limit: format!("{MAX_INSTRUCTIONS} instructions") })
            }
            Err(e) => Err(match raised(&e) {
                Some(message) => ChatError::Refused(message),
                None => ChatError::Render(e.to_string()),
            }),
        }
    }
}

/// A rendering in memory with a bound on its length.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(data.len()) > self.limit {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The source of an error that `raise_exception` made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<minijinja::Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(raised) = inner.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        source = inner.source();
    }
    None
}

/// Printed values look as Python prints them, because templates were written against Python.
fn print_as_python(
    out: &mut Output,
    state: &mut State,
    value: &minijinja::Value,
) -> Result<(), Error> {
    let word = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(|_| Error::from(ErrorKind::WriteFailure))
}

/// `{% generation %}` marks the tokens that training learns from; in a prompt it is a block that
/// does nothing, so it becomes one that Jinja knows.
fn plain_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag_on) = rest.split_at(start);
        let (tag, after) = tag_on.split_at(length + 2);
        out.push_str(before);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || "{%-+}".contains(c));
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn read_optional(path: &Path) -> Result<Option<String>, ChatError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ChatError::Read { path: path.to_owned(), source }),
    }
}
