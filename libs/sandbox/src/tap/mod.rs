//! Looks at the bytes on the link of a pod, from the node's side, and says what they are: TLS records or plaintext.
//!
//! It is evidence, not a claim: every payload byte of a connection is followed, and a flow counts as TLS only if the bytes of
//! both directions are TLS records from the first to the last.

pub mod flow;
mod socket;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

pub use flow::{FlowReport, Side, Verdict};

/// A running capture.
pub struct Tap {
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<FlowReport>>,
}

impl Tap {
    /// Starts to look at an interface of the caller's network namespace.
    ///
    /// # Errors
    /// Where there is no such interface, or no right to look.
    pub fn start(interface: &str) -> io::Result<Self> {
        let socket = Arc::new(socket::open(interface)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopped) = (socket.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("tap".into()).spawn(move || {
            let mut flows = flow::Flows::default();
            // The largest packet that the kernel merges for a local link.
            let mut buffer = vec![0; 128 * 1024];
            loop {
                match socket::receive(&source, &mut buffer) {
                    Ok(Some(n)) => flows.packet(buffer.get(..n).unwrap_or_default()),
                    // Nothing waits: what was asked to stop has seen everything.
                    Ok(None) if stopped.load(Ordering::Acquire) => break,
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
            flows.reports()
        })?;
        Ok(Self { socket, stop, thread })
    }

    /// Stops, and tells what was seen until now, however much goes on.
    pub fn stop(self) -> Vec<FlowReport> {
        socket::close_to_new(&self.socket);
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}
