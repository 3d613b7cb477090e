//! The life of a pod where plaintext is refused: all that a pod does without a mesh goes on working in it.
//!
//! The whole mesh is STRICT, and each test that hangs on it first sees a caller without a proxy refused: else it could not fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerState, ContainerStatus, Event, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use weir_cluster::{
    Case, Suite, cases,
    mesh::{self, SYSTEM},
    said,
    suite::LIMIT,
    until,
};

/// What the pods of all tests call, and whom they talk to. `outsider` has no proxy.
const PEERS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: peer}, spec: {selector: {app: peer},
  ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: peer}, spec: {selector: {matchLabels: {app: peer}},
  template: {metadata: {labels: {app: peer}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: app,
  image: 'weir.test/app:1', args: [serve, --log], ports: [{containerPort: 8080}],
  readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}}]}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: outsider}, spec: {selector: {matchLabels: {app: outsider}},
  template: {metadata: {labels: {app: outsider, weir.dev/inject: 'false'}}, spec: {terminationGracePeriodSeconds: 1,
  containers: [{name: app, image: 'weir.test/app:1', args: [serve]}]}}}}
";
const PEER: &str = "http://peer.peers/";
/// How long a condition may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The mesh, its peers, and plaintext refused in all of it; new pods of the test's namespace are in it.
async fn strict(case: &Case<'_>) {
    mesh::joined(case).await;
    let peers = Case { cluster: case.cluster, namespace: "peers" };
    if case.cluster.kubectl(&["get", "namespace", "peers"]).is_err() {
        case.cluster.kubectl(&["create", "namespace", peers.namespace]).unwrap();
        mesh::join(&peers);
        peers.apply(PEERS);
        for deployment in ["deployment/peer", "deployment/outsider"] {
            peers.kubectl(&["rollout", "status", deployment, "--timeout=90s"]);
        }
        // The nodes may learn of the Service a moment after its pods are ready.
        until("plaintext is taken until it is refused", async || outsider(&peers, PEER).is_ok()).await;
        mesh::strict(&Case { cluster: case.cluster, namespace: SYSTEM });
    }
    until("plaintext is refused", async || outsider(&peers, PEER).is_err()).await;
    peers.kubectl(&["exec", "deployment/peer", "--", "/app", "fetch", PEER]);
}

/// A caller without a proxy.
fn outsider(case: &Case<'_>, url: &str) -> anyhow::Result<String> {
    let fetch = ["exec", "--namespace=peers", "deployment/outsider", "--", "/app", "fetch", "--seconds", "5", url];
    case.cluster.kubectl(&fetch)
}

fn has_proxy(pod: &Pod) -> bool {
    let first = pod.spec.as_ref().unwrap().init_containers.as_ref().and_then(|containers| containers.first());
    first.is_some_and(|container| container.name == "weir-proxy")
}

fn address(pod: &Pod) -> String {
    pod.status.as_ref().unwrap().pod_ip.clone().unwrap()
}

/// The status of a container, whatever its kind.
fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == container)
}

/// The code that a container ended with, if it has.
fn exit_code(pod: &Pod, container: &str) -> Option<i32> {
    match &status(pod, container)?.state {
        Some(ContainerState { terminated: Some(ended), .. }) => Some(ended.exit_code),
        _ => None,
    }
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref().unwrap();
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists.into_iter().flatten().flatten().map(|container| container.restart_count).sum()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A program that goes on beside the test; it ends with it.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn kubectl(case: &Case<'_>, arguments: &[&str]) -> Self {
        let mut command = case.cluster.tool("kubectl");
        command.args(["--namespace", case.namespace]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line; the test's own limit is the limit.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// All until it ends.
    fn rest(mut self) -> String {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn network_is_there_from_the_first_instruction(case: &Case<'_>) {
    strict(case).await;
    // restartPolicy Never: who fails once has failed. On every node, at the same time.
    let pods = |name: &str, label: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: first{label}}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - {{name: init, image: 'weir.test/app:1', args: [fetch, '{PEER}']}}
  containers:
  - {{name: app, image: 'weir.test/app:1', command: [/bin/sh, -ec, '/app fetch {PEER} && exec /app serve']}}
  topologySpreadConstraints:
  - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
      labelSelector: {{matchLabels: {{app: first}}}}}}
"
        )
    };
    let names = ["a", "b", "c", "d"];
    let all: Vec<String> = names.iter().map(|name| pods(name, "")).collect();
    case.apply(&all.join("---"));
    case.apply(&pods("outside", "-not, weir.dev/inject: 'false'"));
    let ready = case.ready_with("app=first", names.len()).await;
    assert!(ready.iter().all(|pod| has_proxy(pod) && exit_code(pod, "init") == Some(0) && restarts(pod) == 0));
    // The same without a proxy fails.
    case.until("outside", "fails", |pod: &Pod| (phase(pod) == "Failed").then_some(())).await;
}

