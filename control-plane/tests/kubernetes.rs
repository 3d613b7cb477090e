//! The real binary on a real API server: what it reads, whom it believes, and what it keeps there. It runs with the rights of
//! `data/rbac.yaml`, which are the chart's.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[allow(unreachable_pub, dead_code)] // shared by the files of this folder
mod support;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};
use support::{
    Control, Proxy, Seen, at,
    cluster::{self, Cluster, SYSTEM, text, together},
    until,
};
use tonic::Code;
use weir_xds::{Kind, ca::create_certificate, endpoint};

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const CATALOG: &str = "outbound|80||catalog.shop.svc.cluster.local";
const ROUTES: &str = "catalog.shop.svc.cluster.local:80";

fn csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

/// A namespace of the mesh, a service, two pods and their endpoints, a node with a place.
async fn shop(cluster: &Cluster) {
    let labels = json!({"topology.kubernetes.io/region": "north", "topology.kubernetes.io/zone": "north-1"});
    cluster.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": labels}})).await;
    cluster.apply(namespace("shop", true)).await;
    for account in ["catalog", "web"] {
        cluster.account("shop", account).await;
    }
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "catalog", "namespace": "shop"},
        "spec": {"selector": {"app": "catalog"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}))
        .await;
    cluster.pod("shop", "catalog-a", "catalog", "198.18.1.1").await;
    cluster.pod("shop", "web-a", "web", "198.18.1.2").await;
    cluster.apply(slice(&["198.18.1.1"])).await;
}

fn namespace(name: &str, inject: bool) -> Json {
    let labels = if inject { json!({"weir.dev/inject": "enabled"}) } else { json!({}) };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn slice(addresses: &[&str]) -> Json {
    let endpoints: Vec<Json> = addresses
        .iter()
        .map(|address| {
            let target = json!({"kind": "Pod", "namespace": "shop", "name": "catalog-a"});
            json!({"addresses": [address], "conditions": {"ready": true}, "targetRef": target})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "catalog-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "catalog"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn route(name: &str, rules: Json) -> Json {
    json!({"apiVersion": GATEWAY, "kind": "HTTPRoute", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "catalog", "port": 80}], "rules": rules}})
}

/// The conditions that we wrote for this generation of a route: `Type=Status/Reason`.
async fn conditions(cluster: &Cluster, name: &str) -> Vec<String> {
    conditions_of(cluster, "HTTPRoute", "shop", name).await
}

/// The same of a route of any kind.
async fn conditions_of(cluster: &Cluster, kind: &str, namespace: &str, name: &str) -> Vec<String> {
    let route = cluster.get(GATEWAY, kind, Some(namespace), name).await.unwrap();
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let ours = parents.iter().filter(|entry| entry["controllerName"] == "weir.dev/mesh");
    let conditions = ours.flat_map(|entry| entry["conditions"].as_array().unwrap());
    let mut list: Vec<String> = conditions
        .filter(|condition| condition["observedGeneration"] == route["metadata"]["generation"])
        .map(|condition| {
            let text = |key: &str| condition[key].as_str().unwrap();
            format!("{}={}/{}", text("type"), text("status"), text("reason"))
        })
        .collect();
    list.sort();
    list
}

