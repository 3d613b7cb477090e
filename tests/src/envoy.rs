//! Envoy in a pod's network in place of our proxy, configured as Istio configures its sidecars.
//!
//! What is said here is what Istio says on the wire: names of ALPN, SNI, TLS versions, identities that are demanded, chains by what a
//! ClientHello offers. A stock Envoy has none of Istio's own filters. Two of them matter to a peer: `istio.alpn`, which chooses a
//! request's list of names by its version (here each cluster has the list of one version), and `metadata_exchange`, which would begin a
//! connection with a preamble if the peer picked `istio-peer-exchange`.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use weir_mesh::ports;

use crate::{
    certs::Certificate,
    http::Client,
    netns::Netns,
    pod::Pod,
    process::Process,
    until,
    world::{World, at},
};

/// What a cluster carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// Requests of HTTP/1.1.
    Http1,
    /// Requests of HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

impl Inside {
    /// What a sidecar of Istio offers for it.
    fn alpn(self) -> [&'static str; 3] {
        match self {
            Self::Http1 => ["istio-http/1.1", "istio", "http/1.1"],
            Self::Http2 => ["istio-h2", "istio", "h2"],
            Self::Tcp => ["istio-peer-exchange", "istio", ""],
        }
    }
}

/// A port of a Service that a client's sidecar knows.
#[derive(Debug, Clone)]
pub struct Upstream<'a> {
    /// Port of the Service.
    pub port: u16,
    /// Its only endpoint.
    pub endpoint: SocketAddr,
    /// What is spoken.
    pub inside: Inside,
    /// Who the endpoint must be.
    pub identity: &'a str,
}

/// A running Envoy. Ends when it is dropped.
pub struct Envoy {
    process: Process,
    netns: Netns,
}

impl Envoy {
    /// Starts it in a [foreign](crate::PodSpec::foreign) pod with a certificate that says `identity`, and waits until it is ready.
    pub fn start(world: &World, pod: &Pod, identity: &str, config: impl FnOnce(&Path) -> Value) -> Self {
        let folder = world.path(&format!("envoy-{}", pod.name));
        fs::create_dir(&folder).unwrap();
        let certificate = Certificate::signed_by(&world.path("ca"), &[identity]);
        let (chain, key) = certificate.pem();
        let config = config(&folder).to_string();
        for (name, text) in [
            ("root-cert.pem", world.root().as_str()),
            ("cert-chain.pem", chain),
            ("key.pem", &key),
            ("envoy.json", &config),
        ] {
            fs::write(folder.join(name), text).unwrap();
            chown(folder.join(name), Some(ports::PROXY_UID), None).unwrap();
        }
        let mut command = pod.netns.command("setpriv");
        command.args(["--reuid=1337", "--regid=1337", "--clear-groups", "--pdeathsig=KILL", "--no-new-privs", "--"]);
        command.arg(program()).arg("-c").arg(folder.join("envoy.json"));
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        command.args(["--file-flush-interval-msec", "20"]); // its access log
        let mut process = Process::start(format!("envoy of {}", pod.name), &mut command);
        until(&format!("the Envoy of {} is ready", pod.name), || {
            assert!(process.is_running(), "the Envoy of {} ended", pod.name);
            let stream = pod.netns.connect(at([127, 0, 0, 1], ports::ADMIN)).ok()?;
            Client::new(stream).try_get("/ready").ok().filter(|response| response.status == 200)
        });
        Self { process, netns: pod.netns.clone() }
    }

