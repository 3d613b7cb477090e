//! DNS capture: queries to the pod's name servers go to the proxy, and the proxy's own to the name servers.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    sync::mpsc,
};

use weir_init::Backend;

use support::{
    APP, Addresses, Lab, PROXY, Servers, ask, by::flush, call, can_run, connect, families, listen, settings,
};

const DNS: &str = r#""dnsServers":["198.19.0.10","fd00:19::10"]"#;

fn serve(lab: &Lab, family: Addresses) -> Servers {
    let mut servers = Servers::default();
    let proxy = SocketAddr::new(family.loopback, 15053);
    servers.add_udp(&lab.pod, PROXY, "proxy", proxy);
    servers.add(&lab.pod, PROXY, "proxy", proxy);
    servers.add(&lab.pod, PROXY, "outbound", SocketAddr::new(family.any, 15001));
    for address in [family.name_server, family.other] {
        servers.add_udp(&lab.node, APP, "server", SocketAddr::new(address, 53));
        servers.add(&lab.node, APP, "server", SocketAddr::new(address, 53));
    }
    servers
}

fn udp(lab: &Lab, user: u32, port: u16, server: IpAddr) -> String {
    let any = if server.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    lab.pod.run(user, user, || ask(SocketAddr::new(any, port), SocketAddr::new(server, 53)))
}

fn tcp(lab: &Lab, user: u32, source: SocketAddr, server: IpAddr) -> String {
    let line = lab.pod.run(user, user, || call(Some(source), SocketAddr::new(server, 53)));
    line.split(' ').next().unwrap_or_default().to_owned()
}

fn queries_to_the_pods_name_servers_alone_are_captured(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(DNS));
    for family in families() {
        let _servers = serve(&lab, family);
        let Addresses { pod, other, name_server, .. } = family;
        assert_eq!(udp(&lab, APP, 0, name_server), "proxy");
        assert_eq!(tcp(&lab, APP, SocketAddr::new(pod, 0), name_server), "proxy");
        assert_eq!(udp(&lab, PROXY, 0, name_server), "server");
        assert_eq!(tcp(&lab, PROXY, SocketAddr::new(pod, 0), name_server), "server");
        assert_eq!(udp(&lab, APP, 0, other), "server");
        assert_eq!(tcp(&lab, APP, SocketAddr::new(pod, 0), other), "outbound");
    }
}

fn without_name_servers_no_query_is_captured(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(""));
    for family in families() {
        let _servers = serve(&lab, family);
        assert_eq!(udp(&lab, APP, 0, family.name_server), "server");
    }
}

fn what_is_excluded_is_not_captured(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(&format!(r#"{DNS},"excludeOutboundCidrs":["198.19.0.0/24"]"#)));
    let [v4, v6] = families();
    for (family, want) in [(v4, "server"), (v6, "proxy")] {
        let _servers = serve(&lab, family);
        assert_eq!(udp(&lab, APP, 0, family.name_server), want);
        assert_eq!(tcp(&lab, APP, SocketAddr::new(family.pod, 0), family.name_server), want);
    }
    let lab = Lab::by(by, &settings(&format!(r#"{DNS},"excludeOutboundPorts":[53]"#)));
    for family in families() {
        let _servers = serve(&lab, family);
        assert_eq!(udp(&lab, APP, 0, family.name_server), "server");
        assert_eq!(tcp(&lab, APP, SocketAddr::new(family.pod, 0), family.name_server), "server");
    }
}

/// An application's query and, right after it, one of the proxy from the same port: each must end at its own.
fn a_reused_source_port_by_udp(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(DNS));
    for family in families() {
        let _servers = serve(&lab, family);
        for user in [APP, PROXY, APP, PROXY] {
            let want = if user == APP { "proxy" } else { "server" };
            assert_eq!(udp(&lab, user, 33333, family.name_server), want, "{user}");
        }
        // Without the zones the proxy's query comes back to the proxy: this is what they are for.
        for chain in ["dns_out", "dns_in"] {
            flush(&lab.pod, by, family.pod.is_ipv4(), chain);
        }
        assert_eq!(udp(&lab, APP, 33334, family.name_server), "proxy");
        assert_eq!(udp(&lab, PROXY, 33334, family.name_server), "proxy");
    }
}

fn a_reused_source_port_by_tcp(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(DNS));
    for family in families() {
        let _servers = serve(&lab, family);
        let source = SocketAddr::new(family.pod, 33335);
        for user in [APP, PROXY, APP, PROXY] {
            let want = if user == APP { "proxy" } else { "server" };
            assert_eq!(tcp(&lab, user, source, family.name_server), want, "{user}");
        }
    }
}

/// The last packets of a closed TCP socket have no user any more: the proxy's connection must end well all the same, which
/// it would not in a zone chosen by user.
fn the_proxys_tcp_query_is_delivered_to_its_last_byte(by: Backend) {
    if !can_run() {
        return;
    }
    const BYTES: usize = 3 << 20;
    let lab = Lab::by(by, &settings(DNS));
    for family in families() {
        let listener = lab.node.run(APP, APP, || listen(SocketAddr::new(family.name_server, 53)));
        let (sender, receiver) = mpsc::channel();
        let mut servers = Servers::default();
        servers.accept(listener, move |mut stream, _| {
            let mut all = Vec::new();
            let ended = stream.read_to_end(&mut all);
            let _ = sender.send((all.len(), ended.is_ok()));
        });
        lab.pod.run(PROXY, PROXY, || {
            let mut stream = connect(None, SocketAddr::new(family.name_server, 53)).unwrap();
            stream.write_all(&vec![7; BYTES]).unwrap();
            // Closed by dropping it, with most of the bytes still unsent.
        });
        assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(10)), Ok((BYTES, true)));
    }
}

with_each_backend!(
    queries_to_the_pods_name_servers_alone_are_captured,
    without_name_servers_no_query_is_captured,
    what_is_excluded_is_not_captured,
    a_reused_source_port_by_udp,
    a_reused_source_port_by_tcp,
    the_proxys_tcp_query_is_delivered_to_its_last_byte,
);
