//! `weir-init`: makes, proves, removes and prints the redirect of a pod.

use std::process::ExitCode;

use weir_init::command;

fn main() -> ExitCode {
    command::run(std::env::args_os().skip(1))
}
