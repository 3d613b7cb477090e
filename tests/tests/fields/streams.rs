//! TCPRoute and TLSRoute.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use weir_tests::{at, is_root, until};

use crate::{
    ask::{self, Probe},
    document,
    mesh::{ANY, Mesh, STREAM},
    objects::{backend, route},
    references::{self, Kind},
};

const HOST: &str = "a.example";

#[test]
fn tcp_route() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("TCPRoute") else { return };
    let mesh = Mesh::new("fields-tcp");
    let kind = Kind {
        kind: "TCPRoute",
        port: STREAM,
        other_port: ANY,
        spec: json!({}),
        pods: || pods(STREAM, || b"x".to_vec()),
        shares: || shares(STREAM, || b"x".to_vec()),
        bad: "nobody",
    };
    references::show(&mut table, &mesh, &kind);
    let with = |rule: Value| [route("TCPRoute", STREAM, rules(rule))];
    let rule = logged(STREAM, || b"x".to_vec());
    table.acts(&mesh, &rule, (&with(json!({"name": "a"})), "a"), (&with(json!({})), "0"));
    table.finish();
}

#[test]
fn tls_route() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("TLSRoute") else { return };
    let mesh = Mesh::new("fields-tls");
    let kind = Kind {
        kind: "TLSRoute",
        port: ANY,
        other_port: STREAM,
        spec: json!({"hostnames": [HOST]}),
        pods: || pods(ANY, || hello(HOST)),
        shares: || shares(ANY, || hello(HOST)),
        bad: "nobody",
    };
    references::show(&mut table, &mesh, &kind);
    let with = |hosts: Value, rule: Value| {
        let mut route = route("TLSRoute", ANY, rules(rule));
        route["spec"]["hostnames"] = hosts;
        route
    };
    let plain = with(json!([HOST]), json!({}));
    let other = with(json!(["b.example"]), json!({}));
    table.acts(&mesh, &(kind.pods)(), (std::slice::from_ref(&plain), "one"), (&[other], "nobody"));
    let rule = logged(ANY, || hello(HOST));
    table.acts(&mesh, &rule, (&[with(json!([HOST]), json!({"name": "a"}))], "a"), (&[plain], "0"));
    table.finish();
}

fn rules(more: Value) -> Value {
    json!([crate::objects::and(json!({"backendRefs": [backend("one", STREAM)]}), more)])
}

/// The rule that the log has for a connection.
fn logged(port: u16, first: fn() -> Vec<u8>) -> Probe {
    Probe::new("the last part of the log's `route_name` for a connection", move |mesh, service| {
        let called = at(service, port).to_string();
        let lines = || {
            let all = mesh.client.access_log().into_iter();
            all.filter(|line| line["downstream_local_address"] == *called).collect::<Vec<_>>()
        };
        let before = lines().len();
        if who(mesh, service, port, &first()) == "nobody" {
            return "nobody".into();
        }
        let line = until("the connection is logged", || lines().into_iter().nth(before));
        line["route_name"].as_str().map_or("none".into(), |name| name.rsplit('/').next().unwrap_or_default().into())
    })
}

/// Who answers a stream that begins so; nobody, where it is refused.
fn who(mesh: &Mesh, service: Ipv4Addr, port: u16, first: &[u8]) -> String {
    let ask = || {
        let mut connection = mesh.client.try_connect(at(service, port)).ok()?;
        connection.patience(Duration::from_secs(5));
        connection.send(first).ok()?;
        connection.exactly(3).ok()
    };
    ask().map_or("nobody".into(), |name| String::from_utf8_lossy(&name).into_owned())
}

fn pods(port: u16, first: fn() -> Vec<u8>) -> Probe {
    Probe::new("12 connections: who answers", move |mesh, service| {
        let first = first();
        let shares = ask::shares((0..12).map(|_| who(mesh, service, port, &first)));
        shares.into_keys().collect::<Vec<_>>().join(" and ")
    })
}

fn shares(port: u16, first: fn() -> Vec<u8>) -> Probe {
    Probe::new("8 connections: who answers", move |mesh, service| {
        let first = first();
        let shares = ask::shares((0..8).map(|_| who(mesh, service, port, &first)));
        shares.into_iter().map(|(who, count)| format!("{who} {count}")).collect::<Vec<_>>().join(", ")
    })
}

/// A ClientHello for this server.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}
