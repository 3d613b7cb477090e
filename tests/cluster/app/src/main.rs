//! `app`: what the pods of the cluster tests run, one static program in an image from scratch.

mod fetch;
mod pause;
mod serve;
mod tcp;

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Waits, and takes in orphans: the container that holds a pod's namespaces
    Pause,
    /// HTTP server that answers with what it got
    Serve(serve::Arguments),
    /// HTTP client: one request, its answer on standard output
    Fetch(fetch::Arguments),
    /// TCP server that sends its pod's name first, and then back what it gets
    Tcp {
        #[arg(long, default_value = "[::]:9000")]
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    // Before any thread is made: the pause container of every pod stays tiny.
    if let Command::Pause = command {
        return pause::run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Pause => Ok(ExitCode::SUCCESS),
            Command::Serve(arguments) => serve::run(&arguments).await,
            Command::Fetch(arguments) => fetch::run(&arguments).await,
            Command::Tcp { listen } => tcp::run(listen).await,
        }
    })
}

/// The name of this pod.
fn pod() -> String {
    std::env::var("HOSTNAME").unwrap_or_default()
}
