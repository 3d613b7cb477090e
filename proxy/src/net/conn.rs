//! A stream with its read buffer.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::{io::AsyncWrite, task::coop::unconstrained};
use tokio_util::io::poll_read_buf;

use super::{
    Io, Slot, buffers,
    lost::{SILENCE, Watch},
};

/// A stream, the bytes read from it that nobody has taken yet, and whether written bytes may still wait inside the TLS layer.
#[derive(Debug)]
pub struct Conn {
    /// Before the stream: it ends first.
    watch: Option<Watch>,
    /// The stream.
    pub io: Io,
    /// Bytes read and not yet taken. Has no memory of its own while empty and idle.
    pub read: BytesMut,
    /// The peer has closed its sending side.
    pub eof: bool,
    /// Much is moving: read with the large buffer.
    pub bulk: bool,
    /// Requests that it has carried, where that is counted.
    pub carried: u32,
    /// Its place among all of a cluster's connections, where these are limited.
    pub slot: Option<Slot>,
    unflushed: bool,
}

impl Conn {
    /// A connection with nothing read yet.
    pub fn new(io: Io) -> Self {
        Self::with_read(io, BytesMut::new())
    }

    /// A connection from which `read` was read already.
    pub fn with_read(io: Io, read: BytesMut) -> Self {
        Self {
            watch: io.tcp().map(Watch::new),
            io,
            read,
            eof: false,
            bulk: false,
            carried: 0,
            slot: None,
            unflushed: false,
        }
    }

    /// Reads once into the buffer. Ready with 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.read.is_empty() {
            if !self.read.try_reclaim(if self.bulk { buffers::BULK } else { buffers::SIZE }) {
                self.read = buffers::take(self.bulk);
            }
        } else if self.read.spare_capacity_mut().is_empty() {
            self.read.reserve(buffers::SIZE);
        }
        let result = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        match result {
            Poll::Ready(Ok(1..)) => return result,
            Poll::Ready(_) => {
                if let Some(error) = self.lost() {
                    return Poll::Ready(Err(error));
                }
                self.eof = matches!(result, Poll::Ready(Ok(0)));
            }
            Poll::Pending => {}
        }
        self.release();
        result
    }

    /// The error to tell where this connection was ended because its peer is lost.
    pub fn lost(&self) -> Option<io::Error> {
        self.watch.as_ref().filter(|watch| watch.is_lost()).map(|_| {
            let seconds = SILENCE.as_secs();
            let text =
                format!("nothing was heard of the peer for {seconds} s: its machine, or the network to it, is gone");
            io::Error::new(io::ErrorKind::TimedOut, text)
        })
    }

    /// Reads once; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Gives an empty buffer back to the worker.
    pub fn release(&mut self) {
        if self.read.is_empty() && self.read.capacity() > 0 {
            buffers::give(std::mem::take(&mut self.read));
        }
    }

    /// Writes the first `len` bytes of `from`, and takes them out of it as they go.
    pub fn poll_write_from(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut BytesMut,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_write(cx, from.get(..len).unwrap_or_default()))?;
        from.advance(written);
        Poll::Ready(Ok(written))
    }

    /// Writes some bytes, at least one.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        Poll::Ready(Ok(written))
    }

    /// Writes all of `head` and then all of `body`, in as few calls as the stream takes them.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn write_all(&mut self, mut head: &[u8], mut body: &[u8]) -> io::Result<()> {
        while !(head.is_empty() && body.is_empty()) {
            let mut written = poll_fn(|cx| match (head.is_empty(), body.is_empty()) {
                (false, false) => {
                    Pin::new(&mut self.io).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)])
                }
                (false, true) => Pin::new(&mut self.io).poll_write(cx, head),
                _ => Pin::new(&mut self.io).poll_write(cx, body),
            })
            .await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.unflushed = true;
            let of_head = written.min(head.len());
            head = head.get(of_head..).unwrap_or_default();
            written -= of_head;
            body = body.get(written..).unwrap_or_default();
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Pushes out what the TLS layer may still hold.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the sending side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// [`Self::is_quiet`] as the kernel knows it now, at the price of a system call: an end that came a moment ago may not have been
    /// reported to the task yet.
    pub fn is_quiet_now(&mut self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let nothing =
            |result: io::Result<usize>| matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.is_quiet() && self.io.tcp().is_none_or(|tcp| nothing(SockRef::from(tcp).peek(&mut byte)))
    }

    /// True if nothing has arrived on an idle connection: no end of stream, no error and no byte that nobody asked for.
    ///
    /// Costs a system call only where the kernel has reported something since the last read.
    pub fn is_quiet(&mut self) -> bool {
        if !self.read.is_empty() || self.eof {
            return false;
        }
        // Outside the task's budget, whose exhaustion would look like silence.
        let look = pin!(unconstrained(poll_fn(|cx| self.poll_fill(cx))));
        look.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}
