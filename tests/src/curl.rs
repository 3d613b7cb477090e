//! curl as a client in a pod.

use std::{io::Write as _, process::Stdio};

use serde_json::Value;

use crate::Netns;

/// What came of a call.
#[derive(Debug)]
pub struct Curl {
    /// Its exit code: 0 where it is content.
    pub code: Option<i32>,
    /// What it wrote.
    pub out: String,
    /// What it complained of.
    pub said: String,
    /// What it knows of the last transfer (`--write-out '%{json}'`).
    told: Value,
}

impl Curl {
    /// Calls from inside a network; `input` is its standard input.
    pub fn call(netns: &Netns, words: &[&str], input: &[u8]) -> Self {
        let mut command = netns.command("curl");
        command.args(["-q", "-sS", "--max-time", "60", "--write-out", "%{stderr}\n%{json}"]).args(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            // It may have heard enough before all is written.
            scope.spawn(move || stdin.write_all(input).ok());
            child.wait_with_output().unwrap()
        });
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let (said, told) = told.rsplit_once('\n').unwrap_or((&told, ""));
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            said: said.to_owned(),
            told: serde_json::from_str(told).unwrap_or_default(),
        }
    }

    /// Status of the answer.
    pub fn status(&self) -> u64 {
        self.told["http_code"].as_u64().unwrap_or_default()
    }

    /// Version of HTTP that the answer came in: `1.1`, `2`.
    pub fn version(&self) -> &str {
        self.told["http_version"].as_str().unwrap_or_default()
    }

    /// How long it took, in seconds.
    pub fn seconds(&self) -> f64 {
        self.told["time_total"].as_f64().unwrap_or(f64::MAX)
    }
}
