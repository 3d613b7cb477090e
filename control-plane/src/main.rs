//! `weir-control`: flags, log, signals; the rest is the library's.

use std::process::ExitCode;

use clap::Parser as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use weir_control::{
    ControlPlane, Remove,
    ask::{Ask, ask},
    remove,
    settings::Settings,
};

/// The command line is wrong.
const USAGE: u8 = 2;
/// It was understood, but failed.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    let rest = || std::env::args_os().skip(1);
    match first.as_ref().and_then(|first| first.to_str()) {
        Some("remove") => {
            return match Remove::try_parse_from(rest()) {
                Ok(settings) => ended(remove(settings)),
                Err(error) => unusable(&error),
            };
        }
        Some("admin") => {
            return match Ask::try_parse_from(rest()) {
                Ok(question) => ended(ask(question)),
                Err(error) => unusable(&error),
            };
        }
        _ => {}
    }
    let settings = match Settings::try_parse() {
        Ok(settings) => settings,
        Err(error) => return unusable(&error),
    };
    if let Err(error) = settings.mode() {
        eprintln!("weir-control: {error}");
        return ExitCode::from(USAGE);
    }
    let filter = match tracing_subscriber::EnvFilter::try_new(&settings.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("weir-control: --log {}: {error}; use info or weir_control=debug", settings.log);
            return ExitCode::from(USAGE);
        }
    };
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
    ended(run(settings))
}

fn unusable(error: &clap::Error) -> ExitCode {
    error.print().ok();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

fn ended(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weir-control: no threads: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-control: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let (down, shutdown) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let control = ControlPlane::start(settings, shutdown).await?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down: streams are ended, proxies go to another replica");
        down.send_replace(true);
    });
    control.run().await
}
