//! Without root: a user namespace in which this user is root, and has the ids that the machine gave away to it.
//!
//! Two processes make it. The one that will be root in it ([`enter`]) makes the namespace and waits; who started it ([`run`])
//! has the ids mapped by `newuidmap` and `newgidmap`, which only work from outside, and tells it to go on.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, User, setgroups},
};

use super::{LaunchError, REMOVE_COMMAND, USER_NAMESPACE_FLAG, ended, failed, search_path};
use crate::{
    layout::{BASE_VARIABLE, Layout},
    runtime::process::close_stdin,
    supervisor::{ServeError, refused},
};

/// The programs that map ids, and the files with the ranges that they allow.
const USERS: (&str, &str) = ("newuidmap", "/etc/subuid");
const GROUPS: (&str, &str) = ("newgidmap", "/etc/subgid");
/// Ids that containers count on: those of 16 bits.
const NEEDED: u64 = 65_536;
/// Longest time for a step of the other side.
const STEP: Duration = Duration::from_secs(10);

/// Whether no user namespace is needed.
pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// What an ordinary user needs.
///
/// # Errors
/// [`LaunchError::Missing`]: one line with the remedy.
pub(super) fn check() -> Result<(), LaunchError> {
    if is_root() {
        return Ok(());
    }
    ids(USERS)?;
    ids(GROUPS).map(|_| ())
}

/// A range of ids: the first, and how many.
type Range = (u64, u64);

fn user() -> (String, u32) {
    let uid = Uid::effective();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    (name, uid.as_raw())
}

/// The ranges that are this user's.
fn ids((program, file): (&str, &str)) -> Result<Vec<Range>, LaunchError> {
    if !std::env::split_paths(&search_path()).any(|folder| folder.join(program).is_file()) {
        return Err(LaunchError::Missing(format!(
            "without root the sandbox needs `{program}`: install it (Debian package uidmap), or run the sandbox as root"
        )));
    }
    let (name, uid) = user();
    let ranges = ranges(&fs::read_to_string(file).unwrap_or_default(), &name, uid);
    let count: u64 = ranges.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count));
    // One more is the user's own.
    if count.saturating_add(1) < NEEDED {
        let has = if count == 0 { "no ids".to_owned() } else { format!("only {count} ids") };
        return Err(LaunchError::Missing(format!(
            "without root the sandbox needs {NEEDED} user and group ids, and {file} gives {name} {has}: as root run \
             `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}` (with a range that nobody has), or run the \
             sandbox as root"
        )));
    }
    Ok(ranges)
}

/// The ranges of a user in the text of /etc/subuid or /etc/subgid: lines `USER:FIRST:COUNT`, by name or by number.
fn ranges(text: &str, name: &str, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut parts = line.trim().split(':');
            let whose = parts.next()?;
            let range = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            (whose == name || whose == number).then_some(range)
        })
        .collect()
}

/// Arguments of `newuidmap` and `newgidmap`: the user's own id as 0, then all ranges one after the other.
fn mapping(pid: u32, own: u32, ranges: &[Range]) -> Vec<String> {
    let mut arguments = vec![pid.to_string(), "0".into(), own.to_string(), "1".into()];
    let mut next: u64 = 1;
    for (first, count) in ranges {
        arguments.extend([next, *first, *count].map(|number| number.to_string()));
        next = next.saturating_add(*count);
    }
    arguments
}

