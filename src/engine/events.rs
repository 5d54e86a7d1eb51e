//! The way of a request's events from the engine to whoever reads them. The engine never waits for a
//! reader; one that lets too many lie is given up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::mpsc;

use super::request::Event;

/// The engine's end. Sending to a reader that has gone does nothing.
pub(super) struct EventSender {
    events: mpsc::UnboundedSender<Event>,
    unread: Arc<AtomicUsize>,
    most: usize,
}

/// The reader's end.
pub(super) struct EventReceiver {
    events: mpsc::UnboundedReceiver<Event>,
    unread: Arc<AtomicUsize>,
}

/// A way for a reader that may let `most` events lie.
pub(super) fn channel(most: usize) -> (EventSender, EventReceiver) {
    let (sender, events) = mpsc::unbounded_channel();
    let unread = Arc::new(AtomicUsize::new(0));
    let receiver = EventReceiver { events, unread: unread.clone() };
    (EventSender { events: sender, unread, most }, receiver)
}

impl EventSender {
    pub(super) fn send(&self, event: Event) {
        self.unread.fetch_add(1, Ordering::Relaxed);
        // Fails if the reader has gone, which `has_left` says.
        let _ = self.events.send(event);
    }

    /// Whether the reader has gone.
    pub(super) fn has_left(&self) -> bool {
        self.events.is_closed()
    }

    /// How many events lie unread, if they are too many.
    pub(super) fn overrun(&self) -> Option<usize> {
        Some(self.unread.load(Ordering::Relaxed)).filter(|unread| *unread > self.most)
    }
}

impl EventReceiver {
    pub(super) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.read(event)
    }

    pub(super) fn blocking_next(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.read(event)
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = self.events.poll_recv(context);
        event.map(|event| self.read(event))
    }

    pub(super) fn close(&mut self) {
        self.events.close();
    }

    fn read(&self, event: Option<Event>) -> Option<Event> {
        if event.is_some() {
            self.unread.fetch_sub(1, Ordering::Relaxed);
        }
        event
    }
}
