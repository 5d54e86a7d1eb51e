//! Prompt templates: minijinja over an example's data.

use super::{DataError, Example, Message, Role};
use minijinja::{Environment, UndefinedBehavior, Value as Variables, context, value::Serde};
use serde_json::{Map, Value};

/// Most instructions of one rendering: above any prompt's need, and a bound on endless loops.
const FUEL: u64 = 1_000_000;

/// A compiled template. A variable that a row lacks is an error of that row, not empty text.
#[derive(Debug)]
pub struct PromptTemplate {
    environment: Environment<'static>,
}

impl PromptTemplate {
    /// Compiles `source`.
    pub fn new(source: &str) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment
            .add_template_owned("prompt", source.to_string())
            .map_err(|e| DataError::Template(e.to_string()))?;
        Ok(Self { environment })
    }

    /// Renders with the columns of a row as variables.
    pub fn render(&self, row: &Map<String, Value>) -> Result<String, String> {
        self.rendered(Serde(row).into())
    }

    /// The template around a prompt; `fields` are its example's.
    pub fn around(&self, prompt: &str, fields: &Map<String, Value>) -> Result<String, String> {
        self.rendered(context! { prompt, fields => Serde(fields) })
    }

    /// Puts the template around the last turn of the user: `prompt` is that turn, `fields` and
    /// `id` are the example's. Other turns stay.
    pub fn apply(&self, example: &Example) -> Result<Example, String> {
        let text = self.rendered(context! {
            prompt => example.prompt(), fields => Serde(&example.fields), id => &example.id,
        })?;
        let mut wrapped = example.clone();
        match wrapped.messages.iter_mut().rev().find(|m| m.role == Role::User) {
            Some(turn) => turn.content = text,
            None => wrapped.messages.push(Message::user(text)),
        }
        Ok(wrapped)
    }

    fn rendered(&self, variables: Variables) -> Result<String, String> {
        let template = self.environment.get_template("prompt").map_err(|e| e.to_string())?;
        template.render(variables).map_err(|e| e.to_string())
    }
}
