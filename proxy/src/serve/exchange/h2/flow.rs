//! One direction of a stream: data and trailers from one connection to another, as fast as the slower of them goes.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::chunks::Chunks;
use crate::{
    net::Deadline,
    serve::exchange::{NOT_DELIVERED, STALL},
};

/// Bytes of a request that are kept until it is answered, so that it can be sent again.
const HELD: usize = 64 * 1024;

/// Why a flow did not come to its end.
#[derive(Debug)]
pub(super) enum FlowError {
    /// What sends it.
    Sender(h2::Error),
    /// What takes it.
    Receiver,
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
    from: RecvStream,
    /// Read and not yet sent.
    chunk: Bytes,
    /// What has come behind it, still counted against the sender's window. The `h2` crate would keep it as frames: of a stream of small
    /// ones several times its size, both where it was read and where it waits to be sent.
    ahead: Chunks,
    held: Option<Held>,
    trailers: Option<HeaderMap>,
    /// There is nothing but the head.
    is_empty: bool,
    /// All has been read.
    ended: bool,
    /// All has been sent.
    done: bool,
    /// Bytes of data read.
    pub moved: u64,
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
    pub(super) fn new(from: RecvStream, hold: bool) -> Self {
        let is_empty = from.is_end_stream();
        Self {
            from,
            chunk: Bytes::new(),
            ahead: Chunks::default(),
            held: hold.then(Held::default),
            trailers: None,
            is_empty,
            ended: is_empty,
            done: is_empty,
            moved: 0,
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
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Moves what can be moved now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, to: &mut SendStream<Bytes>) -> Poll<Result<(), FlowError>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if !self.chunk.is_empty() {
                self.waits = Waits::ForReceiver;
                if self.poll_send(cx, to)?.is_pending() {
                    let _ = self.read_ahead(cx);
                    return Poll::Pending;
                }
                continue;
            }
            if let Some(chunk) = self.held.as_mut().and_then(Held::next) {
                self.chunk = chunk;
                continue;
            }
            if self.ended {
                self.done = true;
                return Poll::Ready(
                    match self.trailers.clone() {
                        Some(trailers) => to.send_trailers(trailers),
                        None => to.send_data(Bytes::new(), true),
                    }
                    .map_err(|_| FlowError::Receiver),
                );
            }
            self.waits = Waits::ForSender;
            ready!(self.poll_read(cx))?;
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, to: &mut SendStream<Bytes>) -> Poll<Result<(), FlowError>> {
        to.reserve_capacity(self.chunk.len());
        while to.capacity() == 0 {
            match ready!(to.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(FlowError::Receiver)),
            }
        }
        let piece = self.chunk.split_to(to.capacity().min(self.chunk.len()));
        let replayed = self.held.as_ref().is_none_or(Held::is_sent);
        let last = self.chunk.is_empty() && self.ended && replayed && self.trailers.is_none();
        to.send_data(piece, last).map_err(|_| FlowError::Receiver)?;
        self.done = last;
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FlowError>> {
        let came = if self.ahead.is_at_end() { self.read_ahead(cx) } else { Poll::Pending };
        if let Some(chunk) = self.ahead.take() {
            self.begin(chunk);
            return Poll::Ready(Ok(()));
        }
        match ready!(came) {
            Some(error) => Poll::Ready(Err(FlowError::Sender(error))),
            None => {
                self.trailers = ready!(self.from.poll_trailers(cx)).map_err(FlowError::Sender)?;
                if let Some(trailers) = &mut self.trailers {
                    trailers.remove(NOT_DELIVERED);
                }
                self.ended = true;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The next chunk is in hand.
    fn begin(&mut self, chunk: Bytes) {
        self.moved = self.moved.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        // One chunk at a time: the sender may go on while it is sent.
        let _ = self.from.flow_control().release_capacity(chunk.len());
        self.ended = self.ahead.is_at_end() && self.from.is_end_stream();
        if let Some(held) = &mut self.held {
            held.keep(&chunk);
        }
        self.chunk = chunk;
    }

    /// Takes all that has come; ready where no data will follow, with the error if that is why. It shows again at the next call.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Option<h2::Error>> {
        while !self.from.is_end_stream() {
            match ready!(self.from.poll_data(cx)) {
                Some(Ok(data)) => self.ahead.push(&data),
                Some(Err(error)) => return Poll::Ready(Some(error)),
                None => break,
            }
        }
        Poll::Ready(None)
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
