//! Copies of requests for clusters that only look on. A copy never slows its original down and never lets it fail: it is sent by a task of
//! its own once the original has its answer, there are only so many at a time, and what comes back is thrown away.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::carrier::{Carrier, Onward};
use crate::{
    http::{RequestHead, authority},
    net::random,
    route::Mirror,
    serve::Worker,
    upstream::{Ask, Backend},
};

/// Copies at a time, for each worker; what comes beyond is left out.
const AT_ONCE: usize = 64;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(15);

/// Sends the copies that the rule asks for.
pub(super) fn copy<C: Carrier>(
    worker: &Worker,
    mirrors: &[Mirror<Backend>],
    head: &RequestHead,
    carrier: &C,
    onward: &Onward<'_>,
) {
    for mirror in mirrors.iter().filter(|mirror| mirror.share.takes(random())) {
        let result = copy_to(worker, mirror, head, carrier, onward);
        if let Some(why) = result.err() {
            worker.shared.registry.proxy.mirrored.inc([why]);
        }
    }
}

fn copy_to<C: Carrier>(
    worker: &Worker,
    mirror: &Mirror<Backend>,
    head: &RequestHead,
    carrier: &C,
    onward: &Onward<'_>,
) -> Result<(), &'static str> {
    let cluster = mirror.cluster.cluster.as_ref().ok_or("no_backend")?;
    let info = cluster.info().clone();
    let ask = Ask { tried: &[], hash: None, now: Instant::now() };
    let endpoint = cluster.endpoints().as_ref().and_then(|set| set.pick(&ask).cloned()).ok_or("no_endpoint")?;
    if worker.copies.get() >= AT_ONCE {
        return Err("too_many");
    }
    let host = (!mirror.keeps_host).then(|| shadow(onward.host.unwrap_or(head.authority())));
    let onward = Onward { host: host.as_deref().or(onward.host), idle: None, ..*onward };
    let sending = carrier.copy(Arc::clone(&endpoint), info, &onward).ok_or("not_copied")?;
    let Some(worker) = worker.me.upgrade() else { return Ok(()) };
    worker.copies.set(worker.copies.get().saturating_add(1));
    tokio::task::spawn_local(async move {
        let _in_flight = endpoint.state.enter();
        let result = match timeout(LIMIT, sending).await {
            Ok(Ok(())) => "answered",
            Ok(Err(_)) => "failed",
            Err(_) => "timed_out",
        };
        worker.copies.set(worker.copies.get().saturating_sub(1));
        worker.shared.registry.proxy.mirrored.inc([result]);
    });
    Ok(())
}

/// The host by which the servers know a copy, as Envoy writes it.
fn shadow(host: &[u8]) -> Vec<u8> {
    let (name, port) = match authority::split(host) {
        Ok((name, Some(_))) => host.split_at(name.len()),
        _ => (host, &b""[..]),
    };
    // No name can be made of a number.
    if name.first() == Some(&b'[') { host.to_vec() } else { [name, b"-shadow", port].concat() }
}

#[cfg(test)]
mod tests {
    use super::shadow;

    #[test]
    fn shadows_keep_their_port() {
        for (host, wanted) in [("a", "a-shadow"), ("a.b:80", "a.b-shadow:80"), ("[fd00::1]:80", "[fd00::1]:80")] {
            assert_eq!(shadow(host.as_bytes()), wanted.as_bytes());
        }
    }
}
