//! hh-rlhf dialogues (Bai et al. 2022): `chosen` and `rejected`, each a whole dialogue of turns
//! that start with `\n\nHuman:` or `\n\nAssistant:`.

use super::{
    DataError, Message, Pair, Role,
    rows::{OnMalformed, Rows, filled, read_jsonl},
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

#[derive(Deserialize)]
struct Record {
    chosen: String,
    rejected: String,
}

/// Reads pairs. The prompt is the text before the last turn of `chosen`; the two dialogues must
/// agree on it. The id is `line-N`; `fields.dialogue` is the prompt as it stands, up to and with the
/// `\n\nAssistant:` of the response.
pub fn read(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Pair>, DataError> {
    read_jsonl(path, on_malformed, |line, record: Record| {
        let (prompt, chosen) = split_last(&record.chosen).map_err(|e| format!("chosen: {e}"))?;
        let (other, rejected) =
            split_last(&record.rejected).map_err(|e| format!("rejected: {e}"))?;
        if prompt != other {
            return Err("chosen and rejected answer different dialogues".into());
        }
        let messages = dialogue(prompt)?;
        if messages.last().is_none_or(|m| m.role != Role::User) {
            return Err("the dialogue before the responses does not end with a Human turn".into());
        }
        let dialogue = Value::from(format!("{prompt}{ASSISTANT}"));
        Ok(Pair {
            id: format!("line-{line}"),
            messages,
            chosen: chosen.trim().to_string(),
            rejected: rejected.trim().to_string(),
            fields: [("dialogue".to_owned(), dialogue)].into_iter().collect(),
        })
    })
}

const ASSISTANT: &str = "\n\nAssistant:";
const HUMAN: &str = "\n\nHuman:";

/// The dialogue up to the last `\n\nAssistant:`, and the response after it.
fn split_last(text: &str) -> Result<(&str, &str), String> {
    text.rsplit_once(ASSISTANT).ok_or_else(|| "no Assistant turn".into())
}

/// The turns of a dialogue. Two turns of one speaker in a row stay two messages.
pub fn dialogue(text: &str) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    let mut rest = text;
    loop {
        let (role, after) = match (rest.strip_prefix(HUMAN), rest.strip_prefix(ASSISTANT)) {
            (Some(after), _) => (Role::User, after),
            (_, Some(after)) => (Role::Assistant, after),
            _ if rest.trim().is_empty() => break,
            _ => return Err("the dialogue does not start with a Human or Assistant turn".into()),
        };
        let end = [after.find(HUMAN), after.find(ASSISTANT)].into_iter().flatten().min();
        let (content, next) = after.split_at(end.unwrap_or(after.len()));
        filled("turn", content)?;
        messages.push(Message { role, content: content.trim().to_string() });
        rest = next;
    }
    if messages.is_empty() { Err("no turns".into()) } else { Ok(messages) }
}
