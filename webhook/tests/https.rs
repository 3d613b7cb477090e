//! The webhook as an API server, or somebody on the pod network, meets it: over real HTTPS.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not take for tests

mod common;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{
    assert_allowed,
    server::{Folder, PATIENCE, Running, answer, connect, connect_with, pair, post, write},
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

fn review(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "", "namespace": "shop", "operation": "CREATE", "dryRun": false,
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": object, "oldObject": null, "options": {"kind": "CreateOptions"},
        },
    })
}

fn pod() -> Value {
    json!({
        "metadata": {"generateName": "web-"},
        "spec": {"containers": [{"name": "web", "readinessProbe": {"tcpSocket": {"port": 8080}}}]},
    })
}

/// For the pods of a workload a controller gets the answer and drops the warnings: the webhook's own log has them as well.
#[test]
fn what_another_webhook_has_damaged_is_said() {
    let mut pod = pod();
    let lost = json!({"name": "weir-proxy", "image": "weir/proxy:test", "command": ["/weir-proxy"], "args": ["run"]});
    pod["spec"]["initContainers"] = json!([lost]);
    let answer = weir_webhook::review::review(&common::settings(), review(&pod).to_string().as_bytes()).unwrap();
    assert_eq!((answer.result.as_str(), &*answer.object, answer.message), ("repaired", "shop/web-", None));
    let [warning] = &answer.warnings[..] else { panic!("{:?}", answer.warnings) };
    assert!(warning.starts_with("weir: ") && warning.contains("lost restartPolicy"), "{warning}");
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["response"]["warnings"], json!([warning]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_injected_and_the_patch_is_base64() {
    let webhook = Running::start().await;
    let (status, text) = webhook.inject(review(&pod()).to_string().as_bytes()).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&answer["apiVersion"], &answer["kind"]), (&json!("admission.k8s.io/v1"), &json!("AdmissionReview")));
    let response = &answer["response"];
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    assert_allowed(&patch);
    let mut pod = pod();
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "weir-proxy");
    assert_eq!(webhook.metric("weir_webhook_reviews_total{result=\"injected\"}").await, 1.0);
    assert_eq!(webhook.metric("weir_webhook_review_duration_seconds_count").await, 1.0);
    let expiry = webhook.metric("weir_webhook_certificate_expiry_timestamp_seconds").await;
    assert!(expiry > 1.7e9, "{expiry}");

    let (status, text) = webhook.inject(review(&pod).to_string().as_bytes()).await;
    let again: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &again["response"]["patch"], &again["response"]["patchType"]),
        (200, &Value::Null, &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_everything_at_once() {
    let webhook = Running::start().await;
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({
        "weir.dev/drain-seconds": "soon\r\nX-Injected: 1\u{1b}[31m", "weir.dev/opaque-ports": "\u{0}", "weir.dev/\u{7}x": "1",
    });
    pod["spec"]["securityContext"] = json!({"runAsUser": 1337});
    let (status, text) = webhook.inject(review(&pod).to_string().as_bytes()).await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_str(&text).unwrap();
    let response = &answer["response"];
    assert_eq!((&response["allowed"], &response["patch"]), (&json!(false), &Value::Null));
    let message = response["status"]["message"].as_str().unwrap();
    for part in ["weir.dev/drain-seconds", "weir.dev/opaque-ports", "weir.dev/?x", "runAsUser is 1337"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert_eq!(webhook.metric("weir_webhook_reviews_total{result=\"refused\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_creation_of_pods_is_changed() {
    let webhook = Running::start().await;
    let injected = json!({
        "metadata": {"name": "web"},
        "spec": {
            "initContainers": [{"name": "weir-proxy", "image": "weir/proxy:test", "restartPolicy": "Always"}],
            "containers": [{"name": "web"}],
            "ephemeralContainers": [{"name": "debug", "securityContext": {"runAsUser": 1337}}],
        },
    });
    for (change, allowed) in [
        (json!({"operation": "UPDATE"}), true),
        (json!({"operation": "DELETE", "object": null}), true),
        (json!({"operation": "CONNECT", "subResource": "exec"}), true),
        (json!({"resource": {"group": "apps", "version": "v1", "resource": "deployments"}}), true),
        (json!({"resource": null}), true),
        (json!({"operation": "UPDATE", "subResource": "ephemeralcontainers", "object": injected}), false),
        (json!({"operation": "UPDATE", "subResource": "ephemeralcontainers"}), true),
    ] {
        let mut review = review(&pod());
        for (key, value) in change.as_object().unwrap() {
            review["request"][key] = value.clone();
        }
        let (status, text) = webhook.inject(review.to_string().as_bytes()).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(allowed)), "{change}");
        assert_eq!(answer["response"]["patch"], Value::Null, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_review_is_answered_by_400_and_serving_goes_on() {
    let webhook = Running::start().await;
    let deep = |open: &str, close: &str| {
        let nested = format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
        review(&json!("HERE")).to_string().replace("\"HERE\"", &nested)
    };
    let good = review(&pod());
    let with = |path: &str, value: Value| {
        let mut review = good.clone();
        *review.pointer_mut(path).unwrap() = value;
        review.to_string()
    };
    let without = |key: &str| {
        let mut review = good.clone();
        review["request"].as_object_mut().unwrap().remove(key);
        review.to_string()
    };
    let bodies = [
        String::new(),
        "null".into(),
        "[]".into(),
        "\"AdmissionReview\"".into(),
        "{}".into(),
        "{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"}".into(),
        "{".repeat(1_000_000),
        "[".repeat(3_000_000),
        deep("[", "]"),
        deep("{\"a\":", "}"),
        good.to_string()[..300].to_owned(),
        format!("{good}x"),
        "\u{feff}".to_owned() + &good.to_string(),
        with("/apiVersion", json!("admission.k8s.io/v1beta1")),
        with("/kind", json!("Pod")),
        with("/kind", json!(7)),
        with("/request", Value::Null),
        with("/request", json!([])),
        with("/request/uid", json!("")),
        with("/request/uid", json!("u".repeat(129))),
        with("/request/uid", json!({})),
        with("/request/operation", json!(1)),
        without("uid"),
    ];
    for body in &bodies {
        let (status, text) = webhook.inject(body.as_bytes()).await;
        let start: String = body.chars().take(100).collect();
        assert_eq!(status, 400, "{start}: {text}");
        assert!(text.len() < 500 && text.lines().count() == 1, "{start}: {text}");
    }
    let (status, _) = webhook.inject(&[0xff, 0xfe, 0, b'{']).await;
    assert_eq!(status, 400);

    // A review whose object is no pod is answered, and refused.
    let odd = [
        json!(null),
        json!("x"),
        json!([]),
        json!({}),
        json!({"spec": 1}),
        json!({"spec": {"containers": {}}}),
        json!({"spec": {"containers": [1]}, "metadata": []}),
        json!({"spec": {"containers": [{"name": {}}]}}),
        json!({"spec": {"initContainers": "x", "volumes": 5}}),
    ];
    for object in &odd {
        let (status, text) = webhook.inject(review(object).to_string().as_bytes()).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(false)), "{object}");
    }
    assert_eq!(webhook.metric("weir_webhook_rejected_requests_total{code=\"400\"}").await, (bodies.len() + 1) as f64);
    assert_eq!(webhook.inject(good.to_string().as_bytes()).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_another_form_are_refused() {
    let webhook = Running::start().await;
    let body = review(&pod()).to_string();
    for kind in ["text/plain", "application/yaml", "application/x-www-form-urlencoded", ""] {
        assert_eq!(webhook.send(&post(kind, body.as_bytes())).await.0, 415, "{kind}");
    }
    assert_eq!(webhook.send(&post("application/json; charset=utf-8", body.as_bytes())).await.0, 200);
    let get = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into_bytes()
    };
    assert_eq!(webhook.send(&get("GET", "/inject")).await.0, 405);
    assert_eq!(webhook.send(&get("PUT", "/inject")).await.0, 405);
    assert_eq!(webhook.send(&get("POST", "/metrics")).await.0, 405);
    assert_eq!(webhook.send(&get("POST", "/")).await.0, 404);
    assert_eq!(webhook.send(&get("GET", "/inject/../metrics")).await.0, 404);
    assert_eq!(webhook.send(&get("GET", "/healthz")).await, (200, "ok\n".into()));
    assert_eq!(webhook.send(b"nonsense\r\n\r\n").await.0, 400);
    assert_eq!(webhook.send(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).as_bytes()).await.0 / 100, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_body_is_413_announced_or_not() {
    let webhook = Running::start().await;
    let body = vec![b' '; (3 << 20) + 1];
    assert_eq!(webhook.inject(&body).await.0, 413);

    let mut chunked = b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                        transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        .to_vec();
    for _ in 0..50 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b' '; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(webhook.send(&chunked).await.0, 413);

    // The largest that is allowed.
    let mut body = review(&pod()).to_string().into_bytes();
    body.resize(3 << 20, b' ');
    assert_eq!(webhook.inject(&body).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_408_and_holds_up_nobody() {
    let webhook = Running::start().await;
    let mut slow = webhook.connect().await;
    let head = post("application/json", &review(&pod()).to_string().into_bytes());
    slow.write_all(&head[..head.len() - 10]).await.unwrap();

    let start = Instant::now();
    let (status, _) = webhook.inject(review(&pod()).to_string().as_bytes()).await;
    assert_eq!(status, 200);
    assert!(start.elapsed() < Duration::from_secs(3), "held up for {:?}", start.elapsed());

    assert_eq!(answer(&mut slow).await.0, 408);
    assert_eq!(webhook.metric("weir_webhook_rejected_requests_total{code=\"408\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_handshake_is_dropped() {
    use tokio::io::AsyncReadExt;
    let webhook = Running::start().await;
    let mut silent = tokio::net::TcpStream::connect(webhook.address).await.unwrap();
    let mut plain = tokio::net::TcpStream::connect(webhook.address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    for stream in [&mut silent, &mut plain] {
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "still open");
    }
    assert_eq!(webhook.metric("weir_webhook_handshake_failures_total").await, 2.0);
}

/// Waits until the server shows a certificate.
async fn until_served(webhook: &Running, pair: &common::server::Pair) {
    let start = Instant::now();
    while connect(webhook.address, &pair.der).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_served_without_a_restart() {
    let webhook = Running::start().await;
    let mut kept = webhook.connect().await;

    // A key that is not the certificate's: the old pair stays.
    let (second, third) = (pair(), pair());
    std::fs::write(webhook.folder.0.join("tls.key"), &second.key).unwrap();
    let start = Instant::now();
    while webhook.metric("weir_webhook_certificate_reloads_total{result=\"error\"}").await < 1.0 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    webhook.connect().await;

    // The pair is whole again, and new.
    std::fs::write(webhook.folder.0.join("tls.crt"), &second.cert).unwrap();
    until_served(&webhook, &second).await;

    // By temporary file and rename, as careful programs do.
    for (name, text) in [("tls.crt", &third.cert), ("tls.key", &third.key)] {
        let temporary = webhook.folder.0.join("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, webhook.folder.0.join(name)).unwrap();
    }
    until_served(&webhook, &third).await;

    // The connection of the first certificate has lived through all of it.
    let body = review(&pod()).to_string();
    kept.write_all(&post("application/json", body.as_bytes())).await.unwrap();
    assert_eq!(answer(&mut kept).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_secret_is_followed_through_its_links() {
    let folder = Folder::new();
    let (first, second) = (pair(), pair());
    for (name, pair) in [("..1", &first), ("..2", &second)] {
        std::fs::create_dir(folder.0.join(name)).unwrap();
        write(&folder.0.join(name), pair);
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, folder.0.join(name)).unwrap();
    link("..1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let webhook = Running::start_in(folder, first).await;
    webhook.connect().await;

    let at = |name: &str| webhook.folder.0.join(name);
    std::os::unix::fs::symlink("..2", at("..data_tmp")).unwrap();
    std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    std::fs::remove_dir_all(at("..1")).unwrap();
    until_served(&webhook, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_under_way_ends_well_at_shutdown() {
    let webhook = Running::start().await;
    let mut idle = webhook.connect().await;
    let mut busy = webhook.connect().await;
    let request = post("application/json", review(&pod()).to_string().as_bytes());
    busy.write_all(&request[..request.len() - 10]).await.unwrap();
    // The server has seen the head once it has answered another request after it.
    assert_eq!(webhook.inject(review(&pod()).to_string().as_bytes()).await.0, 200);
    tokio::time::sleep(Duration::from_millis(100)).await;

    let address = webhook.address;
    let stopped = webhook.stop();
    assert_eq!(answer(&mut idle).await.0, 0, "an idle connection is closed at once");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "still listening");
    busy.write_all(&request[request.len() - 10..]).await.unwrap();
    assert_eq!(answer(&mut busy).await.0, 200);
    tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_as_api_servers_speak_it() {
    use http_body_util::{BodyExt, Full};
    use hyper::{Request, body::Bytes, client::conn::http2};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let webhook = Running::start().await;
    let stream = connect_with(webhook.address, &webhook.pair.der, &[b"h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let body = Bytes::from(review(&pod()).to_string());
    let calls = (0..50).map(|_| {
        let mut sender = sender.clone();
        let request = Request::post("https://weir-webhook.weir-system.svc/inject?timeout=5s")
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))
            .unwrap();
        tokio::spawn(async move {
            let answer = sender.send_request(request).await.unwrap();
            (answer.status(), answer.into_body().collect().await.unwrap().to_bytes())
        })
    });
    for call in calls.collect::<Vec<_>>() {
        let (status, body) = call.await.unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status.as_u16(), &answer["response"]["allowed"]), (200, &json!(true)));
    }
    drop(sender);
    driver.abort();
}

/// More silent connections than the server has places for: they are dropped at the end of their time, and then others are served.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_beyond_the_bound_do_not_shut_others_out() {
    let webhook = Running::start().await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(tokio::net::TcpStream::connect(webhook.address).await.unwrap());
    }
    let body = review(&pod()).to_string();
    let served = tokio::time::timeout(PATIENCE, webhook.inject(body.as_bytes()));
    assert_eq!(served.await.unwrap().0, 200);
}

/// Starts the binary with flags that are good, and this many file descriptors.
fn spawn(folder: &Folder, descriptors: u32) -> (Child, SocketAddr) {
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_weir-webhook"))
        .args(["--listen", "127.0.0.1:0", "--proxy-image", "p", "--init-image", "i", "--redirect", "cni"])
        .args(["--control", "weir-control.weir-system.svc:15012", "--trust-domain", "cluster.local"])
        .args(["--mesh-cidrs", "198.18.0.0/15,fd00::/8", "--log", "info"])
        .arg("--tls-cert")
        .arg(folder.0.join("tls.crt"))
        .arg("--tls-key")
        .arg(folder.0.join("tls.key"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let first: Value = serde_json::from_str(&line).unwrap();
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink())); // ends with the process
    (child, first["address"].as_str().unwrap().parse().unwrap())
}

/// Asks the process to end and returns its exit code.
async fn terminate(child: &mut Child) -> Option<i32> {
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("SIGTERM does not end it");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A process that is killed when the test ends, however it ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_file_descriptors_is_recovered_from() {
    let folder = Folder::new();
    let pair = pair();
    write(&folder.0, &pair);
    let (child, address) = spawn(&folder, 40);
    let mut child = Killed(child);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(300)).await; // time to run out, and for some failed accepts
    let open = std::fs::read_dir(format!("/proc/{}/fd", child.0.id())).unwrap().count();
    assert!(open >= 40, "only {open} descriptors are open: the test must exhaust them");
    drop(silent);
    let mut stream = connect(address, &pair.der).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream).await, (200, "ok\n".into()));
    assert_eq!(terminate(&mut child.0).await, Some(0));
}

/// Resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The binary itself: flags, log, memory that stays flat under garbage, and SIGTERM.
#[tokio::test(flavor = "multi_thread")]
async fn the_binary_stays_small_under_garbage_and_ends_on_sigterm() {
    let folder = Folder::new();
    let pair = pair();
    write(&folder.0, &pair);
    let (child, address) = spawn(&folder, 1024);
    let mut child = Killed(child);

    let garbage: Vec<Vec<u8>> = (0u32..8)
        .map(|kind| match kind {
            0 => vec![b'['; 200_000],
            1 => format!("{{\"a\":[{}1]}}", "0,".repeat(100_000)).into_bytes(),
            2 => review(&json!({"spec": {"containers": vec![json!({"name": "x"}); 2_000]}})).to_string().into_bytes(),
            3 => review(&json!({"metadata": {"labels": "x".repeat(100_000)}})).to_string().into_bytes(),
            4 => vec![0xff; 50_000],
            5 => format!("{{\"request\":{{\"object\":[{}0]}}}}", "[],".repeat(50_000)).into_bytes(),
            6 => review(&pod()).to_string().replace("web", &"w".repeat(10_000)).into_bytes(),
            _ => Vec::new(),
        })
        .collect();
    let attack = async |rounds: usize| {
        for round in 0..rounds {
            let mut stream = connect(address, &pair.der).await.unwrap();
            let _ = stream.write_all(&post("application/json", &garbage[round % garbage.len()])).await;
            assert_ne!(answer(&mut stream).await.0, 0);
        }
    };
    attack(200).await;
    let warm = resident_kib(child.0.id());
    attack(1_000).await;
    let after = resident_kib(child.0.id());
    println!("resident after 200 garbage requests {warm} KiB, after 1200 {after} KiB");
    assert!(after < warm + 8 * 1024, "grew from {warm} to {after} KiB");
    assert!(after < 96 * 1024, "{after} KiB");

    assert_eq!(terminate(&mut child.0).await, Some(0));
}

#[test]
fn wrong_flags_are_said_in_one_line() {
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_weir-webhook")).args(args).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let all = |redirect, cert| {
        ["--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", "k", "--proxy-image", "p", "--init-image", "i"]
            .into_iter()
            .chain(["--redirect", redirect, "--control", "c:1", "--trust-domain", "d"])
            .collect::<Vec<_>>()
    };
    assert_eq!(run(&[]).0, Some(2));
    let (code, text) = run(&all("both", "c"));
    assert_eq!(code, Some(2));
    assert!(text.contains("use cni (the CNI plugin is installed) or init (it is not)"), "{text}");
    let (code, text) = run(&all("cni", "/nowhere/tls.crt"));
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.starts_with("weir-webhook: /nowhere/tls.crt: "), "{text}");
}
