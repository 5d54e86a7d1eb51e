//! Anthropic's stream: a message that begins, blocks of text and of calls, and its end.

use axum::response::sse;
use serde_json::{Value, json};

use super::message::{empty, stop_reason, usage};
use crate::{
    chat::tools::Piece,
    engine::Finished,
    http::{calls, error::ApiError, pieces::Writer, run::Run, stream},
};

/// The events of one answer.
pub struct Messages {
    model: String,
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
    pub fn new(model: String) -> Self {
        Self { model, blocks: 0, open: None }
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
}

/// An event with its name as its type.
fn event(name: &'static str, mut data: Value) -> sse::Event {
    data["type"] = name.into();
    stream::json(&data).event(name)
}

impl Writer for Messages {
    fn begin(&mut self, run: &Run, out: &mut Vec<sse::Event>) {
        let mut message = empty(&self.model);
        message["usage"] = usage(run.usage());
        message["ladle"] = json!(run.echo());
        out.push(event("message_start", json!({"message": message})));
    }

    fn piece(&mut self, piece: Piece, out: &mut Vec<sse::Event>) {
        let delta = match piece {
            Piece::Text(text) => {
                if self.open != Some(Block::Text) {
                    self.start(Block::Text, json!({"type": "text", "text": ""}), out);
                }
                json!({"type": "text_delta", "text": text})
            }
            Piece::Call { name, .. } => {
                let id = calls::id("toolu_");
                let call = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                return self.start(Block::Call, call, out);
            }
            Piece::Arguments { text, .. } => {
                json!({"type": "input_json_delta", "partial_json": text})
            }
        };
        out.push(event("content_block_delta", json!({"index": self.blocks - 1, "delta": delta})));
    }

    fn complete(&mut self, run: &Run, end: &Finished, called: bool, out: &mut Vec<sse::Event>) {
        self.close(out);
        let reason = stop_reason(end.reason, &end.stop, called);
        let delta = json!({"stop_reason": reason, "stop_sequence": end.stop});
        let end = json!({"delta": delta, "usage": usage(run.usage()), "ladle": run.echo()});
        out.push(event("message_delta", end));
        out.push(event("message_stop", json!({})));
    }

    fn failure(&mut self, error: &ApiError) -> sse::Event {
        event("error", error.body())
    }
}
