//! UDP that the proxy can not carry: it passes, or is blocked where the pod says so.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::net::{IpAddr, SocketAddr};

use support::{APP, APP_PORT, Addresses, Lab, PROXY, Servers, ask, by::flush, can_run, families, settings};
use weir_init::Backend;

/// What the kernel tells the sender of a dropped packet, at once: a client of HTTP/3 goes over to TCP without waiting.
const BLOCKED: &str = "Operation not permitted (os error 1)";
const QUIC: u16 = 443;

fn serve(lab: &Lab) -> Servers {
    let mut servers = Servers::default();
    for family in families() {
        for address in [family.other, family.apart, family.name_server] {
            for port in [53, QUIC, 8125] {
                servers.add_udp(&lab.node, APP, "other", SocketAddr::new(address, port));
            }
        }
        servers.add_udp(&lab.node, APP, "other", SocketAddr::new(family.node2, QUIC));
        servers.add_udp(&lab.pod, APP, "app", SocketAddr::new(family.pod, QUIC));
        servers.add_udp(&lab.pod, APP, "app", SocketAddr::new(family.loopback, QUIC));
    }
    servers
}

fn out(lab: &Lab, user: u32, to: IpAddr, port: u16) -> String {
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    lab.pod.run(user, user, || ask(SocketAddr::new(any, 0), SocketAddr::new(to, port)))
}

fn passes_unless_the_pod_says_so(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(""));
    let _servers = serve(&lab);
    for Addresses { other, name_server, .. } in families() {
        for port in [53, QUIC, 8125] {
            assert_eq!(out(&lab, APP, other, port), "other");
            assert_eq!(out(&lab, APP, name_server, port), "other");
        }
    }
}

fn blocked_but_for_queries_and_loopback(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""blockUdp":true,"nameServers":["198.19.0.10","fd00:19::10"]"#));
    let _servers = serve(&lab);
    let _tcp = lab.serve();
    for Addresses { pod, node, other, name_server, loopback, .. } in families() {
        for user in [APP, 0] {
            for port in [53, QUIC, 8125] {
                assert_eq!(out(&lab, user, other, port), BLOCKED, "{user} to {other}:{port}");
            }
            assert_eq!(out(&lab, user, name_server, QUIC), BLOCKED, "another port of a name server");
            assert_eq!(out(&lab, user, name_server, 53), "other");
            assert_eq!(out(&lab, user, loopback, QUIC), "app");
            assert_eq!(out(&lab, user, pod, QUIC), "app");
        }
        assert_eq!(out(&lab, PROXY, other, 53), "other", "the proxy's own");
        // A server in the pod hears, and is not heard.
        let into = lab.node.run(APP, APP, || ask(SocketAddr::new(node, 0), SocketAddr::new(pod, QUIC)));
        assert_eq!(into, "no answer");
        // TCP is as ever.
        assert!(lab.call_out(APP, other, 80).starts_with("outbound "));
        assert!(lab.call_in(pod, APP_PORT).starts_with("inbound "));
        // The chain is what blocks.
        flush(&lab.pod, by, pod.is_ipv4(), "udp_out");
        assert_eq!(out(&lab, APP, other, QUIC), "other");
    }
}

fn with_the_capture_of_queries(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""blockUdp":true,"dnsServers":["198.19.0.10","fd00:19::10"]"#));
    let mut servers = serve(&lab);
    for Addresses { other, name_server, loopback, .. } in families() {
        servers.add_udp(&lab.pod, PROXY, "proxy", SocketAddr::new(loopback, 15053));
        assert_eq!(out(&lab, APP, name_server, 53), "proxy");
        assert_eq!(out(&lab, PROXY, name_server, 53), "other");
        assert_eq!(out(&lab, APP, other, 53), BLOCKED);
    }
}

/// Where nobody said which they are, a pod that could ask none would be of no use.
fn name_servers_that_are_not_known(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""blockUdp":true"#));
    let _servers = serve(&lab);
    for Addresses { other, .. } in families() {
        assert_eq!(out(&lab, APP, other, 53), "other");
        assert_eq!(out(&lab, APP, other, QUIC), BLOCKED);
    }
}

/// Blocked is what TCP would be captured of.
fn exclusions_hold(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(
        by,
        &settings(
            r#""blockUdp":true,"excludeOutboundPorts":[8125],"excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32"],
               "skipInterfaces":["net1"]"#,
        ),
    );
    let _servers = serve(&lab);
    for Addresses { other, apart, node2, .. } in families() {
        assert_eq!(out(&lab, APP, other, 8125), "other");
        assert_eq!(out(&lab, APP, apart, QUIC), "other");
        assert_eq!(out(&lab, APP, node2, QUIC), "other");
        assert_eq!(out(&lab, APP, other, QUIC), BLOCKED);
    }
    let lab = Lab::by(by, &settings(r#""blockUdp":true,"includeOutboundCidrs":["198.18.50.0/24","fd00:50::/32"]"#));
    let _servers = serve(&lab);
    for Addresses { other, apart, .. } in families() {
        assert_eq!(out(&lab, APP, other, QUIC), BLOCKED);
        assert_eq!(out(&lab, APP, apart, QUIC), "other");
    }
}

with_each_backend!(
    passes_unless_the_pod_says_so,
    blocked_but_for_queries_and_loopback,
    with_the_capture_of_queries,
    name_servers_that_are_not_known,
    exclusions_hold,
);
