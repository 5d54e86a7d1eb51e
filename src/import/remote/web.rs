//! The HTTP of object stores, over the client that imports use: no redirect is followed, so requests
//! go nowhere else than to the configured place.

use std::{
    fmt,
    future::Future,
    io::{ErrorKind, Read},
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame};
use object_store::{
    ClientConfigKey, ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use tokio::sync::{mpsc, oneshot};
use ureq::{
    Agent, SendBody,
    http::{Response, header::LOCATION},
};

use crate::import::fetch::agent;

/// Bytes of a body that are handed on at once, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// Makes clients for the parts of a store.
#[derive(Debug)]
pub struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        let plain = plain.is_some_and(|value| value == "true");
        Ok(HttpClient::new(Web { agent: agent(0), plain }))
    }
}

struct Web {
    agent: Agent,
    /// Whether requests may go without TLS.
    plain: bool,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ureq")
    }
}

/// What [`HttpService::call`] returns.
type Call<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Web {
    fn call<'this, 'call>(&'this self, request: HttpRequest) -> Call<'call>
    where
        'this: 'call,
        Self: 'call,
    {
        let (agent, plain) = (self.agent.clone(), self.plain);
        Box::pin(async move {
            let (head, told) = oneshot::channel();
            // Ends when the answer was read, fails, or is wanted no longer.
            tokio::task::spawn_blocking(move || answer(&agent, plain, request, head));
            told.await.unwrap_or_else(|_| Err(failed(HttpErrorKind::Unknown, "the client failed")))
        })
    }
}

/// Sends a request, hands the answer's head on, then its body in pieces.
fn answer(
    agent: &Agent,
    plain: bool,
    request: HttpRequest,
    head: oneshot::Sender<Result<HttpResponse, HttpError>>,
) {
    let response = match send(agent, plain, request) {
        Ok(response) => response,
        Err(error) => {
            // Who asked may have gone.
            let _ = head.send(Err(error));
            return;
        }
    };
    let (parts, body) = response.into_parts();
    let (pieces, waiting) = mpsc::channel(PIECES);
    let answer = Response::from_parts(parts, HttpResponseBody::new(Pieces(waiting)));
    if head.send(Ok(answer)).is_err() {
        return;
    }
    let mut body = body.into_reader();
    loop {
        let mut piece = vec![0; PIECE];
        let piece = body.read(&mut piece).map(|read| {
            piece.truncate(read);
            piece
        });
        let piece = match piece {
            Ok(piece) if piece.is_empty() => return,
            Ok(piece) => Ok(Bytes::from(piece)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(HttpError::new(HttpErrorKind::Interrupted, error)),
        };
        let broken = piece.is_err();
        if pieces.blocking_send(piece).is_err() || broken {
            return;
        }
    }
}

fn send(
    agent: &Agent,
    plain: bool,
    request: HttpRequest,
) -> Result<Response<ureq::Body>, HttpError> {
    if !plain && request.uri().scheme_str() != Some("https") {
        return Err(failed(HttpErrorKind::Unknown, "expected https, or leave to use http"));
    }
    let (parts, body) = request.into_parts();
    let body = body.as_bytes().cloned().unwrap_or_default();
    let takes_body = !matches!(parts.method.as_str(), "GET" | "HEAD" | "DELETE");
    let sent = match takes_body {
        true => agent.run(ureq::http::Request::from_parts(parts, body.as_ref())),
        false => agent.run(ureq::http::Request::from_parts(parts, SendBody::none())),
    };
    let response = sent.map_err(|error| {
        let kind = match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
            ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
            ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
            _ => HttpErrorKind::Unknown,
        };
        HttpError::new(kind, error)
    })?;
    let status = response.status();
    if status.is_redirection() && status != ureq::http::StatusCode::NOT_MODIFIED {
        let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("?");
        let told = format!("{status} to {to:.200}: redirects are not followed");
        return Err(failed(HttpErrorKind::Unknown, &told));
    }
    Ok(response)
}

fn failed(kind: HttpErrorKind, told: &str) -> HttpError {
    HttpError::new_boxed(kind, told.into())
}

/// The body of an answer as it comes.
struct Pieces(mpsc::Receiver<Result<Bytes, HttpError>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