async fn wait_for_conditions(cluster: &Cluster, name: &str, wanted: [&str; 2]) -> Duration {
    let start = Instant::now();
    let end = start + Duration::from_secs(40);
    loop {
        let found = conditions(cluster, name).await;
        if found == wanted {
            return start.elapsed();
        }
        assert!(Instant::now() < end, "{name} has {found:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn roots_in(cluster: &Cluster, namespace: &str) -> Option<String> {
    let map = cluster.get("v1", "ConfigMap", Some(namespace), "weir-root").await?;
    map["data"]["root-cert.pem"].as_str().map(str::to_owned)
}

async fn healthy(control: &Control) {
    until("it is ready", async || Control::page(control.health.unwrap(), "/healthz").await.starts_with("HTTP/1.1 200"))
        .await;
}

async fn chain(control: &Control, roots: &str, token: &str) -> Result<Vec<String>, tonic::Status> {
    let channel = endpoint(&control.address.to_string(), support::SERVER_NAME, roots).unwrap().connect().await.unwrap();
    create_certificate(channel, token, csr(), Duration::ZERO).await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_have_one_ca_and_keep_it() {
    let Some(cluster) = cluster::start("ca").await else { return };
    shop(&cluster).await;
    let mut commands = Vec::new();
    for replica in ["one", "two", "three", "four"] {
        commands.push(cluster.control(replica).await);
    }
    let mut replicas = together(commands);
    let roots = cluster.roots().await;
    let token = cluster.token("shop", "web", Some("web-a"), "weir-control").await;
    for control in &replicas {
        healthy(control).await;
        // A connection proves that the serving certificate is of this CA; the chain ends with what proxies are to trust.
        let chain = chain(control, &roots, &token).await.unwrap();
        assert_eq!(chain.last().unwrap(), &roots);
    }
    let made = replicas.iter().filter(|control| control.logged("a CA was made")).count();
    assert_eq!(made, 1, "one of them made it");
    replicas.truncate(2);

    // A second root beside the first, as when roots are rotated.
    let secret = cluster.get("v1", "Secret", Some(SYSTEM), "weir-ca").await.unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let other_root = params.self_signed(&other).unwrap().pem();
    let both = format!("{roots}{other_root}");
    until("roots are published", async || roots_in(&cluster, "shop").await.as_ref() == Some(&roots)).await;
    let name = json!({"name": "weir-ca", "namespace": SYSTEM});
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": {"ca-cert.pem": both}}))
        .await;
    until("both roots are published", async || roots_in(&cluster, "shop").await.as_ref() == Some(&both)).await;
    // Now the second one signs; the serving certificate is of it at once.
    cluster.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": {"ca-key.pem": other.serialize_pem()}})).await;
    for control in &replicas {
        until("the new root signs", async || {
            let Ok(endpoint) = endpoint(&control.address.to_string(), support::SERVER_NAME, &other_root) else {
                return false;
            };
            endpoint.connect().await.is_ok()
        })
        .await;
    }
    // What can not be used changes nothing, and is said.
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": {"ca-key.pem": "no key"}}))
        .await;
    until("it is said", async || replicas[0].logged("the changed CA can not be used, the one before stays")).await;
    assert!(chain(&replicas[0], &other_root, &token).await.is_ok());
    // Deleted, it comes back as it was in force: whoever starts then has the same CA.
    cluster.delete("v1", "Secret", SYSTEM, "weir-ca").await;
    until("it is put back", async || cluster.get("v1", "Secret", Some(SYSTEM), "weir-ca").await.is_some()).await;
    let back = cluster.get("v1", "Secret", Some(SYSTEM), "weir-ca").await.unwrap();
    assert_ne!(back["metadata"]["uid"], secret["metadata"]["uid"]);
    assert_eq!(text(&back["data"]["ca-cert.pem"]), both);
    assert_eq!(text(&back["data"]["ca-key.pem"]), other.serialize_pem());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_who_the_api_server_says() {
    let Some(cluster) = cluster::start("callers").await else { return };
    shop(&cluster).await;
    let control = Control::spawn(&mut cluster.control("one").await);
    healthy(&control).await;
    assert!(control.logged("the API server does not have this kind"), "said that HTTPRoutes are not there");
    let roots = cluster.roots().await;
    let good = cluster.token("shop", "web", Some("web-a"), "weir-control").await;
    let leaf = chain(&control, &roots, &good).await.unwrap().remove(0);
    assert!(uri(&leaf) == "spiffe://cluster.local/ns/shop/sa/web", "{}", uri(&leaf));

    let mut proxy = Proxy::start(&at(&control), &roots, "web-a.shop", &good);
    proxy.names.add(Kind::Endpoints, CATALOG);
    proxy.connected().await;
    let endpoints = String::from_utf8_lossy(&proxy.added().await.body).into_owned();
    for part in ["198.18.1.1", "spiffe://cluster.local/ns/shop/sa/catalog", "north", "north-1", "catalog-a"] {
        assert!(endpoints.contains(part), "{part}: {endpoints}");
    }
    let reviews = "weir_control_token_reviews_total{answer=\"accepted\"} 1";
    assert!(control.get("/metrics").await.contains(reviews), "one review for both calls");
    // An endpoint goes: the change is there in milliseconds.
    let start = Instant::now();
    cluster.apply(slice(&[])).await;
    proxy.added().await;
    println!("change of an EndpointSlice to the proxy: {:?}", start.elapsed());
    cluster.apply(slice(&["198.18.1.1"])).await;
    proxy.added().await;

    let other_audience = cluster.token("shop", "web", Some("web-a"), "https://kubernetes.test").await;
    let no_pod = cluster.token("shop", "web", None, "weir-control").await;
    let forged = format!("{}x", good);
    for (what, token) in
        [("another audience", other_audience), ("no pod", no_pod), ("forged", forged), ("none", "x".into())]
    {
        let status = chain(&control, &roots, &token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status}");
    }
    let mut thief = Proxy::start(&at(&control), &roots, "catalog-a.shop", &good);
    thief.names.add(Kind::Listener, "weir/inbound");
    loop {
        match thief.next().await {
            Seen::Connected => {}
            Seen::Lost(reason) => {
                assert!(reason.contains("node.id must be web-a.shop"), "{reason}");
                break;
            }
            other => panic!("nothing is told to it: {other:?}"),
        }
    }

    // A pod that was just made: the call may be faster than the news of the pod.
    cluster.pod("shop", "web-b", "web", "198.18.1.3").await;
    let fresh = cluster.token("shop", "web", Some("web-b"), "weir-control").await;
    chain(&control, &roots, &fresh).await.unwrap();
    // Deleted: its token has an hour left, and the review of a moment ago is kept; both do not help.
    cluster.delete("v1", "Pod", "shop", "web-b").await;
    until("a deleted pod's token is refused", async || chain(&control, &roots, &fresh).await.is_err()).await;
    // Another pod of that name is not the old one.
    cluster.pod("shop", "web-b", "web", "198.18.1.3").await;
    let status = chain(&control, &roots, &fresh).await.unwrap_err();
    assert!(matches!(status.code(), Code::Unauthenticated | Code::Unavailable), "{status}");
    let again = cluster.token("shop", "web", Some("web-b"), "weir-control").await;
    chain(&control, &roots, &again).await.unwrap();
    assert!(control.metric("weir_control_refused_callers_total").await >= 6.0);
    assert!(control.stop() < Duration::from_secs(5));
}

fn uri(pem: &str) -> String {
    use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};
    let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    match names.as_slice() {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_and_the_webhooks_certificate_are_kept() {
    let Some(cluster) = cluster::start("kept").await else { return };
    cluster.apply(namespace("plain", false)).await;
    cluster.apply(webhook()).await;
    cluster.apply(rules_webhook()).await;
    let replicas = together(vec![cluster.control("one").await, cluster.control("two").await]);
    for control in &replicas {
        healthy(control).await;
    }
    let roots = cluster.roots().await;

    // The label makes them appear; a change or a deletion is put right.
    shop(&cluster).await;
    until("roots come with the label", async || roots_in(&cluster, "shop").await.as_ref() == Some(&roots)).await;
    let map = json!({"name": "weir-root", "namespace": "shop"});
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": map, "data": {"root-cert.pem": "wrong"}}))
        .await;
    until("a change is put right", async || roots_in(&cluster, "shop").await.as_ref() == Some(&roots)).await;
    cluster.delete("v1", "ConfigMap", "shop", "weir-root").await;
    until("a deletion is put right", async || roots_in(&cluster, "shop").await.as_ref() == Some(&roots)).await;
    assert!(roots_in(&cluster, "plain").await.is_none());
    cluster.account("plain", "lone").await;
    cluster.pod("plain", "lone", "lone", "198.18.2.1").await;
    until("a pod with its own label has them", async || roots_in(&cluster, "plain").await.as_ref() == Some(&roots))
        .await;

    // caBundle, and nothing else of the configuration.
    let bundles = async || -> Vec<Option<String>> {
        let found =
            cluster.get("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, "weir-webhook").await;
        let entries = found.unwrap()["webhooks"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["clientConfig"].get("caBundle").map(text)).collect()
    };
    until("both entries have it", async || bundles().await == [Some(roots.clone()), Some(roots.clone())]).await;
    // As an upgrade by a tool that overwrites would leave it.
    cluster.apply(webhook()).await;
    until("it is filled in again", async || bundles().await == [Some(roots.clone()), Some(roots.clone())]).await;
    let found = cluster
        .get("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, "weir-webhook")
        .await
        .unwrap();
    assert_eq!(found["webhooks"][1]["timeoutSeconds"], 7);
    assert_eq!(found["webhooks"][1]["clientConfig"]["service"]["path"], "/inject");
    let api = "admissionregistration.k8s.io/v1";
    until("what asks for access rules has it too", async || {
        let found = cluster.get(api, "ValidatingWebhookConfiguration", None, "weir-rules").await.unwrap();
        found["webhooks"][0]["clientConfig"].get("caBundle").map(text) == Some(roots.clone())
    })
    .await;

    // The certificate: of the CA, for the Service; an expired one is replaced at once.
    let served = async || {
        let secret = cluster.get("v1", "Secret", Some(SYSTEM), "weir-webhook-tls").await?;
        Some((text(&secret["data"]["tls.crt"]), text(&secret["data"]["tls.key"])))
    };
    until("there is one", async || served().await.is_some()).await;
    let first = served().await.unwrap();
    check_serving(&first.0, &roots);
    let made: usize = replicas
        .iter()
        .map(|control| {
            control.log.lock().unwrap().iter().filter(|line| line.contains("the webhook has a new certificate")).count()
        })
        .sum();
    assert_eq!(made, 1, "two replicas made one");
    let (expired, key) = expired(&cluster).await;
    let name = json!({"name": "weir-webhook-tls", "namespace": SYSTEM});
    cluster.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": {"tls.crt": expired, "tls.key": key}})).await;
    until("an expired one is replaced", async || served().await.is_some_and(|(now, _)| now != expired)).await;
    check_serving(&served().await.unwrap().0, &roots);
    cluster.delete("v1", "Secret", SYSTEM, "weir-webhook-tls").await;
    until("a deleted one is made anew", async || served().await.is_some()).await;
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": {"tls.key": "broken"}}))
        .await;
    until("a broken one is made anew", async || served().await.is_some_and(|(_, key)| key.contains("PRIVATE KEY")))
        .await;

    // Once all is as it should be, nobody writes any more.
    let versions = async || {
        let mut list = Vec::new();
        for (api, kind, namespace, name) in [
            ("v1", "ConfigMap", Some("shop"), "weir-root"),
            ("v1", "Secret", Some(SYSTEM), "weir-webhook-tls"),
            ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, "weir-webhook"),
            ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", None, "weir-rules"),
        ] {
            list.push(cluster.get(api, kind, namespace, name).await.unwrap()["metadata"]["resourceVersion"].clone());
        }
        list
    };
    let before = versions().await;
    // Something else changes, and is seen by both: time enough for a writer that does not compare.
    cluster.apply(namespace("later", true)).await;
    until("a later namespace has them", async || roots_in(&cluster, "later").await.is_some()).await;
    assert_eq!(versions().await, before);
    let quiet =
        replicas.iter().all(|control| !control.log.lock().unwrap().iter().any(|line| line.contains("orbidden")));
    assert!(quiet, "the rights are enough");
    let health = replicas[0].health.unwrap();
    assert!(Control::page(health, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(Control::page(health, "/metrics").await.starts_with("HTTP/1.1 404"), "the kubelet's port has no more");
}

fn check_serving(leaf: &str, roots: &str) {
    use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};
    let (_, leaf) = parse_x509_pem(leaf.as_bytes()).unwrap();
    let (_, root) = parse_x509_pem(roots.as_bytes()).unwrap();
    let (leaf, root) = (leaf.parse_x509().unwrap(), root.parse_x509().unwrap());
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert!(leaf.validity().is_valid());
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert!(names.contains(&GeneralName::DNSName("weir-webhook.weir-system.svc")), "{names:?}");
}

/// A certificate of the CA for the right name that ended long ago.
async fn expired(cluster: &Cluster) -> (String, String) {
    let secret = cluster.get("v1", "Secret", Some(SYSTEM), "weir-ca").await.unwrap();
    let ca = rcgen::KeyPair::from_pem(&text(&secret["data"]["ca-key.pem"])).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&text(&secret["data"]["ca-cert.pem"]), ca).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["weir-webhook.weir-system.svc".into()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

fn webhook() -> Json {
    let entry = |name: &str, seconds: u32| {
        json!({"name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": seconds,
            "clientConfig": {"service": {"name": "weir-webhook", "namespace": SYSTEM, "path": "/inject"}},
            // Nothing of the tests' is ever asked about.
            "namespaceSelector": {"matchLabels": {"weir.test/never": "true"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]})
    };
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "weir-webhook"}, "webhooks": [entry("namespace.weir.dev", 5), entry("pod.weir.dev", 7)]})
}

fn rules_webhook() -> Json {
    let entry = webhook()["webhooks"][0].clone();
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "weir-rules"}, "webhooks": [entry]})
}

/// Conditions are those of the API: of two kinds on one port the more special one is in force, and the other says so; a route of
/// another namespace is accepted, and what it may not refer to is granted.
#[tokio::test(flavor = "multi_thread")]
async fn routes_of_several_kinds_and_namespaces_have_their_status() {
    let Some(cluster) = cluster::start("kinds").await else { return };
    shop(&cluster).await;
    let crd = include_str!("data/httproute-crd.yaml");
    cluster.apply_file(crd).await;
    cluster.apply_file(&crd.replace("httproute", "grpcroute").replace("HTTPRoute", "GRPCRoute")).await;
    cluster.apply_file(&crd.replace("httproute", "referencegrant").replace("HTTPRoute", "ReferenceGrant")).await;
    until("the kinds are served", async || {
        let mut served = true;
        for kind in ["HTTPRoute", "GRPCRoute", "ReferenceGrant"] {
            served &= cluster.api(GATEWAY, kind, Some("shop")).list(&Default::default()).await.is_ok();
        }
        served
    })
    .await;
    let control = Control::spawn(&mut cluster.control("one").await);
    healthy(&control).await;
    let until_conditions = async |kind: &str, namespace: &str, name: &str, want: [&str; 2]| {
        until(&format!("{kind} {name} has {want:?}"), async || {
            conditions_of(&cluster, kind, namespace, name).await == want
        })
        .await;
    };
    let good = ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"];
    cluster.apply(route("web", json!([{"backendRefs": [{"name": "catalog", "port": 80}]}]))).await;
    until_conditions("HTTPRoute", "shop", "web", good).await;
    let mut calls = route("calls", json!([{"backendRefs": [{"name": "catalog", "port": 80}]}]));
    calls["kind"] = "GRPCRoute".into();
    cluster.apply(calls).await;
    until_conditions("GRPCRoute", "shop", "calls", good).await;
    until_conditions("HTTPRoute", "shop", "web", ["Accepted=False/Conflicted", good[1]]).await;
    cluster.delete(GATEWAY, "GRPCRoute", "shop", "calls").await;
    until_conditions("HTTPRoute", "shop", "web", good).await;

    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    cluster.apply(namespace).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "far", "namespace": "other"},
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    cluster.apply(service).await;
    let mut consumer = route("mine", json!([{"backendRefs": [{"name": "catalog", "namespace": "shop", "port": 80}]}]));
    consumer["metadata"]["namespace"] = "other".into();
    consumer["spec"]["parentRefs"][0]["namespace"] = "shop".into();
    cluster.apply(consumer).await;
    until_conditions("HTTPRoute", "other", "mine", good).await;
    cluster.apply(route("web", json!([{"backendRefs": [{"name": "far", "namespace": "other", "port": 80}]}]))).await;
    until_conditions("HTTPRoute", "shop", "web", [good[0], "ResolvedRefs=False/RefNotPermitted"]).await;
    let grant = json!({"apiVersion": GATEWAY, "kind": "ReferenceGrant", "metadata": {"name": "g", "namespace": "other"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
        "to": [{"group": "", "kind": "Service", "name": "far"}]}});
    cluster.apply(grant).await;
    until_conditions("HTTPRoute", "shop", "web", good).await;
    cluster.delete(GATEWAY, "ReferenceGrant", "other", "g").await;
    until_conditions("HTTPRoute", "shop", "web", [good[0], "ResolvedRefs=False/RefNotPermitted"]).await;
}

/// `Accepted` of a policy as it is now, with its message.
async fn verdict_of(cluster: &Cluster, api_version: &str, kind: &str, name: &str) -> (String, String) {
    let object = cluster.get(api_version, kind, Some("shop"), name).await.unwrap();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted");
    let accepted = accepted.filter(|condition| condition["observedGeneration"] == object["metadata"]["generation"]);
    let text = |key: &str| accepted.map_or("none", |condition| condition[key].as_str().unwrap()).to_owned();
    (format!("{}/{}", text("status"), text("reason")), text("message"))
}

/// Also one that the webhook never saw says whether it is in force.
#[tokio::test(flavor = "multi_thread")]
async fn policies_have_their_status() {
    const OURS: &str = "weir.dev/v1alpha1";
    const ISTIO: &str = "networking.istio.io/v1";
    const SECURITY: &str = "security.istio.io/v1";
    let Some(cluster) = cluster::start("policies").await else { return };
    shop(&cluster).await;
    for definition in [
        include_str!("../../charts/weir/crds/trafficpolicies.yaml"),
        include_str!("../../charts/weir/crds/destinationrules.yaml"),
        include_str!("../../charts/weir/crds/authorizationpolicies.yaml"),
        include_str!("../../charts/weir/crds/peerauthentications.yaml"),
        include_str!("data/httproute-crd.yaml"),
    ] {
        cluster.apply_file(definition).await;
    }
    let kinds = [
        (OURS, "TrafficPolicy"),
        (ISTIO, "DestinationRule"),
        (SECURITY, "AuthorizationPolicy"),
        (GATEWAY, "HTTPRoute"),
    ];
    until("the kinds are served", async || {
        let mut served = true;
        for (version, kind) in kinds {
            served &= cluster.api(version, kind, Some("shop")).list(&Default::default()).await.is_ok();
        }
        served
    })
    .await;
    let control = Control::spawn(&mut cluster.control("one").await);
    healthy(&control).await;
    let object = |(version, kind): (&str, &str), spec: Json| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    let until_verdict = async |(version, kind): (&str, &str), wanted: &str, says: &str| {
        let mut last = Default::default();
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            last = verdict_of(&cluster, version, kind, "p").await;
            if last.0 == wanted && last.1.contains(says) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{kind} is {last:?}, not {wanted} with {says:?}");
    };

    let policy = |name: &str| {
        object(
            kinds[0],
            json!({"targetRefs": [{"group": "", "kind": "Service", "name": name}],
        "healthChecks": null, "retryBudget": {"percent": 30}}),
        )
    };
    cluster.apply(policy("catalog")).await;
    until_verdict(kinds[0], "True/Accepted", "in force").await;
    cluster.apply(policy("nobody")).await;
    until_verdict(kinds[0], "False/TargetNotFound", "there is no Service shop/nobody").await;
    let of_a_rule = json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "web", "sectionName": "buy"}],
        "retryBudget": null, "fault": {"abort": {"httpStatus": 503}}});
    cluster.apply(object(kinds[0], of_a_rule)).await;
    until_verdict(kinds[0], "False/TargetNotFound", "there is no rule buy of HTTPRoute/shop/web").await;
    cluster.apply(route("web", json!([{"name": "buy", "backendRefs": [{"name": "catalog", "port": 80}]}]))).await;
    until_verdict(kinds[0], "True/Accepted", "in force").await;
    let faults_of_a_check = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "catalog"}],
        "fault": null, "healthChecks": [{"type": "HTTP", "interval": "soon"}]});
    cluster.apply(object(kinds[0], faults_of_a_check)).await;
    until_verdict(kinds[0], "False/Invalid", "spec.healthChecks[0].interval").await;

    let rule = |policy: Json| object(kinds[1], json!({"host": "catalog", "trafficPolicy": policy}));
    cluster.apply(rule(json!({"loadBalancer": {"simple": "RANDOM"}}))).await;
    until_verdict(kinds[1], "True/Accepted", "in force").await;
    // What others say stays.
    let foreign = json!({"type": "Reconciled", "status": "True"});
    cluster.status(ISTIO, "DestinationRule", "shop", "p", json!({"conditions": [foreign]})).await;
    until_verdict(kinds[1], "True/Accepted", "in force").await;
    let both = cluster.get(ISTIO, "DestinationRule", Some("shop"), "p").await.unwrap();
    assert_eq!(both["status"]["conditions"][0], foreign);
    assert_eq!(both["status"]["conditions"].as_array().map(Vec::len), Some(2));
    cluster.apply(rule(json!({"loadBalancer": {"simple": "PASSTHROUGH"}}))).await;
    until_verdict(kinds[1], "False/Invalid", "spec.trafficPolicy.loadBalancer.simple").await;

    cluster
        .apply(object(kinds[2], json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]})))
        .await;
    until_verdict(kinds[2], "True/Accepted", "in force").await;
    cluster
        .apply(object(kinds[2], json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/"]}}]}]})))
        .await;
    until_verdict(kinds[2], "False/Invalid", "spec.rules[0].to[0].operation.paths").await;
    // Written once: nothing is written for what did not change.
    let before = cluster.get(SECURITY, "AuthorizationPolicy", Some("shop"), "p").await.unwrap();
    cluster.apply(policy("catalog")).await;
    until_verdict(kinds[0], "True/Accepted", "in force").await;
    let after = cluster.get(SECURITY, "AuthorizationPolicy", Some("shop"), "p").await.unwrap();
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leader_writes_the_status_of_routes() {
    let Some(cluster) = cluster::start("status").await else { return };
    shop(&cluster).await;
    let one = Control::spawn(&mut cluster.control("one").await);
    healthy(&one).await;
    until("the first one leads", async || one.metric("weir_control_leader").await == 1.0).await;
    let two = Control::spawn(&mut cluster.control("two").await);
    healthy(&two).await;
    let token = cluster.token("shop", "web", Some("web-a"), "weir-control").await;
    let mut proxy = Proxy::start(&at(&two), &cluster.roots().await, "web-a.shop", &token);
    proxy.names.add(Kind::Route, ROUTES);
    proxy.connected().await;
    proxy.added().await;

    // The kind comes while they run.
    cluster.apply_file(include_str!("data/httproute-crd.yaml")).await;
    let backends = |name: &str| json!([{"backendRefs": [{"name": name, "port": 80}]}]);
    until("the kind is served", async || {
        cluster.api(GATEWAY, "HTTPRoute", Some("shop")).list(&Default::default()).await.is_ok()
    })
    .await;
    cluster.apply(route("good", backends("catalog"))).await;
    let elapsed =
        wait_for_conditions(&cluster, "good", ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]).await;
    println!("first status of a route, with the wait for its kind: {elapsed:?}");
    let body = String::from_utf8_lossy(&proxy.added().await.body).into_owned();
    assert!(body.contains("HTTPRoute/shop/good/0/0"), "the replica that does not lead serves it as well: {body}");

    cluster.apply(route("dangling", backends("nobody"))).await;
    wait_for_conditions(&cluster, "dangling", ["Accepted=True/Accepted", "ResolvedRefs=False/BackendNotFound"]).await;
    proxy.added().await;
    let foreign = json!([{"backendRefs": [{"name": "b", "port": 80, "group": "x", "kind": "Bucket"}]}]);
    cluster.apply(route("dangling", foreign)).await;
    wait_for_conditions(&cluster, "dangling", ["Accepted=True/Accepted", "ResolvedRefs=False/InvalidKind"]).await;
    let elsewhere = json!([{"backendRefs": [{"name": "catalog", "port": 80, "namespace": "other"}]}]);
    cluster.apply(route("dangling", elsewhere)).await;
    wait_for_conditions(&cluster, "dangling", ["Accepted=True/Accepted", "ResolvedRefs=False/RefNotPermitted"]).await;
    // What the webhook would have refused is stored all the same.
    cluster.apply(route("dangling", json!([{"timeouts": {"request": "1s", "backendRequest": "2s"}}]))).await;
    wait_for_conditions(&cluster, "dangling", ["Accepted=False/UnsupportedValue", "ResolvedRefs=True/ResolvedRefs"])
        .await;
    let body = String::from_utf8_lossy(&proxy.added().await.body).into_owned();
    assert!(!body.contains("shop/dangling"), "what is not accepted has no effect: {body}");
    assert!(
        two.get("/debug/problems")
            .await
            .contains("HTTPRoute shop/dangling: spec.rules[0].timeouts.backendRequest: is longer than request")
    );
    let mut lost = route("lost", backends("catalog"));
    lost["spec"]["parentRefs"][0]["name"] = "nobody".into();
    cluster.apply(lost).await;
    wait_for_conditions(&cluster, "lost", ["Accepted=False/NoMatchingParent", "ResolvedRefs=True/ResolvedRefs"]).await;
    // Its Service comes later.
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nobody", "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}]}}))
        .await;
    wait_for_conditions(&cluster, "lost", ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]).await;

    // Another controller's entry stays as it is.
    let foreign = json!({"controllerName": "example.com/other", "parentRef": {"name": "edge"}, "conditions": []});
    cluster.status(GATEWAY, "HTTPRoute", "shop", "good", json!({"parents": [foreign]})).await;
    wait_for_conditions(&cluster, "good", ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]).await;
    let good = cluster.get(GATEWAY, "HTTPRoute", Some("shop"), "good").await.unwrap();
    assert_eq!(good["status"]["parents"][0], foreign);
    // A route of a Gateway alone is none of ours.
    let mut edge = route("edge", backends("catalog"));
    edge["spec"]["parentRefs"] = json!([{"name": "edge"}]);
    cluster.apply(edge).await;
    cluster.apply(route("marker", backends("catalog"))).await;
    wait_for_conditions(&cluster, "marker", ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]).await;
    assert!(conditions(&cluster, "edge").await.is_empty());
    let now = cluster.get(GATEWAY, "HTTPRoute", Some("shop"), "good").await.unwrap();
    assert_eq!(
        now["metadata"]["resourceVersion"], good["metadata"]["resourceVersion"],
        "written only where it differs"
    );
    assert!(!two.logged("\"leads\":true"), "one leader");

    // Handed over at the end: the other need not wait for the lease to run out.
    let start = Instant::now();
    one.stop();
    until("the second one leads", async || two.metric("weir_control_leader").await == 1.0).await;
    println!("leadership after a shutdown: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(12), "it was handed over");
    cluster.apply(route("after", backends("catalog"))).await;
    wait_for_conditions(&cluster, "after", ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]).await;
    // Killed: the lease runs out.
    drop(two);
    let three = Control::spawn(&mut cluster.control("three").await);
    cluster.apply(route("killed", backends("catalog"))).await;
    let elapsed =
        wait_for_conditions(&cluster, "killed", ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]).await;
    println!("status after the leader was killed: {elapsed:?}");
    assert!(elapsed > Duration::from_secs(5), "a lease that runs is respected");
    drop(three);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_goes_away_takes_nothing_with_it() {
    let Some(mut cluster) = cluster::start("away").await else { return };
    cluster.apply_file(include_str!("data/httproute-crd.yaml")).await;
    shop(&cluster).await;
    let control = Control::spawn(&mut cluster.control("one").await);
    healthy(&control).await;
    let roots = cluster.roots().await;
    let token = cluster.token("shop", "web", Some("web-a"), "weir-control").await;
    let address = at(&control);
    let mut proxy = Proxy::start(&address, &roots, "web-a.shop", &token);
    proxy.names.add(Kind::Endpoints, CATALOG);
    proxy.connected().await;
    let before = proxy.added().await.version;

    // A second server on the same store keeps going while the first is away, and things change.
    let (another, client) = cluster.another_server().await;
    cluster.stop_server();
    until("it is noticed", async || control.logged("what is known stays, trying again")).await;
    cluster::apply(&client, slice(&["198.18.1.1", "198.18.1.9"])).await;
    let gone = kube::api::DeleteParams::default().grace_period(0);
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client.clone(), "shop");
    pods.delete("catalog-a", &gone).await.unwrap();
    // Meanwhile everything is served, also to who comes anew; a caller whom nobody can review is told to come back.
    assert!(Control::page(control.health.unwrap(), "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(proxy.is_quiet().await);
    let stranger = Arc::new(Mutex::new(control.address));
    let late = Proxy::start(&stranger, &roots, "web-a.shop", &token);
    late.names.add(Kind::Endpoints, CATALOG);
    drop(late);
    let unknown = format!("{token}x");
    let status = chain(&control, &roots, &unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let start = Instant::now();
    drop(another);
    cluster.start_server().await;
    println!("API server back after {:?}", start.elapsed());
    let back = Instant::now();
    loop {
        let Seen::Added(_, resource) = proxy.next().await else { continue };
        let body = String::from_utf8_lossy(&resource.body).into_owned();
        assert!(body.contains("198.18.1.1"), "what is there is never said to be gone: {body}");
        if body.contains("198.18.1.9") && !body.contains("catalog-a") {
            assert_ne!(resource.version, before);
            break;
        }
    }
    println!("in step again {:?} after the API server is ready", back.elapsed());
    assert!(control.logged("the version is too old: everything is read again"), "410 Gone was met");
    assert!(control.logged("read from the API server again"));
    until("callers are reviewed again", async || chain(&control, &roots, &token).await.is_ok()).await;
    assert!(control.metric("weir_control_connected_proxies").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_before_everything_is_read() {
    let Some(cluster) = cluster::start("rights").await else { return };
    shop(&cluster).await;
    // Without the right to read Pods.
    let mut role = cluster.get("rbac.authorization.k8s.io/v1", "ClusterRole", None, "weir-control").await.unwrap();
    let whole = role["rules"].clone();
    role["rules"][0]["resources"] = json!(["services", "namespaces", "nodes"]);
    cluster.apply(json!({"apiVersion": role["apiVersion"], "kind": role["kind"], "metadata": {"name": "weir-control"}, "rules": role["rules"]})).await;
    let control = Control::spawn(&mut cluster.control("one").await);
    let health = control.health.unwrap();
    until("it says what is missing", async || {
        let page = Control::page(health, "/healthz").await;
        page.starts_with("HTTP/1.1 503") && page.contains("Pods can not be read") && page.contains("forbidden")
    })
    .await;
    assert!(Control::page(health, "/livez").await.starts_with("HTTP/1.1 200"), "no reason to restart it");
    let token = cluster.token("shop", "web", Some("web-a"), "weir-control").await;
    let status = chain(&control, &cluster.roots().await, &token).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    cluster.apply(json!({"apiVersion": role["apiVersion"], "kind": role["kind"], "metadata": {"name": "weir-control"}, "rules": whole})).await;
    healthy(&control).await;
    chain(&control, &cluster.roots().await, &token).await.unwrap();
}
