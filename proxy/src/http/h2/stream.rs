//! What is known of one stream.

use std::{collections::VecDeque, task::Waker};

use super::{Error, chunks::Chunks, frame::MAX_WINDOW};
use crate::http::{Asked, ResponseHead, Trailers};

/// Interim answers that wait to be taken.
pub(super) const INTERIMS: usize = 100;

/// A stream, while it is open or somebody holds it.
pub(super) struct Stream {
    /// Handles that somebody holds.
    pub(super) handles: u8,
    /// The peer sends no more.
    pub(super) received: bool,
    /// We send no more.
    pub(super) sent: bool,
    /// It was reset, by either side.
    pub(super) error: Option<Error>,
    /// What a server's answer is to, on a client's side.
    pub(super) asked: Asked,
    /// The head of the answer has come.
    pub(super) answered: bool,
    pub(super) head: Option<ResponseHead>,
    pub(super) interims: VecDeque<ResponseHead>,
    pub(super) chunks: Chunks,
    /// Bytes in `chunks`.
    pub(super) waiting: u32,
    pub(super) trailers: Option<Trailers>,
    /// Bytes that the head says are still to come.
    pub(super) length: Option<u64>,
    /// What the peer may send.
    pub(super) room: i64,
    /// What was taken of it, and the peer has not been told of.
    pub(super) taken: u32,
    /// What we may send. Below zero where the peer has made its windows smaller.
    pub(super) window: i64,
    /// In the queue for the connection's room.
    pub(super) queued: bool,
    /// It does not count among the open ones any more.
    pub(super) is_counted_out: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Stream {
    pub(super) fn new(room: u32, window: i64, asked: Asked) -> Self {
        Self {
            handles: 2,
            received: false,
            sent: false,
            error: None,
            asked,
            answered: false,
            head: None,
            interims: VecDeque::new(),
            chunks: Chunks::default(),
            waiting: 0,
            trailers: None,
            length: None,
            room: i64::from(room),
            taken: 0,
            window,
            queued: false,
            is_counted_out: false,
            reader: None,
            writer: None,
        }
    }

    /// True where nothing goes over it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.error.is_some() || self.received && self.sent
    }

    /// More may be sent; false where the window would be larger than any may be.
    pub(super) fn widen(&mut self, more: i64) -> bool {
        self.window = self.window.saturating_add(more);
        self.window <= MAX_WINDOW
    }

    /// Whoever waits for what comes looks again.
    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// Whoever waits to send, or for an end, looks again.
    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// Remembers who waits, without a copy where it is the same as before.
pub(super) fn remember(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(old) if old.will_wake(waker) => {}
        _ => *slot = Some(waker.clone()),
    }
}
