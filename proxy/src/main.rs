//! The proxy's command line.

use std::{io::Write, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use weir_proxy::{admin, app, settings::Settings, telemetry::log};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weir's data plane: a proxy beside every pod.
#[derive(Parser)]
#[command(name = "weir-proxy", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve this pod; configured by the environment that the webhook writes.
    Run,
    /// Wait until the proxy in this pod is ready (the webhook's postStart hook).
    Wait {
        /// Seconds to wait.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// Print a page of the admin port of the proxy in this pod; /help lists them.
    Admin {
        /// Such as /config_dump.
        path: String,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Wait { timeout } => match admin::wait(Duration::from_secs(timeout)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => failed(1, &reason),
        },
        Command::Admin { path } => match admin::ask::page(&path) {
            Ok(page) => match std::io::stdout().write_all(&page) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(1, &format!("standard output: {error}")),
            },
            Err(reason) => failed(1, &reason),
        },
        Command::Run => {
            // Where huge pages are the system's default, every 2 MB that the allocator touches would be resident as a whole: twice
            // the memory of an idle proxy, and no less CPU time for a request. A kernel that refuses is no reason not to serve.
            let _ = nix::sys::prctl::set_thp_disable(true);
            let settings = match Settings::from_env() {
                Ok(settings) => settings,
                Err(error) => return failed(2, &error.to_string()),
            };
            let control = match log::init(&settings.log) {
                Ok(control) => control,
                Err(error) => return failed(2, &error),
            };
            match app::run(settings, control) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(1, &error.to_string()),
            }
        }
    }
}

fn failed(code: u8, reason: &str) -> ExitCode {
    eprintln!("weir-proxy: {reason}");
    ExitCode::from(code)
}
