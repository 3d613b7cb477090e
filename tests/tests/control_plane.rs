//! The mesh without its control plane: stopped, restarted, and unreachable.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::json;
use weir_sandbox::tap::Verdict;
use weir_tests::{App, Load, Pod, PodSpec, World, at, is_root, until};

struct Mesh {
    client: Pod,
    _server: Pod,
    /// A pod that nobody has called before.
    other: Pod,
    _apps: [App; 2],
    service: SocketAddr,
    world: World,
}

impl Mesh {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let server = world.pod_unready(PodSpec::new("server").port("http", 8080).workers(workers));
        let other = world.pod_unready(PodSpec::new("other").port("http", 8080));
        let apps = [&server, &other].map(|pod| App::echo(&pod.netns, 8080, &pod.name));
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
        let client = world.pod(PodSpec::new("client").workers(workers));
        [&server, &other].into_iter().for_each(Pod::wait_ready);
        assert_eq!(client.connect(service).get("/first").status, 200);
        world.node.ip("address add 198.18.9.1/32 dev lo");
        Self { client, _server: server, other, _apps: apps, service, world }
    }

    fn serial(&self) -> String {
        let certs = self.client.admin("/certs");
        assert!(certs.contains("serial"), "{certs}");
        certs
    }

    /// What is known works, also on new connections; what is not known is refused in time, with the reason, and leaves no trace on
    /// the wire; what is outside of the mesh is nobody's business.
    fn works_alone(&self) {
        for _ in 0..20 {
            let response = self.client.connect(self.service).get("/known");
            assert_eq!(response.status, 200, "{response:?}");
        }
        let tap = self.world.tap(&self.client);
        let start = Instant::now();
        let answer =
            self.client.try_connect(at(self.other.ip, 8080)).and_then(|mut connection| connection.try_get("/unknown"));
        let took = start.elapsed();
        assert!(answer.is_err(), "{answer:?}");
        assert!((Duration::from_millis(4500)..Duration::from_secs(9)).contains(&took), "{took:?}");
        until("the reason is in the log", || {
            let texts = ["connection refused", "destination_not_known_yet", &self.other.ip.to_string()];
            (!self.client.log(&texts).is_empty()).then_some(())
        });
        assert!(self.client.metric("weir_connections_refused_total", &[("reason", "destination_not_known_yet")]) > 0.9);
        for flow in World::between_pods(tap) {
            assert_ne!(flow.server.ip(), self.other.ip, "something was sent: {flow:?}");
            assert_ne!(flow.verdict(), Verdict::Plaintext, "{flow:?}");
        }
        let outside = App::echo(&self.world.node, 8088, "outside");
        assert_eq!(self.client.connect(at([198, 18, 9, 1], 8088)).get("/").header("x-pod"), Some("outside"));
        drop(outside);
        assert_eq!(self.client.readiness().unwrap().status, 200, "a proxy that works is ready");
    }

    fn recovers(&self) {
        let response = until("what was not known is known", || {
            self.client.try_connect(at(self.other.ip, 8080)).ok()?.try_get("/new").ok()
        });
        assert_eq!((response.status, response.header("x-pod")), (200, Some("other")), "{response:?}");
    }
}

#[test]
fn a_stopped_control_plane_is_not_missed_and_a_new_one_is_found() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let mesh = Mesh::new("stopped", workers);
        let serial = mesh.serial();
        let load = Load::start(&mesh.client, mesh.service, 2);
        mesh.world.stop_control();
        until("the loss is noticed", || {
            (!mesh.client.log(&["no connection to the control plane"]).is_empty()).then_some(())
        });
        mesh.works_alone();
        mesh.world.start_control();
        until("all proxies are back", || (mesh.world.control_log(&["proxy connected"]).len() >= 3).then_some(()));
        until("the client says so", || mesh.client.admin("/config_dump").contains("\"connected\"").then_some(()));
        // Versions are hashes of contents: who has everything gets nothing. What the client had asked for in vain is new.
        let resources = mesh.world.control_metric("weir_control_pushed_resources_total");
        assert!(resources < 6.5, "{resources} resources were sent again");
        mesh.recovers();
        load.more(50);
        let outcome = load.stop();
        assert!(outcome.failed.is_empty(), "{workers} workers: {:?} of {}", outcome.failed, outcome.total());
        assert_eq!(mesh.serial(), serial, "the certificate was good");
        assert_eq!(mesh.client.log(&["certificate installed"]).len(), 1);
        assert!(mesh.world.control_metric("weir_control_certificates_issued_total") < 0.1);
    }
}

#[test]
fn a_control_plane_that_does_not_answer_is_not_missed_either() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("hole", 1);
    mesh.world.node.nft("add table inet hole");
    mesh.world.node.nft("add chain inet hole in { type filter hook input priority 0 ; }");
    mesh.world.node.nft("add rule inet hole in tcp dport 15012 drop");
    mesh.works_alone();
    // A pod that comes up meanwhile can not be ready, and says why.
    let late = mesh.world.pod_unready(PodSpec::new("late"));
    let why = until("the late pod says why", || {
        late.readiness().map(|response| response.text()).filter(|text| text.contains("198.18.0.1:15012"))
    });
    assert!(why.contains("control plane"), "{why}");
    mesh.world.node.nft("delete table inet hole");
    mesh.recovers();
    late.wait_ready();
}

#[test]
fn what_does_not_exist_is_passed_on_only_after_the_control_plane_has_said_so() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("nobody", 1);
    // Inside of the ranges, but no pod: a definite answer. The packet goes where the caller meant it to go.
    mesh.world.node.ip("address add 198.18.0.200/32 dev lo");
    let app = App::echo(&mesh.world.node, 8088, "nobody's");
    assert_eq!(mesh.client.connect(at([198, 18, 0, 200], 8088)).get("/").header("x-pod"), Some("nobody's"));
    // An address that nobody has answers as it would without a proxy.
    assert!(mesh.client.admin("/config_dump").contains("unknown"));
    drop(app);
    let refused =
        mesh.client.try_connect(at([198, 18, 0, 200], 8088)).and_then(|mut connection| connection.try_get("/"));
    assert!(refused.is_err(), "{refused:?}");
}
