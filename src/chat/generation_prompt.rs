//! The generation prompt: what a template appends to a conversation to open the answer, such as the
//! header of an assistant's turn.

use std::time::SystemTime;

use serde_json::Map;

use super::{ChatError, ChatTemplate, Conversation, Message};

/// Conversations whose generation prompts are compared.
const PROBES: [&str; 2] = ["x", "Two words."];

/// A conversation as text, with and without what opens the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt.
    pub prompt: String,
    /// The turns alone. Equal to `prompt` under a template that appends nothing.
    pub turns: String,
}

/// The position of the first token of the generation prompt: the number of tokens that the prompt
/// and the turns alone begin with alike.
pub fn start(prompt: &[u32], turns: &[u32]) -> usize {
    prompt.iter().zip(turns).take_while(|(a, b)| a == b).count()
}

impl ChatTemplate {
    /// Renders a conversation twice at one moment, so that a date in it is the same.
    pub fn render_both(&self, conversation: Conversation) -> Result<Rendered, ChatError> {
        let now = SystemTime::now();
        let conversation = Conversation { add_generation_prompt: true, ..conversation };
        let prompt = self.render_at(&conversation, now)?;
        let turns = Conversation { add_generation_prompt: false, ..conversation };
        Ok(Rendered { prompt, turns: self.render_at(&turns, now)? })
    }

    /// The tokens of the generation prompt by `encode`, where they are the same after any turn.
    pub fn generation_prompt(&self, encode: impl Fn(&str) -> Option<Vec<u32>>) -> Option<Vec<u32>> {
        let of = |text: &str| {
            let messages = vec![Message::new("user", self.content(text.into()))];
            let conversation =
                Conversation { messages, add_generation_prompt: true, variables: Map::new() };
            let Rendered { prompt, turns } = self.render_both(conversation).ok()?;
            let (prompt, turns) = (encode(&prompt)?, encode(&turns)?);
            Some(prompt[start(&prompt, &turns)..].to_vec())
        };
        let [first, second] = PROBES.map(of);
        first.filter(|tokens| !tokens.is_empty() && second.as_ref() == Some(tokens))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, BTreeMap::new()).unwrap()
    }

    /// A token per character.
    fn encode(text: &str) -> Option<Vec<u32>> {
        Some(text.chars().map(u32::from).collect())
    }

    #[test]
    fn it_is_what_the_template_appends() {
        let appends = template(
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% endif %}",
        );
        assert_eq!(appends.generation_prompt(encode), encode("[assistant]"));
        let nothing = template("{% for m in messages %}<{{ m.content }}>{% endfor %}");
        assert_eq!(nothing.generation_prompt(encode), None);
        let varies = template(
            "{% for m in messages %}{{ m.content }}{% endfor %}\
             {% if add_generation_prompt %}#{{ messages[0].content }}{% endif %}",
        );
        assert_eq!(varies.generation_prompt(encode), None);
    }

    #[test]
    fn it_starts_where_the_turns_alone_end_or_differ() {
        assert_eq!(start(&[1, 2, 3, 4], &[1, 2]), 2);
        assert_eq!(start(&[1, 2, 3], &[1, 2, 3]), 3, "nothing is appended");
        // The tokenizer joins the last character of the turns to what follows.
        assert_eq!(start(&[1, 9, 4], &[1, 2]), 1);
        assert_eq!(start(&[1, 2], &[]), 0);
    }
}
