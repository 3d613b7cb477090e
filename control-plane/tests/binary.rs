//! The real binary over real TLS with real tokens: what it serves, what it refuses, and what it survives.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[allow(unreachable_pub, dead_code)] // shared by the files of this folder
mod support;

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use support::{Control, Place, Proxy, Seen, at, until};
use tonic::Code;
use weir_xds::{Kind, ca::create_certificate};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

const SHOP: &str = include_str!("data/shop.yaml");
const POD: &str = "catalog-v1-7c9d-a";
const NODE: &str = "catalog-v1-7c9d-a.shop";
const CATALOG: &str = "outbound|80||catalog.shop.svc.cluster.local";
const ROUTES: &str = "catalog.shop.svc.cluster.local:80";

fn route(weight: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: catalog, namespace: shop}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: '', name: catalog}}]\n  rules:\n  - backendRefs: [{{name: v1, port: 80, weight: \
         {weight}}}, {{name: v2, port: 80, weight: 50}}]\n"
    )
}

fn csr() -> (rcgen::KeyPair, String) {
    csr_for(None)
}

/// A signing request, for an identity or for nobody.
fn csr_for(identity: Option<&str>) -> (rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["evil.example".into()]).unwrap();
    let identity = identity.map(|uri| rcgen::SanType::URI(uri.try_into().unwrap()));
    params.subject_alt_names.extend(identity);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_arrives_within_milliseconds_and_a_broken_file_keeps_the_last_good() {
    let place = Place::new("changes");
    place.write("shop.yaml", SHOP);
    place.write("route.yaml", &route(1));
    let control = Control::start(&place);
    let mut proxy = Proxy::start(&at(&control), &place.root(), NODE, &place.token(POD, "uid-a", "catalog"));
    proxy.names.add(Kind::Route, ROUTES);
    proxy.connected().await;
    let first = proxy.added().await.version;

    let mut times: Vec<Duration> = Vec::new();
    for weight in 2..22 {
        let start = Instant::now();
        place.write("route.yaml", &route(weight));
        assert_ne!(proxy.added().await.version, first);
        times.push(start.elapsed());
    }
    times.sort();
    println!("change of a file to the proxy: median {:?}, longest {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(500), "{times:?}");

    place.write("route.yaml", &route(30).replace("weight", "wait"));
    until("the problem is told", async || control.logged("backendRefs[0].wait: is not a field")).await;
    assert!(control.get("/debug/problems").await.contains("HTTPRoute shop/catalog: spec.rules[0].backendRefs[0].wait"));
    assert!(control.metric("weir_control_config_errors").await == 1.0);
    assert!(proxy.is_quiet().await, "the last good objects stay");
    place.write("route.yaml", &route(31));
    proxy.added().await;
    assert!(control.metric("weir_control_config_errors").await == 0.0);

    // A rule to what is not there is told and answers 500; the file of a removed object is gone.
    place.write("route.yaml", &route(31).replace("name: v1,", "name: nope,"));
    proxy.added().await;
    assert!(control.get("/debug/problems").await.contains("there is no Service shop/nope with port 80"));
    place.remove("route.yaml");
    proxy.added().await;
    assert_eq!(control.get("/debug/problems").await.lines().last(), Some(""));

    // Unknown, then known, then gone.
    proxy.names.add(Kind::Listener, "weir/outbound/198.19.0.50:80");
    assert_eq!(proxy.removed().await, "weir/outbound/198.19.0.50:80");
    place.write("new.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: new, namespace: shop}\nspec: {clusterIP: 198.19.0.50, ports: [{port: 80}]}\n");
    proxy.added().await;
    place.remove("new.yaml");
    assert_eq!(proxy.removed().await, "weir/outbound/198.19.0.50:80");
    assert!(control.stop() < Duration::from_secs(3), "open streams do not hold up the shutdown");
    assert!(proxy.lost().await.contains("shuts down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_broken_file_takes_nothing_from_proxies() {
    let place = Place::new("broken-start");
    place.write("shop.yaml", SHOP);
    place.write("route.yaml", &route(1));
    let control = Control::start(&place);
    let (address, token) = (at(&control), place.token(POD, "uid-a", "catalog"));
    let mut proxy = Proxy::start(&address, &place.root(), NODE, &token);
    proxy.names.add(Kind::Route, ROUTES);
    proxy.names.add(Kind::Cluster, CATALOG);
    proxy.connected().await;
    proxy.added().await;
    proxy.added().await;

    let listen = control.address.to_string();
    place.write("shop.yaml", &SHOP.replacen("clusterIP", "clusterPI", 1));
    place.write("route.yaml", &route(1).replace("weight", "wait"));
    control.stop();
    let control = Control::start_at(&place, &listen);
    until("it says which file, which line and what to do", async || {
        control.logged("shop.yaml:5: Service shop/catalog: spec.clusterPI: is not a field")
            && control.logged("proxies are not answered and keep what they have")
            && control.logged("mend this file or remove it")
    })
    .await;
    let health = control.get("/healthz").await;
    assert!(health.starts_with("HTTP/1.1 503") && health.contains("shop.yaml:5: Service shop/catalog"), "{health}");
    assert_eq!(control.metric("weir_control_unread_files").await, 2.0);
    let end = Instant::now() + Duration::from_secs(1);
    while let Ok(seen) = tokio::time::timeout_at(end.into(), proxy.next()).await {
        let Seen::Lost(reason) = seen else { panic!("nothing may be said before all is known: {seen:?}") };
        assert!(
            !reason.contains("Unavailable") || reason.contains("not parsed") || reason.contains("shuts"),
            "{reason}"
        );
    }
    let early = create_certificate(control.channel(&place).await, &token, csr().1, Duration::ZERO).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable, "no certificate before the pods are known: {early:?}");

    // One mended, the other still broken, then removed: that releases it, and only what is really gone is told.
    place.write("shop.yaml", SHOP);
    until("one is left", async || control.metric("weir_control_unread_files").await == 1.0).await;
    assert!(control.get("/healthz").await.starts_with("HTTP/1.1 503"));
    place.remove("route.yaml");
    proxy.connected().await;
    assert!(control.get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert_eq!(control.metric("weir_control_unread_files").await, 0.0);
    assert_eq!(proxy.added().await.name, ROUTES);
    assert!(proxy.is_quiet().await, "the service is as it was");

    // Once all was read, a file that breaks holds up nobody.
    place.write("shop.yaml", &SHOP.replacen("clusterIP", "clusterPI", 1));
    until("the problem is told", async || control.metric("weir_control_config_errors").await >= 1.0).await;
    assert!(control.get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(proxy.is_quiet().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_change_goes_only_to_those_who_asked() {
    let place = Place::new("endpoints");
    place.write("shop.yaml", SHOP);
    let control = Control::start(&place);
    let token = place.token(POD, "uid-a", "catalog");
    let mut asked = Proxy::start(&at(&control), &place.root(), NODE, &token);
    let mut other = Proxy::start(&at(&control), &place.root(), "other.shop", &place.token("other", "o", "default"));
    for kind in [Kind::Cluster, Kind::Endpoints] {
        asked.names.add(kind, CATALOG);
    }
    asked.names.add(Kind::Listener, "weir/inbound");
    asked.names.add(Kind::Listener, "weir/outbound/198.19.0.10:80");
    other.names.add(Kind::Listener, "weir/outbound/198.19.0.10:80");
    other.names.add(Kind::Listener, "weir/inbound");
    asked.connected().await;
    other.connected().await;
    for _ in 0..4 {
        asked.added().await;
    }
    other.next().await;
    other.next().await;
    assert!(
        !other.has.contains_key(&(Kind::Listener, "weir/inbound".into())),
        "a pod that is not known has no ports yet"
    );
    place.write("shop.yaml", &SHOP.replace("status: 'False'", "status: 'True'"));
    assert_eq!(asked.added().await.name, CATALOG);
    assert!(asked.is_quiet().await && other.is_quiet().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_in_turn_and_a_restart_resend_nothing() {
    let place = Place::new("replicas");
    place.write("shop.yaml", SHOP);
    let (first, second) = (Control::start(&place), Control::start(&place));
    let (root, key) = (place.root(), support::read(&place.dir.join("ca/ca-key.pem")));
    let address = at(&first);
    let mut proxy = Proxy::start(&address, &root, NODE, &place.token(POD, "uid-a", "catalog"));
    for kind in [Kind::Cluster, Kind::Endpoints] {
        proxy.names.add(kind, CATALOG);
    }
    proxy.names.add(Kind::Route, ROUTES);
    proxy.names.add(Kind::Listener, "weir/inbound");
    proxy.connected().await;
    for _ in 0..4 {
        proxy.added().await;
    }
    *address.lock().unwrap() = second.address;
    first.stop();
    proxy.lost().await;
    proxy.connected().await;
    assert!(proxy.is_quiet().await, "the other replica has the same versions");

    let listen = second.address.to_string();
    second.stop();
    proxy.lost().await;
    let third = Control::start_at(&place, &listen);
    proxy.connected().await;
    assert!(proxy.is_quiet().await, "so has a new process");
    assert_eq!((root, key), (place.root(), support::read(&place.dir.join("ca/ca-key.pem"))), "the root is kept");
    until("the stream is counted", async || third.metric("weir_control_connected_proxies").await == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_not_good_are_refused() {
    let place = Place::new("tokens");
    place.write("shop.yaml", SHOP);
    let control = Control::start(&place);
    let good = place.claims(POD, "uid-a", "catalog");
    let with = |pointer: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        *claims.pointer_mut(pointer).unwrap() = value;
        place.sign(&claims)
    };
    let encode = |header: serde_json::Value, signature: &str| {
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{signature}", part(&header), part(&good))
    };
    let now = good["iat"].as_u64().unwrap();
    let other_key = EncodingKey::from_ec_pem(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    let public = EncodingKey::from_secret(place.signer.public_key_pem().as_bytes());
    let mut unbound = good.clone();
    unbound["kubernetes.io"].as_object_mut().unwrap().remove("pod");
    let mut timeless = good.clone();
    timeless.as_object_mut().unwrap().remove("exp");
    let signed = place.sign(&good);
    let (message, _) = signed.rsplit_once('.').unwrap();
    let bad = [
        ("no token", String::new()),
        ("no JWT", "x.y.z".into()),
        ("expired", with("/exp", json!(now - 60))),
        ("no end", place.sign(&timeless)),
        ("not yet", {
            let mut claims = good.clone();
            claims["nbf"] = json!(now + 600);
            place.sign(&claims)
        }),
        ("other audience", with("/aud", json!(["kubernetes"]))),
        ("other issuer", with("/iss", json!("https://other.test"))),
        ("no pod", place.sign(&unbound)),
        ("no pod uid", with("/kubernetes.io/pod/uid", json!(""))),
        ("other subject", with("/sub", json!("system:serviceaccount:bank:root"))),
        ("an account that is no name", with("/kubernetes.io/serviceaccount/name", json!("a/../b"))),
        ("an earlier pod of this name", with("/kubernetes.io/pod/uid", json!("old"))),
        ("other key", jsonwebtoken::encode(&Header::new(Algorithm::ES256), &good, &other_key).unwrap()),
        ("HS256 with the public key", jsonwebtoken::encode(&Header::new(Algorithm::HS256), &good, &public).unwrap()),
        ("alg none", encode(json!({"alg": "none", "typ": "JWT"}), "")),
        ("no signature", format!("{message}.")),
        ("huge", format!("{signed}{}", "A".repeat(20_000))),
    ];
    let channel = control.channel(&place).await;
    for (what, token) in &bad {
        let status = create_certificate(channel.clone(), token, csr().1, Duration::ZERO).await.unwrap_err();
        assert!(matches!(status.code(), Code::Unauthenticated | Code::Internal | Code::Unknown), "{what}: {status:?}");
        assert!(!status.message().contains(place.signer.public_key_pem().as_str()));
    }
    let refused = bad.iter().filter(|(what, _)| *what != "huge").count();
    assert!(control.metric("weir_control_certificates_refused_total").await >= refused as f64);
    assert!(control.metric("weir_control_certificates_issued_total").await == 0.0);

    let mut proxy = Proxy::start(&at(&control), &place.root(), NODE, &bad[2].1);
    assert!(proxy.lost().await.contains("ExpiredSignature"));
    let mut proxy = Proxy::start(&at(&control), &place.root(), "catalog-v2-1.shop", &signed);
    proxy.names.add(Kind::Listener, "weir/inbound");
    proxy.connected().await;
    let reason = proxy.lost().await;
    assert!(
        reason.contains("PermissionDenied") && reason.contains("node.id must be catalog-v1-7c9d-a.shop"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token_and_comes_back() {
    let place = Place::new("expiry");
    place.write("shop.yaml", SHOP);
    let control = Control::start(&place);
    let mut claims = place.claims(POD, "uid-a", "catalog");
    claims["exp"] = json!(claims["iat"].as_u64().unwrap() + 2);
    let mut proxy = Proxy::start(&at(&control), &place.root(), NODE, &place.sign(&claims));
    proxy.connected().await;
    assert!(proxy.lost().await.contains("has expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_for_the_callers_own_identity() {
    let place = Place::new("certificates");
    place.write("shop.yaml", SHOP);
    let control = Control::start(&place);
    let channel = control.channel(&place).await;
    let token = place.token(POD, "uid-a", "catalog");
    let (key, csr) = csr();
    let chain = create_certificate(channel.clone(), &token, csr.clone(), Duration::from_secs(900_000)).await.unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], place.root());

    let block = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
    let (der, root_der) = (block(&chain[0]), block(&chain[1]));
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let (_, root) = X509Certificate::from_der(&root_der).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), rcgen::PublicKeyData::der_bytes(&key));
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical && leaf.subject().iter().count() == 0);
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/catalog")]);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    assert!((55..=70).contains(&(now - begin)), "back-dated by a minute");
    assert!((86_390..=86_400).contains(&(end - now)), "capped at 24 h");

    let short = create_certificate(channel.clone(), &token, csr.clone(), Duration::from_secs(60)).await.unwrap();
    let der = block(&short[0]);
    let (_, second) = X509Certificate::from_der(&der).unwrap();
    assert!((second.validity().not_after.timestamp() - now - 60).abs() <= 5);
    assert_ne!(second.raw_serial(), leaf.raw_serial());

    let (_, others) = csr_for(Some("spiffe://cluster.local/ns/bank/sa/root"));
    let status = create_certificate(channel.clone(), &token, others, Duration::ZERO).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    for bad in ["", "x", include_str!("data/rsa1024.csr.pem"), &csr.replace('A', "B"), &"A".repeat(60_000)] {
        let status = create_certificate(channel.clone(), &token, bad.to_owned(), Duration::ZERO).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let status = create_certificate(channel, &token, "A".repeat(200_000), Duration::ZERO).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(control.metric("weir_control_certificates_issued_total").await == 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_gets_no_certificate_and_a_new_one_gets_it_as_soon_as_it_is_known() {
    let place = Place::new("gone");
    place.write("shop.yaml", SHOP);
    let pod = |uid: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: new, namespace: shop, uid: {uid}}}\nspec: {{containers: [{{name: a, image: \
             a}}]}}\n"
        )
    };
    let control = Control::start(&place);
    let channel = control.channel(&place).await;
    let token = place.token("new", "uid-1", "new");
    let ask = || create_certificate(channel.clone(), &token, csr().1, Duration::ZERO);
    assert_eq!(ask().await.unwrap_err().code(), Code::Unavailable, "it is not known");
    assert_eq!(control.metric("weir_control_certificates_deferred_total").await, 1.0);
    // It waits for the news of the pod.
    let (answer, ()) = tokio::join!(ask(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        place.write("new.yaml", &pod("uid-1"));
    });
    answer.unwrap();
    place.write("new.yaml", &pod("uid-2"));
    until("the next pod of this name is known", async || {
        ask().await.is_err_and(|status| status.code() == Code::Unauthenticated)
    })
    .await;
    place.remove("new.yaml");
    until("it is gone", async || ask().await.is_err_and(|status| status.code() == Code::Unavailable)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_for_people_hold_no_secrets() {
    let place = Place::new("secrets");
    place.write("shop.yaml", SHOP);
    place.write("broken.yaml", "kind: [");
    let control = Control::start(&place);
    until("the page says what holds it up", async || control.get("/healthz").await.contains("broken.yaml")).await;
    let mut pages = control.get("/healthz").await;
    place.write("broken.yaml", &route(1).replace("name: v1,", "name: nope,"));
    let token = place.token(POD, "uid-a", "catalog");
    let mut proxy = Proxy::start(&at(&control), &place.root(), NODE, &token);
    proxy.names.add(Kind::Listener, "weir/inbound");
    proxy.connected().await;
    proxy.added().await;
    let (_, csr) = csr();
    let chain = create_certificate(control.channel(&place).await, &token, csr.clone(), Duration::ZERO).await.unwrap();
    // A bad token is told of, and not told.
    let bad = format!("{token}x");
    create_certificate(control.channel(&place).await, &bad, csr, Duration::ZERO).await.unwrap_err();
    for page in ["/healthz", "/metrics", "/debug/problems", "/debug/resources"] {
        let text = control.get(page).await;
        assert!(text.starts_with("HTTP/1.1 200"), "{page}: {text}");
        pages.push_str(&text);
    }
    assert!(
        pages.contains("weir/inbound of shop/catalog-v1-7c9d-a") && pages.contains("there is no Service shop/nope")
    );
    for page in ["/", "/debug", "/debug/config", "/debug/token", "/debug/../ca/ca-key.pem", "/debug/pprof"] {
        assert!(control.get(page).await.starts_with("HTTP/1.1 404"), "{page}: a new page belongs into this test");
    }
    let said = pages + &control.log.lock().unwrap().join("\n");
    let key = support::read(&place.dir.join("ca/ca-key.pem"));
    let lines = |pem: &str| pem.lines().filter(|line| !line.starts_with("---")).map(str::to_owned).collect::<Vec<_>>();
    let secrets = [lines(&key), lines(&chain[0]), lines(&place.signer.serialize_pem())].concat();
    for secret in secrets.iter().map(String::as_str).chain(token.split('.')).chain(["PRIVATE KEY", "Bearer "]) {
        assert!(!said.contains(secret), "{secret} is told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_and_rubbish_do_no_harm() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let place = Place::new("rubbish");
    place.write("shop.yaml", SHOP);
    let control = Control::start(&place);
    for rubbish in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0x16, 3, 1, 0xff, 0xff]]
    {
        let mut stream = tokio::net::TcpStream::connect(control.address).await.unwrap();
        stream.write_all(rubbish).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection is closed in time");
        assert!(!answer.windows(4).any(|window| window == b"HTTP"), "nothing is answered in plaintext");
    }
    // Slow connections that never finish their handshake do not hold up others.
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(tokio::net::TcpStream::connect(control.address).await.unwrap());
    }
    // Requests that are no messages, names of nothing, and more names than are served.
    let channel = control.channel(&place).await;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::iter([vec![0xff_u8; 1000]]));
    let token = format!("Bearer {}", place.token(POD, "uid-a", "catalog"));
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let response = grpc.streaming(request, http_path(path), Raw).await.unwrap();
    assert!(response.into_inner().message().await.is_err());

    let mut proxy = Proxy::start(&at(&control), &place.root(), NODE, &place.token(POD, "uid-a", "catalog"));
    let names = ["*", "weir/outbound/x", "outbound|80||", "\u{0}", "weir/inbound/", "../../etc/passwd"];
    for name in names {
        for kind in Kind::ALL {
            proxy.names.add(kind, name);
        }
    }
    proxy.connected().await;
    for _ in 0..(names.len() - 1) * 4 {
        proxy.removed().await; // "*" is not answered
    }
    for i in 0..20_000 {
        proxy.names.add(Kind::Cluster, format!("outbound|{}||198.18.{}.{}", i % 60_000 + 1, i / 256 % 256, i % 256));
    }
    for _ in 0..20_000 {
        proxy.next().await;
    }
    proxy.names.add(Kind::Endpoints, CATALOG);
    assert_eq!(proxy.added().await.name, CATALOG);
    drop(proxy);
    until("a stream that ended leaves nothing behind", async || control.metric("weir_control_resources").await == 0.0)
        .await;
}

fn http_path(path: &'static str) -> tonic::codegen::http::uri::PathAndQuery {
    tonic::codegen::http::uri::PathAndQuery::from_static(path)
}

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        use prost::bytes::BufMut as _;
        buffer.put_slice(&item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Vec<u8>>, tonic::Status> {
        use prost::bytes::Buf as _;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

#[test]
fn what_can_not_be_used_is_said_in_one_line() {
    let place = Place::new("usage");
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir-control")).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&["--listen", "nowhere"]).0, Some(2));
    assert_eq!(run(&["--help"]).0, Some(0));
    let path = |name: &str| place.dir.join(name).display().to_string();
    let (config, ca, key) = (path("config"), path("ca"), path("token.pub"));
    let with = |config: &str, ca: &str, key: &str| {
        run(&[
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--config-dir",
            config,
            "--ca-dir",
            ca,
            "--token-key",
            key,
            "--token-issuer",
            "x",
        ])
    };
    for (result, want) in [
        (with("/nonexistent", &ca, &key), "--config-dir /nonexistent"),
        (with(&config, "/nonexistent", &key), "/nonexistent"),
        (with(&config, &ca, "/nonexistent"), "--token-key /nonexistent"),
        (with(&config, &ca, &path("ca/ca-key.pem")), "give the PUBLIC key"),
    ] {
        assert_eq!(result.0, Some(1), "{result:?}");
        let last = result.1.lines().last().unwrap_or_default();
        assert!(last.starts_with("weir-control: ") && last.contains(want), "{result:?}");
    }
}
