//! Which connection ends where: real connections through real rules, the same for IPv4 and IPv6.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::net::SocketAddr;

use support::{APP, APP_PORT, Addresses, Lab, PROXY, ask, call, can_run, families, settings};
use weir_init::Backend;
use weir_mesh::CaptureSettings;

#[track_caller]
fn ends_at(got: String, name: &str, original: (std::net::IpAddr, u16)) {
    let want = format!("{name} {} ", SocketAddr::from(original));
    assert!(got.starts_with(&want), "got {got:?}, want {want:?}");
}

/// Only the names of who answers are compared where no connection was tracked.
#[track_caller]
fn answered_by(got: String, name: &str) {
    assert_eq!(got.split(' ').next(), Some(name), "got {got:?}");
}

#[test]
fn without_rules_nothing_is_redirected() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let _servers = lab.serve();
    for Addresses { pod, other, .. } in families() {
        answered_by(lab.call_in(pod, APP_PORT), "app");
        answered_by(lab.call_out(APP, other, 80), "other");
        assert_eq!(lab.call_out(PROXY, pod, 15008), "refused");
        assert_eq!(lab.call_out(PROXY, pod, 15009), "refused");
    }
}

fn into_the_pod(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = lab.serve();
    for Addresses { pod, pod2, .. } in families() {
        ends_at(lab.call_in(pod, APP_PORT), "inbound", (pod, APP_PORT));
        ends_at(lab.call_in(pod, 9), "inbound", (pod, 9));
        ends_at(lab.call_in(pod2, APP_PORT), "inbound", (pod2, APP_PORT));
        // A call straight to the proxy's ports is seen as what it is: its original destination is the port itself.
        ends_at(lab.call_in(pod, 15001), "inbound", (pod, 15001));
        ends_at(lab.call_in(pod, 15006), "inbound", (pod, 15006));
        for own in [15020, 15021, 15053, 15090] {
            ends_at(lab.call_in(pod, own), "own", (pod, own));
        }
    }
}

fn out_of_the_pod(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = lab.serve();
    for Addresses { pod, other, service, .. } in families() {
        for user in [APP, 0] {
            ends_at(lab.call_out(user, other, 80), "outbound", (other, 80));
        }
        // The group is not looked at, or `runAsGroup` would be a way around the mesh.
        let by_group = lab.pod.run(APP, PROXY, || call(None, SocketAddr::new(other, 80)));
        ends_at(by_group, "outbound", (other, 80));
        ends_at(lab.call_out(APP, service, 80), "outbound", (service, 80));
        answered_by(lab.call_out(PROXY, other, 80), "other");
        // The rule of the check is for the pod's own addresses: the port of a peer is not shadowed.
        answered_by(lab.call_out(PROXY, other, 15009), "other");
        assert_eq!(lab.call_out(APP, pod, 15009), "refused");
    }
}

fn within_the_pod(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = lab.serve();
    for Addresses { pod, pod2, service, loopback, app_source, .. } in families() {
        for user in [APP, PROXY] {
            ends_at(lab.call_out(user, loopback, APP_PORT), "app", (loopback, APP_PORT));
        }
        ends_at(lab.call_out(APP, pod, APP_PORT), "app", (pod, APP_PORT));
        // The proxy's call to its application, as the application sees it.
        let call_to_app =
            lab.pod.run(PROXY, PROXY, || call(Some(SocketAddr::new(app_source, 0)), SocketAddr::new(pod, APP_PORT)));
        assert_eq!(call_to_app, format!("app {} {app_source}", SocketAddr::new(pod, APP_PORT)));
        // The proxy calls its own pod: by an address of it, and by a Service that chose this pod.
        ends_at(lab.call_out(PROXY, pod, APP_PORT), "inbound", (pod, APP_PORT));
        ends_at(lab.call_out(PROXY, pod2, APP_PORT), "inbound", (pod2, APP_PORT));
        ends_at(lab.call_out(PROXY, service, 80), "inbound", (pod, APP_PORT));
        // The two checks, and the proxy's own ports.
        ends_at(lab.call_out(PROXY, pod, 15008), "inbound", (pod, 15008));
        ends_at(lab.call_out(PROXY, pod, 15009), "outbound", (pod, 15009));
        ends_at(lab.call_out(PROXY, pod, 15020), "own", (pod, 15020));
    }
}

