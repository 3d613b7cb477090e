//! The node's network: namespaces, addresses, and the translation of Service addresses.

pub mod namespace;
pub mod node;
pub mod services;

use std::{io, process::Command};

/// Runs a system program to its end and gives its standard output.
///
/// # Errors
/// What it said on standard error, with its command line.
pub(crate) fn run(program: &str, args: &[&str], input: Option<&str>) -> io::Result<String> {
    use std::io::Write;
    let mut command = Command::new(program);
    command.args(args).stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.unwrap_or_default().as_bytes()) {
            // It ended without reading: what it said tells more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", args.join(" "), said.trim())))
}
