//! Moves a body from one connection to the other, as it comes, validated on its way.

use std::task::{Context, Poll, ready};

use bytes::Buf;

use crate::{
    http::{Framing, Refused, h1::BodyScanner},
    net::Conn,
};

/// Why a body could not be moved to its end.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The sender's bytes are no valid body.
    Malformed(Refused),
    /// The sender went away in the middle.
    Truncated,
    /// Reading from the sender failed.
    Read,
    /// Writing to the receiver failed.
    Write,
}

/// What a pump that is not done waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Bytes from the sender.
    ForSender,
    /// Room at the receiver.
    ForReceiver,
}

/// A body on its way.
pub(super) struct BodyPump {
    scanner: BodyScanner,
    /// Bytes at the front of the sender's buffer that were judged and may go out.
    judged: usize,
    /// Bytes at the front of the sender's buffer that are the whole body, were written, and may have to be written again.
    held: usize,
    /// Only the payload goes out (to an HTTP/1.0 client, which takes no chunks).
    payload_only: bool,
    /// Bytes of framing at the front of the buffer that are left out.
    skip: usize,
    done: bool,
    /// Bytes moved, framing included.
    pub moved: u64,
    /// What the last poll waited for.
    pub waits: Waits,
}

impl BodyPump {
    /// A pump for a body with this framing; nothing of it has been looked at.
    pub(super) fn new(framing: Framing, payload_only: bool) -> Self {
        Self {
            scanner: BodyScanner::new(framing),
            judged: 0,
            held: 0,
            payload_only,
            skip: 0,
            done: framing.is_empty(),
            moved: 0,
            waits: Waits::ForSender,
        }
    }

    /// Judges what is in the sender's buffer already. [`Self::first`] bytes of it may be written together with the head.
    pub(super) fn look(&mut self, from: &Conn) -> Result<(), BodyError> {
        if !self.done && !self.payload_only && !from.read.is_empty() {
            let scanned = self.scanner.scan(&from.read).map_err(BodyError::Malformed)?;
            self.judged = scanned.len;
            self.done = scanned.done;
        }
        Ok(())
    }

    /// Bytes at the front of the sender's buffer that may go out now.
    pub(super) fn first(&self) -> usize {
        self.judged
    }

    /// The first bytes went out with the head. If they are the whole body they stay in the sender's buffer until
    /// [`Self::release`], so that another attempt can send them again.
    pub(super) fn first_written(&mut self, from: &mut Conn) {
        self.held = self.judged;
        self.judged = 0;
        if !self.done {
            self.release(from);
        }
    }

    /// Another attempt begins: what is held has to be written again, and what was never written still has to be.
    pub(super) fn again(&mut self) {
        self.judged = self.judged.saturating_add(std::mem::take(&mut self.held));
    }

    /// True while all that has come of the body is still here, so that another attempt can send it again.
    pub(super) fn is_still_here(&self) -> bool {
        self.moved == 0
    }

    /// No further attempt is made: takes what is held out of the sender's buffer.
    pub(super) fn release(&mut self, from: &mut Conn) {
        from.read.advance(self.held.min(from.read.len()));
        self.count(self.held);
        self.held = 0;
    }

    /// The proxy answers itself: what has come of the body must not be read as the next request.
    pub(super) fn discard(&mut self, from: &mut Conn) {
        self.held = self.held.saturating_add(std::mem::take(&mut self.judged));
        self.release(from);
    }

    /// True when no byte of the body is missing and none waits to be written.
    pub(super) fn is_done(&self) -> bool {
        self.done && self.judged == 0 && self.skip == 0
    }

    /// True when the end of the body has come: it is in the sender's buffer, or has gone.
    pub(super) fn is_whole(&self) -> bool {
        self.done
    }

