//! Connections: HTTP/1.1 over TCP, with TLS or without, from `accept` to the last byte. HTTP/2 is not spoken: a client
//! that begins with its preface gets an error that HTTP/1.1 clients can read.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Request},
    response::Response,
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    connections::Connections,
    error::{ApiError, MAX_HEAD},
    protocol::last_words,
    socket::{Answering, Io, Socket},
    tls::Tls,
    unread::Unread,
};
use crate::{config::ConnectionLimits, engine::Client};

/// Pause after the system refused a connection because it or the process has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// Connections that are told why they are refused, at a time; others are just closed. They take
/// descriptors beside those that are served: a quarter of their number at most.
const REFUSED: usize = 32;
/// Connections that are about to be closed, at a time.
const CLOSING: usize = 8;

/// Serves the connections of `listener`, over TLS where it is given, until `stop`; then those that are open get to finish the
/// request that they are at.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: ConnectionLimits,
    tls: Option<Arc<Tls>>,
    stop: impl Future<Output = ()>,
) {
    tokio::pin!(stop);
    let refused = REFUSED.min(limits.most / 4);
    // Whatever is open takes a descriptor; loading a soup needs some, too.
    let sockets = Arc::new(Semaphore::new(limits.most + refused + CLOSING));
    let server = Server {
        routes,
        connections: Arc::new(Connections::new(limits.most, limits.most_of_client)),
        limits,
        tls,
        open: GracefulShutdown::new(),
        refused: Arc::new(Semaphore::new(refused)),
    };
    loop {
        let accepted = async {
            let place = sockets.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, address)| (stream, address, place))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, address, place)) => server.take(stream, address, place),
            Err(error) if gone_already(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                server.connections.free_one();
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    drop(listener);
    server.open.shutdown().await;
}

/// Whether an error of `accept` is one of that connection alone.
fn gone_already(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset | Interrupted)
}

/// What all connections share.
struct Server {
    routes: Router,
    limits: ConnectionLimits,
    tls: Option<Arc<Tls>>,
    connections: Arc<Connections>,
    open: GracefulShutdown,
    refused: Arc<Semaphore>,
}

impl Server {
    /// Serves a connection on a task of its own, or refuses it.
    fn take(&self, stream: TcpStream, address: SocketAddr, place: OwnedSemaphorePermit) {
        let limits = self.limits;
        let sealed = self.tls.is_some();
        let socket = Arc::new(Socket::new(stream, place, limits.write_timeout, sealed));
        let counted = match self.connections.admit(Client::at(address.ip()), socket.clone()) {
            Ok(counted) => counted,
            Err(error) => return self.refuse(socket, &error),
        };
        let talk = Talk {
            answers: service(self.routes.clone(), socket.clone(), address),
            socket: socket.clone(),
            limits,
            open: self.open.watcher(),
            address,
        };
        let acceptor = self.tls.as_ref().map(|tls| tls.acceptor());
        tokio::spawn(async move {
            let _counted = counted;
            let io = Io::new(socket.clone(), limits.write_timeout);
            let Some(acceptor) = acceptor else { return talk.over(io).await };
            match tokio::time::timeout(limits.header_timeout, acceptor.accept(io)).await {
                Ok(Ok(stream)) => {
                    socket.opened();
                    talk.over(stream).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, %address, "a handshake failed"),
                Err(_) => tracing::debug!(%address, "a handshake took too long"),
            }
        });
    }

    /// Tells a client why its connection is refused, while few are told so.
    fn refuse(&self, socket: Arc<Socket>, error: &ApiError) {
        tracing::debug!(%error, "a connection was refused");
        let Ok(permit) = self.refused.clone().try_acquire_owned() else { return };
        let answer = last_words(error);
        tokio::spawn(async move {
            socket.refuse(&answer).await;
            drop(permit);
        });
    }
}

/// The requests and answers of one connection.
struct Talk<S> {
    answers: S,
    socket: Arc<Socket>,
    limits: ConnectionLimits,
    open: Watcher,
    address: SocketAddr,
}

impl<S> Talk<S>
where
    S: Service<Request<Incoming>, Response = Response<AnswerBody>, Error = Abandoned>,
    S::Future: Send + 'static,
{
    /// Runs over `io`, which ends in the socket, until either side has enough.
    async fn over(self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let Self { answers, socket, limits, open, address } = self;
        let connection = http1::Builder::new()
            .half_close(true)
            .max_buf_size(MAX_HEAD)
            .timer(TokioTimer::new())
            // It runs while nothing is sent, too; a head that has begun has a time of its own.
            .header_read_timeout(limits.idle_timeout.max(limits.header_timeout))
            .serve_connection(TokioIo::new(io), answers);
        tokio::select! {
            ended = open.watch(connection) => {
                let Err(error) = ended else { return };
                tracing::debug!(%error, %address, "a connection failed");
                match error.is_parse_version_h2() {
                    true => socket.refuse(&last_words(&ApiError::Head)).await,
                    false => socket.linger().await,
                }
            }
            () = socket.half_sent(limits.header_timeout) => {
                let seconds = limits.header_timeout.as_secs_f64();
                socket.refuse(&last_words(&ApiError::HeadTimeout { seconds })).await;
            }
            () = socket.given_up() => tracing::debug!(%address, "a connection made room"),
        }
    }
}

/// The routes as a connection calls them; a request whose client goes is dropped.
fn service(
    routes: Router,
    socket: Arc<Socket>,
    address: SocketAddr,
) -> impl Service<
    Request<Incoming>,
    Response = Response<AnswerBody>,
    Error = Abandoned,
    Future: Send + 'static,
> + Send
+ 'static {
    let routes = TowerToHyperService::new(routes);
    service_fn(move |request: Request<Incoming>| {
        let (answering, socket, version) = (socket.answer(), socket.clone(), request.version());
        let (parts, body) = request.into_parts();
        let (body, unread) = Unread::watch(body);
        let mut request = Request::from_parts(parts, body);
        request.extensions_mut().insert(ConnectInfo(address));
        let answer = routes.call(request);
        async move {
            tokio::select! {
                biased;
                answer = answer => {
                    let mut answer = answer.unwrap_or_else(|never| match never {});
                    unread.mark(&mut answer);
                    Ok(answer.map(|body| AnswerBody { body, _answering: answering }))
                }
                () = socket.abandoned(version) => Err(Abandoned),
            }
        }
    })
}

/// The client went away before its answer began; dropping the request's future frees its work.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
struct Abandoned;

/// The body of an answer; when it is dropped, the connection waits for its next request.
struct AnswerBody {
    body: Body,
    _answering: Answering,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
