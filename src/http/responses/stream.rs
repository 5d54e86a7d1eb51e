//! The events of a response: it begins, its items come one after the other, and it ends.

use axum::response::sse;
use serde_json::{Value, json};

use super::response::{Envelope, function_call, message, part};
use crate::{
    chat::tools::Piece,
    engine::Finished,
    http::{
        calls::{self, Call},
        error::ApiError,
        pieces::Writer,
        run::Run,
        stream,
    },
};

/// The events of one response.
pub struct Events {
    envelope: Envelope,
    /// Number of the next event.
    number: usize,
    /// Items that are done.
    output: Vec<Value>,
    open: Option<Item>,
}

/// The item that is being written.
struct Item {
    id: String,
    kind: Kind,
}

enum Kind {
    Text(String),
    Call(Call),
}

impl Events {
    pub fn new(envelope: Envelope) -> Self {
        Self { envelope, number: 0, output: Vec::new(), open: None }
    }

    /// An event with its name as its type.
    fn numbered(&mut self, name: &'static str, mut data: Value) -> sse::Event {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        stream::json(&data).event(name)
    }

    /// Ends the item that is being written.
    fn close(&mut self, out: &mut Vec<sse::Event>) {
        let Some(Item { id, kind }) = self.open.take() else { return };
        let place = self.output.len();
        let item = match kind {
            Kind::Text(text) => {
                let done = json!({"item_id": id, "output_index": place, "content_index": 0, "text": text, "logprobs": []});
                out.push(self.numbered("response.output_text.done", done));
                let done = json!({"item_id": id, "output_index": place, "content_index": 0, "part": part(&text)});
                out.push(self.numbered("response.content_part.done", done));
                message(&id, &text, "completed")
            }
            Kind::Call(call) => {
                let done = json!({"item_id": id, "output_index": place, "name": call.name, "arguments": call.arguments});
                out.push(self.numbered("response.function_call_arguments.done", done));
                function_call(&id, &call, "completed")
            }
        };
        let done = json!({"output_index": place, "item": item});
        out.push(self.numbered("response.output_item.done", done));
        self.output.push(item);
    }
}

impl Writer for Events {
    fn begin(&mut self, run: &Run, out: &mut Vec<sse::Event>) {
        let response = self.envelope.response(run, "in_progress", Vec::new());
        out.push(self.numbered("response.created", json!({"response": response})));
        out.push(self.numbered("response.in_progress", json!({"response": response})));
    }

    fn piece(&mut self, piece: Piece, out: &mut Vec<sse::Event>) {
        let place = self.output.len();
        match piece {
            Piece::Text(more) => {
                if self.open.is_none() {
                    let id = calls::id("msg_");
                    let item = json!({"type": "message", "id": id, "status": "in_progress", "role": "assistant", "content": []});
                    let added = json!({"output_index": place, "item": item});
                    out.push(self.numbered("response.output_item.added", added));
                    let added = json!({"item_id": id, "output_index": place, "content_index": 0, "part": part("")});
                    out.push(self.numbered("response.content_part.added", added));
                    self.open = Some(Item { id, kind: Kind::Text(String::new()) });
                }
                let Some(Item { id, kind: Kind::Text(text) }) = &mut self.open else { return };
                text.push_str(&more);
                let delta = json!({"item_id": id, "output_index": place, "content_index": 0, "delta": more, "logprobs": []});
                out.push(self.numbered("response.output_text.delta", delta));
            }
            Piece::Call { name, .. } => {
                self.close(out);
                let (id, place) = (calls::id("fc_"), self.output.len());
                let call = Call { id: calls::id("call_"), name, arguments: String::new() };
                let item = function_call(&id, &call, "in_progress");
                let added = json!({"output_index": place, "item": item});
                out.push(self.numbered("response.output_item.added", added));
                self.open = Some(Item { id, kind: Kind::Call(call) });
            }
            Piece::Arguments { text, .. } => {
                let Some(Item { id, kind: Kind::Call(call) }) = &mut self.open else { return };
                call.arguments.push_str(&text);
                let delta = json!({"item_id": id, "output_index": place, "delta": text});
                out.push(self.numbered("response.function_call_arguments.delta", delta));
            }
        }
    }

    fn complete(&mut self, run: &Run, end: &Finished, _: bool, out: &mut Vec<sse::Event>) {
        if self.output.is_empty() && self.open.is_none() {
            // An empty answer is an empty text.
            self.piece(Piece::Text(String::new()), out);
        }
        self.close(out);
        let output = std::mem::take(&mut self.output);
        let response = self.envelope.complete(run, Some(end.reason), output);
        let name = match response["status"] == "incomplete" {
            true => "response.incomplete",
            false => "response.completed",
        };
        out.push(self.numbered(name, json!({"response": response})));
    }

    fn failure(&mut self, error: &ApiError) -> sse::Event {
        let body = error.body();
        let mut data = json!({"code": body["error"]["code"], "message": body["error"]["message"], "param": body["error"]["param"]});
        // Natively and on the other routes the error stands in an object of its own.
        data["error"] = body["error"].clone();
        self.numbered("error", data)
    }
}
