//! Connections that were judged, so that they can be judged again when the rules change.
//!
//! All of it belongs to one worker. A connection waits for its own work and not for the rules: it is woken only when it is refused.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use rustc_hash::FxBuildHasher;
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
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    fn judge(&self, inbound: Option<&Inbound>) {
        let facts = Facts { principal: self.principal.as_ref(), from: self.peer.ip(), to: self.app };
        // Without rules of the control plane nothing is served; so there were some, and they hold.
        let Some(inbound) = inbound else { return };
        let why = inbound.access(self.app.port()).judge(&facts).err();
        self.is_refused.set(why.is_some());
        let wake = why.is_some();
        if *self.why.borrow() != why {
            self.is_told.set(false);
        }
        self.why.replace(why);
        if wake && let Some(waker) = self.waker.take() {
            waker.wake();
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
            waker: RefCell::default(),
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

/// Goes on with `work` until the connection is refused; `None` then. Without an admission nobody refuses it.
pub async fn until_refused<T>(admission: Option<&Admission>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Some(Admission { entry, .. }) = admission {
            if entry.is_refused.get() {
                return Poll::Ready(None);
            }
            let mut waker = entry.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.of.0.borrow_mut().remove(&Rc::as_ptr(&self.entry));
    }
}