async fn jobs_and_schedules_complete(case: &Case<'_>) {
    strict(case).await;
    let template = |fetch: &str| {
        format!(
            "{{template: {{spec: {{restartPolicy: Never, initContainers: [{{name: init, image: 'weir.test/app:1',
             args: [fetch, '{PEER}']}}], containers: [{{name: app, image: 'weir.test/app:1', args: [fetch, '{fetch}']}}]}}}},
             backoffLimit: 0}}"
        )
    };
    case.apply(&format!(
        "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: cron}}, spec: {{schedule: '* * * * *', jobTemplate: {{spec: {}}}}}}}
---
{{apiVersion: batch/v1, kind: Job, metadata: {{name: job}}, spec: {}}}
---
{{apiVersion: batch/v1, kind: Job, metadata: {{name: fails}}, spec: {}}}",
        template(PEER),
        template(PEER),
        template("http://peer.peers/status/500")
    ));
    let condition = |job: &Job, name: &str| {
        let conditions = job.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().any(|condition| condition.type_ == name && condition.status == "True").then_some(())
    };
    case.until("job", "completes", |job: &Job| condition(job, "Complete")).await;
    // The proxy does not hide how the application ended.
    case.until("fails", "fails", |job: &Job| condition(job, "Failed")).await;
    // Within its minute, the schedule has made one by itself.
    let jobs = case.api::<Job>();
    until("the schedule's Job completes", async || {
        let jobs = jobs.list(&ListParams::default()).await.unwrap();
        jobs.iter().any(|job| job.name_any().starts_with("cron-") && condition(job, "Complete").is_some())
    })
    .await;
    case.kubectl(&["delete", "cronjob", "cron"]);
    let pods = case.api::<Pod>().list(&ListParams::default()).await.unwrap();
    for (job, code, what) in [("job", 0, "Succeeded"), ("fails", 1, "Failed")] {
        let pods: Vec<&Pod> = pods_of(&pods.items, job).filter(|pod| has_proxy(pod)).collect();
        assert_eq!(pods.len(), 1);
        assert_eq!((phase(pods[0]), exit_code(pods[0], "app")), (what, Some(code)));
        assert_eq!(exit_code(pods[0], "weir-proxy"), Some(0), "the proxy ends as well, and well");
        assert_eq!(restarts(pods[0]), 0);
    }
}

fn pods_of<'a>(pods: &'a [Pod], job: &'a str) -> impl Iterator<Item = &'a Pod> {
    pods.iter().filter(move |pod| pod.labels().get("job-name").is_some_and(|name| name == job))
}

async fn exec_logs_and_port_forward_work(case: &Case<'_>) {
    strict(case).await;
    case.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: 'weir.test/app:1', args: [serve, --log], readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}}
  - {name: loopback, image: 'weir.test/app:1', args: [serve, --listen, '127.0.0.1:8081']}
",
    );
    let pod = case.ready("web").await;
    assert!(outsider(case, &format!("http://{}:8080/", address(&pod))).is_err(), "plaintext is refused");

    assert_eq!(case.exec("web", &["/bin/busybox", "echo", "here"]).trim(), "here");
    assert!(case.exec("web", &["/app", "fetch", PEER]).contains("127.0.0.6"), "what is started by exec is captured");
    assert!(case.kubectl(&["logs", "web"]).contains("listening"));
    assert!(case.kubectl(&["logs", "web", "--container=weir-proxy"]).contains("ready"));
    let mut follow = Running::kubectl(case, &["logs", "--follow", "web", "--container=app"]);
    assert!(follow.line().contains("listening"));
    // The kubelet comes to the pod's own loopback, which is not the mesh's: also to what listens nowhere else.
    for (target, port) in [("pod/web", 8080), ("pod/web", 8081), ("service/web", 80), ("pod/web", 15000)] {
        let mut forward = Running::kubectl(case, &["port-forward", target, &format!(":{port}")]);
        let line = forward.line();
        let local: u16 = line.split_once("127.0.0.1:").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
        for _ in 0..2 {
            let answer = get(local, if port == 15000 { "/ready" } else { "/forwarded" });
            assert!(answer.starts_with("HTTP/1.1 200"), "{target} {port}: {answer}");
        }
    }
    // The log goes on while it is read.
    while !follow.line().contains("GET /forwarded") {}
}

