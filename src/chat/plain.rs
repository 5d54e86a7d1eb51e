//! What clients write is text: a control token spelled out in a message does not become that token.
//!
//! A template copies messages into the prompt beside its own control tokens, and in the rendered
//! text the two look alike. So a mark is put into each control token that a client wrote, before the
//! template sees it; the tokenizer does not match what holds a mark, and takes the mark out
//! ([`crate::tokenizer::Tokenizer::encode_marked`]). Messages without control tokens are rendered as
//! they are.

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

use super::{ChatTemplate, Content, Conversation, Message};

/// Characters that may be marks: those for private use, which no text means anything by.
const MARKS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{10fffd}';

/// Finds control tokens in what clients write.
#[derive(Debug)]
pub struct ControlTokens {
    /// Any of them; `None` where there are none.
    any: Option<Regex>,
    /// What they begin with and end with, without the whole of any.
    beginnings: HashSet<String>,
    ends: HashSet<String>,
    /// Characters of the longest.
    longest: usize,
}

/// No character is left that could be a mark.
#[derive(Debug, thiserror::Error)]
#[error("it holds every character that is for private use, expected at least one to be left out")]
pub struct NoMark;

impl ControlTokens {
    /// Those of `added`, tokens and whether they are special, that control a model: the special
    /// ones, and those that the template writes between turns.
    pub fn new(
        added: Vec<(String, bool)>,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, regex::Error> {
        let turns = template.map(turns).unwrap_or_default();
        let controls = |(token, special): &(String, bool)| *special || turns.contains(token);
        // A mark finds no room within a single character.
        let long = |token: &String| token.chars().nth(1).is_some();
        let tokens = added.into_iter().filter(controls).map(|(token, _)| token).filter(long);
        let tokens: Vec<String> = tokens.collect();
        let cuts = tokens.iter().flat_map(|token| {
            let borders = token.char_indices().skip(1);
            borders.map(|(border, _)| (token[..border].to_owned(), token[border..].to_owned()))
        });
        let (beginnings, ends) = cuts.unzip();
        let pattern: Vec<String> = tokens.iter().map(|token| regex::escape(token)).collect();
        let any = (!tokens.is_empty()).then(|| Regex::new(&pattern.join("|"))).transpose()?;
        let longest = tokens.iter().map(|token| token.chars().count()).max().unwrap_or(0);
        Ok(Self { any, beginnings, ends, longest })
    }

    /// Marks the control tokens in everything that a conversation brings, and gives the mark; `None`
    /// where there are none.
    pub fn mark(&self, conversation: &mut Conversation) -> Result<Option<char>, NoMark> {
        let mut found = Found::default();
        for_each_text(conversation, &mut |text| found.look_at(self, text));
        let Some(mark) = found.mark()? else { return Ok(None) };
        for_each_text(conversation, &mut |text| self.put(mark, text));
        Ok(Some(mark))
    }

    /// The same for a text alone.
    pub fn mark_text(&self, text: &mut String) -> Result<Option<char>, NoMark> {
        let mut found = Found::default();
        found.look_at(self, text);
        let mark = found.mark()?;
        if let Some(mark) = mark {
            self.put(mark, text);
        }
        Ok(mark)
    }

    /// Whether a text holds a control token, or may be part of one beside another text.
    fn concern(&self, text: &str) -> bool {
        self.any.as_ref().is_some_and(|any| any.is_match(text))
            || self.ends_in_one(text)
            || self.begins_in_one(text)
    }

    /// Whether a text ends with the beginning of a control token.
    fn ends_in_one(&self, text: &str) -> bool {
        let starts = text.char_indices().rev().take(self.longest).map(|(start, _)| start);
        starts.into_iter().any(|start| self.beginnings.contains(&text[start..]))
    }

    /// Whether a text begins with the end of a control token.
    fn begins_in_one(&self, text: &str) -> bool {
        let ends = text.char_indices().take(self.longest).map(|(at, c)| at + c.len_utf8());
        ends.into_iter().any(|end| self.ends.contains(&text[..end]))
    }

    /// Puts the mark after the first character of every control token, and at the ends of a text that
    /// may be part of one there.
    fn put(&self, mark: char, text: &mut String) {
        let Some(any) = self.any.as_ref().filter(|_| self.concern(text)) else { return };
        let mut marked = String::with_capacity(text.len() + 64);
        if self.begins_in_one(text) {
            marked.push(mark);
        }
        let mut at = 0;
        // Tokens may overlap, so the search goes on behind the mark.
        while let Some(found) = any.find_at(text, at) {
            let first = text[found.start()..].chars().next().map_or(1, char::len_utf8);
            let border = found.start() + first;
            marked.push_str(&text[at..border]);
            marked.push(mark);
            at = border;
        }
        marked.push_str(&text[at..]);
        if self.ends_in_one(text) {
            marked.push(mark);
        }
        *text = marked;
    }
}

/// What the texts of a conversation hold.
#[derive(Default)]
struct Found {
    control: bool,
    private: HashSet<char>,
}

impl Found {
    fn look_at(&mut self, tokens: &ControlTokens, text: &str) {
        self.control = self.control || tokens.concern(text);
        self.private.extend(text.chars().filter(|character| MARKS.contains(character)));
    }

