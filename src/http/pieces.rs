//! Streams of the routes that give one answer: it begins with its first token, its pieces come one
//! after the other, and it ends.

use axum::response::{Response, sse};

use super::{
    calls::Reader,
    error::ApiError,
    request::tools::Calls,
    run::Run,
    stream::{self, Dialect},
};
use crate::{
    chat::tools::Piece,
    engine::{Event, Finished},
};

/// How a route writes the stream of its one answer.
pub trait Writer: Send + 'static {
    /// The answer begins.
    fn begin(&mut self, run: &Run, out: &mut Vec<sse::Event>);
    /// More of it.
    fn piece(&mut self, piece: Piece, out: &mut Vec<sse::Event>);
    /// It is complete; `called` says whether it called a tool.
    fn complete(&mut self, run: &Run, end: &Finished, called: bool, out: &mut Vec<sse::Event>);
    /// It will not be completed.
    fn failure(&mut self, error: &ApiError) -> sse::Event;
}

/// Answers with the events of `run`, in which there may be such calls.
pub fn respond(run: Run, calls: Option<&Calls>, writer: impl Writer) -> Response {
    stream::respond(run, OneAnswer { reader: Reader::new(calls), begun: false, writer })
}

struct OneAnswer<W> {
    reader: Reader,
    begun: bool,
    writer: W,
}

impl<W: Writer> Dialect for OneAnswer<W> {
    fn event(&mut self, run: &Run, _: usize, event: Event) -> Vec<sse::Event> {
        let Self { reader, begun, writer } = self;
        let mut out = Vec::new();
        let pieces = match &event {
            Event::Token(token) => reader.push(&token.text),
            Event::Finished(_) => reader.finish(),
            Event::Started(_) | Event::Prompt(_) | Event::Embedding(_) | Event::Failed(_) => {
                return out;
            }
        };
        if !std::mem::replace(begun, true) {
            writer.begin(run, &mut out);
        }
        pieces.into_iter().for_each(|piece| writer.piece(piece, &mut out));
        if let Event::Finished(end) = &event {
            writer.complete(run, end, reader.has_called(), &mut out);
        }
        out
    }

    fn end(&mut self, _: &Run) -> Vec<sse::Event> {
        Vec::new()
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        vec![self.writer.failure(error)]
    }
}