/// The answer to a request over a forwarded port.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn ephemeral_containers_work_and_are_captured(case: &Case<'_>) {
    strict(case).await;
    case.apply(&simple("web", "", ""));
    case.ready("web").await;
    let debug = ["debug", "web", "--image=weir.test/app:1", "--container=debugger", "--profile=general", "--quiet"];
    case.kubectl(&[&debug[..], &["--", "/app", "fetch", PEER]].concat());
    let code = case.until("web", "its debugger ends", |pod: &Pod| exit_code(pod, "debugger")).await;
    assert_eq!(code, 0, "its peer takes no plaintext: {}", case.kubectl(&["logs", "web", "--container=debugger"]));

    // As the proxy's user it would not be captured.
    let pods = case.api::<Pod>();
    let as_user = |name: &str, user: i64| {
        json!({"spec": {"ephemeralContainers": [{"name": name, "image": "weir.test/app:1", "args": ["fetch", PEER],
            "securityContext": {"runAsUser": user}}]}})
    };
    let add = async |name: &str, user: i64| {
        let patch = Patch::Strategic(as_user(name, user));
        pods.patch_ephemeral_containers("web", &PatchParams::default(), &patch).await
    };
    let error = add("escapes", 1337).await.unwrap_err().to_string();
    assert!(error.contains("container escapes is 1337, the user of the proxy"), "{error}");
    add("stays", 1338).await.unwrap();
    assert_eq!(case.until("web", "its debugger ends", |pod: &Pod| exit_code(pod, "stays")).await, 0);

    // And a copy of the pod to debug is a pod of the mesh.
    case.kubectl(&[
        "debug",
        "web",
        "--copy-to=copy",
        "--image=weir.test/app:1",
        "--container=other",
        "--quiet",
        "--",
        "/app",
        "pause",
    ]);
    let copy = case.ready("copy").await;
    assert!(has_proxy(&copy));
    case.exec("copy", &["/app", "fetch", PEER]);
}

/// A pod with one server, more of its spec, and more of its container.
fn simple(name: &str, spec: &str, container: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{{spec}
         terminationGracePeriodSeconds: 1, containers: [{{{container} name: app, image: 'weir.test/app:1', args: [serve]}}]}}}}"
    )
}

/// Every kind of probe, on application and on the user's own sidecar.
const PROBED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: sidecar
    image: weir.test/app:1
    restartPolicy: Always
    args: [serve, --listen, '[::]:8085']
    startupProbe: {httpGet: {port: 8085}, periodSeconds: 1}
    readinessProbe: {tcpSocket: {port: 8085}, periodSeconds: 1}
    livenessProbe: {httpGet: {port: 8085}, periodSeconds: 1}
  containers:
  - name: http
    image: weir.test/app:1
    args: [serve]
    ports: [{name: web, containerPort: 8080}]
    startupProbe: &http {httpGet: {port: web, path: /probe, httpHeaders: [{name: x-probe, value: 'yes'}]}, periodSeconds: 1, timeoutSeconds: 5}
    readinessProbe: *http
    livenessProbe: *http
  - name: https
    image: weir.test/app:1
    args: [serve, --tls, --listen, '[::]:8443']
    startupProbe: &https {httpGet: {port: 8443, scheme: HTTPS}, periodSeconds: 1, timeoutSeconds: 5}
    readinessProbe: *https
    livenessProbe: *https
  - name: tcp
    image: weir.test/app:1
    args: [tcp]
    startupProbe: &tcp {tcpSocket: {port: 9000}, periodSeconds: 1, timeoutSeconds: 5}
    readinessProbe: *tcp
    livenessProbe: *tcp
  - name: grpc
    image: weir.test/app:1
    args: [grpc]
    startupProbe: &grpc {grpc: {port: 9090, service: weir.test.Echo}, periodSeconds: 1, timeoutSeconds: 5}
    readinessProbe: *grpc
    livenessProbe: *grpc
  - name: exec
    image: weir.test/app:1
    args: [pause]
    startupProbe: &exec {exec: {command: [/app, fetch, 'http://peer.peers/']}, periodSeconds: 1, timeoutSeconds: 5}
    readinessProbe: *exec
    livenessProbe: *exec
