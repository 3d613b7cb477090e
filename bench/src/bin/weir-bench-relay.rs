//! `weir-bench-relay client|server TARGET`: one half of the relay that the benchmarks take for the floor.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use weir_bench::relay::run::{Side, run};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-bench-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (side, target) = match words.as_slice() {
        [side, target] if side == "client" => (Side::Client, target),
        [side, target] if side == "server" => (Side::Server, target),
        _ => bail!("started by weir-bench as: weir-bench-relay client|server TARGET"),
    };
    run(side, target.parse().context("the address to relay to")?, &std::env::current_dir()?)
}
