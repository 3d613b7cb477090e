//! Metrics and access log as others read them.

use std::{
    collections::HashSet,
    io::{self, Write},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, SystemTime},
};

use super::*;

fn own() -> Arc<Peer> {
    Peer::new(PeerFields {
        workload: "catalog-v1".into(),
        namespace: "shop".into(),
        app: "catalog".into(),
        version: "v1".into(),
        canonical_service: "catalog".into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        principal: Some("spiffe://cluster.local/ns/shop/sa/catalog".parse().unwrap()),
    })
}

fn caller() -> Arc<Peer> {
    Peer::new(PeerFields {
        principal: Some("spiffe://cluster.local/ns/shop/sa/client".parse().unwrap()),
        app: "client".into(),
        ..PeerFields::from_workload_metadata("client;shop;client;latest;Kubernetes")
    })
}

fn request<'a>(peer: &'a Peer, service: &'a Service) -> HttpLabels<'a> {
    HttpLabels {
        direction: Direction::Inbound,
        peer,
        service,
        protocol: Protocol::Http,
        code: 200,
        grpc_status: None,
        flags: ResponseFlags::NONE,
        security: SecurityPolicy::MutualTls,
    }
}

/// Name -> value of the labels of a sample line.
fn labels(line: &str) -> Vec<(String, String)> {
    let inner = line.split_once('{').unwrap().1.rsplit_once('}').unwrap().0;
    inner
        .split("\",")
        .map(|part| part.split_once("=\"").unwrap())
        .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect()
}

