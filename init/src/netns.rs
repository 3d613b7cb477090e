//! Work in another network namespace, on a thread of its own: a namespace belongs to a thread, and a thread that could not
//! return to its own would carry the pod's network into whatever ran on it next.

use std::{fs::File, path::Path, thread};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{error::Error, link};

/// Runs `work` in the network namespace of the file `path` (such as `/var/run/netns/NAME` or `/proc/PID/ns/net`). The caller's
/// namespace does not change.
///
/// # Errors
/// Those of `work`, and where the namespace is gone or may not be entered.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let namespace = File::open(path).map_err(|source| Error::NamespaceGone { path: path.into(), source })?;
    enter(&namespace, path, work)
}

/// [`in_netns`] of a namespace that is held open.
pub(crate) fn in_open_netns<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    enter(namespace, Path::new("(made for the check)"), work)
}

fn enter<T: Send>(namespace: &File, path: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    on_own_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::NamespaceEntry { path: path.into(), errno })?;
        work()
    })
}

/// A new network namespace, which lives as long as the file.
pub(crate) fn new_netns() -> Result<File, Error> {
    in_new_netns(link::current_namespace)
}

/// Runs `work` in a network namespace of its own, which ends with it.
pub(crate) fn in_new_netns<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(Error::NewNamespace)?;
        work()
    })
}

/// Runs `work` on a thread that ends with it.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work).map_err(Error::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
