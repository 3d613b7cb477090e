//! The agent's life: one at a time on a node, looking whenever something changes, until it is told to end.

use std::{
    fs::File,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    conflist::PLUGIN,
    heal::Healer,
    install::Installer,
    options::Options,
    primary::OURS,
    remove,
    watch::{Names, Wake, Watcher},
};
use crate::log::Event;

/// How often everything is looked at though nothing seems to have changed: some changes come without an event, such as that of a
/// link's target, and the end of a folder that we hold. It takes well below a millisecond.
const SLOW: Duration = Duration::from_secs(5);
/// The same where changes can not be watched.
const UNWATCHED: Duration = Duration::from_millis(500);
/// How often it is tried to become the node's one agent.
const TURN: Duration = Duration::from_millis(200);
/// How long an uninstallation waits for the agent to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// From the configuration's end to the plugin's: runtimes read the folder again within milliseconds, and a pod's network is
/// made in less than this.
const SETTLE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM, and leaves everything in place then: an upgrade ends agents too.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let mut watcher = watcher()?;
    let mut said = false;
    let _turn = loop {
        if let Some(turn) = take_turn(&options.conf_dir)? {
            break turn;
        }
        if !std::mem::replace(&mut said, true) {
            Event { file: Some(&options.conf_dir), ..Event::info("waiting for another agent on this node to end") }
                .say();
        }
        if wait(&mut watcher, TURN)? == Wake::Stop {
            return Ok(());
        }
    };
    Event { reason: Some(env!("CARGO_PKG_VERSION")), ..Event::info("node agent started") }.say();
    say_what_is_missing(options);
    let _ = remove::forget_notes(options); // at worst something is said once less
    let (mut installer, mut healer) = (Installer::new(options), Healer::new(options));
    loop {
        // Watched before looked at, so that no change falls between.
        let watched = watch(&mut watcher, options)?;
        let now = Instant::now();
        let mut next = installer.keep(now).min(healer.heal(now)).min(SLOW);
        if !watched {
            next = next.min(UNWATCHED);
        }
        if wait(&mut watcher, next)? == Wake::Stop {
            Event::info("node agent ended; plugin and configuration stay in place").say();
            return Ok(());
        }
    }
}

/// Without these folders the plugin is kept in place all the same.
fn say_what_is_missing(options: &Options) {
    for folder in [&options.cache_dir, &options.netns_dir] {
        if !folder.is_dir() {
            Event {
                file: Some(folder),
                reason: Some("this folder of the node is not mounted into the agent's container"),
                ..Event::warn("pods that started without the plugin can not be repaired")
            }
            .say();
        }
    }
}

/// Takes everything off the node, and with `stay` waits for SIGTERM then.
pub(super) fn uninstall(options: &Options, stay: bool) -> Result<(), String> {
    let mut watcher = watcher()?;
    let end = Instant::now() + PATIENCE;
    let _turn = loop {
        if let Some(turn) = take_turn(&options.conf_dir)? {
            break turn;
        }
        if Instant::now() > end {
            return Err("the agent still runs on this node and would install everything again: end it first".into());
        }
        if wait(&mut watcher, TURN)? == Wake::Stop {
            return Err("told to end before anything was removed".into());
        }
    };
    remove::remove_all(options, || thread::sleep(SETTLE))?;
    Event::info("uninstalled: configuration and plugin are removed").say();
    while stay && wait(&mut watcher, SLOW)? == Wake::Look {}
    Ok(())
}

fn watcher() -> Result<Watcher, String> {
    Watcher::new().map_err(|error| format!("signals can not be waited for: {error}"))
}

fn wait(watcher: &mut Watcher, limit: Duration) -> Result<Wake, String> {
    watcher.wait(limit).map_err(|error| format!("changes can not be waited for: {error}"))
}

/// A lock on the folder itself: it leaves no file, and ends with the process.
fn take_turn(conf_dir: &Path) -> Result<Option<Flock<File>>, String> {
    let folder = File::open(conf_dir).map_err(|error| gone(conf_dir, &error))?;
    match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(turn) => Ok(Some(turn)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(format!("{} can not be locked: {errno}", conf_dir.display())),
    }
}

/// True if every change will wake us. A folder without which there is nothing to do ends the agent: it was replaced on the
/// node, and the container's start mounts the new one.
fn watch(watcher: &mut Watcher, options: &Options) -> Result<bool, String> {
    let mut all = true;
    for (folder, names) in [(&options.bin_dir, Names::Only(PLUGIN)), (&options.conf_dir, Names::All(&OURS))] {
        all &= watcher.watch(folder, names).map_err(|error| gone(folder, &error))?;
    }
    // These come with the node's first pod.
    let nested = options.cache_dir.join("cache");
    for folder in [&options.cache_dir, &nested, &options.cache_dir.join("results"), &nested.join("results")] {
        all &= watcher.watch(folder, Names::All(&[])).unwrap_or(true);
    }
    Ok(all)
}

fn gone(folder: &Path, error: &io::Error) -> String {
    format!("{}: {error}; it must be a folder of the node, mounted into the agent's container", folder.display())
}
