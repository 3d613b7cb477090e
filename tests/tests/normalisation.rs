//! Requests that are written so that a rule might not know them again: what a rule is compared with is what is forwarded, in HTTP/1.1 and
//! in HTTP/2 alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use h2::server;
use http::Response;
use serde_json::json;
use weir_tests::{App, Flow, Pod, PodSpec, World, at, frames::*, http2::H2App, is_root, until};

/// Who got which paths.
type Seen = Arc<Mutex<Vec<(&'static str, String)>>>;

struct Shop {
    client: Pod,
    seen: Seen,
    http1: SocketAddr,
    http2: SocketAddr,
    _apps: Vec<(App, H2App)>,
    _pods: [Pod; 2],
    _world: World,
}

impl Shop {
    /// Rules send `/admin`, and whoever says `x-role: admin`, to one pod, and everything else to another.
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let seen = Seen::default();
        let pods = ["guarded", "open"].map(|name| {
            world.pod_unready(PodSpec::new(name).port("http", 8080).port("http2", 9000)) //
        });
        let apps = ["guarded", "open"].into_iter().zip(&pods).map(|(name, pod)| apps(name, pod, &seen)).collect();
        let mut services = [("first", "http", 80, 8080, 20), ("second", "http2", 90, 9000, 30)].into_iter().map(
            |(service, port_name, port, target, number)| {
                for (more, backend) in (1..).zip(["guarded", "open"]) {
                    let name = format!("{backend}-{port_name}");
                    world.service(&name, number + more, &json!({"app": backend}), &[(port_name, port, target)]);
                }
                let ip = world.service(service, number, &json!({"app": "none"}), &[(port_name, port, target)]);
                let to = |backend: &str| json!([{"name": format!("{backend}-{port_name}"), "port": port}]);
                let path = json!([{"path": {"type": "PathPrefix", "value": "/admin"}}]);
                let role = json!([{"headers": [{"name": "x-role", "value": "admin"}]}]);
                world.route(
                    service,
                    &json!([
                        {"matches": path, "backendRefs": to("guarded")},
                        {"matches": role, "backendRefs": to("guarded")},
                        {"backendRefs": to("open")},
                    ]),
                );
                at(ip, port)
            },
        );
        let (http1, http2) = (services.next().unwrap(), services.next().unwrap());
        drop(services);
        let client = world.pod(PodSpec::new("client"));
        pods.iter().for_each(Pod::wait_ready);
        let shop = Self { client, seen, http1, http2, _apps: apps, _pods: pods, _world: world };
        until("the rules are in force", || {
            let known = |got: Option<(&str, String)>, name: &str| got.is_some_and(|(pod, _)| pod == name);
            (known(shop.by_http1("/admin", &[]), "guarded")
                && known(shop.by_http2("/admin", &[]), "guarded")
                && known(shop.by_http1("/", &[]), "open")
                && known(shop.by_http2("/", &[]), "open"))
            .then_some(())
        });
        shop
    }

    /// Who got what; `None` where it was refused.
    fn by_http1(&self, path: &str, headers: &[(&str, &str)]) -> Option<(&'static str, String)> {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{lines}\r\n");
        self.seen.lock().unwrap().clear();
        let response = self.client.connect(self.http1).ask(&request).unwrap();
        self.got(response.status, path)
    }

    fn by_http2(&self, path: &str, headers: &[(&str, &str)]) -> Option<(&'static str, String)> {
        let fields = [&[(":method", "GET"), (":scheme", "http"), (":authority", "shop"), (":path", path)], headers];
        self.seen.lock().unwrap().clear();
        let mut peer = Peer::client(self.client.netns.connect(self.http2).unwrap(), &[]).unwrap();
        peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields.concat())).unwrap();
        let status = match peer.outcome(1) {
            Outcome::Status(status) => status,
            Outcome::Reset(_) | Outcome::Ended(_) => 400,
        };
        self.got(status, path)
    }

    fn got(&self, status: u16, path: &str) -> Option<(&'static str, String)> {
        let seen = self.seen.lock().unwrap();
        assert!(matches!((status, seen.len()), (200, 1) | (400 | 503, 0)), "{path}: {status}, {seen:?}");
        seen.first().cloned()
    }
}

fn apps(name: &'static str, pod: &Pod, seen: &Seen) -> (App, H2App) {
    let (first, second) = (seen.clone(), seen.clone());
    let http1 = App::http(&pod.netns, 8080, move |request, stream| {
        first.lock().unwrap().push((name, request.path.clone()));
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        Ok(Flow::Keep)
    });
    let http2 = H2App::new(&pod.netns, 9000, server::Builder::new(), move |request, mut respond| {
        let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
        second.lock().unwrap().push((name, path));
        async move {
            let _ = respond.send_response(Response::new(()), true);
        }
    });
    (http1, http2)
}