    /// A counter.
    pub fn counter(&self, name: &str) -> u64 {
        let stream = self.netns.connect(at([127, 0, 0, 1], ports::ADMIN)).unwrap();
        let text = Client::new(stream).get(&format!("/stats?filter={name}")).text();
        text.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Waits for a line of the access log.
    pub fn logged(&self, what: &str, mut matches: impl FnMut(&Value) -> bool) -> Value {
        until(&format!("Envoy logs {what}"), || {
            let lines = self.process.out.all();
            lines.iter().filter_map(|line| serde_json::from_str(line).ok()).find(|line| matches(line))
        })
    }
}

/// Envoy's program, installed where it is not there yet.
fn program() -> PathBuf {
    weir_bench::envoy::install::envoy().unwrap_or_else(|error| panic!("{error:#}"))
}

fn typed(kind: &str, mut value: Value) -> Value {
    value["@type"] = json!(format!("type.googleapis.com/envoy.{kind}"));
    value
}

fn filter(name: &str, kind: &str, value: Value) -> Value {
    json!({"name": format!("envoy.filters.{name}"), "typed_config": typed(&format!("extensions.filters.{kind}"), value)})
}

fn listener_filter(name: &str, kind: &str) -> Value {
    filter(&format!("listener.{name}"), &format!("listener.{name}.v3.{kind}"), json!({}))
}

fn router() -> Value {
    filter("http.router", "http.router.v3.Router", json!({}))
}

/// Certificate, key, roots and the identities that a peer may have; TLS as Istio has it between sidecars.
fn tls(folder: &Path, alpn: &[&str], peers: &[&str]) -> Value {
    let file = |name: &str| json!({"filename": folder.join(name)});
    let sans: Vec<Value> = peers.iter().map(|peer| json!({"san_type": "URI", "matcher": {"exact": peer}})).collect();
    json!({
        "alpn_protocols": alpn,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("cert-chain.pem"), "private_key": file("key.pem")}],
        "validation_context": {"trusted_ca": file("root-cert.pem"), "match_typed_subject_alt_names": sans},
    })
}

fn admin() -> Value {
    json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports::ADMIN}}})
}

fn listener(name: &str, port: u16, listener_filters: &Value, chains: &Value) -> Value {
    json!({
        "name": name, "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "listener_filters": listener_filters, "filter_chains": chains,
        "listener_filters_timeout": "0s", "continue_on_listener_filters_timeout": true,
    })
}

fn http_options(version: &Value) -> Value {
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({name: typed("extensions.upstreams.http.v3.HttpProtocolOptions", version.clone())})
}

/// A client's sidecar.
pub fn istio_outbound(folder: &Path, upstreams: &[Upstream<'_>]) -> Value {
    let (chains, clusters): (Vec<Value>, Vec<Value>) = upstreams
        .iter()
        .map(|upstream| {
            let Upstream { port, endpoint, inside, identity } = upstream;
            let name = format!("outbound|{port}||catalog.shop.svc.cluster.local");
            let network = match inside {
                Inside::Tcp => {
                    let value = json!({"stat_prefix": name, "cluster": name});
                    filter("network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy", value)
                }
                Inside::Http1 | Inside::Http2 => {
                    // Istio's own filters tell the server about the client's workload by headers.
                    let about = json!({"header": {"key": "x-envoy-peer-metadata-id", "value": "sidecar~198.18.0.11~client.shop~shop.svc.cluster.local"}});
                    let host = json!({
                        "name": name, "domains": ["*"], "include_request_attempt_count": true,
                        "request_headers_to_add": [about],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}],
                    });
                    let value =
                        json!({"stat_prefix": name, "route_config": {"virtual_hosts": [host]}, "http_filters": [router()]});
                    let kind = "network.http_connection_manager.v3.HttpConnectionManager";
                    filter("network.http_connection_manager", kind, value)
                }
            };
            let chain = json!({"filter_chain_match": {"destination_port": port}, "filters": [network]});
            let alpn: Vec<&str> = inside.alpn().into_iter().filter(|name| !name.is_empty()).collect();
            let context = json!({
                "sni": format!("outbound_.{port}_._.catalog.shop.svc.cluster.local"),
                "common_tls_context": tls(folder, &alpn, &[identity]),
            });
            let address = json!({"socket_address": {"address": endpoint.ip(), "port_value": endpoint.port()}});
            let mut cluster = json!({
                "name": name, "type": "STATIC", "connect_timeout": "10s",
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext", context),
                },
            });
            if *inside == Inside::Http2 {
                cluster["typed_extension_protocol_options"] =
                    http_options(&json!({"explicit_http_config": {"http2_protocol_options": {}}}));
            }
            (chain, cluster)
        })
        .unzip();
    let filters = json!([listener_filter("original_dst", "OriginalDst")]);
    let outbound = listener("virtualOutbound", ports::OUTBOUND, &filters, &json!(chains));
    json!({"admin": admin(), "static_resources": {"listeners": [outbound], "clusters": clusters}})
}