/// Runs a step of this executable, which calls [`enter`], in a new user namespace, to its end.
pub(super) fn run(mut command: Command, layout: &Layout) -> Result<ExitStatus, LaunchError> {
    let (users, groups) = (ids(USERS)?, ids(GROUPS)?);
    let (mut ours, theirs) = UnixStream::pair().map_err(failed("socket"))?;
    ours.set_read_timeout(Some(STEP)).map_err(failed("socket"))?;
    command.arg(USER_NAMESPACE_FLAG).stdin(OwnedFd::from(theirs));
    // In the namespace this user is root, whose sandboxes lie elsewhere.
    command.env(BASE_VARIABLE, layout.base());
    let mut child = command.spawn().map_err(failed("supervisor"))?;
    // It holds the other end of the socket, which must be closed when the child ends.
    drop(command);
    let mut mapped = || -> Result<(), LaunchError> {
        let mut byte = [0];
        ours.read_exact(&mut byte).map_err(|_| ended(layout))?;
        map(USERS.0, &mapping(child.id(), Uid::effective().as_raw(), &users))?;
        map(GROUPS.0, &mapping(child.id(), Gid::effective().as_raw(), &groups))?;
        ours.write_all(&byte).map_err(|_| ended(layout))
    };
    if let Err(error) = mapped() {
        return Err(give_up(&mut child, error, layout));
    }
    child.wait().map_err(failed("supervisor"))
}

fn give_up(child: &mut Child, error: LaunchError, layout: &Layout) -> LaunchError {
    if !matches!(error, LaunchError::Ended(_)) {
        // It waits for us.
        let _ = child.kill();
        let _ = child.wait();
        return error;
    }
    // It has ended by itself, or is about to: only then all that it says is in the log.
    let _ = child.wait();
    ended(layout)
}

fn map(program: &str, arguments: &[String]) -> Result<(), LaunchError> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", search_path()).stdin(Stdio::null());
    let output = command.output().map_err(failed(program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let why = if nix::sys::prctl::get_no_new_privs().unwrap_or(false) {
        "this process may gain no privileges (no_new_privs), so that `newuidmap` has none: start it from an ordinary shell"
    } else {
        "it must belong to root and have the set-user-id bit, on a file system that is not mounted nosuid: reinstall the \
         package uidmap"
    };
    Err(LaunchError::Missing(format!("{program} refused: {said}; {why}, or run the sandbox as root")))
}

/// Makes a user namespace and waits until its ids are mapped; from then on this process is root in it. To be called before any
/// thread exists.
///
/// # Errors
/// What the kernel said, with the setting that is the cause where it is known.
pub(super) fn enter() -> Result<(), ServeError> {
    let io_failed = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| ServeError::Io { what, source }
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refused("a user namespace", error.into()))?;
    let talk = io::stdin().as_fd().try_clone_to_owned().map_err(io_failed("socket"))?;
    let mut talk = UnixStream::from(talk);
    let mut byte = [b'1'];
    talk.write_all(&byte).map_err(io_failed("socket"))?;
    talk.read_exact(&mut byte).map_err(io_failed("who started this has ended"))?;
    close_stdin().map_err(io_failed("/dev/null"))?;
    // Groups of the user that are not mapped are of no use in here.
    setgroups(&[]).map_err(|error| refused("groups of a user namespace", error.into()))
}

/// Removes the files of a sandbox, also those that belong to other users of its user namespace.
///
/// # Errors
/// Where a file can not be removed.
pub(super) fn remove(layout: &Layout) -> Result<(), LaunchError> {
    let what = || failed(format!("folder {}", layout.root().display()));
    match layout.remove() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root() && layout.is_ours() => {}
        done => return done.map_err(what()),
    }
    let weir = std::env::current_exe().map_err(failed("own executable"))?;
    let mut command = Command::new(weir);
    command.arg(REMOVE_COMMAND).arg("--name").arg(layout.name()).current_dir("/").stdout(Stdio::null());
    let status = run(command, layout)?;
    if !status.success() {
        let source = io::Error::other("its files can not be removed");
        return Err(what()(source));
    }
    layout.remove().map_err(what())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_name_and_by_number() {
        let text = "other:1:2\nme:100000:65536\n\nbad\nme:x:1\n1000:300000:10\nme2:5:6\n";
        assert_eq!(ranges(text, "me", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(text, "nobody", 65_534), []);
    }

    #[test]
    fn ranges_follow_each_other_inside() {
        let arguments = mapping(7, 1000, &[(100_000, 65_536), (300_000, 10)]);
        assert_eq!(arguments.join(" "), "7 0 1000 1 1 100000 65536 65537 300000 10");
    }
}
