//! Backends that are called in another version of HTTP than their callers speak, because their Service's port says so.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server};
use http::{Request, Response};
use serde_json::json;
use weir_tests::{
    App, Flow, PodSpec, World, at,
    http2::{self, H2App, H2Client},
    is_root, until,
};

const H2C: &str = "web@kubernetes.io/h2c";
const WEBSOCKET: &str = "web@kubernetes.io/ws";

#[test]
fn a_backend_of_http2_is_called_in_it_by_callers_of_http1() {
    if !is_root() {
        return;
    }
    let world = World::new("to-h2");
    let inside = world.pod(PodSpec::new("inside").label("app", "in").port("http", 9000));
    let outside = world.pod(PodSpec::new("outside").label("app", "out").outside());
    let _apps = [&inside, &outside].map(|pod| H2App::echo(&pod.netns, 9000, &pod.name));
    let selector = |app: &str| json!({"app": app});
    let services = [
        ("inside", world.service("in", 10, &selector("in"), &[(H2C, 80, 9000)])),
        ("outside", world.service("out", 11, &selector("out"), &[(H2C, 80, 9000)])),
    ];
    let client = world.pod(PodSpec::new("client"));
    for (name, ip) in services {
        let mut caller = client.connect(at(ip, 80));
        // One connection of the caller for all of it.
        let answer =
            caller.ask("GET /a/../b?c=d HTTP/1.1\r\nhost: shop.test\r\nkeep-alive: x\r\nx-own: 1\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.header("x-pod")), (200, Some(name)), "{answer:?}");
        assert_eq!(answer.header("x-path"), Some("/b?c=d"));
        assert_eq!(answer.header("x-authority"), Some("shop.test"));
        assert_eq!(answer.header("x-headers"), Some("x-own,x-request-id"), "nothing is added, nothing is lost");
        assert_eq!(answer.header("date"), None, "{answer:?}");
        let large = vec![b'x'; 1 << 20];
        let answer = caller.try_post("/large", &large).unwrap();
        assert!(answer.status == 200 && answer.body == large, "{}", answer.body.len());
        let answer = caller
            .ask("POST /chunks HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            .unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "abcde"));
        caller.send(b"HEAD /head HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let answer = caller.response_to(true).unwrap();
        assert_eq!((answer.status, answer.header("x-path")), (200, Some("/head")));
        let answer = caller
            .ask("POST /wait HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi")
            .unwrap();
        let answer = if answer.status == 100 { caller.response().unwrap() } else { answer };
        assert_eq!((answer.status, &*answer.text()), (200, "hi"), "{answer:?}");
        // What the caller speaks already needs no conversion.
        http2::run(async {
            let mut caller = H2Client::connect(&client.netns, at(ip, 80)).await.unwrap();
            let reply = caller.call("/grpc", b"hello").await.unwrap();
            assert_eq!((reply.grpc(), reply.header("x-pod")), (Some(0), Some(name)), "{reply:?}");
        });
    }
    let line =
        inside.logged("the converted request", |line| line["path"].as_str().is_some_and(|path| path.starts_with("/b")));
    assert_eq!((&line["protocol"], &line["response_code"]), (&json!("HTTP/2"), &json!(200)), "{line}");
    let line = client.logged("the same", |line| line["path"].as_str().is_some_and(|path| path.starts_with("/b")));
    assert_eq!((&line["protocol"], &line["response_code"]), (&json!("HTTP/1.1"), &json!(200)), "{line}");

    // From outside of the mesh nothing is converted: the application gets what was sent.
    let stranger = world.pod(PodSpec::new("stranger").outside());
    let answer = stranger.connect(at(inside.ip, 9000)).try_get("/direct");
    assert!(!matches!(&answer, Ok(answer) if answer.status == 200), "{answer:?}");
}

#[test]
fn what_goes_wrong_in_http2_is_told_in_http1() {
    if !is_root() {
        return;
    }
    let world = World::new("to-h2-bad");
    let gone = world.pod(PodSpec::new("gone").label("app", "catalog").port("http", 9000));
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[(H2C, 80, 9000)]);
    let client = world.pod(PodSpec::new("client"));
    let answer = client.connect(at(ip, 80)).get("/nobody");
    assert_eq!(answer.status, 503);
    assert!(answer.text().starts_with("weir: the upstream can not be reached"), "{}", answer.text());

    // An application that is there, and ends its answers as the path says.
    let there = world.pod(PodSpec::new("there").label("app", "catalog").port("http", 9000));
    let (begun, cancelled) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (begun.clone(), cancelled.clone());
    let _app = H2App::new(&there.netns, 9000, server::Builder::new(), move |request, mut respond| {
        let (begun, cancelled) = counts.clone();
        async move {
            let head = Response::builder().header("x-pod", "there");
            match request.uri().path() {
                "/cut" => {
                    let mut out = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    out.send_data(Bytes::from_static(b"half"), false).unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await; // the half is out before the reset
                    out.send_reset(Reason::INTERNAL_ERROR);
                }
                "/never" => {
                    begun.fetch_add(1, Relaxed);
                    if std::future::poll_fn(|cx| respond.poll_reset(cx)).await.is_ok() {
                        cancelled.fetch_add(1, Relaxed);
                    }
                }
                _ => drop(respond.send_response(head.body(()).unwrap(), true)),
            }
        }
    });
    until("the other endpoint is known", || client.admin("/config_dump").contains(&there.ip.to_string()).then_some(()));
    let mut caller = client.connect(at(ip, 80));
    for _ in 0..20 {
        let answer = caller.get("/fine");
        assert_eq!((answer.status, answer.header("x-pod")), (200, Some("there")), "tried elsewhere: {answer:?}");
    }
    drop(gone);

    let mut caller = client.connect(at(ip, 80));
    let cut = caller.try_get("/cut");
    assert!(cut.is_err(), "half an answer must not look whole: {cut:?}");
    let line = client.logged("the cut answer", |line| line["path"] == "/cut");
    assert_ne!(line["response_flags"], "-", "{line}");

    let mut caller = client.connect(at(ip, 80));
    caller.send(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    until("the request is under way", || (begun.load(Relaxed) == 1).then_some(()));
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&caller.stream, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
    drop(caller); // by a reset: one that only ends its side may still wait for its answer
    until("the application hears that nobody waits", || (cancelled.load(Relaxed) == 1).then_some(()));
}

#[test]
fn a_backend_of_http1_is_called_in_it_by_callers_of_http2() {
    if !is_root() {
        return;
    }
    let world = World::new("to-h1");
    let inside = world.pod(PodSpec::new("inside").label("app", "in").port("http", 9000));
    let outside = world.pod(PodSpec::new("outside").label("app", "out").outside());
    let gone = world.pod(PodSpec::new("gone").label("app", "gone").port("http", 9000));
    let apps = [&inside, &outside].map(|pod| App::echo(&pod.netns, 9000, &pod.name));
    let selector = |app: &str| json!({"app": app});
    let services = [
        world.service("in", 10, &selector("in"), &[(WEBSOCKET, 80, 9000)]),
        world.service("out", 11, &selector("out"), &[(WEBSOCKET, 80, 9000)]),
    ];
    let nobody = world.service("gone", 12, &selector("gone"), &[(WEBSOCKET, 80, 9000)]);
    let client = world.pod(PodSpec::new("client"));
    for (app, ip) in apps.iter().zip(services) {
        http2::run(async {
            let mut caller = H2Client::connect(&client.netns, at(ip, 80)).await.unwrap();
            let request = Request::get("http://shop.test/a/../b?c=d").header("x-own", "1").body(()).unwrap();
            let reply = caller.ask(request, Bytes::new()).await.unwrap();
            assert_eq!(reply.status, 200, "{reply:?}");
            let got = app.last().unwrap();
            assert!(got.head.starts_with("GET /b?c=d HTTP/1.1\r\n"), "{}", got.head);
            assert_eq!((got.header("host"), got.header("x-own")), (Some("shop.test"), Some("1")), "{}", got.head);
            let large = Bytes::from(vec![b'x'; 1 << 20]);
            let request = Request::post("http://shop.test/large").body(()).unwrap();
            let reply = caller.ask(request, large.clone()).await.unwrap();
            assert_eq!(reply.status, 200, "{reply:?}");
            assert!(app.last().unwrap().body == large);
            for name in ["connection", "keep-alive", "transfer-encoding"] {
                assert_eq!(reply.header(name), None, "{reply:?}");
            }
        });
        // And what is HTTP/1.1 already needs no conversion: WebSocket among it.
        assert_eq!(client.connect(at(ip, 80)).get("/plain").status, 200);
    }
    http2::run(async {
        let mut caller = H2Client::connect(&client.netns, at(nobody, 80)).await.unwrap();
        let reply = caller.ask(Request::get("http://shop.test/nobody").body(()).unwrap(), Bytes::new()).await.unwrap();
        assert_eq!(reply.status, 503);
        assert!(reply.body.starts_with(b"weir: the upstream can not be reached"), "{reply:?}");
        // An application that ends in the middle of its answer.
        let _app = App::http(&gone.netns, 9000, |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")?;
            Ok(Flow::Close)
        });
        let cut = caller.ask(Request::get("http://shop.test/cut").body(()).unwrap(), Bytes::new()).await;
        // Where the end is known before the head was passed on, there is still a 503 to give.
        let whole = cut.as_ref().is_ok_and(|reply| reply.status != 503);
        assert!(!whole, "half an answer must not look whole: {cut:?}");
    });
}
