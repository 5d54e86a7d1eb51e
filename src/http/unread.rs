//! Bodies of requests that are answered before they are read: what still comes of them stands before the
//! connection's next request, so such an answer says that the connection closes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, header::CONNECTION},
    response::Response,
};
use hyper::body::{Frame, Incoming, SizeHint};

/// Whether a body has not been read to its end.
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    /// The body of a request, watched.
    pub fn watch(body: Incoming) -> (Body, Self) {
        let unread = Arc::new(AtomicBool::new(!body.is_end_stream()));
        (Body::new(Watched { body, unread: unread.clone() }), Self(unread))
    }

    /// Marks the answer to the request.
    pub fn mark<B>(&self, answer: &mut Response<B>) {
        if self.0.load(Ordering::Relaxed) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

struct Watched {
    body: Incoming,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
