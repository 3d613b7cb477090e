//! What is refused, and that it is logged where a person looks for it: by the pod that is called, and by the control plane.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt as _};
use rcgen::{CertificateParams, KeyPair, SanType};
use tonic::{Code, Status};
use weir_cluster::{
    Case, Suite, cases,
    mesh::{self, SYSTEM},
    suite::LIMIT,
};
use weir_xds::{
    Client, ConnectionState, Handler, Kind, Rejection, Resource, ca::create_certificate, client::Timing, endpoint,
};

const CONTROL: &str = "weir-control.weir-system.svc";
const PATIENCE: Duration = Duration::from_secs(30);

fn pod(name: &str, account: &str, label: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{label}}}}}
spec:
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: app, image: 'weir.test/app:1', args: [serve], ports: [{{name: http, containerPort: 8080}}]}}
---
"
    )
}

/// A call that is tried until it ends as wanted: rules are in force soon after they are applied, not at once.
async fn call(case: &Case<'_>, from: &str, url: &str, as_wanted: impl Fn(&Result<String, String>) -> bool) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let said = case
            .cluster
            .kubectl(&["--namespace", case.namespace, "exec", from, "--container=app", "--", "/app", "fetch", url])
            .map_err(|error| format!("{error:#}"));
        if as_wanted(&said) {
            return said.unwrap_or_else(|error| error);
        }
        assert!(Instant::now() < end, "{from} calls {url}: {said:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits for a line of a log that has all of these.
async fn logged(case: &Case<'_>, of: &[&str], parts: &[&str]) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let log = case.cluster.kubectl(&[&["logs", "--tail=-1"], of].concat()).unwrap();
        if let Some(line) = log.lines().find(|line| parts.iter().all(|part| line.contains(part))) {
            return line.to_owned();
        }
        assert!(Instant::now() < end, "no line with {parts:?} in the log of {of:?}:\n{log}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn control_logged(case: &Case<'_>, parts: &[&str]) -> String {
    logged(case, &["--namespace", SYSTEM, "--selector", "app.kubernetes.io/name=weir-control"], parts).await
}

async fn address(case: &Case<'_>, name: &str) -> String {
    case.ready(name).await.status.unwrap().pod_ip.unwrap()
}

async fn plaintext_to_a_strict_workload(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(&(pod("server", "server", "app: server") + &pod("outside", "outside", "weir.dev/inject: 'false'")));
    case.ready("outside").await;
    let server = address(case, "server").await;
    let url = format!("http://{server}:8080/");
    // Without the rule it is served: what refuses it is the rule.
    call(case, "outside", &url, Result::is_ok).await;
    mesh::strict(case);
    call(case, "outside", &url, Result::is_err).await;
    let outside = address(case, "outside").await;
    let own = ["--namespace", case.namespace, "server", "--container=weir-proxy"];
    let line = logged(case, &own, &["access refused", &outside, "plaintext"]).await;
    assert!(line.contains(&format!("PeerAuthentication {}/default", case.namespace)), "which rule: {line}");
}

async fn a_principal_that_no_rule_allows(case: &Case<'_>) {
    mesh::joined(case).await;
    let client = |name: &str| pod(name, name, "app: client");
    case.apply(&(pod("server", "server", "app: server") + &client("friend") + &client("stranger")));
    for name in ["friend", "stranger"] {
        case.ready(name).await;
    }
    let url = format!("http://{}:8080/", address(case, "server").await);
    call(case, "stranger", &url, Result::is_ok).await;
    case.apply(&format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: friends}}, spec: {{
          selector: {{matchLabels: {{app: server}}}},
          rules: [{{from: [{{source: {{principals: [cluster.local/ns/{}/sa/friend]}}}}]}}]}}}}",
        case.namespace
    ));
    call(case, "stranger", &url, Result::is_err).await;
    call(case, "friend", &url, Result::is_ok).await;
    let stranger = format!("spiffe://cluster.local/ns/{}/sa/stranger", case.namespace);
    let own = ["--namespace", case.namespace, "server", "--container=weir-proxy"];
    let line = logged(case, &own, &["access refused", &stranger]).await;
    assert!(line.contains(&format!("{}/friends", case.namespace)), "which rule: {line}");
}

async fn a_rule_that_can_not_be_enforced(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(&(pod("server", "server", "app: server") + &pod("client", "client", "app: client")));
    case.ready("client").await;
    let url = format!("http://{}:8080/", address(case, "server").await);
    call(case, "client", &url, Result::is_ok).await;
    let rule = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: reads}, spec: {
        selector: {matchLabels: {app: server}}, rules: [{to: [{operation: {methods: [GET]}}]}]}}";
    let refused = case.cluster.apply(case.namespace, rule).unwrap_err().to_string();
    assert!(refused.contains("weir: spec.rules[0].to[0].operation.methods"), "{refused}");
    // Nobody asked the webhook: the API server keeps the field, and the whole rule is closed.
    let configuration = ["validatingwebhookconfiguration", "weir-rules"];
    case.cluster.kubectl(&[&["delete"][..], &configuration].concat()).unwrap();
    case.apply(rule);
    call(case, "client", &url, Result::is_err).await;
    control_logged(case, &[&format!("AuthorizationPolicy {}/reads", case.namespace), "methods"]).await;
}