#[test]
fn standard_labels_of_a_request() {
    let registry = Registry::new(own(), "0.1.0");
    let (peer, service) = (caller(), Service::new("catalog.shop.svc.cluster.local", "catalog", "shop"));
    registry.http(&request(&peer, &service)).record(Duration::from_micros(1234), 100, 2_000_000);
    let text = registry.encode();
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
    let expected = [
        ("reporter", "destination"),
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "latest"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
        ("source_app", "client"),
        ("source_version", "unknown"),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", "catalog-v1"),
        ("destination_workload_namespace", "shop"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/catalog"),
        ("destination_app", "catalog"),
        ("destination_version", "v1"),
        ("destination_service", "catalog.shop.svc.cluster.local"),
        ("destination_canonical_service", "catalog"),
        ("destination_canonical_revision", "v1"),
        ("destination_service_name", "catalog"),
        ("destination_service_namespace", "shop"),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let got = labels(line);
    assert_eq!(got, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(line.ends_with("} 1"), "{line}");
    assert!(text.contains("istio_build{component=\"proxy\",tag=\"0.1.0\"} 1\n"), "{text}");
    let value = |prefix: &str, suffix: &str| {
        let line = text.lines().find(|line| line.starts_with(prefix) && line.contains(suffix)).unwrap();
        line.rsplit_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(value("istio_request_duration_milliseconds_bucket", "le=\"1\""), "0");
    assert_eq!(value("istio_request_duration_milliseconds_bucket", "le=\"5\""), "1");
    assert_eq!(value("istio_request_duration_milliseconds_bucket", "le=\"+Inf\""), "1");
    assert_eq!(value("istio_request_duration_milliseconds_sum", ""), "1.234");
    assert_eq!(value("istio_request_bytes_sum", ""), "100");
    assert_eq!(value("istio_response_bytes_bucket", "le=\"1800000\""), "0");
    assert_eq!(value("istio_response_bytes_bucket", "le=\"3600000\""), "1");
}

#[test]
fn unknown_and_plaintext_peers() {
    let registry = Registry::new(own(), "0.1.0");
    let unknown = Peer::unknown();
    let with_id = caller();
    let service = Service::inbound_passthrough();
    let plain = HttpLabels { security: SecurityPolicy::None, ..request(&unknown, &service) };
    registry.http(&plain).record_incomplete(1, 1);
    // An identity that was not checked on this connection is not written.
    registry.http(&HttpLabels { security: SecurityPolicy::None, ..request(&with_id, &service) });
    let text = registry.encode();
    assert!(!text.contains("spiffe://"), "{text}");
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{") && line.ends_with(" 1")).unwrap();
    let got = labels(line);
    let value = |name: &str| got.iter().find(|(known, _)| known == name).unwrap().1.as_str();
    assert_eq!(value("source_workload"), "unknown");
    assert_eq!(value("source_canonical_revision"), "latest");
    assert_eq!(value("destination_service"), "catalog", "inbound falls back to the canonical name");
    assert_eq!(value("destination_service_name"), "InboundPassthroughCluster");
    assert_eq!(value("destination_service_namespace"), "shop");
    assert_eq!(value("connection_security_policy"), "none");
}

#[test]
fn connection_metrics_have_no_code() {
    let registry = Registry::new(own(), "0.1.0");
    let (peer, service) = (caller(), Service::new("redis.shop.svc.cluster.local", "redis", "shop"));
    let series = registry.tcp(&TcpLabels {
        direction: Direction::Outbound,
        peer: &peer,
        service: &service,
        flags: ResponseFlags::UF,
        security: SecurityPolicy::MutualTls,
    });
    series.opened();
    series.moved(10, 20);
    series.moved(1, 2);
    series.closed();
    let text = registry.encode();
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_sent_bytes_total", 11),
        ("istio_tcp_received_bytes_total", 22),
    ] {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        assert!(line.ends_with(&format!(" {value}")), "{line}");
        assert!(line.contains("reporter=\"source\"") && line.contains("response_flags=\"UF\""), "{line}");
        assert!(!line.contains("response_code") && !line.contains("grpc_response_status"), "{line}");
        assert_eq!(labels(line).len(), 23);
    }
}

#[test]
fn hostile_label_values_stay_inside_their_quotes() {
    let registry = Registry::new(own(), "0.1.0");
    let peer = Peer::new(PeerFields {
        workload: "a\"} 1\nevil_total 2\\".into(),
        app: "\u{1b}[31m".into(),
        version: "v".repeat(100_000),
        ..PeerFields::default()
    });
    let service = Service::new("s", "s", "s");
    registry.http(&request(&peer, &service)).record(Duration::ZERO, 0, 0);
    let text = registry.encode();
    assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
    assert!(text.contains("source_workload=\"a\\\"} 1\\nevil_total 2\\\\\""));
    assert!(!text.contains('\u{1b}'));
    assert!(text.lines().all(|line| line.len() < 4096));
}

#[test]
fn every_name_has_one_block_with_its_type() {
    let registry = Registry::new(own(), "0.1.0");
    let service = Service::new("s", "s", "s");
    // More than one piece.
    let peers: Vec<_> =
        (0..60).map(|n| Peer::new(PeerFields { workload: format!("w{n}"), ..PeerFields::default() })).collect();
    for peer in &peers {
        registry.http(&request(peer, &service)).record(Duration::from_millis(3), 1, 1);
        registry.tcp(&TcpLabels {
            direction: Direction::Inbound,
            peer,
            service: &service,
            flags: ResponseFlags::NONE,
            security: SecurityPolicy::None,
        });
    }
    registry.route(&RouteLabels { direction: Direction::Outbound, service: &service, route: "default" });
    registry.proxy.detection.inc(["outbound", "http", "bytes"]);
    assert!(registry.encoder().count() > 3);
    let text = registry.encode();
    let mut seen = HashSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split_once(' ').unwrap().0.to_owned();
            assert!(seen.insert(current.clone()), "{current} has two blocks");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(name == current || base == current, "{name} stands in the block of {current}");
        }
    }
    assert!(seen.contains("weir_route_duration_milliseconds") && seen.contains("process_open_fds"));
    let without: String =
        registry.encoder().without_process().map(|piece| String::from_utf8(piece.to_vec()).unwrap()).collect();
    assert!(!without.contains("process_"));
}

#[test]
fn label_sets_are_bounded() {
    let registry = Registry::with_limits(own(), "0.1.0", Limits { http: 10, tcp: 10, routes: 2 });
    let service = Service::new("s", "s", "s");
    let mut cache = SeriesCache::new(registry.clone());
    for n in 0..100 {
        let peer = Peer::new(PeerFields { workload: format!("w{n}"), ..PeerFields::default() });
        cache.http(&request(&peer, &service)).record(Duration::ZERO, 0, 0);
    }
    for n in 0..5 {
        registry.route(&RouteLabels { direction: Direction::Inbound, service: &service, route: &format!("r{n}") });
    }
    let text = registry.encode();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(lines.len(), 11);
    let other = lines.iter().find(|line| line.contains("source_workload=\"other\"")).unwrap();
    assert!(other.ends_with(" 90") && other.contains("response_code=\"other\""), "{other}");
    assert!(text.contains("weir_label_sets_dropped_total{metric=\"requests\"} 90\n"));
    assert!(text.contains("weir_label_sets_dropped_total{metric=\"routes\"} 3\n"));
}

#[test]
fn cache_tells_label_sets_apart() {
    let registry = Registry::new(own(), "0.1.0");
    let mut cache = SeriesCache::new(registry);
    let (a, b, service) = (caller(), Peer::unknown(), Service::new("s", "s", "s"));
    let base = request(&a, &service);
    let all = [
        base,
        HttpLabels { peer: &b, ..base },
        HttpLabels { code: 503, ..base },
        HttpLabels { flags: ResponseFlags::UF, ..base },
        HttpLabels { grpc_status: Some(0), ..base },
        HttpLabels { protocol: Protocol::Grpc, ..base },
        HttpLabels { direction: Direction::Outbound, ..base },
        HttpLabels { security: SecurityPolicy::None, ..base },
        HttpLabels { security: SecurityPolicy::Unknown, ..base },
    ];
    let first: Vec<_> = all.iter().map(|labels| Arc::as_ptr(cache.http(labels))).collect();
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), all.len());
    let second: Vec<_> = all.iter().map(|labels| Arc::as_ptr(cache.http(labels))).collect();
    assert_eq!(first, second);
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }
}