";

async fn probes_of_every_kind_succeed(case: &Case<'_>) {
    strict(case).await;
    // kubectl reads no anchors and aliases.
    let pod: serde_json::Value = serde_saphyr::from_str(PROBED).unwrap();
    case.apply(&pod.to_string());
    let pod = case.ready("probed").await;
    // What a kubelet would call itself is refused: from the very node.
    let node: usize =
        pod.spec.as_ref().unwrap().node_name.as_ref().unwrap().trim_start_matches("node").parse().unwrap();
    for url in ["http://ADDRESS:8080/", "https://ADDRESS:8443/"] {
        let url = url.replace("ADDRESS", &address(&pod));
        let direct = case.cluster.node(node).shell(&format!("curl --silent --insecure --fail --max-time 5 {url}"));
        assert!(direct.is_err(), "{url} is answered: {direct:?}");
    }
    // Readiness and liveness are asked again and again.
    let metrics = || {
        case.kubectl(&[
            "exec",
            "probed",
            "--container=http",
            "--",
            "/app",
            "fetch",
            "http://127.0.0.1:15090/stats/prometheus",
        ])
    };
    until("all kinds were asked often", async || {
        let metrics = metrics();
        ["http", "tcp", "grpc"].iter().all(|kind| {
            let line = format!("weir_app_probes_total{{kind=\"{kind}\",result=\"success\"}} ");
            let count = metrics.lines().find_map(|text| text.strip_prefix(&line)?.parse::<u32>().ok());
            count.is_some_and(|count| count >= 8)
        })
    })
    .await;
    let pod = case.ready("probed").await;
    assert_eq!(restarts(&pod), 0);
}

/// The same kinds, asking for what is not so.
const FAILING: [(&str, &str); 5] = [
    ("http", "{httpGet: {port: 8080, path: /status/503}, periodSeconds: 1, failureThreshold: 1}"),
    ("https", "{httpGet: {port: 8443, scheme: HTTPS, path: /status/500}, periodSeconds: 1, failureThreshold: 1}"),
    ("tcp", "{tcpSocket: {port: 9999}, periodSeconds: 1, failureThreshold: 1}"),
    ("grpc", "{grpc: {port: 9090, service: nobody}, periodSeconds: 1, failureThreshold: 1}"),
    ("exec", "{exec: {command: [/bin/busybox, 'false']}, periodSeconds: 1, failureThreshold: 1}"),
];

async fn probes_that_fail_are_seen_to_fail(case: &Case<'_>) {
    strict(case).await;
    let pod = |name: &str, probe: &str| {
        let containers: Vec<String> = FAILING
            .iter()
            .map(|(kind, failing)| {
                let args = match *kind {
                    "http" => "[serve]",
                    "https" => "[serve, --tls, --listen, '[::]:8443']",
                    "grpc" => "[grpc]",
                    _ => "[pause]",
                };
                format!("{{name: {kind}, image: 'weir.test/app:1', args: {args}, {probe}: {failing}}}")
            })
            .collect();
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1,
             containers: [{}]}}}}",
            containers.join(", ")
        )
    };
    case.apply(
        &[pod("lives", "livenessProbe"), pod("starts", "startupProbe"), pod("ready", "readinessProbe")].join("\n---\n"),
    );
    let kinds = FAILING.map(|(kind, _)| kind);
    for name in ["lives", "starts"] {
        case.until(name, "all its containers are restarted", |pod: &Pod| {
            kinds.iter().all(|kind| status(pod, kind).is_some_and(|status| status.restart_count > 0)).then_some(())
        })
        .await;
    }
    // Seen to fail by the kubelet, and nothing else happens.
    let events: Api<Event> = case.api();
    until("readiness fails", async || {
        let events = events.list(&ListParams::default().fields("involvedObject.name=ready")).await.unwrap();
        kinds.iter().all(|kind| {
            let field = format!("spec.containers{{{kind}}}");
            events.iter().any(|event| {
                event.involved_object.field_path.as_ref() == Some(&field)
                    && event.message.as_ref().is_some_and(|text| text.starts_with("Readiness probe failed"))
            })
        })
    })
    .await;
    let pod = case.api::<Pod>().get("ready").await.unwrap();
    assert_eq!((phase(&pod), restarts(&pod)), ("Running", 0));
    assert!(kinds.iter().all(|kind| status(&pod, kind).is_some_and(|status| !status.ready)));
    assert!(status(&pod, "weir-proxy").unwrap().ready);
}