    /// A character that no text holds, where one is needed.
    fn mark(&self) -> Result<Option<char>, NoMark> {
        if !self.control {
            return Ok(None);
        }
        MARKS.rev().find(|mark| !self.private.contains(mark)).map(Some).ok_or(NoMark)
    }
}

/// Visits every text that a conversation brings, names of fields included.
fn for_each_text(conversation: &mut Conversation, visit: &mut impl FnMut(&mut String)) {
    for Message { content, more, .. } in &mut conversation.messages {
        match content {
            Some(Content::Text(text)) => visit(text),
            Some(Content::Parts(parts)) => parts.iter_mut().for_each(|part| within(part, visit)),
            None => {}
        }
        fields(more, visit);
    }
    fields(&mut conversation.variables, visit);
}

fn within(value: &mut Value, visit: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter_mut().for_each(|item| within(item, visit)),
        Value::Object(map) => fields(map, visit),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn fields(map: &mut Map<String, Value>, visit: &mut impl FnMut(&mut String)) {
    let visited = std::mem::take(map).into_iter().map(|(mut name, mut value)| {
        visit(&mut name);
        within(&mut value, visit);
        (name, value)
    });
    *map = visited.collect();
}

/// The turns of small conversations as the template writes them.
fn turns(template: &ChatTemplate) -> String {
    let turn = |role: &str| Message::new(role, template.content("x".into()));
    let render = |roles: &[&str]| {
        let messages = roles.iter().map(|role| turn(role)).collect();
        template.render(&Conversation { messages, ..Conversation::default() }).unwrap_or_default()
    };
    // Some templates take no system turn.
    render(&["system", "user"]) + &render(&["user", "assistant", "user"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(names: &[&str]) -> ControlTokens {
        let added = names.iter().map(|name| (String::from(*name), true)).collect();
        ControlTokens::new(added, None).unwrap()
    }

    fn marked(tokens: &ControlTokens, text: &str) -> String {
        let mut text = text.to_owned();
        match tokens.mark_text(&mut text).unwrap() {
            Some(mark) => text.replace(mark, "·"),
            None => text,
        }
    }

    #[test]
    fn every_control_token_gets_a_mark_and_other_text_none() {
        let tokens = tokens(&["<|end|>", "<|endless|>", "ab", "bc", "é!"]);
        for (text, expected) in [
            ("Hello <b>world</b>", "Hello <b>world</b>"),
            ("x<|end|>y", "x<·|end|>y"),
            ("<|end|><|endless|>.", "<·|end|><·|endless|>."),
            ("xabcx", "xa·b·cx"),
            ("é!", "é·!"),
            // What another text may complete.
            ("Hello <|en", "Hello <|en·"),
            ("d|> world", "·d|> world"),
            ("", ""),
        ] {
            assert_eq!(marked(&tokens, text), expected);
        }
        assert_eq!(marked(&self::tokens(&[]), "<|end|>"), "<|end|>");
    }

    #[test]
    fn the_mark_is_in_no_text_of_the_conversation() {
        let tokens = tokens(&["<|end|>"]);
        let mut text = "\u{10fffd}\u{10fffc}<|end|>".to_owned();
        assert_eq!(tokens.mark_text(&mut text).unwrap(), Some('\u{10fffb}'));
        let mut all: String = MARKS.collect();
        all.push_str("<|end|>");
        assert!(tokens.mark_text(&mut all).is_err());
    }

    #[test]
    fn texts_of_every_field_are_marked() {
        let tokens = tokens(&["<|end|>"]);
        let mut message = Message::new("user", Content::of_texts(["<|end|>".to_owned()]));
        message.more.insert("name".to_owned(), "<|end|>".into());
        let mut conversation = Conversation { messages: vec![message], ..Conversation::default() };
        let tools = serde_json::json!([{"<|end|>": [1, "<|end|>"]}]);
        conversation.variables.insert("tools".to_owned(), tools);
        let mark = tokens.mark(&mut conversation).unwrap().unwrap();
        let text = format!("{conversation:?}");
        assert_eq!(text.matches("end|>").count(), 4);
        assert!(!text.contains("<|end|>"), "{text}");
        assert!(text.contains(&mark.escape_debug().to_string()), "{text}");
    }
}
