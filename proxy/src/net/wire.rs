//! A connection as the `h2` crate wants it: bytes in and out, and an eye on the frames among them.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Conn;
use crate::http::h2::FrameGuard;

/// A connection that carries frames of HTTP/2.
#[derive(Debug)]
pub struct Wire {
    conn: Conn,
    guard: FrameGuard,
}

impl Wire {
    /// For a connection that a client has made to us; what was read of it already comes first.
    pub fn from_client(conn: Conn) -> Self {
        Self { conn, guard: FrameGuard::new(true) }
    }

    /// For a connection that we have made to a server.
    pub fn to_server(conn: Conn) -> Self {
        Self { conn, guard: FrameGuard::new(false) }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.conn.read.is_empty() {
            ready!(Pin::new(&mut this.conn.io).poll_read(cx, buf))?;
        } else {
            let taken = buf.remaining().min(this.conn.read.len());
            buf.put_slice(this.conn.read.get(..taken).unwrap_or_default());
            this.conn.read.advance(taken);
            this.conn.release();
        }
        let came = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(this.guard.read(came).map_err(io::Error::other))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.conn.io).poll_write(cx, buf))?;
        this.guard.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.conn.io).poll_write_vectored(cx, bufs))?;
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