async fn hooks_of_every_kind_are_called(case: &Case<'_>) {
    strict(case).await;
    // Who is called is a sidecar, which is there before the application starts and after it has ended.
    case.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: hooked}}
spec:
  terminationGracePeriodSeconds: 20
  initContainers:
  - {{name: plain, image: 'weir.test/app:1', restartPolicy: Always, args: [serve, --log, --listen, '[::]:8081'],
      startupProbe: {{tcpSocket: {{port: 8081}}, periodSeconds: 1}}}}
  - {{name: secure, image: 'weir.test/app:1', restartPolicy: Always, args: [serve, --log, --tls, --listen, '[::]:8443'],
      startupProbe: {{tcpSocket: {{port: 8443}}, periodSeconds: 1}}}}
  containers:
  - name: http
    image: weir.test/app:1
    args: [serve]
    lifecycle:
      postStart: {{httpGet: {{port: 8081, path: /http-started}}}}
      preStop: {{httpGet: {{port: 8081, path: /http-stops}}}}
  - name: https
    image: weir.test/app:1
    args: [pause]
    lifecycle:
      postStart: {{httpGet: {{port: 8443, scheme: HTTPS, path: /https-started}}}}
      preStop: {{httpGet: {{port: 8443, scheme: HTTPS, path: /https-stops}}}}
  - name: exec
    image: weir.test/app:1
    args: [pause]
    lifecycle:
      postStart: {{exec: {{command: [/app, fetch, '{PEER}exec-started']}}}}
      preStop: {{exec: {{command: [/app, fetch, '{PEER}exec-stops']}}}}
  - name: sleeps
    image: weir.test/app:1
    args: [pause]
    lifecycle: {{preStop: {{sleep: {{seconds: 1}}}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: failing}}, spec: {{terminationGracePeriodSeconds: 1, containers: [
  {{name: app, image: 'weir.test/app:1', args: [pause], lifecycle: {{postStart: {{httpGet: {{port: 9999}}}}}}}}]}}}}
"
    ));
    case.ready("hooked").await;
    let plain = Running::kubectl(case, &["logs", "--follow", "hooked", "--container=plain"]);
    let secure = Running::kubectl(case, &["logs", "--follow", "hooked", "--container=secure"]);
    case.kubectl(&["delete", "pod", "hooked"]);
    let (plain, secure) = (plain.rest(), secure.rest());
    assert!(plain.contains("GET /http-started") && plain.contains("GET /http-stops"), "{plain}");
    assert!(secure.contains("GET /https-started") && secure.contains("GET /https-stops"), "{secure}");
    let peer = peer_log(case);
    assert!(peer.contains("GET /exec-started") && peer.contains("GET /exec-stops"), "{peer}");
    // One that reaches nobody fails, and the container with it, as without a mesh.
    case.until("failing", "is restarted", |pod: &Pod| (restarts(pod) > 0).then_some(())).await;
    let events = case.kubectl(&["get", "events", "--field-selector=involvedObject.name=failing"]);
    assert!(events.contains("FailedPostStartHook"), "{events}");
}

/// What the peer was asked so far.
fn peer_log(case: &Case<'_>) -> String {
    case.cluster.kubectl(&["logs", "--namespace=peers", "deployment/peer", "--tail=-1"]).unwrap()
}

