//! `weir-cni`: see the library. Without arguments it is the CNI plugin, as a container runtime calls it; `weir-cni node` is the
//! node agent.

use std::{env, process::ExitCode};

use weir_cni::{Environment, node, run};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    match arguments.next() {
        None => {
            run(&Environment::of_process(), std::io::stdin().lock(), &mut std::io::stdout(), &mut std::io::stderr())
        }
        Some(command) => node::main(&command, arguments),
    }
}
