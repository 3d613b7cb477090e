//! One writer at a time where reading and writing are two steps: a lock on the network namespace itself, which needs no file
//! that could be read-only and does not make one pod wait for another.

use std::{
    fs::File,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::error::Error;

/// Longer than another call of ours takes. A process of the pod may hold the lock as long as it likes.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until no other call of ours is at work in the calling thread's network namespace.
pub(crate) fn lock() -> Result<Flock<File>, Error> {
    let start = Instant::now();
    let mut file = File::open("/proc/thread-self/ns/net").map_err(Error::Lock)?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((file, Errno::EAGAIN | Errno::EINTR)) if start.elapsed() < LIMIT => file,
            Err((_, errno)) => return Err(Error::Lock(errno.into())),
        };
        thread::sleep(PAUSE);
    }
}
