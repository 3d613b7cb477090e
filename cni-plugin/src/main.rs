//! `weir-cni`: see the library.

use std::process::ExitCode;

use weir_cni::{Environment, run};

fn main() -> ExitCode {
    run(&Environment::of_process(), std::io::stdin().lock(), &mut std::io::stdout(), &mut std::io::stderr())
}
