//! Moves a body from one connection to the other, as it comes, validated on its way.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    http::{Framing, Refused, h1::BodyScanner},
    net::Conn,
};

/// Why a body could not be moved to its end.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The sender's bytes are no valid body.
    Malformed(Refused),
    /// It is larger than a rule allows.
    TooLarge,
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

/// Bytes of a request that are kept for another attempt, where a rule may want one.
const KEPT: usize = 64 * 1024;

/// A body on its way.
pub(super) struct BodyPump {
    scanner: BodyScanner,
    /// Bytes at the front of the sender's buffer that were judged and may go out.
    judged: usize,
    /// Bytes at the front of the sender's buffer that are the whole body, were written, and may have to be written again.
    held: usize,
    /// Copies of what was judged so far, where another attempt may want them.
    kept: Option<Kept>,
    /// What is being written again.
    replay: Bytes,
    /// No more bytes may come, framing included.
    most: u64,
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

/// What was judged of a body since its beginning.
#[derive(Debug)]
enum Kept {
    All(BytesMut),
    /// It was too much.
    Lost,
}

impl BodyPump {
    /// A pump for a body with this framing; nothing of it has been looked at.
    pub(super) fn new(framing: Framing, payload_only: bool) -> Self {
        Self {
            scanner: BodyScanner::new(framing),
            judged: 0,
            held: 0,
            kept: None,
            replay: Bytes::new(),
            most: u64::MAX,
            payload_only,
            skip: 0,
            done: framing.is_empty(),
            moved: 0,
            waits: Waits::ForSender,
        }
    }

    /// A larger body is an error.
    pub(super) fn limit(&mut self, most: u64) {
        self.most = most;
    }

    /// All of the body, if it has come and is still here.
    pub(super) fn all(&self, from: &Conn) -> Option<Bytes> {
        match &self.kept {
            _ if !self.done => None,
            Some(Kept::All(kept)) => Some(Bytes::copy_from_slice(kept)),
            Some(Kept::Lost) => None,
            None if self.moved > 0 => None,
            None => {
                let here = from.read.get(..self.held.saturating_add(self.judged)).unwrap_or_default();
                (here.len() <= KEPT).then(|| Bytes::copy_from_slice(here))
            }
        }
    }

    /// Keeps a copy of all that comes, so that another attempt can send it again. A body that is whole in the sender's buffer needs none.
    pub(super) fn keep(&mut self, from: &Conn) {
        if self.kept.is_none() && !self.done && self.moved == 0 {
            self.kept = Some(Kept::All(BytesMut::new()));
            self.copy(from.read.get(..self.judged).unwrap_or_default());
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

    /// Another attempt begins: what is held or was kept has to be written again, and what was never written still has to be.
    pub(super) fn again(&mut self, from: &mut Conn) {
        if self.moved == 0 {
            self.judged = self.judged.saturating_add(std::mem::take(&mut self.held));
        } else if let Some(Kept::All(kept)) = &self.kept {
            // What was judged and not written is among it.
            self.replay = Bytes::copy_from_slice(kept);
            from.read.advance(self.judged.min(from.read.len()));
            let dropped = std::mem::take(&mut self.judged);
            self.count(dropped);
        }
    }

    /// True while all that has come of the body is still here, so that another attempt can send it again.
    pub(super) fn is_still_here(&self) -> bool {
        self.moved == 0 || matches!(self.kept, Some(Kept::All(_)))
    }

    fn copy(&mut self, judged: &[u8]) {
        if let Some(Kept::All(kept)) = &mut self.kept {
            if kept.len().saturating_add(judged.len()) > KEPT {
                self.kept = Some(Kept::Lost);
            } else {
                kept.extend_from_slice(judged);
            }
        }
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
        self.done && self.judged == 0 && self.skip == 0 && self.replay.is_empty()
    }

    /// True when the end of the body has come: it is in the sender's buffer, or has gone.
    pub(super) fn is_whole(&self) -> bool {
        self.done
    }

    fn is_too_large(&self) -> bool {
        let here = u64::try_from(self.held.saturating_add(self.judged)).unwrap_or(u64::MAX);
        self.moved.saturating_add(here) > self.most
    }

    fn count(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Moves what can be moved now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &mut Conn, to: &mut Conn) -> Poll<Result<(), BodyError>> {
        while !self.replay.is_empty() {
            self.waits = Waits::ForReceiver;
            let written = ready!(to.poll_write(cx, &self.replay)).map_err(|_| BodyError::Write)?;
            self.replay.advance(written);
        }
        loop {
            if self.is_too_large() {
                return Poll::Ready(Err(BodyError::TooLarge));
            }
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
            self.copy(from.read.get(..scanned.len).unwrap_or_default());
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
            pump.again(&mut caller); // the endpoint refused: nothing was written
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
        pump.again(&mut caller);
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
    async fn a_body_that_is_kept_can_be_sent_again_from_its_beginning() {
        let (mut far, mut caller) = caller_with(b"123").await;
        let (mut upstream, mut app) = pair().await;
        let mut pump = BodyPump::new(Framing::Length(8), false);
        pump.look(&caller).unwrap();
        pump.keep(&caller);
        pump.first_written(&mut caller);
        far.write_all(b"45", &[]).await.unwrap();
        while caller.read.is_empty() {
            caller.fill().await.unwrap();
        }
        assert!(poll_fn(|cx| Poll::Ready(pump.poll(cx, &mut caller, &mut upstream))).await.is_pending());
        assert!(pump.is_still_here() && !pump.is_whole());
        for _ in 0..2 {
            pump.again(&mut caller);
            assert_eq!((pump.first(), pump.is_done()), (0, false));
        }
        far.write_all(b"678GET", &[]).await.unwrap();
        let (mut second, mut other) = pair().await;
        poll_fn(|cx| pump.poll(cx, &mut caller, &mut second)).await.unwrap();
        while other.read.len() < 8 {
            other.fill().await.unwrap();
        }
        app.fill().await.unwrap();
        assert_eq!((&app.read[..], &other.read[..], &caller.read[..]), (&b"45"[..], &b"12345678"[..], &b"GET"[..]));
        assert!(pump.is_done() && pump.is_still_here());
        assert_eq!(pump.moved, 8, "what is sent again came once");
    }

    #[tokio::test]
    async fn too_large_a_body_is_not_kept() {
        let (mut far, mut caller) = caller_with(b"1").await;
        let (mut upstream, mut app) = pair().await;
        let mut pump = BodyPump::new(Framing::Length(100_000), false);
        pump.look(&caller).unwrap();
        pump.keep(&caller);
        pump.first_written(&mut caller);
        let rest = vec![b'x'; 99_999];
        let (sent, moved, read) =
            tokio::join!(far.write_all(&rest, &[]), poll_fn(|cx| pump.poll(cx, &mut caller, &mut upstream)), async {
                while app.read.len() < 99_999 {
                    app.fill().await.unwrap();
                }
            });
        sent.unwrap();
        moved.unwrap();
        let () = read;
        assert!(!pump.is_still_here() && pump.moved == 100_000);
    }

    #[tokio::test]
    async fn what_is_judged_and_refused_before_the_first_write_is_not_judged_twice() {
        let (mut far, mut caller) = caller_with(b"12").await;
        let (mut upstream, mut app) = pair().await;
        let mut pump = BodyPump::new(Framing::Length(5), false);
        pump.look(&caller).unwrap();
        pump.again(&mut caller);
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
