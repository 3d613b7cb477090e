//! `make fuzz`: every target, or one, for longer than a test may take.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};
use weir_fuzz::{ALL, Target, corpus, engine};

/// Most memory of a run in bytes: what asks for more fails and is found.
const MEMORY: u64 = 4 << 30;

/// Holds every parser to its properties.
#[derive(Debug, Parser)]
struct Arguments {
    /// One target instead of all.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Start of the random numbers; the clock's, where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs one input, written as in the corpus, and nothing else; needs --target.
    #[arg(long, requires = "target")]
    input: Option<String>,
    /// Lists the targets.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.list {
        ALL.iter().for_each(|target| println!("{:<20} {}", target.name, target.holds));
        return Ok(true);
    }
    let chosen: Vec<&Target> =
        ALL.iter().filter(|target| arguments.target.as_ref().is_none_or(|name| name == target.name)).collect();
    anyhow::ensure!(!chosen.is_empty(), "no such target: --list names them");
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).context("limiting the memory")?;
    if let Some(input) = &arguments.input {
        let input = corpus::unescape(input)?;
        chosen.iter().try_for_each(|target| engine::run_one(target, &input))?;
        println!("holds");
        return Ok(true);
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seed = arguments.seed.unwrap_or(clock);
    println!("seed {seed}, {} s for each target", arguments.seconds);
    let budget = engine::Budget { time: Duration::from_secs(arguments.seconds), seed };
    let mut all_hold = true;
    for target in chosen {
        match engine::run(target, budget) {
            Ok(report) => {
                let rate = report.executions as f64 / report.elapsed.as_secs_f64().max(1e-3);
                println!(
                    "{:<20} holds: {} saved, {} run, {rate:.0} a second, {} kinds of answers",
                    target.name, report.saved, report.executions, report.shapes
                );
            }
            Err(failure) => {
                println!("{failure}");
                all_hold = false;
            }
        }
    }
    Ok(all_hold)
}
