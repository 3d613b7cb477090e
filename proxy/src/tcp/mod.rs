//! Opaque streams: bytes in both directions until both sides have ended.
//!
//! Half-closed connections stay half closed: when one side has ended, only the other side's sending end is shut, and what is still on
//! its way arrives.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::net::{Conn, Deadline};

/// A stream that moves more than this gets the large buffer: bulk is where system calls and record headers cost.
const BULK_AFTER: u64 = 128 * 1024;
/// Without a byte in either direction for this long a connection is given up.
const IDLE: Duration = Duration::from_secs(3600);

/// While bytes move, they are reported this often.
const REPORT: Duration = Duration::from_secs(5);

/// Bytes moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the caller to the called.
    pub sent: u64,
    /// From the called to the caller.
    pub received: u64,
}

/// How an opaque stream ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended it.
    Closed,
    /// Nothing moved for an hour.
    Idle,
    /// The side that called failed.
    Caller(io::Error),
    /// The side that was called failed.
    Called(io::Error),
}

/// Copies between the caller and the called until both have ended. `report` gets what has moved since its last call, every few
/// seconds while something moves and once at the end.
pub async fn relay(caller: &mut Conn, called: &mut Conn, mut report: impl FnMut(Moved)) -> End {
    let mut idle = Deadline::default();
    idle.set(IDLE);
    let mut due = Deadline::default();
    let mut moved = Moved::default();
    let (mut there, mut back) = (Pipe::default(), Pipe::default());
    let end = poll_fn(|cx| {
        let before = moved;
        let one = there.poll(cx, caller, called, &mut moved.sent);
        if let Poll::Ready(Err(failure)) = one {
            return Poll::Ready(failure.end(true));
        }
        let other = back.poll(cx, called, caller, &mut moved.received);
        if let Poll::Ready(Err(failure)) = other {
            return Poll::Ready(failure.end(false));
        }
        if one.is_ready() && other.is_ready() {
            return Poll::Ready(End::Closed);
        }
        if before != moved {
            idle.set(IDLE);
            if before == Moved::default() {
                due.set(REPORT);
            }
        }
        if due.poll(cx).is_ready() {
            due.clear();
            report(std::mem::take(&mut moved));
        }
        idle.poll(cx).map(|()| End::Idle)
    })
    .await;
    report(moved);
    end
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

impl Failure {
    /// `from_caller`: the failed pipe reads from the caller.
    fn end(self, from_caller: bool) -> End {
        match (self, from_caller) {
            (Self::Read(error), true) | (Self::Write(error), false) => End::Caller(error),
            (Self::Read(error), false) | (Self::Write(error), true) => End::Called(error),
        }
    }
}

#[derive(Default)]
struct Pipe {
    shut: bool,
    total: u64,
}

impl Pipe {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Conn,
        to: &mut Conn,
        moved: &mut u64,
    ) -> Poll<Result<(), Failure>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !from.read.is_empty() {
                let len = from.read.len();
                let mut data = std::mem::take(&mut from.read);
                let result = to.poll_write_from(cx, &mut data, len);
                from.read = data;
                let written = ready!(result).map_err(Failure::Write)?;
                let written = u64::try_from(written).unwrap_or(u64::MAX);
                *moved = moved.saturating_add(written);
                self.total = self.total.saturating_add(written);
            }
            if from.eof {
                ready!(to.poll_flush(cx)).map_err(Failure::Write)?;
                match ready!(to.poll_shutdown(cx)) {
                    // The peer may be gone already: then there is nothing left to shut.
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    Err(error) => return Poll::Ready(Err(Failure::Write(error))),
                }
                self.shut = true;
                return Poll::Ready(Ok(()));
            }
            from.bulk = self.total > BULK_AFTER;
            match from.poll_fill(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Read(error))),
                Poll::Pending => {
                    ready!(to.poll_flush(cx)).map_err(Failure::Write)?;
                    return Poll::Pending;
                }
            }
        }
    }
}
