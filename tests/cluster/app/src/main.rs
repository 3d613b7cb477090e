//! `app`: what the pods of the cluster tests run, one static program in an image from scratch.

mod admission;
mod fetch;
mod grpc;
mod listen;
mod load;
mod pause;
mod serve;
mod tcp;
mod tls;
mod websocket;

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, Result};
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
    /// Mutating webhooks of others
    Admission(admission::Arguments),
    /// HTTP client: one request, its answer on standard output; or many, and who answered
    Fetch(fetch::Arguments),
    /// HTTP client that goes on asking and counts
    Load(load::Arguments),
    /// gRPC server: weir.test.Echo and grpc.health.v1.Health
    Grpc {
        #[arg(long, default_value = "[::]:9090")]
        listen: SocketAddr,
    },
    /// gRPC client: one call or stream, a line of JSON for each answer
    GrpcCall(grpc::Call),
    /// WebSocket server that answers with its pod's name and what it gets
    Websocket {
        #[arg(long, default_value = "[::]:8080")]
        listen: SocketAddr,
    },
    /// WebSocket client: some messages, a line for each answer
    WebsocketCall(websocket::Call),
    /// TCP server that sends its pod's name first, and then back what it gets
    Tcp {
        #[arg(long, default_value = "[::]:9000")]
        listen: SocketAddr,
    },
    /// TCP client of a server that speaks first
    TcpCall(tcp::Call),
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
            Command::Admission(arguments) => admission::run(&arguments).await,
            Command::Fetch(arguments) => fetch::run(&arguments).await,
            Command::Load(arguments) => load::run(&arguments).await,
            Command::Grpc { listen } => grpc::run(listen).await,
            Command::GrpcCall(arguments) => grpc::call(&arguments).await,
            Command::Websocket { listen } => websocket::run(listen).await,
            Command::WebsocketCall(arguments) => websocket::call(&arguments).await,
            Command::Tcp { listen } => tcp::run(listen).await,
            Command::TcpCall(arguments) => tcp::call(&arguments).await,
        }
    })
}

/// The name of this pod.
fn pod() -> String {
    std::env::var("HOSTNAME").unwrap_or_default()
}

/// Where a URL leads to.
fn host_and_port(url: &hyper::Uri) -> Result<(&str, u16)> {
    let host = url.host().with_context(|| format!("no host in {url}"))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']'), url.port_u16().unwrap_or(80)))
}
