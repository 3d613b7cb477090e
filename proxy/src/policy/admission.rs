//! Connections that were judged, so that they can be judged again when the rules change.
//!
//! All of it belongs to one worker. A connection waits for its own work and not for the rules: it is woken only when it is refused.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;
use weir_mesh::Identity;

use super::{Denied, Facts};
use crate::config::Inbound;

/// The open connections of a worker.
#[derive(Debug, Default)]
pub struct Admissions(RefCell<HashMap<*const Entry, Rc<Entry>, FxBuildHasher>>);

/// One connection, as long as it is open.
#[derive(Debug)]
pub struct Admission {
    entry: Rc<Entry>,
    of: Rc<Admissions>,
}

#[derive(Debug)]
struct Entry {
    principal: Option<Identity>,
    peer: SocketAddr,
    app: SocketAddr,
    is_refused: Cell<bool>,
    why: RefCell<Option<Denied>>,
    is_told: Cell<bool>,
    /// Who is woken when it is refused: each request of a connection that carries several at once.
    wakers: RefCell<SmallVec<[(u64, Waker); 1]>>,
    next: Cell<u64>,
}

impl Entry {
    fn judge(&self, inbound: Option<&Inbound>) {
        let facts = Facts { principal: self.principal.as_ref(), from: self.peer.ip(), to: self.app };
        // Without rules of the control plane nothing is served; so there were some, and they hold.
        let Some(inbound) = inbound else { return };
        let why = inbound.access(self.app.port()).judge(&facts).err();
        self.is_refused.set(why.is_some());
        if *self.why.borrow() != why {
            self.is_told.set(false);
        }
        self.why.replace(why);
        if self.is_refused.get() {
            self.wakers.take().into_iter().for_each(|(_, waker)| waker.wake());
        }
    }
}

impl Admissions {
    /// Judges a connection of this caller to this address and port of the pod.
    pub fn judge(
        self: &Rc<Self>,
        inbound: Option<&Inbound>,
        principal: Option<Identity>,
        peer: SocketAddr,
        app: SocketAddr,
    ) -> Admission {
        let entry = Rc::new(Entry {
            principal,
            peer,
            app,
            is_refused: Cell::new(false),
            why: RefCell::default(),
            is_told: Cell::new(false),
            wakers: RefCell::default(),
            next: Cell::new(0),
        });
        entry.judge(inbound);
        self.0.borrow_mut().insert(Rc::as_ptr(&entry), entry.clone());
        Admission { entry, of: self.clone() }
    }

    /// Judges all of them again.
    pub fn judge_again(&self, inbound: Option<&Inbound>) {
        for entry in self.0.borrow().values() {
            entry.judge(inbound);
        }
    }

    /// Number of open connections.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// True without open connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Admission {
    /// The caller's proved identity.
    pub fn principal(&self) -> Option<&Identity> {
        self.entry.principal.as_ref()
    }

    /// The caller's address.
    pub fn peer(&self) -> SocketAddr {
        self.entry.peer
    }

    /// What was called.
    pub fn app(&self) -> SocketAddr {
        self.entry.app
    }

    /// True if it is refused now.
    pub fn is_refused(&self) -> bool {
        self.entry.is_refused.get()
    }

    /// Why it is refused now.
    pub fn denied(&self) -> Option<Denied> {
        self.entry.why.borrow().clone()
    }

    /// True once after each change of the answer: one line in the log is enough for a connection.
    pub fn is_news(&self) -> bool {
        !self.entry.is_told.replace(true)
    }
}

/// Goes on with `work` until the connection is refused; `None` then. Without an admission nobody refuses it. The work is taken where it
/// is: moved here, a request's would take twice the room.
pub async fn until_refused<T>(admission: Option<&Admission>, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let waiting = admission.map(|admission| Waiting::new(&admission.entry));
    poll_fn(|cx| {
        if let Some(waiting) = &waiting
            && waiting.poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

/// One who goes on until the connection is refused.
struct Waiting<'a> {
    entry: &'a Entry,
    id: u64,
}

impl<'a> Waiting<'a> {
    fn new(entry: &'a Entry) -> Self {
        let id = entry.next.get();
        entry.next.set(id.wrapping_add(1));
        Self { entry, id }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.entry.is_refused.get() {
            return Poll::Ready(());
        }
        let mut wakers = self.entry.wakers.borrow_mut();
        match wakers.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, known)) if known.will_wake(cx.waker()) => {}
            Some((_, known)) => *known = cx.waker().clone(),
            None => wakers.push((self.id, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.entry.wakers.borrow_mut().retain(|(id, _)| *id != self.id);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.of.0.borrow_mut().remove(&Rc::as_ptr(&self.entry));
    }
}
