//! The events of a response: it begins, its items come one after the other, and it ends.

use axum::response::sse;
use serde_json::{Value, json};

use super::response::{Envelope, function_call, message, part};
use crate::{
    chat::tools::Piece,
    engine::Event,
    http::{
        calls::{self, Call, Reader},
        error::ApiError,
        run::Run,
        stream::{self, Dialect},
    },
};

/// The events of one response.
pub struct Events {
    envelope: Envelope,
    reader: Reader,
    begun: bool,
    /// Number of the next event.
    number: usize,
    /// Items that are done.
    output: Vec<Value>,
    open: Option<Item>,
    /// The whole response, for the last event.
    complete: Value,
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
    pub fn new(envelope: Envelope, reader: Reader) -> Self {
        let (output, open, complete) = (Vec::new(), None, Value::Null);
        Self { envelope, reader, begun: false, number: 0, output, open, complete }
    }

    /// An event with its name as its type.
    fn numbered(&mut self, name: &'static str, mut data: Value) -> sse::Event {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        stream::json(&data).event(name)
    }

    fn begin(&mut self, run: &Run, out: &mut Vec<sse::Event>) {
        if !std::mem::replace(&mut self.begun, true) {
            let response = self.envelope.response(run, "in_progress", Vec::new());
            out.push(self.numbered("response.created", json!({"response": response})));
            out.push(self.numbered("response.in_progress", json!({"response": response})));
        }
    }

    fn write(&mut self, piece: Piece, out: &mut Vec<sse::Event>) {
        let place = self.output.len();
        match piece {
            Piece::Text(more) => {
                if self.open.is_none() {
                    let id = calls::id("msg");
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
                let (id, place) = (calls::id("fc"), self.output.len());
                let call = Call { id: calls::id("call"), name, arguments: String::new() };
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

impl Dialect for Events {
    fn event(&mut self, run: &Run, _: usize, event: Event) -> Vec<sse::Event> {
        let mut out = Vec::new();
        match event {
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
                if self.output.is_empty() && self.open.is_none() {
                    // An empty answer is an empty text.
                    self.write(Piece::Text(String::new()), &mut out);
                }
                self.close(&mut out);
                let output = std::mem::take(&mut self.output);
                self.complete = self.envelope.complete(run, Some(finished.reason), output);
            }
            Event::Started(_) | Event::Prompt(_) | Event::Embedding(_) | Event::Failed(_) => {}
        }
        out
    }

    fn end(&mut self, _: &Run) -> Vec<sse::Event> {
        let response = std::mem::take(&mut self.complete);
        let name = match response["status"] == "incomplete" {
            true => "response.incomplete",
            false => "response.completed",
        };
        vec![self.numbered(name, json!({"response": response}))]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        let body = error.body();
        let mut data = json!({"code": body["error"]["code"], "message": body["error"]["message"], "param": body["error"]["param"]});
        // Natively and on the other routes the error stands in an object of its own.
        data["error"] = body["error"].clone();
        vec![self.numbered("error", data)]
    }
}