/// A server's sidecar with the chains that Istio gives to a port in permissive mode; `clients` may call by mutual TLS.
///
/// The chain is chosen by Istio's names, but the names that it answers with are the plain ones: a caller that offers nothing but
/// Istio's is not answered any.
pub fn istio_inbound(folder: &Path, clients: &[&str]) -> Value {
    let plain = ["h2", "http/1.1"];
    let exchange = ["istio-peer-exchange", "h2", "http/1.1"];
    let chains = json!([
        chain(
            "mtls-http",
            ("tls", &["istio-http/1.0", "istio-http/1.1", "istio-h2"]),
            Some(tls(folder, &plain, clients)),
            true
        ),
        chain("plain-http", ("raw_buffer", &["http/1.0", "http/1.1", "h2c"]), None, true),
        chain("mtls-tcp", ("tls", &["istio-peer-exchange", "istio"]), Some(tls(folder, &exchange, clients)), false),
        chain("plain-tcp", ("raw_buffer", &[]), None, false),
        chain("tls-tcp", ("tls", &[]), None, false),
    ]);
    let filters = json!([
        listener_filter("original_dst", "OriginalDst"),
        listener_filter("tls_inspector", "TlsInspector"),
        listener_filter("http_inspector", "HttpInspector"),
    ]);
    let inbound = listener("virtualInbound", ports::INBOUND, &filters, &chains);
    let both = json!({"use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}});
    let app = json!({
        "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s",
        "upstream_bind_config": {"source_address": {"address": weir_mesh::names::APP_SOURCE_V4, "port_value": 0}},
        "typed_extension_protocol_options": http_options(&both),
    });
    json!({"admin": admin(), "static_resources": {"listeners": [inbound], "clusters": [app]}})
}

fn chain(name: &str, (transport, names): (&str, &[&str]), tls: Option<Value>, http: bool) -> Value {
    let format = json!({"json_format": {
        "chain": "%FILTER_CHAIN_NAME%", "peer": "%DOWNSTREAM_PEER_URI_SAN%", "tls": "%DOWNSTREAM_TLS_VERSION%",
        "path": "%REQ(:PATH)%", "protocol": "%PROTOCOL%", "bytes": "%BYTES_RECEIVED%",
    }});
    let log = json!([{
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed("extensions.access_loggers.stream.v3.StdoutAccessLog", json!({"log_format": format})),
    }]);
    let network = if http {
        let kind = "network.http_connection_manager.v3.HttpConnectionManager";
        let value = json!({
            "stat_prefix": name, "access_log": log, "http_filters": [router()],
            "route_config": {"virtual_hosts": [{"name": "inbound|http", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "inbound", "timeout": "0s"}}]}]},
            "forward_client_cert_details": if tls.is_some() { "APPEND_FORWARD" } else { "SANITIZE" },
            "set_current_client_cert_details": {"subject": true, "dns": true, "uri": true},
        });
        filter("network.http_connection_manager", kind, value)
    } else {
        let value = json!({"stat_prefix": name, "cluster": "inbound", "access_log": log});
        filter("network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy", value)
    };
    let matches = json!({"transport_protocol": transport, "application_protocols": names});
    let mut chain = json!({"name": name, "filter_chain_match": matches, "filters": [network]});
    if let Some(tls) = tls {
        let context = json!({"require_client_certificate": true, "common_tls_context": tls});
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext", context),
        });
    }
    chain
}
