//! The last step of a container's start: give up privileges, become the program.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};

use super::{prctl, spec::ProcessSpec};

/// Exit code where the program can not be run, as shells use it.
pub const CAN_NOT_RUN: i32 = 126;
/// Exit code where the program is not found, as shells use it.
pub const NOT_FOUND: i32 = 127;

/// Becomes the program. Returns only where that failed: the exit code, after one line on standard error.
pub fn become_program(spec: &ProcessSpec) -> i32 {
    let error = match prepare(spec) {
        Err(error) => error,
        Ok(mut command) => command.exec(),
    };
    let program = spec.argv.first().map(String::as_str).unwrap_or_default();
    if error.kind() == io::ErrorKind::NotFound {
        eprintln!(
            "weir sandbox: {program:?} is not found in the container (working directory {}, PATH {})",
            spec.cwd.display(),
            spec.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_str()).unwrap_or_default()
        );
        return NOT_FOUND;
    }
    eprintln!("weir sandbox: can not run {program:?}: {error}");
    CAN_NOT_RUN
}

fn prepare(spec: &ProcessSpec) -> io::Result<Command> {
    let (program, args) =
        spec.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command"))?;
    // Newer kernels know more capabilities than this table does; all that are not kept go.
    let last: u8 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()
        .map_err(|_| io::Error::other("/proc/sys/kernel/cap_last_cap is not a number"))?;
    for capability in (0..=last).filter(|capability| !spec.capabilities.contains(capability)) {
        prctl::drop_from_bounding_set(capability)?;
    }
    // The container's first process blocks signals, and a started program inherits that.
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    let groups: Vec<Gid> = spec.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).map_err(|error| not_mapped("groups", &spec.groups, error))?;
    setgid(Gid::from_raw(spec.gid)).map_err(|error| not_mapped("group", &[spec.gid], error))?;
    setuid(Uid::from_raw(spec.uid)).map_err(|error| not_mapped("user", &[spec.uid], error))?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }
    std::env::set_current_dir(&spec.cwd)
        .map_err(|error| io::Error::other(format!("working directory {}: {error}", spec.cwd.display())))?;
    let mut command = Command::new(program);
    command.args(args).env_clear();
    command.envs(spec.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
    Ok(command)
}

/// The kernel knows no id that the user namespace has not.
fn not_mapped(what: &str, ids: &[u32], error: Errno) -> io::Error {
    if error != Errno::EINVAL {
        return error.into();
    }
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    io::Error::other(format!(
        "{what} {} is not among the ids of this sandbox, which runs without root: take one below 65536, or give the user more in \
         /etc/subuid and /etc/subgid",
        ids.join(", ")
    ))
}

/// Points standard input at nothing.
///
/// # Errors
/// Where `/dev/null` is missing.
pub fn close_stdin() -> io::Result<()> {
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(())
}
