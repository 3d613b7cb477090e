//! `weir`: what a person types.
//!
//! One command per module. The commands without help text are steps of the sandbox: this executable starts itself in other
//! namespaces, and is the built-in programs of its containers.

#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic when nobody reads: `say!` and `complain!` do not

// First, for its macros.
#[macro_use]
mod out;

mod analyze;
mod demo;
mod echo;
mod failure;
mod inject;
mod inspect;
mod load;
mod samples;
mod sandbox;
mod table;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use weir_sandbox::runtime::{self, spec::ProcessSpec};

use failure::Failure;

/// Weir, a service mesh for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "weir", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole mesh on this machine, from ordinary manifests
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// Show what the webhook would make of manifests
    Inject(inject::Arguments),
    /// Say what can not be done of manifests, or of what a cluster has, with file, line, field and remedy
    Analyze(analyze::Arguments),
    /// Show what a pod's proxy has in force right now: its ports and destinations, rules, clusters and endpoints
    ProxyConfig(inspect::proxy_config::Arguments),
    /// Say which rules and policies act on a Service, a route or a pod, in which order, and what has no effect and why
    Describe(inspect::describe::Arguments),
    /// Show the version
    Version,
    /// Write a completion script for a shell to standard output
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },

    #[command(hide = true, name = "sandbox-serve")]
    Serve(sandbox::ServeArguments),
    #[command(hide = true, name = "sandbox-serve-inside")]
    ServeInside(sandbox::ServeArguments),
    #[command(hide = true, name = "sandbox-remove")]
    Remove(sandbox::RemoveArguments),
    #[command(hide = true, name = "sandbox-init")]
    Init,
    #[command(hide = true, name = "sandbox-process")]
    Process,
    #[command(hide = true, name = "sandbox-echo")]
    Echo(echo::Arguments),
    #[command(hide = true, name = "sandbox-load")]
    Load(load::Arguments),
}

fn main() -> ExitCode {
    let done = run(Arguments::parse().command);
    match done.and_then(|code| out::finish().map(|()| code)) {
        Ok(code) => code,
        Err(failure) => failure.print(),
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Sandbox(command) => sandbox::run(command),
        Command::Inject(arguments) => inject::run(&arguments),
        Command::Analyze(arguments) => analyze::run(&arguments),
        Command::ProxyConfig(arguments) => inspect::proxy_config::run(&arguments),
        Command::Describe(arguments) => inspect::describe::run(&arguments),
        Command::Version => {
            say!("weir {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(), "weir", &mut script);
            out::bytes(&script);
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(arguments) => sandbox::serve(&arguments),
        Command::ServeInside(arguments) => sandbox::serve_inside(&arguments),
        Command::Remove(arguments) => sandbox::remove_inside(&arguments),
        Command::Init => Ok(code(runtime::init::run())),
        Command::Process => process(),
        Command::Echo(arguments) => echo::run(&arguments),
        Command::Load(arguments) => load::run(&arguments),
    }
}

/// The commands that a person types: the scripts would offer hidden ones as well.
fn visible() -> clap::Command {
    let all = Arguments::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("weir").version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true).subcommands(shown)
}

/// The last step before a container's program: its description comes by standard input at the container's start, and by the
/// environment for a program that is started later.
fn process() -> Result<ExitCode, Failure> {
    let spec: ProcessSpec = match std::env::var(runtime::container::SPEC_VARIABLE) {
        Ok(text) => serde_json::from_str(&text).map_err(Failure::failed)?,
        Err(_) => {
            let spec = serde_json::from_reader(io::stdin().lock()).map_err(Failure::failed)?;
            runtime::process::close_stdin().map_err(Failure::failed)?;
            spec
        }
    };
    Ok(code(runtime::process::become_program(&spec)))
}

/// An exit code as the process gives it; what does not fit is a failure.
fn code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
