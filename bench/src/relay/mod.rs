//! The floor: the least that stands between client and server with mutual TLS. Two processes of `weir-bench-relay`, one thread each.

pub mod run;
mod tls;

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use weir_mesh::ports;

use crate::{
    candidate::{Candidate, Kind},
    envoy::certificates,
    process::{Launch, Process, binary},
};

const START_LIMIT: Duration = Duration::from_secs(30);

/// Starts two relays, and waits until requests go through both.
///
/// # Errors
/// Where they do not start.
pub fn candidate(dir: &Path, index: u8) -> anyhow::Result<Candidate> {
    let mut candidate = Candidate::prepare(Kind::Relay, index)?;
    let dir = dir.join(format!("relay-{index}"));
    fs::create_dir_all(&dir)?;
    certificates::write(&dir, ports::PROXY_UID)?;
    let program = binary("weir-bench-relay")?;
    let target = candidate.pair.server_ip.to_string();
    for (side, netns, target) in
        [("client", &candidate.pair.client, target.as_str()), ("server", &candidate.pair.server, "127.0.0.1")]
    {
        candidate.proxies.push(Process::start(
            netns,
            Launch {
                name: format!("relay-{side}-{index}"),
                program: &program,
                args: vec![side.into(), target.into()],
                env: Vec::new(),
                user: Some(ports::PROXY_UID),
                dir: &dir,
            },
        )?);
    }
    let mut proxies = std::mem::take(&mut candidate.proxies);
    let ready = proxies.iter_mut().try_for_each(|proxy| proxy.until(START_LIMIT, || candidate.try_once().is_ok()));
    candidate.proxies = proxies;
    ready.context("the first request through the relay")?;
    Ok(candidate)
}
