//! Chat templates: a conversation becomes the prompt that the model was tuned on.
//!
//! Templates are Jinja as `transformers` renders it. A template comes with the model and runs in a
//! sandbox: it sees the messages and the special tokens, reads no files, and stops when it has used
//! up its instructions, its work or its output. Messages are values, never template source.

use std::{
    collections::BTreeMap,
    error::Error as _,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::SystemTime,
};

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, context, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use self::error::ChatError;
pub use self::plain::{ControlTokens, NoMark};
use self::{
    limits::{Budget, Exceeded, MAX_INSTRUCTIONS},
    program::Program,
    python::Raised,
};

mod date;
mod error;
pub mod generation_prompt;
mod limits;
mod plain;
mod program;
mod python;
pub mod tools;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// Text, or a list of parts; absent where a turn has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// Other keys that templates read, such as `tool_calls`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Message {
    /// A turn with a role and content alone.
    pub fn new(role: &str, content: impl Into<Content>) -> Self {
        Self { role: role.to_owned(), content: Some(content.into()), more: Map::new() }
    }
}

/// Content of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, such as `{"type": "text", "text": "Hi"}`.
    Parts(Vec<Value>),
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Content {
    /// Parts of text.
    pub fn of_texts(texts: impl IntoIterator<Item = String>) -> Self {
        Self::Parts(texts.into_iter().map(|text| json!({"type": "text", "text": text})).collect())
    }
}

/// Input of a rendering.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Turns, oldest first.
    pub messages: Vec<Message>,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Variables of the template by name: `tools` and `documents`, which are none unless given, and
    /// those that the model defines, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// Whether a variable is set by the server or the model, or is a function, so that a request's
/// variables cannot have its name.
pub fn is_reserved(name: &str) -> bool {
    const RESERVED: &[&str] = &[
        "add_generation_prompt",
        "caller",
        "chat_template",
        "continue_final_message",
        "documents",
        "loop",
        "messages",
        "raise_exception",
        "self",
        "strftime_now",
        "super",
        "tokenize",
        "tools",
    ];
    let identifier = |c: char| c.is_ascii_alphanumeric() || c == '_';
    RESERVED.contains(&name)
        || name.ends_with("_token")
        || python::is_function(name)
        || name.is_empty()
        || name.len() > 64
        || !name.chars().all(identifier)
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    program: Program,
    special: BTreeMap<String, String>,
    takes: Takes,
}

/// The forms of content that a template renders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Takes {
    text: bool,
    parts: bool,
}

impl ChatTemplate {
    /// The template of a Hugging Face model directory: `chat_template.jinja`, else `chat_template`
    /// in `tokenizer_config.json` (of several, the one named `default`). `None` where the model has
    /// none: it answers completions, not chats.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, ChatError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = crate::tokenizer::settings(dir)?;
        // Further tokens of a model, by the names that its template knows.
        let further = config["extra_special_tokens"].as_object();
        let named = config.as_object().into_iter().chain(further).flatten();
        let special = named.filter_map(|(key, value)| {
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

    /// Compiles a template and tries it. `special` are the special tokens by the names templates
    /// use, such as `bos_token`.
    pub fn new(source: &str, special: BTreeMap<String, String>) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        python::install(&mut environment);
        let program = Program::compile(source)?;
        let takes = Takes { text: true, parts: true };
        let mut template = Self { environment, program, special, takes };
        template.takes = template.probe()?;
        Ok(template)
    }

    /// Renders a turn of text and one of parts, to find which forms of content reach the prompt. A
    /// template that names a filter, test or function that does not exist is refused.
    fn probe(&self) -> Result<Takes, ChatError> {
        const MARK: &str = "ladle-probe";
        let shows = |content: Content| {
            let message = Message::new("user", content);
            let conversation = Conversation {
                messages: vec![message],
                add_generation_prompt: true,
                variables: Map::new(),
            };
            match self.run(&conversation, SystemTime::now()) {
                Ok(text) => Ok(text.contains(MARK)
                    && !text.contains("'type'")
                    && !text.contains("\"type\"")),
                Err(ChatError::Syntax(reason)) => Err(ChatError::Syntax(reason)),
                Err(_) => Ok(false),
            }
        };
        Ok(Takes {
            text: shows(Content::Text(MARK.to_owned()))?,
            parts: shows(Content::of_texts([MARK.to_owned()]))?,
        })
    }

    /// The content of text parts in the form that this template renders: as they are, or as one
    /// text with a line for each. Templates that render only parts get a text as a part.
    pub fn content(&self, content: Content) -> Content {
        match content {
            Content::Parts(parts) if !self.takes.parts => {
                let texts: Vec<&str> =
                    parts.iter().filter_map(|part| part["text"].as_str()).collect();
                Content::Text(texts.join("\n"))
            }
            Content::Text(text) if self.takes.parts && !self.takes.text => {
                Content::of_texts([text])
            }
            content => content,
        }
    }

    /// Its text.
    pub fn source(&self) -> &str {
        self.program.source()
    }

    /// Whether the template names something, such as a role.
    pub fn knows(&self, word: &str) -> bool {
        self.program.source().contains(word)
    }

    /// The prompt of a conversation. It holds its special tokens as text: encode it without adding
    /// others.
    pub fn render(&self, conversation: &Conversation) -> Result<String, ChatError> {
        self.render_at(conversation, SystemTime::now())
    }

    /// [`render`](Self::render) for templates that write the date, at a given time. The date is in
    /// UTC, so that an answer does not depend on where the server stands.
    pub fn render_at(
        &self,
        conversation: &Conversation,
        now: SystemTime,
    ) -> Result<String, ChatError> {
        self.run(conversation, now)
    }

    fn run(&self, conversation: &Conversation, now: SystemTime) -> Result<String, ChatError> {
        let said = serde_json::to_string(&conversation.messages).map_or(0, |text| text.len());
        let strftime_now = move |format: &str| {
            date::strftime(now, format)
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        };
        let own = context! {
            messages => Serde(&conversation.messages),
            add_generation_prompt => conversation.add_generation_prompt,
            strftime_now => minijinja::Value::from_function(strftime_now),
        };
        let budget =
            BTreeMap::from([(limits::VARIABLE, minijinja::Value::from_object(Budget::new(said)))]);
        let absent = context! { tools => (), documents => () };
        let root = context! {
            ..minijinja::Value::from(budget),
            ..own,
            ..minijinja::Value::from(Serde(&conversation.variables)),
            ..minijinja::Value::from(Serde(&self.special)),
            ..absent,
        };
        // A panic while the template runs, or while its values are dropped, is an error of the
        // rendering.
        let rendered = catch_unwind(AssertUnwindSafe(|| self.program.run(&self.environment, root)));
        let rendered =
            rendered.map_err(|_| ChatError::Render("it fails on these messages".to_owned()))?;
        rendered.map_err(|error| refusal(&error))
    }
}

/// The error of a failed rendering.
fn refusal(error: &Error) -> ChatError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return ChatError::Refused(message.clone());
        }
        if let Some(Exceeded(limit)) = inner.downcast_ref() {
            return ChatError::Limit { limit: limit.clone() };
        }
        source = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => {
            ChatError::Limit { limit: format!("{MAX_INSTRUCTIONS} instructions") }
        }
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => {
            ChatError::Syntax(error.to_string())
        }
        _ => ChatError::Render(error.to_string()),
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, ChatError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ChatError::Read { path: path.to_owned(), source }),
    }
}