/// What is sent, who gets it, and as what; nobody where it is refused.
const PATHS: &[(&str, Option<(&str, &str)>)] = &[
    ("/admin/x", Some(("guarded", "/admin/x"))),
    ("//admin", Some(("guarded", "/admin"))),
    ("///admin//x", Some(("guarded", "/admin/x"))),
    ("/./admin", Some(("guarded", "/admin"))),
    ("/a/../admin", Some(("guarded", "/admin"))),
    ("/a/..//admin", Some(("guarded", "/admin"))),
    ("/../../admin", Some(("guarded", "/admin"))),
    ("/%61dmin", Some(("guarded", "/admin"))),
    ("/%2e%2E/admin", Some(("guarded", "/admin"))),
    ("/a/.%2e/admin", Some(("guarded", "/admin"))),
    ("/admin/../open", Some(("open", "/open"))),
    ("/admin?x=/../open", Some(("guarded", "/admin?x=/../open"))),
    // An encoded slash or backslash is a character of a name, also for who gets it.
    ("/%2fadmin", Some(("open", "/%2Fadmin"))),
    ("/x/..%2Fadmin", Some(("open", "/x/..%2Fadmin"))),
    ("/x%5C..%5Cadmin", Some(("open", "/x%5C..%5Cadmin"))),
    // Never decoded twice.
    ("/%252e%252e/admin", Some(("open", "/%252e%252e/admin"))),
    ("/%2561dmin", Some(("open", "/%2561dmin"))),
    // Other names.
    ("/Admin", Some(("open", "/Admin"))),
    ("/administrator", Some(("open", "/administrator"))),
    ("/admin;x=1", Some(("open", "/admin;x=1"))),
    ("/x;/../admin", Some(("guarded", "/admin"))),
    ("/%c0%afadmin", Some(("open", "/%C0%AFadmin"))),
    // What two readers could take for two things.
    ("/admin%00", None),
    ("/%00/../admin", None),
    ("/%", None),
    ("/%%32%66admin", None),
    ("/%u002fadmin", None),
    ("/ad min", None),
    ("/admin\t", None),
];

#[test]
fn a_path_is_forwarded_as_the_rules_compared_it() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("paths");
    for (path, want) in PATHS {
        let want = want.map(|(pod, path)| (pod, path.to_owned()));
        assert_eq!(shop.by_http1(path, &[]), want, "HTTP/1.1: {path}");
        assert_eq!(shop.by_http2(path, &[]), want, "HTTP/2: {path}");
    }
    // Where the protocols' readers differ: refused, or cut off before anybody compares.
    for (path, want) in [("/\\admin", "/admin"), ("/a\\..\\admin", "/admin"), ("/open#/../admin", "/open")] {
        for got in [shop.by_http1(path, &[]), shop.by_http2(path, &[])].into_iter().flatten() {
            assert_eq!(got.1, want, "{path}");
            assert_eq!(got.0, if want == "/admin" { "guarded" } else { "open" }, "{path}");
        }
    }
    // All encoded bytes: as they came but for capitals, or decoded where they need no code.
    for byte in 0..=255_u8 {
        let path = format!("/x%{byte:02x}y");
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let want = if plain { format!("/x{}y", char::from(byte)) } else { format!("/x%{byte:02X}y") };
        let want = (byte != 0).then_some(("open", want));
        assert_eq!(shop.by_http1(&path, &[]), want, "HTTP/1.1: {path}");
        assert_eq!(shop.by_http2(&path, &[]), want, "HTTP/2: {path}");
    }
}

#[test]
fn a_header_that_is_repeated_is_compared_value_by_value() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("repeated");
    let role = "x-role";
    for (headers, want) in [
        (vec![(role, "admin")], "guarded"),
        (vec![(role, "admin"), (role, "user")], "guarded"),
        (vec![(role, "user"), (role, "admin")], "guarded"),
        (vec![(role, "admin"), (role, "admin")], "guarded"),
        (vec![(role, "admin,user")], "open"),
        (vec![(role, "user"), (role, "users")], "open"),
        (vec![(role, "Admin")], "open"),
        (vec![(role, "")], "open"),
        (vec![("x_role", "admin")], "open"),
    ] {
        for got in [shop.by_http1("/", &headers), shop.by_http2("/", &headers)] {
            assert_eq!(got.map(|(pod, _)| pod), Some(want), "{headers:?}");
        }
    }
}