fn entry() -> AccessEntry<'static> {
    AccessEntry::new(Direction::Outbound, "HTTP/1.1", SystemTime::UNIX_EPOCH)
}

#[test]
fn a_line_has_the_keys_that_istio_uses() {
    let sink = Sink::default();
    let log = AccessLog::start(sink.clone(), Mode::On, Arc::default()).unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/catalog".parse().unwrap();
    log.handle().log(&AccessEntry {
        method: Some(b"GET"),
        path: Some(b"/a?b=\"c\"\r\nX-Evil: 1"),
        response_code: 503,
        response_flags: ResponseFlags::UF | ResponseFlags::URX,
        response_code_details: Some("upstream_reset_before_response_started"),
        bytes_received: 1,
        bytes_sent: 2,
        duration: Duration::from_millis(3),
        upstream_service_time: Some(Duration::from_millis(2)),
        authority: Some(b"catalog.shop"),
        upstream_host: Some("[fd00::1]:80".parse().unwrap()),
        upstream_cluster: Some("outbound|80||catalog.shop.svc.cluster.local"),
        requested_server_name: Some(b"\xff\x00"),
        route_object: Some("HTTPRoute/shop/catalog"),
        peer_identity: Some(&identity),
        reason: Some("no endpoint answered"),
        ..entry()
    });
    assert!(log.flush(Duration::from_secs(10)));
    let lines = sink.lines();
    assert_eq!(lines.len(), 1, "an injected newline must not make a second line");
    assert_eq!(
        lines[0],
        serde_json::json!({
            "start_time": "1970-01-01T00:00:00.000Z", "direction": "outbound", "method": "GET",
            "path": "/a?b=\"c\"\r\nX-Evil: 1", "protocol": "HTTP/1.1", "response_code": 503, "response_flags": "UF,URX",
            "response_code_details": "upstream_reset_before_response_started", "bytes_received": 1, "bytes_sent": 2,
            "duration": 3, "upstream_service_time": 2, "authority": "catalog.shop", "upstream_host": "[fd00::1]:80",
            "upstream_cluster": "outbound|80||catalog.shop.svc.cluster.local", "requested_server_name": "\u{fffd}\u{0}",
            "route_object": "HTTPRoute/shop/catalog", "peer_identity": "spiffe://cluster.local/ns/shop/sa/catalog",
            "reason": "no endpoint answered",
        })
    );
}

