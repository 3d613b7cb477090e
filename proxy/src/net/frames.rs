//! A connection that carries HTTP/2: moves bytes between its socket and its [`Session`], and ends it.

use std::{
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{Conn, Deadline, buffers};
use crate::http::{
    Limits,
    h2::{Error, Requests, Session},
};

/// From the first byte of a head to its last, and for a client's preface, as in HTTP/1.1.
const HEAD: Duration = Duration::from_secs(10);
/// How long a peer may take to hear why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Reads in one turn; then it is the turn of those who wait for what was read.
const READS: usize = 4;

/// Why a connection was ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The peer does not send a whole preface.
    #[error("the peer did not send the HTTP/2 preface within {} s", HEAD.as_secs())]
    SlowPreface,
    /// It does not end a head that it has begun.
    #[error("the peer did not send a whole head within {} s", HEAD.as_secs())]
    SlowHead,
    /// The protocol, or the connection itself.
    #[error(transparent)]
    Error(#[from] Error),
}

/// A connection with its session.
pub struct Frames {
    conn: Conn,
    session: Session,
    is_client: bool,
    /// Bytes were read that nobody has looked at.
    unread: bool,
    /// For the head with this number; for the preface at first.
    head: (u64, Deadline),
    /// It is being ended.
    closing: Option<(Result<(), Ended>, Deadline)>,
}

impl Frames {
    /// For a connection that a client has made to us; what was read of it already comes first.
    pub fn from_client(conn: Conn, limits: Limits) -> Self {
        Self::new(conn, Session::server(limits), false)
    }

    /// For a connection that we have made to a server.
    pub fn to_server(conn: Conn) -> (Requests, Self) {
        let (requests, session) = Session::client();
        (requests, Self::new(conn, session, true))
    }

    fn new(conn: Conn, session: Session, is_client: bool) -> Self {
        let unread = !conn.read.is_empty();
        Self { conn, session, is_client, unread, head: (0, Deadline::default()), closing: None }
    }

    /// What goes over the connection.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Moves what can be moved now. Ready when the connection has ended; what has arrived in the session until then was still whole.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.session.driven_by(cx);
        if self.closing.is_none() {
            self.work(cx);
        }
        let Some((_, deadline)) = &mut self.closing else { return Poll::Pending };
        if deadline.poll(cx).is_pending() && ready!(self.poll_write(cx)).is_ok() {
            let _ = ready!(self.conn.poll_shutdown(cx)); // nobody is there any more otherwise
        }
        Poll::Ready(self.closing.take().map_or(Ok(()), |(ended, _)| ended))
    }

    /// Reads, and then writes what that, and others meanwhile, have made.
    fn work(&mut self, cx: &mut Context<'_>) {
        let mut reads = 0;
        let clogged = loop {
            if self.session.is_clogged() {
                break true;
            }
            match self.poll_read(cx) {
                Poll::Pending => break false,
                Poll::Ready(Err(ended)) => return self.close(Err(ended)),
                Poll::Ready(Ok(())) => reads += 1,
            }
            if reads == READS {
                cx.waker().wake_by_ref();
                break false;
            }
        };
        match self.poll_write(cx) {
            Poll::Pending => return,
            Poll::Ready(Err(error)) => return self.close(Err(self.gone(&error))),
            Poll::Ready(Ok(())) if clogged => cx.waker().wake_by_ref(),
            Poll::Ready(Ok(())) => {}
        }
        if self.session.has_left() {
            self.close(Ok(()));
        } else if self.is_client && self.session.is_unused() {
            self.session.end_unused();
            self.close(Ok(()));
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if !std::mem::take(&mut self.unread) {
            match self.conn.poll_fill(cx) {
                Poll::Pending => return self.poll_late(cx).map(Err),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.gone(&error))),
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(Error::Io("the peer closed the connection".into()).into()));
                }
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Ready(self.session.read(&mut self.conn.read).map_err(Ended::from))
    }

    /// Ready when a head has been under way for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let (number, deadline) = &mut self.head;
        let preface = self.session.wants_preface();
        let Some(unfinished) = (if preface { Some(u64::MAX) } else { self.session.unfinished_head(&self.conn.read) })
        else {
            deadline.clear();
            return Poll::Pending;
        };
        if deadline.is_clear() || *number != unfinished {
            *number = unfinished;
            deadline.set(HEAD);
        }
        deadline.poll(cx).map(|()| if preface { Ended::SlowPreface } else { Ended::SlowHead })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { conn, session, .. } = self;
        let written = session.write(|out| {
            let before = out.len();
            let mut done = Poll::Ready(Ok(()));
            while !out.is_empty() && matches!(done, Poll::Ready(Ok(()))) {
                let all = out.len();
                done = conn.poll_write_from(cx, out, all).map_ok(drop);
            }
            (before.saturating_sub(out.len()), done)
        });
        ready!(written)?;
        ready!(conn.poll_flush(cx))?;
        if session.is_idle() {
            session.write(|out| (0, buffers::give(std::mem::take(out))));
        }
        Poll::Ready(Ok(()))
    }

    fn gone(&self, error: &io::Error) -> Ended {
        Error::Io(error.to_string().into()).into()
    }

    fn close(&mut self, ended: Result<(), Ended>) {
        let error = match &ended {
            Err(Ended::Error(error)) => error.clone(),
            Err(late) => Error::Io(late.to_string().into()),
            Ok(()) => Error::Io("the connection was closed".into()),
        };
        self.session.fail(error);
        let mut deadline = Deadline::default();
        // Nothing reaches who is gone.
        let patience = if matches!(ended, Err(Ended::Error(Error::Io(_)))) { Duration::ZERO } else { LAST_WORDS };
        deadline.set(patience);
        self.closing = Some((ended, deadline));
    }
}
