//! What can be asked of a running cluster: lines of JSON over a socket in its folder.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// A question; the answer is a `Result<(), String>`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Starts a program of the cluster, and waits for nothing.
    Start(String),
    /// Stops one, and waits for its end. What it started stays.
    Stop(String),
    /// Ends the cluster.
    End,
}

/// What a cluster says of itself when it is ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// For how long `up` or a test waited, in milliseconds.
    pub took_ms: u64,
    /// Arguments of `nsenter` that lead into the control plane's network: a place outside of all nodes.
    pub outside: Vec<String>,
    /// Arguments of `nsenter` that lead into each node's namespaces.
    pub nodes: Vec<Vec<String>>,
    /// Folder of kubectl and helm.
    pub tools: std::path::PathBuf,
}

/// Asks, and waits for the answer.
pub(crate) fn ask(layout: &Layout, request: &Request) -> Result<()> {
    let mut stream = UnixStream::connect(layout.control()).context("the cluster's supervisor does not listen")?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let answer: Result<(), String> = serde_json::from_str(&answer).context("the cluster's supervisor broke off")?;
    answer.map_err(anyhow::Error::msg)
}