async fn the_class_of_a_pod_is_kept(case: &Case<'_>) {
    strict(case).await;
    let full = "resources: {limits: {cpu: 100m, memory: 64Mi}}";
    let pods = [
        ("BestEffort", simple("best-effort", "", "")),
        ("Burstable", simple("burstable", "", "resources: {requests: {cpu: 10m}},")),
        ("Guaranteed", simple("guaranteed", "", &format!("{full},"))),
        ("Guaranteed", simple("as-a-whole", &format!("{full},"), "")),
    ];
    let all: Vec<&str> = pods.iter().map(|(_, pod)| pod.as_str()).collect();
    case.apply(&all.join("\n---\n"));
    for (name, (class, _)) in ["best-effort", "burstable", "guaranteed", "as-a-whole"].iter().zip(&pods) {
        let pod = case.ready(name).await;
        assert!(has_proxy(&pod));
        assert_eq!(pod.status.as_ref().unwrap().qos_class.as_deref(), Some(*class), "{name}");
        case.exec(name, &["/app", "fetch", PEER]);
    }
}

/// As Prometheus does it: by the annotations, from outside of the mesh, over HTTP.
async fn metrics_of_application_and_proxy_are_scraped_together(case: &Case<'_>) {
    strict(case).await;
    let annotations = "{prometheus.io/scrape: 'true', prometheus.io/port: '8080', prometheus.io/path: /metrics}";
    case.apply(&simple("scraped", "", "").replace("labels: {app: scraped}", &format!("annotations: {annotations}")));
    let pod = case.ready("scraped").await;
    let refused = outsider(case, &format!("http://{}:8080/metrics", address(&pod)));
    assert!(refused.is_err(), "the application itself takes no plaintext: {refused:?}");
    case.exec("scraped", &["/app", "fetch", PEER]);
    let annotation = |name: &str| pod.annotations().get(name).cloned().unwrap();
    let (port, path) = (annotation("prometheus.io/port"), annotation("prometheus.io/path"));
    let url = format!("http://{}:{port}{path}", address(&pod));
    let text = outsider(case, &url).unwrap();
    assert!(text.contains("\napp_requests_total "), "the application's: {text}");
    assert!(text.lines().any(|line| line.starts_with("istio_requests_total{")), "the proxy's: {text}");
    assert!(text.contains("destination_service_name=\"peer\""), "{text}");
    // A Prometheus in the mesh gets the same.
    let fetch = ["exec", "--namespace=peers", "deployment/peer", "--", "/app", "fetch", &url];
    let text = case.cluster.kubectl(&fetch).unwrap();
    assert!(text.contains("\napp_requests_total ") && text.contains("istio_requests_total{"), "{text}");
}

/// Who takes a port out of the mesh takes it out for everybody: callers of the mesh do not try mutual TLS there.
async fn an_excluded_port_is_plain_for_all_callers(case: &Case<'_>) {
    strict(case).await;
    let excluded = "annotations: {weir.dev/exclude-inbound-ports: '8080'}";
    case.apply(&simple("open", "", "").replace("labels: {app: open}", excluded));
    let url = format!("http://{}:8080/", address(&case.ready("open").await));
    let fetch = ["exec", "--namespace=peers", "deployment/peer", "--", "/app", "fetch", &url];
    for said in [outsider(case, &url).unwrap(), case.cluster.kubectl(&fetch).unwrap()] {
        assert!(!said.contains("127.0.0.6"), "it passes no proxy: {said}");
    }
}

async fn the_proxy_outlives_the_application(case: &Case<'_>) {
    strict(case).await;
    // An application with last words: after its preStop, after SIGTERM, and two seconds later.
    case.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: last}}
spec:
  terminationGracePeriodSeconds: 60
  containers:
  - name: app
    image: weir.test/app:1
    command:
    - /bin/sh
    - -c
    - |
      trap '/app fetch {PEER}term; /bin/busybox sleep 2; /app fetch {PEER}last-words; exit 0' TERM
      while true; do /bin/busybox sleep 1; done
    lifecycle: {{preStop: {{exec: {{command: [/app, fetch, '{PEER}pre-stop']}}}}}}
"
    ));
    case.ready("last").await;
    // Its shell has set the trap when it waits for its second sleep.
    let begun = Instant::now();
    let follow = Running::kubectl(case, &["logs", "--follow", "last", "--container=weir-proxy"]);
    case.kubectl(&["delete", "pod", "last"]);
    let took = begun.elapsed();
    let log = peer_log(case);
    for words in ["GET /pre-stop", "GET /term", "GET /last-words"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    println!("  gone after {:.1} s", took.as_secs_f64());
    assert!(
        took < Duration::from_secs(30),
        "the proxy does not wait for the grace period's end: {took:?}\n{}",
        follow.rest()
    );
}

