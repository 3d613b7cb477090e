//! Standard output and standard error, for readers that stop early.
//!
//! `println!` panics when nobody reads any more (`weir sandbox status | head -1`). To let SIGPIPE end the program instead would
//! leave a sandbox half taken down. So what is said to nobody is dropped and the command goes on to its end; any other error,
//! such as a full disk behind `> file`, is kept and makes the command fail.

use std::{
    fmt::Arguments,
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::failure::Failure;

/// The first error of standard output that is not a reader's end.
static ERROR: OnceLock<String> = OnceLock::new();
/// Whether nobody reads standard output any more.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Writes to standard output.
pub(crate) fn text(arguments: Arguments<'_>) {
    note(io::stdout().write_fmt(arguments));
}

/// Writes a line to standard output.
pub(crate) fn line(arguments: Arguments<'_>) {
    text(format_args!("{arguments}\n"));
}

/// Writes a line to standard error, where nothing can be done about an error.
pub(crate) fn error(arguments: Arguments<'_>) {
    let _ = io::stderr().write_fmt(format_args!("{arguments}\n"));
}

/// Writes all bytes to standard output now; false where they did not go.
pub(crate) fn bytes(bytes: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    let went = written.is_ok();
    note(written);
    went
}

/// Whether nobody reads standard output any more, as far as it was tried.
pub(crate) fn closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Whether all that was written also arrived. To be called last.
pub(crate) fn finish() -> Result<(), Failure> {
    note(io::stdout().flush());
    ERROR.get().map_or(Ok(()), |error| Err(Failure::failed(format!("standard output: {error}"))))
}

fn note(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => {
            let _ = ERROR.set(error.to_string());
        }
    }
}

/// Like `println!`, by [`line`].
macro_rules! say {
    ($($part:tt)*) => { $crate::out::line(format_args!($($part)*)) };
}

/// Like `eprintln!`, by [`error`].
macro_rules! complain {
    ($($part:tt)*) => { $crate::out::error(format_args!($($part)*)) };
}