#[test]
fn modes() {
    let sink = Sink::default();
    let log = AccessLog::start(sink.clone(), Mode::Off, Arc::default()).unwrap();
    let mut handle = log.handle();
    assert!(handle.is_off());
    handle.log(&entry());
    log.set_mode(Mode::Sample(10));
    for n in 0..100 {
        handle.log(&AccessEntry { response_code: if n == 55 { 500 } else { 200 }, ..entry() });
    }
    assert!(log.flush(Duration::from_secs(10)));
    let lines = sink.lines();
    assert_eq!(lines.len(), 11);
    assert!(lines.iter().any(|line| line["response_code"] == 500));
    assert_eq!("1".parse::<Mode>().unwrap().to_bits(), Mode::On.to_bits());
    for bad in ["", "0", "-1", "all", "1.5"] {
        assert!(bad.parse::<Mode>().is_err(), "{bad}");
    }
}

/// Blocks in its first write until it is told to go on.
struct Stuck(mpsc::Receiver<()>, Sink);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_output_costs_lines_but_no_time() {
    let (go, wait) = mpsc::channel();
    let (sink, dropped) = (Sink::default(), Arc::new(Counter::default()));
    let log = AccessLog::start(Stuck(wait, sink.clone()), Mode::On, dropped.clone()).unwrap();
    let mut handle = log.handle();
    let path = vec![b'x'; 1000];
    let total = 5000;
    for _ in 0..total {
        handle.log(&AccessEntry { path: Some(&path), ..entry() });
    }
    assert!(!log.flush(Duration::from_millis(20)));
    let lost = dropped.get();
    assert!(lost > 0 && lost < total, "{lost} of {total} lines dropped");
    drop(go);
    assert!(log.flush(Duration::from_secs(10)));
    assert_eq!(u64::try_from(sink.lines().len()).unwrap() + lost, total);
}

#[test]
fn lines_of_many_workers_never_mix() {
    let sink = Sink::default();
    let log = AccessLog::start(sink.clone(), Mode::On, Arc::default()).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let mut handle = log.handle();
            std::thread::spawn(move || {
                for _ in 0..500 {
                    handle.log(&AccessEntry { bytes_sent: n, ..entry() });
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(log.flush(Duration::from_secs(10)));
    let lines = sink.lines();
    for n in 0..4 {
        assert_eq!(lines.iter().filter(|line| line["bytes_sent"] == n).count(), 500);
    }
}

#[test]
fn every_metric_is_documented() {
    let documented = include_str!("../../../docs/observability.md");
    let registry = Registry::new(own(), "0.1.0");
    let service = Service::new("s", "s", "s");
    let peer = caller();
    registry.http(&request(&peer, &service));
    registry.route(&RouteLabels { direction: Direction::Outbound, service: &service, route: "default" });
    registry.tcp(&TcpLabels {
        direction: Direction::Inbound,
        peer: &peer,
        service: &service,
        flags: ResponseFlags::NONE,
        security: SecurityPolicy::None,
    });
    for line in registry.encode().lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else { continue };
        let name = rest.split(' ').next().unwrap();
        assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/observability.md");
    }
}
