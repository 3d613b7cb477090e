//! One run of a program: text in, text out, never without an end.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A restore of the largest settings takes a tenth of a second.
const LIMIT: Duration = Duration::from_secs(20);
/// Time between looks: a run takes 2 ms and more.
const PAUSE: Duration = Duration::from_millis(1);

/// What a program said, and whether it was content.
pub(super) struct Said {
    pub(super) success: bool,
    pub(super) output: String,
    pub(super) errors: String,
}

/// Runs the program in the calling thread's network namespace. Files without a name, not pipes: none fills up, so no thread has
/// to empty one.
pub(super) fn run(program: &Path, arguments: &[impl AsRef<OsStr>], input: &str) -> io::Result<Said> {
    let mut stdin = file()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let (mut stdout, mut stderr) = (file()?, file()?);
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        // The lock is a file of /run: read-only in the init container, and on a node the lock of another namespace's rules. Ours
        // is that of the namespace (`lock`), so the program locks its own input.
        .env("XTABLES_LOCKFILE", "/proc/self/fd/0")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone()?))
        .stderr(Stdio::from(stderr.try_clone()?))
        .spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end after {} s", LIMIT.as_secs())));
        }
        thread::sleep(PAUSE);
    };
    Ok(Said { success: status.success(), output: text(&mut stdout)?, errors: text(&mut stderr)? })
}

fn file() -> io::Result<File> {
    Ok(File::from(memfd_create("weir-init", MFdFlags::MFD_CLOEXEC)?))
}

fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_goes_in_and_out() {
        let much = "x".repeat(1 << 20);
        let said = run(Path::new("/bin/cat"), &["-"], &much).unwrap();
        assert!(said.success && said.output == much);
        let said = run(Path::new("/bin/sh"), &["-c", "echo no >&2; exit 3"], "").unwrap();
        assert!(!said.success && said.errors == "no\n" && said.output.is_empty());
        assert!(run(Path::new("/no/such"), &[""; 0], "").is_err());
    }
}
