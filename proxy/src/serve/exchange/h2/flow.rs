//! One direction of a stream: data and trailers from one connection to another, as fast as the slower of them goes.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::{
    http::{
        Trailers,
        h2::{Chunks, Error, ForwardTrailers, Receiver, Sender},
    },
    net::Deadline,
    serve::exchange::{MARKER, STALL},
};

/// Bytes of a request that are kept until it is answered, so that it can be sent again.
const HELD: usize = 64 * 1024;

/// Why a flow did not come to its end.
#[derive(Debug)]
pub(super) enum FlowError {
    /// What sends it.
    Sender(Error),
    /// What takes it.
    Receiver,
    /// It is larger than a rule allows.
    TooLarge,
}

/// What a flow that is not done waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Data.
    ForSender,
    /// Room.
    ForReceiver,
}

/// Data and trailers on their way.
pub(super) struct Flow {
    from: Receiver,
    /// Read and not yet sent.
    chunk: Bytes,
    held: Option<Held>,
    trailers: Option<Trailers>,
    /// There is nothing but the head.
    is_empty: bool,
    /// All has been read.
    ended: bool,
    /// All has been sent.
    done: bool,
    /// Bytes of data read.
    pub moved: u64,
    /// No more may come.
    most: u64,
    /// What the last poll waited for.
    waits: Waits,
}

#[derive(Default)]
struct Held {
    chunks: Chunks,
    /// What is here is being sent again, up to where the chunks were looked at.
    again: bool,
    bytes: usize,
    /// There was too much to keep.
    lost: bool,
}

impl Flow {
    /// What comes from here. Where `hold`, it is kept until [`Self::release`].
    pub(super) fn new(from: Receiver, hold: bool) -> Self {
        let is_empty = from.is_at_end();
        Self {
            from,
            chunk: Bytes::new(),
            held: hold.then(Held::default),
            trailers: None,
            is_empty,
            ended: is_empty,
            done: is_empty,
            moved: 0,
            most: u64::MAX,
            waits: Waits::ForSender,
        }
    }

    /// True where nothing follows the head.
    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// True when all has been sent.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// True when all has been read.
    pub(super) fn is_whole(&self) -> bool {
        self.ended
    }

    /// True while it can be sent again from its beginning.
    pub(super) fn is_still_here(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.lost)
    }

    /// A larger body is an error.
    pub(super) fn limit(&mut self, most: u64) {
        self.most = most;
    }

    /// All of the body, if it has come and is still here.
    pub(super) fn all(&self) -> Option<Bytes> {
        let held = self.held.as_ref().filter(|held| self.ended && !held.lost)?;
        Some(held.chunks.all())
    }

    /// It is sent again from its beginning.
    pub(super) fn again(&mut self) {
        if let Some(held) = &mut self.held {
            held.chunks.rewind();
            held.again = true;
            self.chunk = Bytes::new();
            self.done = self.is_empty;
        }
    }

    /// It is not sent again.
    pub(super) fn release(&mut self) {
        let Some(held) = self.held.take() else { return };
        // What was read and not sent yet.
        self.held = (!held.is_sent()).then_some(Held { lost: true, ..held });
    }

    /// The trailers that have come.
    pub(super) fn trailers(&self) -> Option<&Trailers> {
        self.trailers.as_ref()
    }

    /// Moves what can be moved now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, to: &mut Sender) -> Poll<Result<(), FlowError>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if !self.chunk.is_empty() {
                self.waits = Waits::ForReceiver;
                ready!(self.poll_send(cx, to))?;
                continue;
            }
            if let Some(chunk) = self.held.as_mut().and_then(Held::next) {
                self.chunk = chunk;
                continue;
            }
            if self.ended {
                self.done = true;
                let sent = match &self.trailers {
                    Some(trailers) => to.send(&ForwardTrailers { trailers, without: MARKER }, true),
                    None => ready!(to.poll_send(cx, &mut Bytes::new(), true)),
                };
                return Poll::Ready(sent.map_err(|_| FlowError::Receiver));
            }
            self.waits = Waits::ForSender;
            ready!(self.poll_read(cx))?;
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, to: &mut Sender) -> Poll<Result<(), FlowError>> {
        let replayed = self.held.as_ref().is_none_or(Held::is_sent);
        let last = self.ended && replayed && self.trailers.is_none();
        ready!(to.poll_send(cx, &mut self.chunk, last)).map_err(|_| FlowError::Receiver)?;
        self.done = last && self.chunk.is_empty();
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FlowError>> {
        match ready!(self.from.poll_data(cx)).map_err(FlowError::Sender)? {
            Some(chunk) => {
                self.moved = self.moved.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                if self.moved > self.most {
                    return Poll::Ready(Err(FlowError::TooLarge));
                }
                self.ended = self.from.is_at_end();
                if let Some(held) = &mut self.held {
                    held.keep(&chunk);
                }
                self.chunk = chunk;
            }
            None => {
                self.trailers = self.from.trailers();
                self.ended = true;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// How long a receiver has taken nothing of what is there for it. A sender may be quiet for hours; a receiver that does not move holds
/// buffers and a connection.
#[derive(Default)]
pub(super) struct Stall {
    deadline: Deadline,
    moved: u64,
}

impl Stall {
    /// Ready when the receiver of this flow, polled just before, has taken nothing for [`STALL`].
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, flow: &Flow) -> Poll<()> {
        if flow.done || flow.waits == Waits::ForSender {
            self.deadline.clear();
        } else if self.deadline.is_clear() || flow.moved != self.moved {
            self.deadline.set(STALL);
        }
        self.moved = flow.moved;
        self.deadline.poll(cx)
    }
}

impl Held {
    /// Keeps what is sent now.
    fn keep(&mut self, data: &Bytes) {
        self.bytes = self.bytes.saturating_add(data.len());
        if self.lost || self.bytes > HELD {
            *self = Self { lost: true, ..Self::default() };
        } else {
            self.chunks.push(data);
        }
    }

    /// What is to be sent again next.
    fn next(&mut self) -> Option<Bytes> {
        let next = self.again.then(|| self.chunks.look()).flatten();
        self.again = next.is_some();
        next
    }

    fn is_sent(&self) -> bool {
        !self.again || self.chunks.is_at_end()
    }
}
