//! `weir proxy-config` and `weir describe`: what is in force right now, as proxies and the control plane have it.

pub(crate) mod describe;
pub(crate) mod proxy_config;
mod reach;

use clap::Args;
use serde::Serialize;
use weir_mesh::names::SYSTEM_NAMESPACE;
use weir_sandbox::{Client, Layout};

use self::reach::Reach;
use crate::{failure::Failure, out};

/// Name of the sandbox where none is given.
const DEFAULT_SANDBOX: &str = "default";

/// Where to look, and how to show it.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Namespace; that of kubectl's context where none is given
    #[arg(short, long)]
    namespace: Option<String>,
    /// Look into a sandbox instead of the cluster that kubectl speaks to
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_SANDBOX)]
    sandbox: Option<String>,
    /// Namespace that Weir itself is in
    #[arg(long, value_name = "NAME", default_value = SYSTEM_NAMESPACE)]
    system_namespace: String,
    /// How it is shown: `text` or `json`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Place {
    fn reach(&self) -> Result<Reach, Failure> {
        let names = [self.namespace.as_deref(), Some(&self.system_namespace)];
        for name in names.into_iter().flatten() {
            checked(name)?;
        }
        Ok(match &self.sandbox {
            Some(name) => Reach::sandbox(Client::new(&Layout::new(name).map_err(Failure::usage)?), name),
            None => Reach::cluster(self.system_namespace.clone()),
        })
    }

    fn is_json(&self) -> bool {
        self.output == "json"
    }
}

/// A name that may stand in a path or behind kubectl's flags.
fn checked(name: &str) -> Result<&str, Failure> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(plain) {
        return Err(Failure::usage(format!(
            "{name:?} is not the name of an object: use lower-case letters, digits, - and ."
        )));
    }
    Ok(name)
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(value).map_err(Failure::failed)?;
    out::bytes(&text);
    say!("");
    Ok(())
}

/// A word for what is not there.
fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
