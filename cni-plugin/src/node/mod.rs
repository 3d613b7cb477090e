//! The node agent, `weir-cni node`: puts the plugin on its node and keeps it there, and repairs mesh pods that started without
//! it. It calls no API and has no token: all it knows stands in four folders of the node.
//!
//! ```text
//! conf folder:  the primary network's configuration ─> ours: the same chain and our entry, sorted first
//! bin folder:   this program's own bytes            ─> weir-cni
//! cache folder: what the runtime noted of its pods  ─> mesh pods without redirect ─> rules in their namespaces (netns folder)
//! ```
//! Its end leaves everything in place: pods that start without the agent are redirected as well.

mod agent;
mod cache;
mod conflist;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod heal;
mod install;
mod netns;
mod options;
mod primary;
mod remove;
mod watch;

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    process::ExitCode,
};

use options::{Command, Parsed};

/// Exit code for a command line that can not be used.
const USAGE: u8 = 2;

/// Runs `weir-cni COMMAND ARGUMENTS…`; the one command is `node`.
pub fn main(command: &OsStr, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match options::parse(command, arguments) {
        Err(message) => {
            say(&mut io::stderr(), &format!("weir-cni: {message}; see weir-cni --help\n"));
            ExitCode::from(USAGE)
        }
        Ok(Parsed::Help) => {
            say(&mut io::stdout(), options::HELP);
            ExitCode::SUCCESS
        }
        Ok(Parsed::Version) => {
            say(&mut io::stdout(), &format!("weir-cni {}\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Ok(Parsed::Node(options)) => {
            let result = match options.command {
                Command::Run => agent::run(&options),
                Command::Check => install::check(&options),
                Command::Uninstall { stay } => agent::uninstall(&options, stay),
                Command::CheckUninstalled => remove::check_uninstalled(&options),
            };
            match result {
                Ok(()) => ExitCode::SUCCESS,
                Err(reason) => {
                    say(&mut io::stderr(), &format!("weir-cni: {reason}\n"));
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// A terminal that is gone must not change the exit code.
fn say(to: &mut dyn Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}
