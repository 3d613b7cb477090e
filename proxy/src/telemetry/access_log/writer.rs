//! From the workers' buffers to the output.

use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{AccessEntry, Mode};
use crate::telemetry::own::Counter;

/// Bytes that wait in one worker's buffer before lines are dropped: about 1,500 lines.
const CAPACITY: usize = 1024 * 1024;
/// From here on the writer is woken before its time.
const NUDGE: usize = 128 * 1024;
/// A buffer that has grown beyond this is given back when it is empty.
const KEEP: usize = 256 * 1024;
/// How long lines wait for company.
const COALESCE: Duration = Duration::from_millis(50);
/// After so many rounds without a line the writer sleeps until it is woken, which costs the next line a system call.
const IDLE_ROUNDS: u32 = 100;

struct Shared {
    mode: AtomicU32,
    shards: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    dropped: Arc<Counter>,
    /// True while the writer sleeps without a limit.
    asleep: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    woken: bool,
    stop: bool,
    /// Rounds asked for and rounds done, for [`AccessLog::flush`].
    asked: u64,
    finished: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn wake(&self) {
        lock(&self.state).woken = true;
        self.wake.notify_one();
    }
}

/// Owns the writer thread. Cheap to clone; the thread ends with the last clone and the last handle.
#[derive(Clone)]
pub struct AccessLog(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.0.state).stop = true;
        self.0.wake();
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessLog")
    }
}

impl AccessLog {
    /// Starts the writer thread. `dropped` counts lines that were lost.
    ///
    /// # Errors
    /// The thread can not be made.
    pub fn start(output: impl Write + Send + 'static, mode: Mode, dropped: Arc<Counter>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            mode: AtomicU32::new(mode.to_bits()),
            shards: Mutex::default(),
            dropped,
            asleep: AtomicBool::new(false),
            state: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let of_thread = shared.clone();
        thread::Builder::new().name("weir-access-log".into()).spawn(move || write_all(&of_thread, output))?;
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// A worker's own way in.
    pub fn handle(&self) -> AccessLogHandle {
        let shard = Arc::new(Mutex::new(Vec::new()));
        lock(&self.0.0.shards).push(shard.clone());
        AccessLogHandle { shared: self.0.0.clone(), shard, line: Vec::with_capacity(1024), seen: 0 }
    }

    /// Changes what is logged from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.0.0.mode.store(mode.to_bits(), Ordering::Relaxed);
    }

    /// Waits until everything logged before is written, at most `limit`; true where it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.0.0;
        let until = Instant::now() + limit;
        let mut state = lock(&shared.state);
        state.asked = state.asked.saturating_add(1);
        state.woken = true;
        let asked = state.asked;
        shared.wake.notify_one();
        while state.finished < asked {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Takes the lines of one worker.
pub struct AccessLogHandle {
    shared: Arc<Shared>,
    shard: Arc<Mutex<Vec<u8>>>,
    line: Vec<u8>,
    seen: u32,
}

impl AccessLogHandle {
    /// True where nothing is ever logged now, so that no entry need be made.
    pub fn is_off(&self) -> bool {
        self.shared.mode.load(Ordering::Relaxed) == 0
    }

    /// Logs an entry where the mode says so. Never waits for the output.
    pub fn log(&mut self, entry: &AccessEntry<'_>) {
        let mode = self.shared.mode.load(Ordering::Relaxed);
        if mode == 0 {
            return;
        }
        self.seen = self.seen.wrapping_add(1);
        if mode > 1 && !self.seen.is_multiple_of(mode) && !entry.failed() {
            return;
        }
        self.line.clear();
        entry.write(&mut self.line);
        // Held for a copy only: the writer takes the whole buffer by a swap.
        let mut shard = lock(&self.shard);
        let before = shard.len();
        if before.saturating_add(self.line.len()) > CAPACITY {
            drop(shard);
            self.shared.dropped.inc();
            return;
        }
        shard.extend_from_slice(&self.line);
        let after = shard.len();
        drop(shard);
        if (before < NUDGE && after >= NUDGE) || self.shared.asleep.load(Ordering::SeqCst) {
            self.shared.wake();
        }
    }
}

impl std::fmt::Debug for AccessLogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessLogHandle")
    }
}

fn write_all(shared: &Shared, mut output: impl Write) {
    let mut taken = Vec::new();
    let mut idle = 0_u32;
    loop {
        let (asked, stop) = {
            let mut state = lock(&shared.state);
            state.woken = false;
            (state.asked, state.stop)
        };
        let mut wrote = false;
        let shards: Vec<_> = {
            let mut shards = lock(&shared.shards);
            // A handle that is gone, and whose lines are written, needs its buffer no more.
            shards.retain(|shard| Arc::strong_count(shard) > 1 || !lock(shard).is_empty());
            shards.clone()
        };
        for shard in &shards {
            std::mem::swap(&mut taken, &mut *lock(shard));
            if taken.is_empty() {
                continue;
            }
            wrote = true;
            if output.write_all(&taken).and_then(|()| output.flush()).is_err() {
                let lines = memchr::memchr_iter(b'\n', &taken).count();
                shared.dropped.add(u64::try_from(lines).unwrap_or(u64::MAX));
            }
            taken.clear();
            if taken.capacity() > KEEP {
                taken = Vec::new();
            }
        }
        drop(shards);
        idle = if wrote { 0 } else { idle.saturating_add(1) };

        let mut state = lock(&shared.state);
        state.finished = state.finished.max(asked);
        shared.done.notify_all();
        if stop && !wrote {
            return;
        }
        if state.woken || state.stop {
            continue;
        }
        if idle < IDLE_ROUNDS {
            drop(shared.wake.wait_timeout(state, COALESCE));
        } else {
            shared.asleep.store(true, Ordering::SeqCst);
            // A line that came before the mark was seen woke nobody: look once more.
            drop(state);
            let missed = lock(&shared.shards).iter().any(|shard| !lock(shard).is_empty());
            let mut state = lock(&shared.state);
            while !missed && !state.woken && !state.stop {
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            shared.asleep.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}