fn an_application_never_calls_out_from_the_proxys_address(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = lab.serve();
    for Addresses { pod, other, .. } in families() {
        let line = lab.call_out(APP, other, 80);
        assert!(line.ends_with(&format!(" {pod}")), "{line}");
    }
}

fn excluded_ports(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""excludeInboundPorts":[22,22],"excludeOutboundPorts":[25]"#));
    let _servers = lab.serve();
    for Addresses { pod, other, .. } in families() {
        ends_at(lab.call_in(pod, 22), "app", (pod, 22));
        ends_at(lab.call_out(PROXY, pod, 22), "app", (pod, 22));
        ends_at(lab.call_in(pod, 25), "inbound", (pod, 25));
        ends_at(lab.call_in(pod, APP_PORT), "inbound", (pod, APP_PORT));
        answered_by(lab.call_out(APP, other, 25), "other");
        ends_at(lab.call_out(APP, other, 22), "outbound", (other, 22));
        ends_at(lab.call_out(APP, other, 80), "outbound", (other, 80));
    }
}

fn excluded_networks(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32"]"#));
    let _servers = lab.serve();
    for Addresses { pod, other, apart, .. } in families() {
        answered_by(lab.call_out(APP, apart, 80), "other");
        ends_at(lab.call_out(APP, other, 80), "outbound", (other, 80));
        ends_at(lab.call_in(pod, APP_PORT), "inbound", (pod, APP_PORT));
    }
}

fn included_networks(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(
        by,
        &settings(
            r#""includeOutboundCidrs":["198.18.0.0/16","fd00:50::/32","fd00:9::/32"],
           "excludeOutboundCidrs":["198.18.9.9/32","fd00:9::9/128"]"#,
        ),
    );
    let _servers = lab.serve();
    for Addresses { pod, other, apart, name_server, .. } in families() {
        ends_at(lab.call_out(APP, other, 80), "outbound", (other, 80));
        answered_by(lab.call_out(APP, apart, 80), "other"); // excluded wins
        answered_by(lab.call_out(APP, name_server, 80), "other"); // in neither
        ends_at(lab.call_in(pod, APP_PORT), "inbound", (pod, APP_PORT));
        ends_at(lab.call_out(PROXY, pod, 15009), "outbound", (pod, 15009));
    }
}

fn included_networks_of_one_family_leave_the_other_alone(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""includeOutboundCidrs":["198.18.0.0/16"]"#));
    let _servers = lab.serve();
    let [v4, v6] = families();
    ends_at(lab.call_out(APP, v4.other, 80), "outbound", (v4.other, 80));
    answered_by(lab.call_out(APP, v6.other, 80), "other");
    ends_at(lab.call_in(v6.pod, APP_PORT), "inbound", (v6.pod, APP_PORT));
}

fn skipped_interfaces(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""skipInterfaces":["net1","absent0"]"#));
    let _servers = lab.serve();
    for Addresses { pod, pod2, node, node2, .. } in families() {
        ends_at(lab.call_in(pod2, APP_PORT), "app", (pod2, APP_PORT));
        answered_by(lab.call_out(APP, node2, 80), "other");
        ends_at(lab.call_in(pod, APP_PORT), "inbound", (pod, APP_PORT));
        ends_at(lab.call_out(APP, node, 80), "outbound", (node, 80));
    }
}

fn other_udp_passes(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(r#""dnsServers":["198.19.0.10","fd00:19::10"]"#));
    let mut servers = lab.serve();
    for Addresses { pod, node, other, any, .. } in families() {
        // The node has many addresses: each is bound by itself, so that answers come from it.
        servers.add_udp(&lab.node, APP, "other", SocketAddr::new(other, 53));
        servers.add_udp(&lab.pod, APP, "app", SocketAddr::new(pod, 53));
        let out = lab.pod.run(APP, APP, || ask(SocketAddr::new(any, 0), SocketAddr::new(other, 53)));
        assert_eq!(out, "other");
        let into = lab.node.run(APP, APP, || ask(SocketAddr::new(node, 0), SocketAddr::new(pod, 53)));
        assert_eq!(into, "app");
    }
}

with_each_backend!(
    into_the_pod,
    out_of_the_pod,
    within_the_pod,
    an_application_never_calls_out_from_the_proxys_address,
    excluded_ports,
    excluded_networks,
    included_networks,
    included_networks_of_one_family_leave_the_other_alone,
    skipped_interfaces,
    other_udp_passes,
);
