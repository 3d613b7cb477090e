//! The chart: what it renders and refuses, and Weir as its users install, use, change and uninstall it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{path::Path, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Secret},
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};
use weir_cluster::{
    Case, Suite, cases,
    mesh::{self, CHART, RELEASE, SYSTEM},
    pods::SERVERS,
    suite::LIMIT,
};

fn template(case: &Case<'_>, more: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut arguments = vec!["template", RELEASE, CHART, "--namespace", SYSTEM];
    arguments.extend(more.iter().flat_map(|value| ["--set", value]));
    let text = case.cluster.helm(&arguments)?;
    Ok(serde_saphyr::from_multiple(&text)?)
}

fn object<'a>(rendered: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = rendered.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Where the control plane says of routes and policies whether they are in force.
const OF_RULES: [&str; 8] = [
    "httproutes/status",
    "grpcroutes/status",
    "tlsroutes/status",
    "tcproutes/status",
    "destinationrules/status",
    "trafficpolicies/status",
    "peerauthentications/status",
    "authorizationpolicies/status",
];

async fn the_chart_renders_what_was_designed(case: &Case<'_>) {
    let lint = case.cluster.helm(&["lint", "--strict", CHART]).unwrap();
    assert!(lint.contains("0 chart(s) failed") && !lint.contains("WARNING"), "{lint}");
    let rendered = template(case, &[]).unwrap();

    let webhooks = object(&rendered, "MutatingWebhookConfiguration", "weir-webhook")["webhooks"].as_array().unwrap();
    assert_eq!(webhooks.len(), 2);
    for webhook in webhooks {
        assert!(webhook["clientConfig"].get("caBundle").is_none(), "an upgrade would blank it");
        assert_eq!(webhook["failurePolicy"], "Fail");
        assert_eq!(webhook["timeoutSeconds"], 5);
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
        let excluded = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn",
            "values": ["kube-system", "kube-node-lease", SYSTEM]});
        assert!(webhook["namespaceSelector"]["matchExpressions"].as_array().unwrap().contains(&excluded), "{webhook}");
    }
    let by_namespace = json!({"key": "weir.dev/inject", "operator": "In", "values": ["enabled"]});
    assert!(webhooks[0]["namespaceSelector"]["matchExpressions"].as_array().unwrap().contains(&by_namespace));
    // No pod is asked about twice, and none with a value that means nothing is let through.
    assert_eq!(webhooks[0]["objectSelector"]["matchExpressions"][0]["operator"], "DoesNotExist");
    assert_eq!(webhooks[1]["objectSelector"]["matchExpressions"][0]["operator"], "Exists");
    assert_eq!(webhooks[1]["objectSelector"]["matchExpressions"][1]["values"], json!(["false"]));

    // The agent has no token, and nobody gives it rights; nor the webhook.
    for (kind, name) in [("DaemonSet", "weir-cni"), ("Deployment", "weir-webhook")] {
        let pod = &object(&rendered, kind, name)["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(object(&rendered, "ServiceAccount", name)["automountServiceAccountToken"], false, "{name}");
        assert!(!serde_json::to_string(pod).unwrap().contains("serviceAccountToken"), "{name}");
    }
    for binding in rendered.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding")) {
        let subject = binding["subjects"][0]["name"].as_str().unwrap();
        assert!(["weir-control", "weir-cleanup"].contains(&subject), "{binding}");
    }
    let agent = &object(&rendered, "DaemonSet", "weir-cni")["spec"]["template"]["spec"];
    assert_eq!((&agent["priorityClassName"], &agent["hostNetwork"]), (&json!("system-node-critical"), &json!(true)));
    assert_eq!(agent["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(agent["containers"][0]["securityContext"]["privileged"], false);

    // Least rights: no wildcard, and what is written is named. (What is created can not be.)
    for role in rendered.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Role")) {
        for rule in role["rules"].as_array().unwrap() {
            let text = rule.to_string();
            assert!(!text.contains('*'), "{text}");
            let verbs: Vec<&str> = rule["verbs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let writes = verbs.iter().any(|verb| ["update", "patch", "delete"].contains(verb));
            let resources = rule["resources"].as_array().unwrap();
            let status = resources.iter().all(|resource| OF_RULES.contains(&resource.as_str().unwrap()));
            assert!(!writes || status || rule["resourceNames"].is_array(), "{text}");
            assert!(!text.contains("secrets") || role["kind"] == "Role", "{text}");
        }
    }

    let init = template(case, &["redirect=init", "namespace.create=true"]).unwrap();
    assert!(init.iter().all(|object| object["kind"] != "DaemonSet"), "nothing is installed on nodes");
    let labels = &object(&init, "Namespace", SYSTEM)["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
    let arguments = &object(&init, "Deployment", "weir-webhook")["spec"]["template"]["spec"]["containers"][0]["args"];
    let has = |arguments: &Value, wanted: &str| arguments.as_array().unwrap().contains(&json!(wanted));
    assert!(has(arguments, "--redirect=init") && has(arguments, "--redirect-backend=nft"), "{arguments}");
    assert!(has(arguments, "--init-image=weir/proxy:0.1.0"), "{arguments}");
    for (backend, given, image) in
        [("iptables", "", "weir/init:0.1.0"), ("auto", "", "weir/init:0.1.0"), ("iptables", "a/b:1", "a/b:1")]
    {
        let values = [format!("init.backend={backend}"), format!("init.image={given}")];
        let init =
            template(case, &["redirect=init", &values[0], &values[1], "clusterDns={198.19.0.10,fd00::10}"]).unwrap();
        let webhook = object(&init, "Deployment", "weir-webhook");
        let arguments = &webhook["spec"]["template"]["spec"]["containers"][0]["args"];
        assert!(has(arguments, &format!("--redirect-backend={backend}")), "{arguments}");
        assert!(has(arguments, &format!("--init-image={image}")), "{arguments}");
        assert!(has(arguments, "--cluster-dns=198.19.0.10,fd00::10"), "{arguments}");
    }
    let cni = template(case, &["namespace.create=true"]).unwrap();
    let labels = &object(&cni, "Namespace", SYSTEM)["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

async fn bad_values_are_refused_by_name(case: &Case<'_>) {
    for (value, named) in [
        ("redirect=iptables", "redirect"),
        ("init.backend=ipvs", "backend"),
        ("init.image=a b", "image"),
        ("clusterDns={kube-dns}", "clusterDns"),
        ("webhok.replicas=2", "webhok"),
        ("webhook.replica=2", "replica"),
        ("webhook.replicas=0", "replicas"),
        ("cni.binDir=opt/cni/bin", "binDir"),
        ("cni.maxUnavailable=0%", "maxUnavailable"),
        ("meshCidrs={everything}", "meshCidrs"),
        ("trustDomain=Cluster_Local!", "trustDomain"),
        ("image.tag=a b", "tag"),
        ("proxy.log=info\nprivileged: true", "log"),
        ("webhook.certificate.source=cert-manager", "issuerRef"),
        ("listenAddress=::", "listenAddress"),
    ] {
        let error = template(case, &[value]).expect_err(value).to_string();
        assert!(error.contains("schema") && error.contains(named), "{value}: {error}");
    }
    let managed = "webhook.certificate.source=cert-manager,webhook.certificate.issuerRef.name=ca";
    let rendered = template(case, &[managed]).unwrap();
    let made = object(&rendered, "MutatingWebhookConfiguration", "weir-webhook");
    assert_eq!(made["metadata"]["annotations"]["cert-manager.io/inject-ca-from"], "weir-system/weir-webhook");
    assert_eq!(object(&rendered, "Certificate", "weir-webhook")["spec"]["secretName"], "weir-webhook-tls");
}

/// No Weir.
fn removed(case: &Case<'_>) {
    if mesh::is_installed(case.cluster) {
        mesh::uninstall(case.cluster).unwrap();
    }
}

fn has_proxy(pod: &Pod) -> bool {
    let first = pod.spec.as_ref().unwrap().init_containers.as_ref().and_then(|containers| containers.first());
    first.is_some_and(|container| container.name == "weir-proxy")
}

fn metrics(case: &Case<'_>, pod: &str) -> String {
    case.exec(pod, &["/app", "fetch", "http://127.0.0.1:15020/stats/prometheus"])
}

async fn installs_with_the_defaults_and_passes_its_own_test(case: &Case<'_>) {
    mesh::installed(case).await;
    let helm = case.cluster.helm(&["test", RELEASE, "--namespace", SYSTEM, "--timeout", "90s"]);
    if let Err(error) = helm {
        case.cluster.diagnose("default").await;
        case.cluster.diagnose(SYSTEM).await;
        panic!("{error:#}");
    }
    let pods: Api<Pod> = Api::namespaced(case.cluster.client(), SYSTEM);
    let pods = pods.list(&ListParams::default()).await.unwrap().items;
    // Two replicas and two nodes each, on different nodes.
    for part in ["weir-control", "weir-webhook", "weir-cni"] {
        let nodes: std::collections::BTreeSet<_> = pods
            .iter()
            .filter(|pod| pod.labels().get("app.kubernetes.io/name").map(String::as_str) == Some(part))
            .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
            .collect();
        assert_eq!(nodes.len(), 2, "{part} is on {nodes:?}");
    }
    // The node agents hold no token at all.
    for pod in pods.iter().filter(|pod| pod.name_any().starts_with("weir-cni")) {
        let volumes = serde_json::to_string(&pod.spec.as_ref().unwrap().volumes).unwrap();
        assert!(!volumes.contains("projected") && !volumes.contains("secret"), "{volumes}");
    }
    let restarts: Vec<_> = pods
        .iter()
        .filter(|pod| pod.status.as_ref().unwrap().container_statuses.iter().flatten().any(|c| c.restart_count > 0))
        .map(|pod| pod.name_any())
        .collect();
    assert_eq!(restarts, Vec::<String>::new(), "nothing needs a second try");
}

async fn calls_between_nodes_are_mutual_tls(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(SERVERS);
    let pods = case.ready_with("app=web", 2).await;
    assert!(pods.iter().all(has_proxy));
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
    let (client, server) = (&pods[0], &pods[1]);
    assert_ne!(client.spec.as_ref().unwrap().node_name, server.spec.as_ref().unwrap().node_name);
    // By the Service until the other node's pod has answered, then by the pod's own address.
    let address = server.status.as_ref().unwrap().pod_ip.clone().unwrap();
    for url in ["http://web/".to_owned(), format!("http://{address}:8080/")] {
        let mut answered = 0;
        for _ in 0..20 {
            let said = case.exec(&name(client), &["/app", "fetch", &url]);
            answered += usize::from(said.contains(&name(server)));
            // The application sees its own proxy, never the caller's address.
            assert!(said.contains("127.0.0.6"), "{said}");
        }
        assert!(answered > 0, "{url}: the pod on the other node never answered");
    }
    let metrics = metrics(case, &name(server));
    let counted = metrics.lines().any(|line| {
        line.starts_with("istio_requests_total{")
            && line.contains(r#"reporter="destination""#)
            && line.contains(r#"connection_security_policy="mutual_tls""#)
            && line.contains(&format!(r#"source_principal="spiffe://cluster.local/ns/{}/sa/default""#, case.namespace))
            && line.contains(r#"response_code="200""#)
    });
    assert!(counted, "{metrics}");
}

/// Waits until the webhook pods of the version before have ended: they answer to the last.
async fn settled(case: &Case<'_>) {
    let pods: Api<Pod> = Api::namespaced(case.cluster.client(), SYSTEM);
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let webhooks = ListParams::default().labels("app.kubernetes.io/name=weir-webhook");
        match pods.list(&webhooks).await.unwrap().items.len() {
            2 => return,
            count => assert!(std::time::Instant::now() < end, "{count} webhook pods"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn upgrade_and_rollback_keep_the_ca_bundle(case: &Case<'_>) {
    mesh::installed(case).await;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(case.cluster.client());
    let bundles = async || -> Vec<Option<Vec<u8>>> {
        let hooks = configurations.get("weir-webhook").await.unwrap().webhooks.unwrap_or_default();
        hooks.into_iter().map(|hook| hook.client_config.ca_bundle.map(|bundle| bundle.0)).collect()
    };
    let before = bundles().await;
    assert!(before.len() == 2 && before.iter().all(Option::is_some));
    mesh::joined(case).await;
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1,
             containers: [{{name: app, image: 'weir.test/app:1', args: [serve]}}]}}}}"
        )
    };
    mesh::install(case.cluster, &["proxy.log=debug", "controlPlane.log=debug"]).unwrap();
    assert_eq!(bundles().await, before);
    settled(case).await;
    case.apply(&pod("upgraded"));
    let upgraded = case.ready("upgraded").await;
    let debugs = |pod: &Pod| {
        let text = serde_json::to_string(&pod.spec.as_ref().unwrap().init_containers).unwrap();
        text.contains(r#"{"name":"WEIR_LOG","value":"debug"}"#)
    };
    assert!(debugs(&upgraded), "it has what the new version says");
    case.cluster.helm(&["rollback", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "150s"]).unwrap();
    assert_eq!(bundles().await, before);
    settled(case).await;
    case.apply(&pod("rolled-back"));
    assert!(!debugs(&case.ready("rolled-back").await));
}

/// What of Weir is in the cluster and on its nodes.
async fn left(case: &Case<'_>) -> Vec<String> {
    let client = case.cluster.client();
    let mut found = Vec::new();
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    for object in configurations.list(&ListParams::default()).await.unwrap() {
        found.push(format!("webhook configuration {}", object.name_any()));
    }
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    for object in configurations.list(&ListParams::default()).await.unwrap() {
        found.push(format!("webhook configuration {}", object.name_any()));
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    found
        .extend(secrets.list(&ListParams::default()).await.unwrap().iter().map(|s| format!("Secret {}", s.name_any())));
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
    found.extend(leases.list(&ListParams::default()).await.unwrap().iter().map(|l| format!("Lease {}", l.name_any())));
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let maps = maps.list(&ListParams::default()).await.unwrap();
    let weirs = maps.iter().filter(|map| map.name_any().starts_with("weir"));
    found.extend(weirs.map(|map| format!("ConfigMap {}/{}", map.namespace().unwrap(), map.name_any())));
    let pods: Api<Pod> = Api::namespaced(client, SYSTEM);
    found.extend(pods.list(&ListParams::default()).await.unwrap().iter().map(|pod| format!("Pod {}", pod.name_any())));
    let named = case.cluster.kubectl(&[
        "get",
        "clusterroles,clusterrolebindings,serviceaccounts,roles,rolebindings,daemonsets,\
        deployments,services,poddisruptionbudgets,jobs",
        "--all-namespaces",
        "--output=name",
    ]);
    found.extend(named.unwrap().lines().filter(|line| line.contains("/weir")).map(str::to_owned));
    for file in ["/opt/cni/bin/weir-cni", "/etc/cni/net.d/00-weir.conflist"] {
        if mesh::on_nodes(case.cluster, Path::new(file)).unwrap().contains(&true) {
            found.push(file.to_owned());
        }
    }
    for node in case.cluster.nodes() {
        let names = node.shell("ls -A /opt/cni/bin /etc/cni/net.d | grep -i weir || true").unwrap();
        found.extend(names.lines().map(|line| format!("a node's {line}")));
    }
    found
}

async fn uninstall_leaves_nothing(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: before}, spec: {terminationGracePeriodSeconds: 1,
          containers: [{name: app, image: 'weir.test/app:1', args: [serve]}]}}",
    );
    assert!(has_proxy(&case.ready("before").await));
    let there = left(case).await;
    for part in
        ["webhook configuration", "Secret weir-ca", "Secret weir-webhook-tls", "Lease", "ConfigMap", "/opt", "/etc"]
    {
        assert!(there.iter().any(|line| line.starts_with(part)), "{part} is looked for and found: {there:?}");
    }
    let begun = std::time::Instant::now();
    if let Err(error) = mesh::uninstall(case.cluster) {
        case.cluster.diagnose(SYSTEM).await;
        panic!("{error:#}");
    }
    println!("  uninstalled in {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(left(case).await, Vec::<String>::new());
    // The namespace has its label still, and pods start.
    case.apply(&SERVERS.replace("name: web", "name: plain").replace("app: web", "app: plain"));
    let pods = case.ready_with("app=plain", 2).await;
    assert!(!pods.iter().any(has_proxy));
}

/// As docs/install.md and docs/operate.md have it for those who do not use Helm for more than rendering.
async fn rendered_and_applied_works_as_well(case: &Case<'_>) {
    removed(case);
    let render = |name: &str, more: &[&str]| {
        let values = mesh::values(&["namespace.create=true"]);
        let mut arguments = vec!["template", RELEASE, CHART, "--namespace", SYSTEM];
        arguments.extend(values.iter().map(String::as_str).chain(more.iter().copied()));
        let file = case.cluster.layout().root().join(name);
        std::fs::write(&file, case.cluster.helm(&arguments).unwrap()).unwrap();
        file.to_str().unwrap().to_owned()
    };
    // With the hooks among it, as who forgets --no-hooks does: everything at once, and the clean-up sees that it is not its time.
    case.cluster.kubectl(&["apply", "--filename", &render("all.yaml", &["--include-crds"])]).unwrap();
    for part in ["deployment/weir-control", "deployment/weir-webhook", "daemonset/weir-cni"] {
        case.cluster.kubectl(&["--namespace", SYSTEM, "rollout", "status", part, "--timeout=120s"]).unwrap();
    }
    let system = Case { cluster: case.cluster, namespace: SYSTEM };
    let succeeded = |job: &Job| job.status.as_ref()?.succeeded.filter(|&count| count == 1);
    system.until("weir-cleanup", "ends", succeeded).await;
    let said = system.kubectl(&["logs", "job/weir-cleanup"]);
    assert!(said.contains("nothing was removed"), "{said}");
    mesh::join(case);
    case.apply(SERVERS);
    assert!(case.ready_with("app=web", 2).await.iter().all(has_proxy));

    system.kubectl(&["delete", "job", "weir-cleanup"]);
    case.cluster.kubectl(&["delete", "job", "weir-test", "--namespace=default"]).unwrap();
    let installed = render("installed.yaml", &["--no-hooks", "--set", "namespace.create=false"]);
    let cleanup = render("cleanup.yaml", &["--show-only", "templates/cleanup.yaml"]);
    case.cluster.kubectl(&["delete", "--filename", &installed]).unwrap();
    case.cluster.kubectl(&["apply", "--filename", &cleanup]).unwrap();
    system.until("weir-cleanup", "ends", succeeded).await;
    assert!(system.kubectl(&["logs", "job/weir-cleanup"]).contains("nothing of Weir is left"));
    case.cluster.kubectl(&["delete", "--filename", &cleanup]).unwrap();
    assert_eq!(left(case).await, Vec::<String>::new());
}

/// Where nothing can be installed on nodes: Weir's own namespace may then have the strictest Pod Security level.
async fn without_the_plugin_a_container_redirects(case: &Case<'_>) {
    removed(case);
    let level = |level: &str| {
        let level = format!("pod-security.kubernetes.io/enforce={level}");
        case.cluster.kubectl(&["label", "namespace", SYSTEM, &level, "--overwrite"]).unwrap();
    };
    case.cluster
        .apply("default", &format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {SYSTEM}}}}}"))
        .unwrap();
    level("restricted");
    // By the proxy's image and nf_tables; then by the image with iptables.
    for (backend, said) in [("nft", ", by nf_tables: "), ("iptables", ", by iptables (nft variant): ")] {
        if let Err(error) = mesh::install(case.cluster, &["redirect=init", &format!("init.backend={backend}")]) {
            case.cluster.diagnose(SYSTEM).await;
            panic!("{error:#}");
        }
        mesh::join(case);
        case.apply(SERVERS);
        let pods = case.ready_with("app=web", 2).await;
        let first = |pod: &Pod| pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0].name.clone();
        assert!(pods.iter().all(|pod| first(pod) == "weir-init"));
        let log = case.kubectl(&["logs", &pods[0].name_any(), "--container=weir-init"]);
        assert!(log.contains(said), "{log}");
        assert_eq!(mesh::on_nodes(case.cluster, Path::new("/opt/cni/bin/weir-cni")).unwrap(), [false, false]);
        let address = pods[1].status.as_ref().unwrap().pod_ip.clone().unwrap();
        case.exec(&pods[0].name_any(), &["/app", "fetch", &format!("http://{address}:8080/")]);
        let metrics = metrics(case, &pods[1].name_any());
        assert!(metrics.contains(r#"connection_security_policy="mutual_tls""#), "{metrics}");
        // No pod of the first round may be taken for one of the second.
        case.kubectl(&["delete", "daemonset", "--all", "--cascade=foreground", "--wait"]);
        removed(case);
    }
    level("privileged");
    assert_eq!(left(case).await, Vec::<String>::new());
}

pub(crate) const SUITE: Suite = Suite {
    name: "chart",
    title: "The chart, rendered, installed, used, changed and uninstalled",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        the_chart_renders_what_was_designed,
        bad_values_are_refused_by_name,
        installs_with_the_defaults_and_passes_its_own_test,
        calls_between_nodes_are_mutual_tls,
        upgrade_and_rollback_keep_the_ca_bundle,
        uninstall_leaves_nothing,
        without_the_plugin_a_container_redirects,
        rendered_and_applied_works_as_well,
    ],
};