async fn the_nodes_network_and_the_clusters_own_pods_are_untouched(case: &Case<'_>) {
    strict(case).await;
    let host =
        simple("host", "hostNetwork: true, ", "").replace("args: [serve]", "args: [serve, --listen, '[::]:18080']");
    let said = said::create(case, &host, &[]);
    assert!(said.ok && said.text.contains("the pod is not in the mesh: it uses the node's network"), "{}", said.text);
    let pod = case.ready("host").await;
    assert!(!has_proxy(&pod) && !pod.annotations().keys().any(|name| name.starts_with("weir.dev/")));
    let said = said::create(
        case,
        &host.replace("app: host", "weir.dev/inject: 'true'").replace("name: host", "name: asks"),
        &[],
    );
    assert!(!said.ok && said.text.contains("label weir.dev/inject=true on a pod with hostNetwork"), "{}", said.text);

    // Whatever labels say there.
    let system = Case { cluster: case.cluster, namespace: "kube-system" };
    mesh::join(&system);
    let names = ["of-the-cluster", "of-the-cluster-that-asks"];
    system.apply(&simple(names[0], "", ""));
    system.apply(&simple(names[1], "", "").replace(&format!("app: {}", names[1]), "weir.dev/inject: 'true'"));
    let mut touched = Vec::new();
    for name in names {
        touched.push(has_proxy(&system.ready(name).await));
    }
    system.kubectl(&["delete", "pod", names[0], names[1], "--wait=false"]);
    case.cluster.kubectl(&["label", "namespace", "kube-system", "weir.dev/inject-"]).unwrap();
    assert_eq!(touched, [false, false]);
}

/// User namespaces are the runtime's: containerd has them from version 2 on. With an older one the kubelet starts no such pod, in the
/// mesh or out of it, and says the same of both.
async fn pods_with_users_of_their_own_are_as_without_the_mesh(case: &Case<'_>) {
    strict(case).await;
    case.apply(&simple("inside", "hostUsers: false,", ""));
    case.apply(&simple("outside", "hostUsers: false,", "").replace("app: outside", "weir.dev/inject: 'false'"));
    let (pods, events) = (case.api::<Pod>(), case.api::<Event>());
    let mut ends = Vec::new();
    for name in ["inside", "outside"] {
        let end = Instant::now() + PATIENCE;
        let refused =
            ListParams::default().fields(&format!("involvedObject.name={name},reason=FailedCreatePodSandBox"));
        let became = loop {
            if weir_cluster::is_ready(&pods.get(name).await.unwrap()) {
                break "ready".to_owned();
            }
            let event = events.list(&refused).await.unwrap().items.into_iter().next();
            if let Some(message) = event.and_then(|event| event.message) {
                break message;
            }
            assert!(Instant::now() < end, "{name} neither starts nor fails");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        ends.push(became);
    }
    println!("  a pod with hostUsers: false: {}", ends[1]);
    assert_eq!(ends[0], ends[1]);
    let inside = pods.get("inside").await.unwrap();
    assert!(has_proxy(&inside) && inside.spec.unwrap().host_users == Some(false), "injected, and the field is kept");
    if ends[0] == "ready" {
        case.exec("inside", &["/app", "fetch", PEER]);
    }
}

pub(crate) const SUITE: Suite = Suite {
    name: "life",
    title: "The life of a pod where plaintext is refused",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        network_is_there_from_the_first_instruction,
        jobs_and_schedules_complete,
        exec_logs_and_port_forward_work,
        ephemeral_containers_work_and_are_captured,
        probes_of_every_kind_succeed,
        probes_that_fail_are_seen_to_fail,
        hooks_of_every_kind_are_called,
        the_class_of_a_pod_is_kept,
        metrics_of_application_and_proxy_are_scraped_together,
        an_excluded_port_is_plain_for_all_callers,
        the_proxy_outlives_the_application,
        the_nodes_network_and_the_clusters_own_pods_are_untouched,
        pods_with_users_of_their_own_are_as_without_the_mesh,
    ],
};
