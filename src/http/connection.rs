//! Connections: HTTP/1.1 over TCP.
//!
//! A client may close its sending side after its request and still gets its answer. On the wire
//! that looks like a client that has gone, until something is sent: one that still reads takes it,
//! the system of one that has gone answers with a reset. While an answer is streamed, its own bytes
//! do that. Before its first byte, interim responses (`100 Continue`, which every client of HTTP/1.1
//! skips) do it, after a pause, because most answers are ready sooner.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::Version,
    serve::Listener,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// Pauses before the probes of a client that has closed its sending side. Few, because some clients
/// give up after five interim responses.
const PROBES: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_secs(60),
];
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Pause before looking again whether a client has closed its sending side, while something that it
/// sent has not been read.
const UNREAD: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is given up.
#[cfg(target_os = "linux")]
const STALLED: Duration = Duration::from_secs(60);

/// Serves the connections of `listener` until `stop`; then those that are open get to finish the
/// request that they are at.
pub async fn serve(mut listener: TcpListener, routes: Router, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    let open = GracefulShutdown::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = &mut stop => break,
        };
        tune(&stream);
        let socket = Arc::new(Socket { stream, unflushed: AtomicBool::new(false) });
        let io = TokioIo::new(Io(socket.clone()));
        let routes = TowerToHyperService::new(routes.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (socket, version) = (socket.clone(), request.version());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(address));
            let answer = hyper::service::Service::call(&routes, request);
            async move {
                tokio::select! {
                    biased;
                    answer = answer => Ok(answer.unwrap_or_else(|never| match never {})),
                    () = socket.abandoned(version) => Err(Abandoned),
                }
            }
        });
        let connection = http1::Builder::new().half_close(true).serve_connection(io, answer);
        let connection = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, %address, "a connection failed");
            }
        });
    }
    drop(listener);
    open.shutdown().await;
}

/// Events go out as they come, and a client that stops reading its answer does not keep its place
/// for ever (where the system offers that: Linux).
fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let tuned = socket.set_tcp_nodelay(true);
    #[cfg(target_os = "linux")]
    let tuned = tuned.and_then(|()| socket.set_tcp_user_timeout(Some(STALLED)));
    if let Err(error) = tuned {
        tracing::debug!(%error, "a connection keeps the system's settings");
    }
}

/// The client went away before its answer began; dropping the request's future frees its work.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
struct Abandoned;

/// A client's socket, shared by the connection and the watch over its client.
struct Socket {
    stream: TcpStream,
    /// Bytes of an answer may be waiting in the connection's buffer: nothing may be sent between.
    unflushed: AtomicBool,
}

impl Socket {
    /// Completes when the client has gone. May be polled only while no answer has begun.
    async fn abandoned(&self, version: Version) {
        loop {
            match self.stream.peek(&mut [0]).await {
                Ok(0) => break,
                // The rest of the request's body, or the client's next request.
                Ok(_) => tokio::time::sleep(UNREAD).await,
                Err(_) => return,
            }
        }
        // HTTP/1.0 knows no interim responses: such a client is answered on trust.
        let probes = if version == Version::HTTP_11 { &PROBES[..] } else { &[] };
        for pause in probes {
            tokio::select! {
                () = self.reset() => return,
                () = tokio::time::sleep(*pause) => {}
            }
            if self.unflushed.load(Ordering::Relaxed) {
                continue;
            }
            match self.stream.try_write(PROBE) {
                Ok(length) if length == PROBE.len() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
        self.reset().await;
    }

    /// Completes when the connection is reset.
    async fn reset(&self) {
        // An error of the wait itself means as much.
        let _ = self.stream.ready(Interest::ERROR).await;
    }
}

/// A [`Socket`] as the connection reads and writes it.
struct Io(Arc<Socket>);

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(context))?;
            match self.0.stream.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Io {
    fn poll_try_write(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.0.unflushed.store(true, Ordering::Relaxed);
        loop {
            ready!(self.0.stream.poll_write_ready(context))?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_try_write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try_write(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The connection flushes when its own buffer is empty.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.unflushed.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&self.0.stream).shutdown(Shutdown::Write))
    }
}
