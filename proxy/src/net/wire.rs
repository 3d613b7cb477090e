//! A connection as the `h2` crate wants it: bytes in and out, and an eye on the frames among them.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Conn, Deadline};
use crate::http::h2::{Flood, FrameGuard};

/// From the first byte of a head to its last, as in HTTP/1.1.
const HEAD: Duration = Duration::from_secs(10);

/// What a peer did for which its connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It floods the connection.
    #[error(transparent)]
    Flood(#[from] Flood),
    /// It does not end a head that it has begun.
    #[error("the peer did not send a whole head within {} s", HEAD.as_secs())]
    SlowHead,
}

/// A connection that carries frames of HTTP/2.
#[derive(Debug)]
pub struct Wire {
    conn: Conn,
    guard: FrameGuard,
    /// For the head with this number.
    head: (u64, Deadline),
    trouble: Rc<Cell<Option<Trouble>>>,
}

impl Wire {
    /// For a connection that a client has made to us; what was read of it already comes first.
    pub fn from_client(conn: Conn) -> Self {
        Self::new(conn, FrameGuard::new(true))
    }

    /// For a connection that we have made to a server.
    pub fn to_server(conn: Conn) -> Self {
        Self::new(conn, FrameGuard::new(false))
    }

    fn new(conn: Conn, guard: FrameGuard) -> Self {
        Self { conn, guard, head: (0, Deadline::default()), trouble: Rc::default() }
    }

    /// Where it is told why the connection was ended: of an error of a stream the `h2` crate hands on no more than the text.
    pub fn trouble(&self) -> Rc<Cell<Option<Trouble>>> {
        self.trouble.clone()
    }

    fn fail(&self, trouble: Trouble) -> io::Error {
        self.trouble.set(Some(trouble));
        io::Error::other(trouble)
    }

    /// Ready when a head has been under way for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (number, deadline) = &mut self.head;
        let Some(unfinished) = self.guard.unfinished_head() else {
            deadline.clear();
            return Poll::Pending;
        };
        if deadline.is_clear() || *number != unfinished {
            *number = unfinished;
            deadline.set(HEAD);
        }
        deadline.poll(cx)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.guard.is_others_turn() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.conn.read.is_empty() {
            match Pin::new(&mut this.conn.io).poll_read(cx, buf) {
                Poll::Pending => return this.poll_late(cx).map(|()| Err(this.fail(Trouble::SlowHead))),
                Poll::Ready(done) => {
                    if let Some(error) = this.conn.lost() {
                        return Poll::Ready(Err(error));
                    }
                    done?;
                }
            }
        } else {
            let taken = buf.remaining().min(this.conn.read.len());
            buf.put_slice(this.conn.read.get(..taken).unwrap_or_default());
            this.conn.read.advance(taken);
            this.conn.release();
        }
        let came = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(this.guard.read(came).map_err(|flood| this.fail(flood.into())))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = std::task::ready!(Pin::new(&mut this.conn.io).poll_write(cx, buf))?;
        this.guard.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = std::task::ready!(Pin::new(&mut this.conn.io).poll_write_vectored(cx, bufs))?;
        this.guard.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().conn.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().conn.io).poll_shutdown(cx)
    }
}
