//! A netlink socket: requests out, acknowledgements, errors and dumps in. It knows messages, not what they mean.

pub(crate) mod attributes;

use std::{io, os::fd::AsRawFd, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
            sockopt::{ReceiveTimeout, SndBuf, SndBufForce},
        },
        time::{TimeVal, TimeValLike},
    },
};

use self::attributes::{Reader, align};
use crate::sys;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel answers within the call; a limit only so that nothing can ever hang.
const ANSWER_LIMIT_SECONDS: i64 = 5;
/// More than the kernel puts into one datagram of a dump (32 KiB).
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel's default send buffer; a longer batch needs a larger one.
const DEFAULT_SEND_BYTES: usize = 200 * 1024;
/// A dump that the rules changed under is asked for again, so many times.
const DUMP_TRIES: usize = 10;

/// `NLMSG_ERROR`, also used for acknowledgements.
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: what was dumped changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED`: the request is not repeated in the answer.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes explain the error.
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`
const ERROR_TEXT: u16 = 1;

/// Flags of a request.
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const ACK: u16 = 4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Which part of the kernel is talked to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    /// Links and addresses.
    Route,
    /// nf_tables.
    Netfilter,
}

/// What the kernel refused, in its own words.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Sequence number of the message that was refused: its index in the batch.
    pub(crate) sequence: u32,
    /// Why.
    pub(crate) errno: Errno,
    /// The kernel's text, where it gives one.
    pub(crate) text: Option<String>,
}

/// Why there is no good answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The kernel said no.
    Refused(Refusal),
    /// The conversation itself failed.
    Io(io::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Several messages in one datagram; their sequence numbers are their positions.
#[derive(Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    count: u32,
    last: usize,
}

impl Messages {
    /// Appends a message: `fixed` is the header of its family, `fill` appends its attributes.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, fixed: &[u8], fill: impl FnOnce(&mut attributes::Writer<'_>)) {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.bytes.resize(align(self.bytes.len()), 0);
        fill(&mut attributes::Writer::new(&mut self.bytes));
        let len = u32::try_from(self.bytes.len().saturating_sub(self.last)).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.get_mut(self.last..self.last.saturating_add(4)) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
        self.count = self.count.saturating_add(1);
    }

    /// Asks for an acknowledgement of the message pushed last.
    pub(crate) fn acknowledge_last(&mut self) {
        let at = self.last.saturating_add(6);
        if let Some(field) = self.bytes.get_mut(at..at.saturating_add(2)) {
            let old = field.first().copied().zip(field.get(1).copied()).unwrap_or_default();
            field.copy_from_slice(&(u16::from_ne_bytes([old.0, old.1]) | flags::ACK).to_ne_bytes());
        }
    }

    /// Number of messages so far.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

/// One message of an answer.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open(protocol: Protocol) -> Result<Self, Errno> {
        let protocol = match protocol {
            Protocol::Route => SockProtocol::NetlinkRoute,
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(ANSWER_LIMIT_SECONDS))?;
        sys::explain_errors(fd.as_raw_fd());
        Ok(Self(fd))
    }

    /// Sends the messages and waits for the acknowledgement of the one numbered `acknowledged`; fails with the first refusal.
    pub(crate) fn transact(&self, messages: &Messages, acknowledged: u32) -> Result<(), Failure> {
        self.send(messages)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let datagram = self.receive(&mut buffer)?;
            for answer in answers(datagram) {
                if answer.kind == ERROR {
                    refusal(&answer)?;
                    if answer.sequence == acknowledged {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Asks for a dump and hands each message's body, without the family's header of `fixed` bytes, to `each`.
    pub(crate) fn dump<T>(
        &self,
        request: &Messages,
        fixed: usize,
        each: impl Fn(Reader<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        for _ in 0..DUMP_TRIES {
            self.send(request)?;
            let (mut found, mut interrupted, mut done) = (Vec::new(), false, false);
            while !done {
                let datagram = self.receive(&mut buffer)?;
                for answer in answers(datagram) {
                    interrupted |= answer.flags & DUMP_INTERRUPTED != 0;
                    match answer.kind {
                        ERROR => {
                            refusal(&answer)?;
                            done = true;
                        }
                        DONE => done = true,
                        _ => found.extend(each(Reader::new(answer.body.get(fixed..).unwrap_or_default()))),
                    }
                }
            }
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Errno::EBUSY.into())
    }

    fn send(&self, messages: &Messages) -> Result<(), Errno> {
        let bytes = &messages.bytes;
        if bytes.len() > DEFAULT_SEND_BYTES {
            let wanted = bytes.len().saturating_mul(2);
            // Without privilege over the whole machine (a user namespace) the ordinary limit must do.
            setsockopt(&self.0, SndBufForce, &wanted).or_else(|_| setsockopt(&self.0, SndBuf, &wanted))?;
        }
        sendto(self.0.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(0) => return Err(Errno::EPIPE),
                Ok(len) => return buffer.get(..len).ok_or(Errno::EMSGSIZE),
            }
        }
    }
}

/// Splits a datagram; what does not fit ends it.
fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = usize::try_from(u32::from_ne_bytes(rest.get(0..4)?.try_into().ok()?)).ok()?;
        let short = |at: usize| -> Option<u16> {
            Some(u16::from_ne_bytes(rest.get(at..at.saturating_add(2))?.try_into().ok()?))
        };
        let answer = Answer {
            kind: short(4)?,
            flags: short(6)?,
            sequence: u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?),
            body: rest.get(HEADER..len)?,
        };
        rest = rest.get(align(len)..).unwrap_or_default();
        Some(answer)
    })
}

/// Reads a message of type [`ERROR`]: an acknowledgement carries the error 0.
fn refusal(answer: &Answer<'_>) -> Result<(), Failure> {
    let code = answer.body.get(0..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).unwrap_or_default();
    if code == 0 {
        return Ok(());
    }
    let text = (answer.flags & ACK_ATTRIBUTES != 0).then(|| error_text(answer)).flatten();
    let errno = Errno::from_raw(code.saturating_neg());
    Err(Failure::Refused(Refusal { sequence: answer.sequence, errno, text }))
}

/// The kernel's own explanation, behind the (perhaps repeated) request.
fn error_text(answer: &Answer<'_>) -> Option<String> {
    let repeated = if answer.flags & CAPPED != 0 {
        HEADER
    } else {
        let len = u32::from_ne_bytes(answer.body.get(4..8)?.try_into().ok()?);
        align(usize::try_from(len).ok()?)
    };
    let rest = answer.body.get(repeated.checked_add(4)?..)?;
    Reader::new(rest).text(ERROR_TEXT).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_is_read_with_its_text() {
        let mut body = (-libc::ENOENT).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; HEADER]);
        attributes::Writer::new(&mut body).text(ERROR_TEXT, "no such thing");
        let answer = Answer { kind: ERROR, flags: CAPPED | ACK_ATTRIBUTES, sequence: 3, body: &body };
        let Err(Failure::Refused(refusal)) = refusal(&answer) else { panic!("no refusal") };
        assert_eq!((refusal.sequence, refusal.errno), (3, Errno::ENOENT));
        assert_eq!(refusal.text.as_deref(), Some("no such thing"));
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            for answer in answers(&bytes) {
                let _ = refusal(&answer);
                let _ = error_text(&answer);
            }
        }
    }
}
