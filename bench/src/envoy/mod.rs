//! Envoy with the same work: the original destination's port decides between HTTP/1.1 and opaque TCP, mutual TLS 1.3 between
//! the two, ECDSA P-256 certificates with SPIFFE names. Nothing else is configured: no access log, no authorization, no
//! further filters, no control plane. What a mesh puts on top costs more, so a ratio against this one is on the safe side.

pub(crate) mod certificates;
pub mod install;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use weir_mesh::ports;

use crate::{
    candidate::{Candidate, FRESH_PORT, GRPC_PORT, HTTP_PORT, Kind, RESUMED_PORT, SERVICE_PORT, TCP_PORT, get},
    process::{Launch, Process},
};

const OUTBOUND: &str = include_str!("outbound.yaml");
const INBOUND: &str = include_str!("inbound.yaml");
const START_LIMIT: Duration = Duration::from_secs(30);

/// Starts two Envoys with `workers` workers each, and waits until requests go through both.
///
/// # Errors
/// Where they do not start, or no handshake is seen.
pub fn candidate(program: &Path, dir: &Path, index: u8, workers: u8) -> anyhow::Result<Candidate> {
    let mut candidate = Candidate::prepare(Kind::Envoy(workers), index)?;
    let dir = dir.join(format!("envoy-{index}"));
    fs::create_dir_all(&dir)?;
    certificates::write(&dir, ports::PROXY_UID)?;
    let sides = [("outbound", OUTBOUND, &candidate.pair.client), ("inbound", INBOUND, &candidate.pair.server)];
    let mut proxies = Vec::new();
    for (name, template, netns) in sides {
        let config = dir.join(format!("{name}.yaml"));
        fs::write(&config, fill(template, &candidate.pair.server_ip.to_string()))?;
        let args =
            ["-c", &config.display().to_string(), "--concurrency", &workers.to_string(), "--log-level", "warning"];
        let launch = Launch {
            name: format!("envoy-{name}-{index}"),
            program,
            args: args.iter().map(|arg| (*arg).to_owned()).chain(["--disable-hot-restart".to_owned()]).collect(),
            env: Vec::new(),
            user: Some(ports::PROXY_UID),
            dir: &dir,
        };
        let mut proxy = Process::start(netns, launch)?;
        proxy.until(START_LIMIT, || get(netns, ports::ADMIN, "/ready").is_ok())?;
        proxies.push(proxy);
    }
    candidate.proxies = proxies;
    candidate.try_once().context("the first request through Envoy")?;
    let stats = get(&candidate.pair.server, ports::ADMIN, "/stats?filter=ssl.handshake")?;
    ensure!(
        stats.lines().any(|line| line.contains("ssl.handshake:") && !line.ends_with(": 0")),
        "the server's Envoy has seen no TLS handshake"
    );
    Ok(candidate)
}

fn fill(template: &str, server_ip: &str) -> String {
    [
        ("ADMIN_PORT", ports::ADMIN.to_string()),
        ("OUTBOUND_PORT", ports::OUTBOUND.to_string()),
        ("INBOUND_PORT", ports::INBOUND.to_string()),
        ("SERVICE_PORT", SERVICE_PORT.to_string()),
        ("HTTP_PORT", HTTP_PORT.to_string()),
        ("TCP_PORT", TCP_PORT.to_string()),
        ("GRPC_PORT", GRPC_PORT.to_string()),
        ("FRESH_PORT", FRESH_PORT.to_string()),
        ("RESUMED_PORT", RESUMED_PORT.to_string()),
        ("SERVER_IP", server_ip.to_owned()),
        ("SERVER_ID", certificates::SERVER_ID.to_owned()),
    ]
    .iter()
    .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("<{name}>"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        for template in [OUTBOUND, INBOUND] {
            assert!(!fill(template, "198.18.1.2").contains('<'));
        }
    }
}
