//! What holds a connection, and the two halves of its streams.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};

use super::{Error, Reason, core::Core, write::List};
use crate::http::{Asked, Limits, Refused, RequestHead, ResponseHead, Trailers};

type Shared = Rc<RefCell<Core>>;

/// A connection, for the task that moves its bytes. When it is dropped, the connection is gone.
pub struct Session(Shared);

/// A request that has come.
pub struct Arrived {
    /// Its head, or how it is to be answered.
    pub head: Result<RequestHead, Refused>,
    /// Its body.
    pub body: Receiver,
    /// The way back.
    pub reply: Sender,
}

/// What comes on a stream.
pub struct Receiver {
    core: Shared,
    id: u32,
}

/// What goes out on a stream.
pub struct Sender {
    core: Shared,
    id: u32,
}

/// Opens streams on a connection to a server.
#[derive(Clone)]
pub struct Requests(Shared);

impl Session {
    /// A connection that a client has made.
    #[must_use]
    pub fn server(limits: Limits) -> Self {
        Self(Rc::new(RefCell::new(Core::new(true, limits))))
    }

    /// A connection that was made to a server.
    #[must_use]
    pub fn client() -> (Requests, Self) {
        let core = Rc::new(RefCell::new(Core::new(false, Limits::default())));
        (Requests(core.clone()), Self(core))
    }

    /// Says that this task moves the bytes: it is woken when there is something to write.
    pub fn driven_by(&self, cx: &Context<'_>) {
        self.0.borrow_mut().driven_by(cx);
    }

    /// Takes in what has come. What is not a whole frame stays in `bytes`.
    ///
    /// # Errors
    /// Why the connection ends; what is to be written then tells the peer.
    pub fn read(&self, bytes: &mut BytesMut) -> Result<(), Error> {
        self.0.borrow_mut().read(bytes)
    }

    /// Calls `write` with what is to be written; it takes out what it has, and says how much.
    pub fn write<T>(&self, write: impl FnOnce(&mut BytesMut) -> (usize, T)) -> T {
        let mut core = self.0.borrow_mut();
        let (written, done) = write(&mut core.out);
        if written > 0 {
            core.written(written);
        }
        done
    }

    /// True where so much waits to be written that nothing is to be read.
    #[must_use]
    pub fn is_clogged(&self) -> bool {
        self.0.borrow().is_clogged()
    }

    /// True until a client's preface has come.
    #[must_use]
    pub fn wants_preface(&self) -> bool {
        self.0.borrow().wants_preface()
    }

    /// The number of the head that has begun and not ended; `rest` is what [`Self::read`] has left.
    #[must_use]
    pub fn unfinished_head(&self, rest: &[u8]) -> Option<u64> {
        self.0.borrow().unfinished_head(rest)
    }

    /// The next request.
    #[must_use]
    pub fn arrived(&self) -> Option<Arrived> {
        let arrived = self.0.borrow_mut().arrived()?;
        let (body, reply) = halves(&self.0, arrived.stream);
        Some(Arrived { head: arrived.head, body, reply })
    }

    /// True without any stream. Gives back the memory that many have needed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let mut core = self.0.borrow_mut();
        core.shrink();
        core.is_idle()
    }

    /// A server takes no more requests than those that are on their way.
    pub fn leave(&self) {
        self.0.borrow_mut().leave();
    }

    /// True when a server that leaves has answered all.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.0.borrow().has_left()
    }

    /// Asks whether the peer is there.
    pub fn ping(&self) {
        self.0.borrow_mut().ping();
    }

    /// True once the peer has answered [`Self::ping`].
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.0.borrow_mut().has_answered()
    }

    /// True where nobody is left who could open a stream, or holds one.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    /// A client's connection that nobody uses any more ends; what is to be written then says so.
    pub fn end_unused(&self) {
        self.0.borrow_mut().end_unused();
    }

    /// The connection has ended.
    pub fn fail(&self, error: Error) {
        self.0.borrow_mut().fail(error);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.fail(Error::Io("the connection was closed".into()));
    }
}

fn halves(core: &Shared, id: u32) -> (Receiver, Sender) {
    (Receiver { core: core.clone(), id }, Sender { core: core.clone(), id })
}

impl Requests {
    /// False where the connection has ended, or its peer takes no more.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.borrow().is_open()
    }

    /// Requests at the same time that the peer takes.
    #[must_use]
    pub fn takes(&self) -> usize {
        usize::try_from(self.0.borrow().takes()).unwrap_or(usize::MAX)
    }

    /// Ready when there is room for a request.
    ///
    /// # Errors
    /// There will be none.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        self.0.borrow_mut().poll_room(cx)
    }

    /// Sends the head of a request; `ends` where it has no body.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send(&self, list: &impl List, asked: Asked, ends: bool) -> Result<(Receiver, Sender), Error> {
        let id = self.0.borrow_mut().open(list, asked, ends)?;
        Ok(halves(&self.0, id))
    }
}

impl Receiver {
    /// The head of the answer, once.
    ///
    /// # Errors
    /// The stream ended before.
    pub fn poll_head(&mut self, cx: &Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        self.core.borrow_mut().poll_head(self.id, cx)
    }

    /// The next interim answer that has come.
    pub fn interim(&mut self) -> Option<ResponseHead> {
        self.core.borrow_mut().streams.get_mut(&self.id)?.interims.pop_front()
    }

    /// The next data, which the peer may then send more of. None at the end, behind which there may be trailers.
    ///
    /// # Errors
    /// The stream ended before its end.
    pub fn poll_data(&mut self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        self.core.borrow_mut().poll_data(self.id, cx)
    }

    /// The trailers that have come, once.
    pub fn trailers(&mut self) -> Option<Trailers> {
        self.core.borrow_mut().streams.get_mut(&self.id)?.trailers.take()
    }

    /// True where nothing more comes: neither data nor trailers.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let core = self.core.borrow();
        let Some(stream) = core.streams.get(&self.id) else { return true };
        stream.received && stream.chunks.is_at_end() && stream.trailers.is_none()
    }
}

impl Sender {
    /// Sends a list of headers; `ends` where nothing follows.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send(&mut self, list: &impl List, ends: bool) -> Result<(), Error> {
        self.core.borrow_mut().send_list(self.id, list, ends)
    }

    /// Sends a part of `data`, as much as there is room for; where `ends`, its last part ends the stream. Empty data only does that.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn poll_send(&mut self, cx: &Context<'_>, data: &mut Bytes, ends: bool) -> Poll<Result<(), Error>> {
        self.core.borrow_mut().poll_send(self.id, cx, data, ends)
    }

    /// Ends the stream, where it has not ended.
    pub fn reset(&mut self, reason: Reason) {
        self.core.borrow_mut().reset(self.id, reason);
    }

    /// Ready when the stream was reset by either side, or is gone with its connection.
    pub fn poll_reset(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.core.borrow_mut().poll_reset(self.id, cx)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.0.borrow_mut().wake_driver(); // this may have been the last one
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.core.borrow_mut().release(self.id);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.core.borrow_mut().release(self.id);
    }
}
