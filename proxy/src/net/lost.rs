//! Peers that are gone without a word: their machine, or the network to it.
//!
//! Keep-alive asks only where nothing is on its way. For data that nobody acknowledges the kernel's patience is a quarter of an hour, and
//! `TCP_USER_TIMEOUT` ends connections to peers as well that are there and take a pause from reading. So each worker looks itself at what the
//! kernel knows of its connections: sent again and again, and not a word from the other side.
#![allow(unsafe_code)] // TCP_INFO has no safe wrapper; and a socket is shut that is known by its number here

use std::{
    cell::{Cell, RefCell},
    mem::{MaybeUninit, size_of},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    rc::{Rc, Weak},
    time::Duration,
};

use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};

/// So long data may go unacknowledged, and everything else unsaid, before a peer counts as lost: shorter than anybody waits in vain, longer than
/// a network takes to find another way, or a machine to move.
pub const SILENCE: Duration = Duration::from_secs(15);
/// More connections than this are not looked at in one turn, which is a second.
const AT_ONCE: usize = 4096;

thread_local! {
    static WATCHED: RefCell<Vec<Weak<Watched>>> = const { RefCell::new(Vec::new()) };
}

/// A connection that is looked at for as long as this lives, which must not be longer than its socket.
#[derive(Debug, Clone)]
pub struct Watch(Rc<Watched>);

#[derive(Debug)]
struct Watched {
    socket: RawFd,
    /// Since when data is sent again.
    since: Cell<Option<Instant>>,
    lost: Cell<bool>,
}

impl Watch {
    /// Looks at this socket from now on.
    pub fn new(stream: &TcpStream) -> Self {
        let watched = Rc::new(Watched { socket: stream.as_raw_fd(), since: Cell::new(None), lost: Cell::new(false) });
        WATCHED.with_borrow_mut(|all| {
            if all.len() == all.capacity() {
                all.retain(|one| one.strong_count() > 0); // before it grows
            }
            all.push(Rc::downgrade(&watched));
        });
        Self(watched)
    }

    /// True when the connection was ended because the peer is lost.
    pub fn is_lost(&self) -> bool {
        self.0.lost.get()
    }
}

/// Looks at this worker's connections and ends those whose peer is lost, so that whoever waits for them sees it; and with them those to
/// the same address that have heard nothing for as long: the next request would wait there in vain. Returns how many.
pub fn sweep(now: Instant) -> usize {
    WATCHED.with_borrow_mut(|all| {
        all.retain(|one| one.strong_count() > 0);
        let watched = || all.iter().take(AT_ONCE).filter_map(Weak::upgrade).filter(|one| !one.lost.get());
        let lost: Vec<Rc<Watched>> = watched().filter(|one| one.is_given_up(now)).collect();
        if lost.is_empty() {
            // Others have their turn next time.
            let turn = AT_ONCE.min(all.len());
            if turn < all.len() {
                all.rotate_left(turn);
            }
            return 0;
        }
        let gone: Vec<SocketAddr> = lost.iter().filter_map(|one| one.peer()).collect();
        let beside = watched().filter(|one| {
            let silent = one.info().is_some_and(|info| info.silent >= SILENCE);
            silent && one.peer().is_some_and(|peer| gone.contains(&peer))
        });
        let mut ended = 0;
        for one in lost.iter().cloned().chain(beside) {
            if !one.lost.replace(true) {
                one.end();
                ended += 1;
            }
        }
        ended
    })
}

/// What the kernel knows.
struct Info {
    /// Sent again, without an answer since.
    repeats: bool,
    /// Since the peer's last word.
    silent: Duration,
}

impl Watched {
    fn is_given_up(&self, now: Instant) -> bool {
        let Some(info) = self.info().filter(|info| info.repeats) else {
            self.since.set(None);
            return false;
        };
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        now.saturating_duration_since(since) >= SILENCE && info.silent >= SILENCE
    }

    fn info(&self) -> Option<Info> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
        // SAFETY: the pointers are to a buffer of `length` bytes and to `length`; any number may be given as a socket.
        let result = unsafe {
            libc::getsockopt(self.socket, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length)
        };
        if result != 0 {
            return None;
        }
        // SAFETY: all zeros is a value of this struct of numbers, and the kernel wrote over a part of it.
        let info = unsafe { info.assume_init() };
        Some(Info {
            repeats: info.tcpi_unacked > 0 && info.tcpi_retransmits > 0,
            silent: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        })
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: a `Watch` lives no longer than its socket, and this lives no longer than a `Watch`.
        unsafe { BorrowedFd::borrow_raw(self.socket) }
    }

    fn peer(&self) -> Option<SocketAddr> {
        let peer = SockRef::from(&self.socket()).peer_addr().ok()?.as_socket()?;
        // What is on this machine is never lost with another.
        let local = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].contains(&peer.ip());
        (!local).then_some(peer)
    }

    fn end(&self) {
        let fd = self.socket();
        let socket = SockRef::from(&fd);
        let _ = socket.set_linger(Some(Duration::ZERO)); // nothing that is still to be sent is worth keeping
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_that_live_are_left_alone_and_forgotten_with_their_watch() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let watch = Watch::new(&one);
        assert!(watch.0.info().is_some_and(|info| !info.repeats));
        let later = Instant::now() + SILENCE * 100;
        assert_eq!((sweep(Instant::now()), sweep(later), watch.is_lost()), (0, 0, false));
        drop(watch);
        sweep(later);
        WATCHED.with_borrow(|all| assert!(all.is_empty()));
    }
}
