//! `weir-cluster`: a Kubernetes for a person, and the processes that a cluster consists of.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use weir_cluster::{Layout, Options, conformance, guard, person, supervisor};

#[derive(Debug, Parser)]
#[command(about = "A real Kubernetes of several nodes on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a cluster that stays until `down`
    Up {
        /// Machines that run pods
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// IPv6 beside IPv4
        #[arg(long)]
        dual_stack: bool,
    },
    /// Gateway API's conformance suite for meshes, on a cluster with Weir
    Conformance {
        /// One test of the suite; nothing is recorded then
        #[arg(long)]
        only: Option<String>,
        /// The cluster stays until `down`
        #[arg(long)]
        keep: bool,
        /// For every line that the suite says
        #[arg(long, default_value = "target/conformance/suite.log")]
        log: PathBuf,
        /// Folder for the record of a whole run
        #[arg(long, default_value = "docs/conformance")]
        record: PathBuf,
    },
    /// Ends the clusters that `up` started, and removes what killed ones left
    Down {
        /// Also those of running tests
        #[arg(long)]
        all: bool,
    },
    /// Outermost process of a cluster
    #[command(hide = true)]
    Guard(Inner),
    /// First process of a cluster's process namespace
    #[command(hide = true)]
    Init(Inner),
    /// The process that owns a cluster
    #[command(hide = true)]
    Supervise(Inner),
}

#[derive(Debug, clap::Args)]
struct Inner {
    layout: PathBuf,
    options: String,
    tools: PathBuf,
}

impl Inner {
    fn words(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        vec![path(&self.layout), self.options.clone(), path(&self.tools)]
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up { nodes, dual_stack } => person::up(&Options { nodes, dual_stack, ..Options::default() })?,
        Command::Conformance { only, keep, log, record } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let passed = runtime.block_on(conformance::run(&conformance::Wish { only, keep, log, record }))?;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Down { all } => person::down(all)?,
        Command::Guard(inner) => return guard::run(&Layout::at(&inner.layout), &inner.words()),
        Command::Init(inner) => return guard::init(&inner.words()),
        Command::Supervise(inner) => {
            let options = serde_json::from_str(&inner.options)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let ended = runtime.block_on(supervisor::run(Layout::at(inner.layout), options, inner.tools));
            // A read of standard input may still block a thread.
            runtime.shutdown_background();
            ended?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
