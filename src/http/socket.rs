//! A client's socket: what it reads and writes, whether its client has gone, and what it waits for.
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
    time::{Duration, Instant},
};

use axum::http::Version;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, watch},
    time::Sleep,
};

use super::protocol;

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
/// Bytes of an answer that the system holds for a client that is slow to read them.
const SEND_BUFFER: usize = 256 << 10;
/// Bytes and time for which a refused client is listened to, so that it hears the answer instead of
/// a broken connection.
const LINGER: (usize, Duration) = (1 << 20, Duration::from_secs(2));

/// What a connection waits for, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The first byte of a request.
    Request(Instant),
    /// The rest of a request's head.
    Head(Instant),
    /// Its answer, the request's body included.
    Answer,
}

/// A client's socket, shared by the connection and the watches over its client.
pub struct Socket {
    stream: TcpStream,
    /// Bytes of an answer may be waiting in the connection's buffer: nothing may be sent between.
    unflushed: AtomicBool,
    waits: watch::Sender<Waits>,
    unwanted: Notify,
    /// TLS runs over it: nothing may be sent beside.
    sealed: bool,
    /// Given back once the stream is closed: fields are dropped in their order.
    _place: OwnedSemaphorePermit,
}

impl Socket {
    /// Takes a connection over. Events go out as they come; what a client does not read is bounded.
    pub fn new(
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        write_timeout: Duration,
        sealed: bool,
    ) -> Self {
        let socket = socket2::SockRef::from(&stream);
        let tuned = socket.set_tcp_nodelay(true);
        let tuned = tuned.and_then(|()| socket.set_send_buffer_size(SEND_BUFFER));
        #[cfg(target_os = "linux")]
        let tuned = tuned.and_then(|()| socket.set_tcp_user_timeout(Some(write_timeout)));
        #[cfg(not(target_os = "linux"))]
        let _ = write_timeout;
        if let Err(error) = tuned {
            tracing::debug!(%error, "a connection keeps the system's settings");
        }
        Self {
            stream,
            unflushed: AtomicBool::new(false),
            waits: watch::Sender::new(Waits::Request(Instant::now())),
            unwanted: Notify::new(),
            sealed,
            _place: place,
        }
    }

    /// What the connection waits for.
    pub fn waits(&self) -> Waits {
        *self.waits.borrow()
    }

    /// Whether nothing of an answer is on its way.
    pub fn is_idle(&self) -> bool {
        self.waits() != Waits::Answer && !self.unflushed.load(Ordering::Relaxed)
    }

    /// Records that a handshake has ended: what was read belonged to it.
    pub fn opened(&self) {
        self.waits.send_replace(Waits::Request(Instant::now()));
    }

    /// Records that a request's head has arrived; the answer ends when the guard is dropped.
    pub fn answer(self: &Arc<Self>) -> Answering {
        self.waits.send_replace(Waits::Answer);
        Answering(self.clone())
    }

    /// Completes when the rest of a request's head is not there within `limit` of its first byte.
    pub async fn half_sent(&self, limit: Duration) {
        let mut waits = self.waits.subscribe();
        let heads = |waits: &Waits| matches!(waits, Waits::Head(_));
        loop {
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = waits.wait_for(heads).await;
            let whole = waits.wait_for(|waits| !heads(waits));
            if tokio::time::timeout(limit, whole).await.is_err() {
                return;
            }
        }
    }

    /// Asks the connection to close, to make room.
    pub fn give_up(&self) {
        self.unwanted.notify_one();
    }

    /// Completes when the connection was asked to close.
    pub async fn given_up(&self) {
        self.unwanted.notified().await;
    }

    /// Sends the last bytes of a connection and waits until its client has had time to read them.
    pub async fn refuse(&self, answer: &[u8]) {
        if !self.sealed {
            // A fresh or idle connection's buffer has room for an error.
            let _ = self.stream.try_write(answer);
        }
        self.linger().await;
    }

    /// Sends no more, and takes what the client still sends, within bounds.
    pub async fn linger(&self) {
        let _ = socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write);
        let listen = async {
            let (mut buffer, mut left) = (vec![0; 16 << 10], LINGER.0);
            while left > 0 && self.stream.readable().await.is_ok() {
                match self.stream.try_read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => left = left.saturating_sub(length),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER.1, listen).await;
    }

    /// Completes when the client has gone. May be polled only while no answer has begun.
    pub async fn abandoned(&self, version: Version) {
        loop {
            match self.stream.peek(&mut [0]).await {
                Ok(0) => break,
                // The rest of the request's body, or the client's next request.
                Ok(_) => tokio::time::sleep(UNREAD).await,
                Err(_) => return,
            }
        }
        // HTTP/1.0 knows no interim responses, and none can be sent beside TLS: such a client is
        // answered on trust.
        let probes = match version == Version::HTTP_11 && !self.sealed {
            true => &PROBES[..],
            false => &[],
        };
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

/// An answer on its way. Dropping it says that the connection waits for the next request.
pub struct Answering(Arc<Socket>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.waits.send_replace(Waits::Request(Instant::now()));
    }
}

/// A [`Socket`] as the connection reads and writes it.
pub struct Io {
    socket: Arc<Socket>,
    /// A client that takes nothing for so long is given up.
    write_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The rest of an error that stands for the bare one of the connection.
    own: Vec<u8>,
}

impl Io {
    /// The reading and writing of a socket.
    pub fn new(socket: Arc<Socket>, write_timeout: Duration) -> Self {
        Self { socket, write_timeout, stalled: None, own: Vec::new() }
    }

    fn poll_try_write(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.socket.unflushed.store(true, Ordering::Relaxed);
        loop {
            if let Poll::Ready(ready) = self.socket.stream.poll_write_ready(context) {
                ready?;
                match write(&self.socket.stream) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    written => {
                        self.stalled = None;
                        return Poll::Ready(written);
                    }
                }
            }
            let stalled = self
                .stalled
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.write_timeout)));
            ready!(stalled.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
    }

    /// Writes what is left of an error of its own.
    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let own = std::mem::take(&mut self.own);
            let written = self.poll_try_write(context, |stream| stream.try_write(&own));
            self.own = own;
            let length = ready!(written)?;
            self.own.drain(..length);
        }
        Poll::Ready(Ok(()))
    }

    /// Puts an error with a body in the place of a bare one.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        match protocol::in_place_of(bytes) {
            Some(error) => {
                self.own = error;
                true
            }
            None => false,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &self.socket;
        loop {
            ready!(socket.stream.poll_read_ready(context))?;
            match socket.stream.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    if length > 0 && matches!(socket.waits(), Waits::Request(_)) {
                        socket.waits.send_replace(Waits::Head(Instant::now()));
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(context))?;
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_try_write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(context))?;
        if let [bytes] = slices
            && self.replaces(bytes)
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_try_write(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The connection flushes when its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(context))?;
        self.socket.unflushed.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&self.socket.stream).shutdown(Shutdown::Write))
    }
}
