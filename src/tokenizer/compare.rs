//! Whether two tokenizers give a text the same tokens.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Tokenizer;

impl Tokenizer {
    /// The first token in which two tokenizers differ, or that one of them merges otherwise: what
    /// differs, and both sides. Ids from `rows` on, which no embedding has, do not count.
    pub fn difference(&self, other: &Self, rows: usize) -> Option<(String, String, String)> {
        let tokens = |tokenizer: &Self| {
            let vocabulary = tokenizer.0.tokenizer.get_vocab(true).into_iter();
            let vocabulary = vocabulary.map(|(token, id)| (id, token));
            vocabulary.filter(|(id, _)| (*id as usize) < rows).collect::<BTreeMap<u32, String>>()
        };
        let show = |token: Option<&String>| token.map_or("none".to_owned(), |t| format!("{t:?}"));
        let (own, others) = (tokens(self), tokens(other));
        let mut ids = own.keys().chain(others.keys());
        if let Some(id) = ids.find(|id| own.get(id) != others.get(id)) {
            let [own, others] = [own.get(id), others.get(id)].map(show);
            return Some((format!("token {id}"), own, others));
        }
        let kind = |tokenizer: &Self, id| match tokenizer.is_special(id) {
            true => "special".to_owned(),
            false => "plain".to_owned(),
        };
        if let Some(id) = own.keys().find(|id| self.is_special(**id) != other.is_special(**id)) {
            return Some((format!("token {id}"), kind(self, *id), kind(other, *id)));
        }
        let merges = |tokenizer: &Self| {
            let model = serde_json::to_value(tokenizer.0.tokenizer.get_model());
            match model.unwrap_or_default()["merges"].take() {
                Value::Array(merges) => merges,
                _ => Vec::new(),
            }
        };
        let (own, others) = (merges(self), merges(other));
        let rank =
            (0..own.len().max(others.len())).find(|rank| own.get(*rank) != others.get(*rank));
        rank.map(|rank| {
            let show = |merge: Option<&Value>| merge.map_or("none".to_owned(), Value::to_string);
            (format!("merge {rank}"), show(own.get(rank)), show(others.get(rank)))
        })
    }
}