    fn count(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Moves what can be moved now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &mut Conn, to: &mut Conn) -> Poll<Result<(), BodyError>> {
        loop {
            if self.skip > 0 {
                from.read.advance(self.skip.min(from.read.len()));
                self.skip = 0;
            }
            while self.judged > 0 {
                let mut data = std::mem::take(&mut from.read);
                let written = to.poll_write_from(cx, &mut data, self.judged);
                from.read = data;
                self.waits = Waits::ForReceiver;
                let written = ready!(written).map_err(|_| BodyError::Write)?;
                self.judged = self.judged.saturating_sub(written);
                self.count(written);
            }
            if self.done {
                self.waits = Waits::ForReceiver;
                return to.poll_flush(cx).map_err(|_| BodyError::Write);
            }
            if !from.read.is_empty() {
                self.judge(from)?;
                if self.judged > 0 || self.skip > 0 || self.done {
                    continue;
                }
            }
            self.waits = Waits::ForSender;
            match from.poll_fill(cx) {
                Poll::Ready(Ok(0)) if self.scanner.may_end() => self.done = true,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(BodyError::Truncated)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyError::Read)),
                Poll::Pending => {
                    ready!(to.poll_flush(cx)).map_err(|_| BodyError::Write)?;
                    return Poll::Pending;
                }
            }
        }
    }

    fn judge(&mut self, from: &Conn) -> Result<(), BodyError> {
        if self.payload_only {
            let piece = self.scanner.piece(&from.read).map_err(BodyError::Malformed)?;
            self.done = piece.done;
            if piece.is_payload { self.judged = piece.len } else { self.skip = piece.len }
        } else {
            let scanned = self.scanner.scan(&from.read).map_err(BodyError::Malformed)?;
            self.judged = scanned.len;
            self.done = scanned.done;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::Io;

    async fn pair() -> (Conn, Conn) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Conn::new(Io::Plain(one.unwrap())), Conn::new(Io::Plain(other.unwrap().0)))
    }

    async fn caller_with(bytes: &[u8]) -> (Conn, Conn) {
        let (mut far, near) = pair().await;
        far.write_all(bytes, &[]).await.unwrap();
        let mut near = near;
        while near.read.len() < bytes.len() {
            near.fill().await.unwrap();
        }
        (far, near)
    }

    #[tokio::test]
    async fn a_body_that_was_never_written_is_still_owed_and_never_the_next_request() {
        let (_far, mut caller) = caller_with(b"12345GET /next").await;
        let mut pump = BodyPump::new(Framing::Length(5), false);
        pump.look(&caller).unwrap();
        for _ in 0..3 {
            pump.again(); // the endpoint refused: nothing was written
            assert_eq!((pump.first(), pump.is_done(), pump.is_still_here()), (5, false, true));
        }
        pump.discard(&mut caller);
        assert_eq!(&caller.read[..], b"GET /next");
    }

    #[tokio::test]
    async fn a_body_that_was_written_whole_can_be_written_again() {
        let (_far, mut caller) = caller_with(b"12345GET /next").await;
        let mut pump = BodyPump::new(Framing::Length(5), false);
        pump.look(&caller).unwrap();
        pump.first_written(&mut caller);
        assert!(pump.is_done() && pump.is_still_here());
        pump.again();
        assert_eq!((pump.first(), pump.is_done()), (5, false));
        pump.first_written(&mut caller);
        pump.release(&mut caller);
        assert_eq!((&caller.read[..], pump.moved), (&b"GET /next"[..], 5));
    }

    #[tokio::test]
    async fn a_body_that_has_gone_can_not_be_sent_again() {
        let (mut far, mut caller) = caller_with(b"123").await;
        let (mut upstream, mut app) = pair().await;
        let mut pump = BodyPump::new(Framing::Length(5), false);
        pump.look(&caller).unwrap();
        assert!(!pump.is_whole() && pump.is_still_here());
        pump.first_written(&mut caller);
        assert!(!pump.is_still_here());
        far.write_all(b"45", &[]).await.unwrap();
        poll_fn(|cx| pump.poll(cx, &mut caller, &mut upstream)).await.unwrap();
        assert!(pump.is_whole() && pump.is_done() && !pump.is_still_here());
        app.fill().await.unwrap();
        assert_eq!(&app.read[..], b"45");
    }

    #[tokio::test]
    async fn what_is_judged_and_refused_before_the_first_write_is_not_judged_twice() {
        let (mut far, mut caller) = caller_with(b"12").await;
        let (mut upstream, mut app) = pair().await;
        let mut pump = BodyPump::new(Framing::Length(5), false);
        pump.look(&caller).unwrap();
        pump.again();
        upstream.write_all(&caller.read[..pump.first()], &[]).await.unwrap();
        pump.first_written(&mut caller);
        far.write_all(b"345GET", &[]).await.unwrap();
        poll_fn(|cx| pump.poll(cx, &mut caller, &mut upstream)).await.unwrap();
        while app.read.len() < 5 {
            app.fill().await.unwrap();
        }
        assert_eq!((&app.read[..], &caller.read[..]), (&b"12345"[..], &b"GET"[..]));
    }
}