/// A way from this process to the control plane, through the API server.
struct Forward {
    child: Child,
    /// It says something of every connection, and ends when nobody hears it.
    _said: BufReader<ChildStdout>,
    address: String,
    roots: String,
}

impl Forward {
    async fn start(case: &Case<'_>) -> Self {
        let maps: Api<ConfigMap> = Api::namespaced(case.cluster.client(), case.namespace);
        let roots = maps.get("weir-root").await.unwrap().data.unwrap().remove("root-cert.pem").unwrap();
        let mut command = case.cluster.tool("kubectl");
        command.args(["port-forward", "--namespace", SYSTEM, "service/weir-control", "--address=127.0.0.1", ":15012"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // `Forwarding from 127.0.0.1:PORT -> 15012`
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let address = line.split_whitespace().nth(2).unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, _said: said, address, roots }
    }

    async fn certificate(&self, token: &str, names: &[&str]) -> Result<Vec<String>, Status> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let channel = endpoint(&self.address, CONTROL, &self.roots).unwrap().connect().await.unwrap();
        create_certificate(channel, token, request, Duration::ZERO).await
    }

    /// What becomes of a stream of a node with this id: why it ended, or its first resource.
    async fn configuration(&self, token: &str, node: &str) -> Result<String, String> {
        let seen = Arc::new(Mutex::new(None));
        let (address, roots, token) = (self.address.clone(), self.roots.clone(), token.to_owned());
        let endpoints = move || endpoint(&address, CONTROL, &roots);
        let tokens = move || -> Result<String, std::io::Error> { Ok(token.clone()) };
        let client = Client::new(endpoints, node, tokens, First(seen.clone())).timing(Timing::default());
        client.subscriptions().add(Kind::Listener, "weir/inbound");
        let stream = tokio::spawn(client.run());
        let end = Instant::now() + PATIENCE;
        let found = loop {
            if let Some(found) = seen.lock().unwrap().take() {
                break found;
            }
            assert!(Instant::now() < end, "the control plane says nothing to {node}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        stream.abort();
        found
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Keeps what came first.
struct First(Arc<Mutex<Option<Result<String, String>>>>);

impl Handler for First {
    fn apply(&mut self, _: Kind, added: Vec<Resource>, _: Vec<String>) -> Vec<Rejection> {
        if let Some(resource) = added.first() {
            self.0.lock().unwrap().get_or_insert(Ok(String::from_utf8_lossy(&resource.body).into_owned()));
        }
        Vec::new()
    }

    fn connection(&mut self, state: ConnectionState) {
        if let ConnectionState::Disconnected { reason, .. } = state {
            self.0.lock().unwrap().get_or_insert(Err(reason));
        }
    }
}

/// As a kubelet asks for it: for a pod.
fn token(case: &Case<'_>, pod: &Pod, audience: &str) -> String {
    let uid = format!("--bound-object-uid={}", pod.uid().unwrap());
    let (name, audience) = (format!("--bound-object-name={}", pod.name_any()), format!("--audience={audience}"));
    let account = pod.spec.as_ref().unwrap().service_account_name.clone().unwrap();
    case.kubectl(&["create", "token", &account, "--bound-object-kind=Pod", &name, &uid, &audience]).trim().to_owned()
}

async fn whoever_is_not_who_they_say(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(&(pod("web", "web", "app: web") + &pod("bank", "bank", "app: bank") + &pod("gone", "web", "app: gone")));
    let web = case.ready("web").await;
    case.ready("bank").await;
    let gone = case.ready("gone").await;
    let forward = Forward::start(case).await;
    let id = |name: &str| format!("{name}.{}", case.namespace);
    let identity = |name: &str| format!("spiffe://cluster.local/ns/{}/sa/{name}", case.namespace);

    // What is refused below is refused for its reason: all of it works with what is the caller's own.
    let good = token(case, &web, "weir-control");
    forward.certificate(&good, &[&identity("web")]).await.unwrap();
    let configuration = forward.configuration(&good, &id("web")).await.unwrap();
    assert!(configuration.contains(&identity("web")), "{configuration}");

    let status = forward.certificate(&token(case, &web, "bank-of-the-api"), &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    control_logged(case, &["a caller was refused", "audience"]).await;

    let status = forward.certificate(&good, &[&identity("bank")]).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    control_logged(case, &["no certificate issued", &format!("{}/web", case.namespace), &identity("bank")]).await;

    let reason = forward.configuration(&good, &id("bank")).await.unwrap_err();
    assert!(reason.contains(&format!("node.id must be {}", id("web"))), "{reason}");
    control_logged(case, &["a caller was refused", &format!("{}/web", case.namespace), &id("bank")]).await;

    let late = token(case, &gone, "weir-control");
    forward.certificate(&late, &[]).await.unwrap();
    case.kubectl(&["delete", "pod", "gone", "--now", "--wait"]);
    let status = forward.certificate(&late, &[]).await.unwrap_err();
    assert!(matches!(status.code(), Code::Unauthenticated | Code::Unavailable), "{status}");
    assert!(forward.configuration(&late, &id("gone")).await.is_err());
    control_logged(case, &["a caller was refused", &format!("{}/gone", case.namespace)]).await;
}

pub(crate) const SUITE: Suite = Suite {
    name: "refusals",
    title: "Refused and logged",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        plaintext_to_a_strict_workload,
        a_principal_that_no_rule_allows,
        whoever_is_not_who_they_say,
        a_rule_that_can_not_be_enforced,
    ],
};
