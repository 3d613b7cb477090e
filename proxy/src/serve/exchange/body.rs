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

    /// Another attempt begins: what is held has to be written again.
    pub(super) fn again(&mut self) {
        self.judged = self.held;
        self.held = 0;
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

    /// True when the whole body is in the sender's buffer, or has gone.
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
