//! Anthropic's stream: a message that begins, blocks of text and of calls, and its end.

use axum::response::sse;
use serde_json::{Value, json};

use super::message::{empty, stop_reason, usage};
use crate::{
    chat::tools::Piece,
    engine::Event,
    http::{
        calls::{self, Reader},
        error::ApiError,
        run::Run,
        stream::{self, Dialect},
    },
};

/// The events of one answer.
pub struct Messages {
    model: String,
    reader: Reader,
    begun: bool,
    /// Blocks that have begun, and whether the last one is open, and is text.
    blocks: usize,
    open: Option<Block>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Block {
    Text,
    Call,
}

impl Messages {
    pub fn new(model: String, reader: Reader) -> Self {
        Self { model, reader, begun: false, blocks: 0, open: None }
    }

    fn begin(&mut self, run: &Run, out: &mut Vec<sse::Event>) {
        if !std::mem::replace(&mut self.begun, true) {
            let mut message = empty(&self.model);
            message["usage"] = usage(run.usage());
            message["ladle"] = json!(run.echo());
            out.push(event("message_start", json!({"message": message})));
        }
    }

    fn close(&mut self, out: &mut Vec<sse::Event>) {
        if self.open.take().is_some() {
            out.push(event("content_block_stop", json!({"index": self.blocks - 1})));
        }
    }

    fn start(&mut self, block: Block, content: Value, out: &mut Vec<sse::Event>) {
        self.close(out);
        let started = json!({"index": self.blocks, "content_block": content});
        out.push(event("content_block_start", started));
        (self.blocks, self.open) = (self.blocks + 1, Some(block));
    }

    fn write(&mut self, piece: Piece, out: &mut Vec<sse::Event>) {
        let delta = match piece {
            Piece::Text(text) => {
                if self.open != Some(Block::Text) {
                    self.start(Block::Text, json!({"type": "text", "text": ""}), out);
                }
                json!({"type": "text_delta", "text": text})
            }
            Piece::Call { name, .. } => {
                let id = calls::id("toolu");
                let call = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                return self.start(Block::Call, call, out);
            }
            Piece::Arguments { text, .. } => {
                json!({"type": "input_json_delta", "partial_json": text})
            }
        };
        out.push(event("content_block_delta", json!({"index": self.blocks - 1, "delta": delta})));
    }
}

/// An event with its name as its type.
fn event(name: &'static str, mut data: Value) -> sse::Event {
    data["type"] = name.into();
    stream::json(&data).event(name)
}

impl Dialect for Messages {
    fn event(&mut self, run: &Run, _: usize, event_of: Event) -> Vec<sse::Event> {
        let mut out = Vec::new();
        match event_of {
            Event::Token(token) => {
                self.begin(run, &mut out);
                for piece in self.reader.push(&token.text) {
                    self.write(piece, &mut out);
                }
            }
            Event::Finished(finished) => {
                self.begin(run, &mut out);
                for piece in self.reader.finish() {
                    self.write(piece, &mut out);
                }
                self.close(&mut out);
                let reason = stop_reason(finished.reason, &finished.stop, self.reader.has_called());
                let delta = json!({"stop_reason": reason, "stop_sequence": finished.stop});
                let end = json!({"delta": delta, "usage": usage(run.usage()), "ladle": run.echo()});
                out.push(event("message_delta", end));
            }
            Event::Started(_) | Event::Prompt(_) | Event::Embedding(_) | Event::Failed(_) => {}
        }
        out
    }

    fn end(&mut self, _: &Run) -> Vec<sse::Event> {
        vec![event("message_stop", json!({}))]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        vec![event("error", json!(error.body()))]
    }
}
