//! Point 3: traffic across the two nodes, of every kind of address and protocol, on a cluster with both families of addresses.
//! The calls of pods outside of the mesh are also what says that such a cluster works at all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::{Value, json};
use weir_cluster::{
    Case, Options, Suite, cases, mesh,
    pods::{self, MACHINE, Wanted, addresses, container, count, fetch_each, in_url, machine_container},
    suite::LIMIT,
};

const MUTUAL: &str = r#"connection_security_policy="mutual_tls""#;
const AT_SERVER: &str = r#"reporter="destination""#;

/// A StatefulSet's pod with two servers on node 2, and every kind of Service before it. `NAMESPACE` is to be replaced.
const WEB: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: names
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {kubernetes.io/hostname: node2}
      containers:
      - name: first
        image: weir.test/app:1
        args: [serve, --version=first]
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: web}, periodSeconds: 1}
      - name: second
        image: weir.test/app:1
        args: [serve, --version=second, '--listen=[::]:8081']
        ports: [{name: second, containerPort: 8081}]
        readinessProbe: {httpGet: {path: /, port: second}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: http-second, port: 81, targetPort: second}
  - {name: undeclared, port: 82, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec:
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec:
  ipFamilies: [IPv6]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.NAMESPACE.svc.cluster.local}
";

/// The addresses of a Service.
async fn service_addresses(case: &Case<'_>, name: &str) -> Vec<String> {
    case.until(name, "has addresses", |service: &Service| service.spec.clone()?.cluster_ips).await
}

/// A Service without a selector, and its one endpoint.
fn by_hand(name: &str, address: &str, port: u16) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{name: http, port: 80}}]}}}}
---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}},
  addressType: IPv4, endpoints: [{{addresses: ['{address}']}}], ports: [{{name: http, port: {port}}}]}}\n"
    )
}

async fn every_address_leads_to_the_other_node_by_mutual_tls(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    case.apply(&WEB.replace("NAMESPACE", case.namespace));
    case.apply(&(Wanted::new("client", "node1").waiting() + &Wanted::new("outside", "node1").outside().waiting()));
    let web = case.ready("web-0").await;
    let (first, second) = (service_addresses(case, "web").await, service_addresses(case, "six").await);
    let of_pod = addresses(&web);
    assert!(first.len() == 2 && of_pod.len() == 2 && second.len() == 1 && second[0].contains(':'));
    case.ready("client").await;
    case.ready("outside").await;
    case.apply(&by_hand("manual", &of_pod[0], 8080));

    let full = format!("web.{}.svc.cluster.local", case.namespace);
    let stateful = format!("web-0.names.{}.svc.cluster.local", case.namespace);
    let by_hand = format!("manual.{}.svc.cluster.local", case.namespace);
    let six = format!("six.{}.svc.cluster.local", case.namespace);
    pods::known(case, "client", &[&full, &stateful, &six, &by_hand]).await;
    let mut urls: Vec<(String, &str)> = vec![
        // A ClusterIP by all of its names; named target ports; several ports in one Service; a port of no declared protocol.
        ("web".to_owned(), "first"),
        (format!("web.{}", case.namespace), "first"),
        (full.clone(), "first"),
        (format!("{full}."), "first"),
        ("web:81".to_owned(), "second"),
        ("web:82".to_owned(), "first"),
        // Headless, and the names of a StatefulSet.
        ("names:8080".to_owned(), "first"),
        ("web-0.names:8080".to_owned(), "first"),
        (format!("{stateful}:8080"), "first"),
        // IPv6 only; endpoints by hand; another name for a Service.
        ("six".to_owned(), "first"),
        ("manual".to_owned(), "first"),
        ("alias".to_owned(), "first"),
        ("alias:81".to_owned(), "second"),
    ];
    urls.extend(first.iter().chain(&second).map(|address| (in_url(address), "first")));
    for address in &of_pod {
        urls.push((format!("{}:8080", in_url(address)), "first"));
        urls.push((format!("{}:8081", in_url(address)), "second"));
    }
    let wanted: Vec<String> = urls.iter().map(|(host, _)| format!("http://{host}/a?b=c")).collect();
    pods::refuses_plaintext(case, "outside", &wanted[2]).await;

    let principal = format!(r#"source_principal="spiffe://cluster.local/ns/{}/sa/default""#, case.namespace);
    let labels = [AT_SERVER, MUTUAL, r#"response_code="200""#, &principal];
    // From the other node, and from itself.
    for client in ["client", "web-0"] {
        let before = count(case, "web-0", "istio_requests_total", &labels);
        let mut mutual = 0;
        for ((host, version), said) in urls.iter().zip(fetch_each(case, client, &wanted)) {
            assert_eq!((&said["pod"], &said["version"]), (&json!("web-0"), &json!(version)), "{client} {host}");
            assert_eq!(
                (&said["headers"]["host"], &said["path"]),
                (&json!([host]), &json!("/a?b=c")),
                "{client} {host}"
            );
            let peer = said["peer"].as_str().unwrap();
            let proxied = ["127.0.0.6", "::6"].contains(&peer);
            // What a pod sends to its own address never leaves it.
            let inside = of_pod.iter().any(|address| address == peer) && client == "web-0";
            assert!(proxied || inside, "{client} {host}: not by the server's proxy, but from {peer}");
            mutual += usize::from(proxied);
        }
        // All from the other node; from itself those by a Service's address.
        assert_eq!(mutual, urls.len() - if client == "web-0" { 7 } else { 0 }, "{client}");
        let counted = count(case, "web-0", "istio_requests_total", &labels) - before;
        assert_eq!(counted as usize, mutual, "{client}: each by mutual TLS");
    }
    // None of it works without: the calls above could have failed.
    let refused = fetch_each(case, "outside", &wanted);
    assert!(refused.iter().all(Value::is_null), "{refused:?}");
}

async fn peers_find_each_other_before_they_are_ready(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    // As databases form a cluster: none is ready before it has heard all, by their names.
    case.apply(
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: peer}
spec:
  serviceName: peers
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: peer}}
  template:
    metadata: {labels: {app: peer}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: peer}}}
      containers:
      - name: app
        image: weir.test/app:1
        args: [serve]
        readinessProbe:
          exec: {command: [/bin/sh, -ec, 'for n in 0 1; do /app fetch --seconds 2 http://peer-$n.peers:8080/; done']}
          periodSeconds: 1
          timeoutSeconds: 5
---
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: peer}, ports: [{name: http, port: 8080}]}
",
    );
    let peers = case.ready_with("app=peer", 2).await;
    let nodes: std::collections::BTreeSet<_> =
        peers.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    assert_eq!(nodes.len(), 2);
    for peer in ["peer-0", "peer-1"] {
        assert!(count(case, peer, "istio_requests_total", &[AT_SERVER, MUTUAL]) > 0.0, "{peer}");
    }
}

async fn node_ports_and_host_ports_serve_callers_from_outside(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(
        &(Wanted::new("web", "node2").with(&[container("web", "serve", 8080).replace("8080}]", "8080, hostPort: 18081}]")])
            + "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, ipFamilyPolicy: RequireDualStack,
  selector: {app: web}, ports: [{name: http, port: 80, targetPort: web}]}}"),
    );
    case.ready("web").await;
    let port = case.kubectl(&["get", "service", "web", "--output=jsonpath={.spec.ports[0].nodePort}"]);
    let nodes = case
        .cluster
        .kubectl(&["get", "nodes", "--output=jsonpath={.items[*].status.addresses[?(@.type=='InternalIP')].address}"])
        .unwrap();
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    assert_eq!(nodes.len(), 4, "two nodes, both families: {nodes:?}");
    let mut hosts: Vec<String> = nodes.iter().map(|address| format!("{}:{port}", in_url(address))).collect();
    // A port of the node itself, where the pod is.
    let node = case.api::<Pod>().get("web").await.unwrap().status.unwrap().host_ip.unwrap();
    hosts.push(format!("{node}:18081"));
    for host in &hosts {
        // The rules of a new Service are on the nodes within a second or so.
        let curl = format!(
            "curl --silent --show-error --fail --globoff --max-time 3 --retry 10 --retry-all-errors --retry-delay 1 http://{host}/"
        );
        let said: Value = serde_json::from_str(&case.cluster.outside().shell(&curl).unwrap()).unwrap();
        assert_eq!((&said["pod"], &said["headers"]["host"]), (&json!("web"), &json!([host])));
    }
    let plain = count(case, "web", "istio_requests_total", &[AT_SERVER, r#"connection_security_policy="none""#]);
    assert!(plain >= 5.0, "{plain} in plaintext");
    // Who calls from outside has no identity.
    mesh::strict(case);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    for host in &hosts {
        let curl = format!("curl --silent --show-error --globoff --max-time 3 http://{host}/");
        while case.cluster.outside().shell(&curl).is_ok() {
            assert!(std::time::Instant::now() < end, "{host} still answers in plaintext");
        }
    }
}

/// Headers that the mesh adds, as docs/traffic.md has it.
const ADDED: [&str; 1] = ["x-request-id"];

/// What must not depend on a mesh of a request that a server got.
fn request(said: &Value) -> Value {
    let mut said = said.clone();
    let fields = said.as_object_mut().unwrap();
    fields.remove("peer");
    let headers = fields["headers"].as_object_mut().unwrap();
    ADDED.iter().for_each(|name| drop(headers.remove(*name)));
    said
}

async fn requests_are_as_without_a_mesh(case: &Case<'_>) {
    mesh::joined(case).await;
    let server = || [container("web", "serve", 8080)];
    let service = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ipFamilyPolicy: RequireDualStack,
  selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: web}}, {{name: any, port: 81, targetPort: web}}]}}}}\n"
        )
    };
    // The name outside.example is node 2's in the cluster's DNS.
    let world = Wanted {
        more: "hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet,",
        ..Wanted::new("world", "node2").outside()
    };
    case.apply(
        &[
            Wanted::new("in", "node2").with(&server()),
            Wanted::new("out", "node2").outside().with(&server()),
            world.with(&[container("web", "serve, '--listen=[::]:18080'", 18080)]),
            Wanted::new("caller-in", "node1").waiting(),
            Wanted::new("caller-out", "node1").outside().waiting(),
            service("in"),
            service("out"),
            "---\n{apiVersion: v1, kind: Service, metadata: {name: elsewhere}, spec: {type: ExternalName, externalName: outside.example}}\n".to_owned(),
        ]
        .concat(),
    );
    let mut of_pod = Vec::new();
    for pod in ["in", "out", "world", "caller-in", "caller-out"] {
        let pod = case.ready(pod).await;
        of_pod.push(addresses(&pod));
    }
    case.apply(&by_hand("manual", &of_pod[2][0], 18080));
    let name = |service: &str| format!("{service}.{}.svc.cluster.local", case.namespace);
    for caller in ["caller-in", "caller-out"] {
        pods::known(case, caller, &[&name("in"), &name("out"), &name("manual"), "outside.example"]).await;
    }
    let mut urls: Vec<String> = ["in", "in:81", "out", "out:81", "manual", "elsewhere:18080", "outside.example:18080"]
        .map(str::to_owned)
        .into();
    urls.extend(["in", "out"].map(&name));
    for name in ["in", "out"] {
        urls.extend(service_addresses(case, name).await.iter().map(|address| in_url(address)));
    }
    urls.extend(of_pod[..2].iter().flatten().map(|address| format!("{}:8080", in_url(address))));
    let urls: Vec<String> = urls.iter().map(|host| format!("http://{host}/path/with%20space;v=1?q=%7Ea&q=b")).collect();
    // kube-proxy's rules for the caller without a proxy may be a second late.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let without = loop {
        let without = fetch_each(case, "caller-out", &urls);
        if !without.contains(&Value::Null) {
            break without;
        }
        assert!(std::time::Instant::now() < end, "{without:?}");
    };
    for ((url, without), within) in urls.iter().zip(&without).zip(fetch_each(case, "caller-in", &urls)) {
        assert!(within.is_object(), "{url}");
        assert_eq!(request(without), request(&within), "{url}");
    }
    // What a client says itself is passed on as it is: its Host, its headers, also doubled ones and what the mesh would add.
    let body = format!("--body={}", "some text ".repeat(10_000));
    let more = [
        "--method=PUT",
        &body,
        "--header=Host: other.example:81",
        "--header=X-Twice: 1",
        "--header=X-Twice: 2",
        "--header=X-Request-Id: mine",
        "--header=Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ];
    for server in ["http://in/x", "http://out/x", "http://elsewhere:18080/x"] {
        let said = ["caller-in", "caller-out"].map(|caller| -> Value {
            let said = case.exec(caller, &[&["/app", "fetch", server], &more[..]].concat());
            serde_json::from_str(&said).unwrap()
        });
        let [mut within, mut without] = said;
        for said in [&mut within, &mut without] {
            said.as_object_mut().unwrap().remove("peer");
        }
        assert_eq!(within, without, "{server}");
        assert_eq!(within["headers"]["host"], json!(["other.example:81"]));
        assert_eq!((&within["method"], &within["headers"]["x-request-id"]), (&json!("PUT"), &json!(["mine"])));
    }
    // And so are answers.
    for path in ["status/204", "status/404", "status/503", "delay/20"] {
        let answers = ["caller-in", "caller-out"].map(|caller| {
            let script = format!("/app fetch --head http://in/{path} || true");
            let said = case.exec(caller, &["/bin/busybox", "sh", "-c", &script]);
            let head: Vec<String> = said.lines().take_while(|line| !line.starts_with('{')).map(str::to_owned).collect();
            let differs = |line: &&String| !line.starts_with("date: ") && !line.starts_with("content-length: ");
            head.iter().filter(differs).cloned().collect::<Vec<_>>()
        });
        assert_eq!(answers[0], answers[1], "{path}");
    }
    // In the mesh both ways; to a pod outside of it in plaintext, and from it.
    let (requests, none) = ("istio_requests_total", r#"connection_security_policy="none""#);
    assert!(count(case, "in", requests, &[AT_SERVER, MUTUAL]) > 0.0);
    assert!(count(case, "in", requests, &[AT_SERVER, none]) > 0.0);
    let to_out = r#"destination_service_name="out""#;
    assert!(count(case, "caller-in", requests, &[r#"reporter="source""#, to_out, none]) > 0.0);
    assert!(count(case, "caller-in", requests, &[r#"reporter="source""#, to_out, MUTUAL]) == 0.0);
}

/// Opaque connections that a pod has taken by mutual TLS.
fn connections(case: &Case<'_>, pod: &str) -> f64 {
    count(case, pod, "istio_tcp_connections_opened_total", &[AT_SERVER, MUTUAL])
}

async fn grpc_streams_and_websockets_cross_nodes(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    case.apply(
        &(Wanted::new("server", "node2").with(&[container("grpc", "grpc", 9090), container("ws", "websocket", 8080)])
            + &Wanted::new("client", "node1").waiting()
            + &Wanted::new("outside", "node1").outside().waiting()
            + "---\n{apiVersion: v1, kind: Service, metadata: {name: server}, spec: {selector: {app: server}, ports: [
  {name: grpc, port: 9090}, {name: any, port: 9091, targetPort: 9090},
  {name: http-ws, port: 80, targetPort: 8080}, {name: undeclared, port: 81, targetPort: 8080},
  {name: socket, port: 82, targetPort: 8080, appProtocol: kubernetes.io/ws}]}}"),
    );
    for pod in ["server", "client", "outside"] {
        case.ready(pod).await;
    }
    pods::known(case, "client", &[&format!("server.{}.svc.cluster.local", case.namespace)]).await;
    pods::refuses_plaintext(case, "outside", "http://server:9091/").await;

    let mut calls = 0.0;
    for port in ["9090", "9091"] {
        let url = format!("http://server:{port}");
        for (method, count) in [
            ("unary", 20),
            ("server-stream", 500),
            ("client-stream", 500),
            ("bidirectional", 500),
            ("health", 1),
            ("health-watch", 1),
        ] {
            let said = case.exec("client", &["/app", "grpc-call", &url, method, "--count", &count.to_string()]);
            let said: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            calls += if method == "unary" { 20.0 } else { 1.0 };
            if method.starts_with("health") {
                assert_eq!(said, [json!({"status": 1})], "{method}");
                continue;
            }
            assert_eq!(said.len(), if method == "client-stream" { 1 } else { count }, "{method}");
            for (index, answer) in said.iter().enumerate() {
                let number = match method {
                    "unary" => 0,
                    "client-stream" => count,
                    _ => index,
                };
                let text = if method == "client-stream" { "hello".repeat(count) } else { "hello".to_owned() };
                assert_eq!(
                    *answer,
                    json!({"pod": "server", "number": number, "text": text, "authority": format!("server:{port}")})
                );
            }
        }
    }
    // A watch is counted when its end is heard, perhaps after this.
    let counted = count(case, "server", "istio_requests_total", &[AT_SERVER, MUTUAL, r#"request_protocol="grpc""#]);
    assert!((calls - 2.0..=calls).contains(&counted), "{counted} of {calls} calls, each by mutual TLS");

    let switched = [AT_SERVER, MUTUAL, r#"response_code="101""#];
    for (index, host) in ["server", "server:81", "server:82"].iter().enumerate() {
        let said = case
            .exec("client", &["/app", "websocket-call", &format!("ws://{host}/chat"), "--count=20", "--pause-ms=20"]);
        assert_eq!(said, format!("101 Switching Protocols\n{}", "server: hello\n".repeat(20)), "{host}");
        assert_eq!(count(case, "server", "istio_requests_total", &switched), index as f64 + 1.0, "{host}");
    }
}

/// Calls every server of a pod by its Service, on ports that say what they speak, and on ports that do not.
const EVERY_PROTOCOL: &str = r#"set -e
    for port in 9090 9091; do /app grpc-call "http://$1:$port" bidirectional --count 100 | tail -n 1; done
    for port in 80 81; do /app websocket-call "ws://$1:$port/" --count 5 | tail -n 1; done
    for port in 443 444; do /usr/bin/curl --silent --show-error --insecure --max-time 5 "https://$1:$port/"; done
    for port in 9000 9001; do /app tcp-call "$1:$port" --send hello; done"#;

async fn every_protocol_crosses_the_border_of_the_mesh(case: &Case<'_>) {
    mesh::joined(case).await;
    let servers = || {
        [
            container("grpc", "grpc", 9090),
            container("ws", "websocket", 8080),
            container("tls", "serve, --tls, '--listen=[::]:8443'", 8443),
            container("tcp", "tcp", 9000),
        ]
    };
    let service = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, ports: [
  {{name: grpc, port: 9090}}, {{name: any-grpc, port: 9091, targetPort: 9090}},
  {{name: http, port: 80, targetPort: 8080}}, {{name: any-http, port: 81, targetPort: 8080}},
  {{name: https, port: 443, targetPort: 8443}}, {{name: any-https, port: 444, targetPort: 8443}},
  {{name: tcp, port: 9000}}, {{name: any-tcp, port: 9001, targetPort: 9000}}]}}}}\n"
        )
    };
    let caller = |name| Wanted { more: MACHINE, ..Wanted::new(name, "node1") };
    let client = || [machine_container("client", "/bin/busybox, sleep, '86400'", None)];
    case.apply(
        &[
            Wanted::new("in", "node2").with(&servers()),
            Wanted::new("out", "node2").outside().with(&servers()),
            caller("caller-in").with(&client()),
            caller("caller-out").outside().with(&client()),
            service("in"),
            service("out"),
        ]
        .concat(),
    );
    for pod in ["in", "out", "caller-in", "caller-out"] {
        case.ready(pod).await;
    }
    let name = |service: &str| format!("{service}.{}.svc.cluster.local", case.namespace);
    for caller in ["caller-in", "caller-out"] {
        pods::known(case, caller, &[&name("in"), &name("out")]).await;
    }
    // kube-proxy's rules for the caller without a proxy may be a second late.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let call = |caller: &str, server: &str| {
        let namespace = ["--namespace", case.namespace, "exec", caller, "--"];
        let script = ["/bin/busybox", "sh", "-c", EVERY_PROTOCOL, "every", server];
        case.cluster.kubectl(&[&namespace[..], &script].concat())
    };
    while let Err(error) = call("caller-out", "in").and_then(|_| call("caller-out", "out")) {
        assert!(std::time::Instant::now() < end, "{error:#}");
    }
    let mut waits = Vec::new();
    for (caller, server) in [("caller-in", "in"), ("caller-in", "out"), ("caller-out", "in"), ("caller-out", "out")] {
        let said = call(caller, server).unwrap_or_else(|error| panic!("{caller} to {server}: {error:#}"));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 8, "{said}");
        let answers = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        for line in lines[..2].iter().chain(&lines[4..6]) {
            assert_eq!(answers(line)["pod"], json!(server), "{caller} to {server}: {line}");
        }
        assert_eq!(lines[2..4], [format!("{server}: hello"), format!("{server}: hello")]);
        for line in &lines[6..] {
            let said = answers(line);
            assert_eq!((&said["greeting"], &said["answer"]), (&json!(format!("{server}\n")), &json!("hello")));
            waits.push(said["ms"].as_u64().unwrap());
        }
    }
    // The API server's Service has endpoints that are no pods, and speaks TLS.
    let curl = [
        "/usr/bin/curl",
        "--silent",
        "--show-error",
        "--insecure",
        "--max-time",
        "5",
        "https://kubernetes.default.svc.cluster.local/livez",
    ];
    let answers = ["caller-in", "caller-out"].map(|caller| case.exec(caller, &curl));
    assert_eq!(answers[0], answers[1]);
    println!("  servers that speak first, declared and not, in and out: {waits:?} ms");
    assert!(waits.iter().all(|&ms| ms < 1000), "{waits:?}");
    let none = [AT_SERVER, r#"connection_security_policy="none""#];
    let opened = "istio_tcp_connections_opened_total";
    let (mutual, plain) = (connections(case, "in"), count(case, "in", opened, &none));
    // Of each round four connections of eight are opaque: gRPC is requests, and WebSockets begin with one.
    assert_eq!(mutual, 4.0, "from the mesh");
    assert!(plain >= 8.0, "{plain} from outside of it");
}

async fn redis_works_and_mariadb_speaks_first_without_a_wait(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let redis = machine_container(
        "redis",
        "/usr/bin/redis-server, --save, '', --bind, '* -::*', --protected-mode, 'no'",
        Some(6379),
    );
    // Without InnoDB and the tables of privileges it starts in a moment.
    let mariadb = machine_container(
        "mariadb",
        "/usr/sbin/mariadbd, --no-defaults, --skip-grant-tables, --skip-innodb, --default-storage-engine=MyISAM, --datadir=/tmp,
        --socket=/tmp/socket, --pid-file=/tmp/pid, --skip-name-resolve, '--bind-address=*', --lc-messages-dir=/usr/share/mysql",
        Some(3306),
    );
    let machine = |name, node| Wanted { more: MACHINE, ..Wanted::new(name, node) };
    let client = || [machine_container("client", "/bin/busybox, sleep, '86400'", None)];
    let services = "---\n{apiVersion: v1, kind: Service, metadata: {name: redis}, spec: {selector: {app: servers}, ports: [
  {name: redis, port: 6379}, {name: any, port: 6380, targetPort: 6379}]}}
---\n{apiVersion: v1, kind: Service, metadata: {name: mariadb}, spec: {selector: {app: servers}, ports: [
  {name: mysql, port: 3306}, {name: any, port: 3307, targetPort: 3306}, {name: db, port: 3308, targetPort: 3306, appProtocol: mysql}]}}\n";
    case.apply(
        &[
            machine("servers", "node2").with(&[redis, mariadb]),
            machine("client", "node1").with(&client()),
            Wanted::new("outside", "node1").outside().waiting(),
            services.to_owned(),
        ]
        .concat(),
    );
    let servers = case.ready("servers").await;
    case.ready("client").await;
    case.ready("outside").await;
    let name = |service: &str| format!("{service}.{}.svc.cluster.local", case.namespace);
    pods::known(case, "client", &[&name("redis"), &name("mariadb")]).await;
    pods::refuses_plaintext(case, "outside", "http://redis:6380/").await;

    let before = connections(case, "servers");
    let redis = |port: &str, command: &[&str]| {
        case.exec("client", &[&["/usr/bin/redis-cli", "-h", "redis", "-p", port], command].concat())
    };
    for port in ["6379", "6380"] {
        assert_eq!(redis(port, &["incr", "count"]), if port == "6379" { "1\n" } else { "2\n" });
        let large = "x".repeat(100_000);
        assert_eq!(redis(port, &["set", "large", &large]), "OK\n");
        assert_eq!(redis(port, &["get", "large"]).trim(), large);
    }
    // The first call of each port asks the control plane as well, and the second finds a port that is known.
    let mut hosts = ["3306", "3307", "3308"].map(|port| format!("mariadb:{port}")).to_vec();
    hosts.extend(addresses(&servers).iter().map(|address| format!("{}:3306", in_url(address))));
    for host in &hosts {
        let waits: Vec<u64> = (0..3)
            .map(|_| {
                let said: Value = serde_json::from_str(&case.exec("client", &["/app", "tcp-call", host])).unwrap();
                assert!(said["greeting"].as_str().unwrap().contains("MariaDB"), "{host}: {said}");
                said["ms"].as_u64().unwrap()
            })
            .collect();
        println!("  {host} speaks after {waits:?} ms");
        assert!(waits.iter().all(|&ms| ms < 1000), "{host} speaks after {waits:?} ms");
    }
    for port in ["3306", "3307", "3308"] {
        let query = "create database if not exists d; create table if not exists d.t (n int); insert into d.t values (1); select count(*) from d.t";
        let said = case.exec(
            "client",
            &[
                "/usr/bin/mariadb",
                "--no-defaults",
                "--host=mariadb",
                "--port",
                port,
                "--batch",
                "--skip-column-names",
                "--execute",
                query,
            ],
        );
        assert!(said.trim().parse::<u32>().is_ok_and(|rows| rows >= 1), "{said}");
    }
    let calls = 6 + 3 * hosts.len() + 3;
    assert_eq!((connections(case, "servers") - before) as usize, calls, "each by mutual TLS");
}

/// Writes a configuration of nginx and becomes nginx: `/who` says how it was called, `/up` how much came, `/slow` takes three seconds.
const NGINX: &str = r#"set -e; cd /tmp
    head -c 33554432 /dev/zero > large; head -c 600000 /dev/zero > slow
    printf '[req]\ndistinguished_name = name\n[name]\n' > openssl.cnf
    /usr/bin/openssl req -x509 -config openssl.cnf -newkey rsa:2048 -nodes -subj /CN=web -days 1 -keyout key.pem -out cert.pem 2> /dev/null
    echo 'daemon off; master_process off; pid /tmp/pid; error_log /tmp/error; events {}
    http {
        access_log off; client_max_body_size 64m; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
        fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
        server {
            listen [::]:8080 ipv6only=off; listen [::]:9000 http2 ipv6only=off; listen [::]:8443 ssl http2 ipv6only=off;
            root /tmp; ssl_certificate /tmp/cert.pem; ssl_certificate_key /tmp/key.pem; ssl_protocols TLSv1.3;
            location = /who { return 200 "$server_protocol $ssl_protocol\n"; }
            location = /slow { limit_rate 200k; }
            location = /up { proxy_http_version 1.1; proxy_pass http://127.0.0.1:18080; }
        }
        server { listen 127.0.0.1:18080; location / { return 200 "$http_content_length\n"; } }
    }' > conf
    exec /usr/sbin/nginx -c /tmp/conf -e /tmp/error"#;

/// Each line is the answer to one call of nginx by curl; first those that are requests for the mesh.
const CURL: &str = r#"set -e
    curl() { /usr/bin/curl --silent --show-error --fail --max-time 60 "$@"; }
    for way in "--http1.1 http://web:80" "--http1.1 http://web:81" "--http2-prior-knowledge http://web:90" "--http2-prior-knowledge http://web:91"; do
        curl $way/who
        head -c 33554432 /dev/zero | curl --upload-file - $way/up
        curl $way/large | wc -c
        curl --output /dev/null --write-out '%{time_starttransfer} %{time_total}\n' $way/slow
    done
    for port in 443 444; do
        curl --insecure https://web:$port/who
        curl --insecure --http1.1 https://web:$port/who
        curl --insecure https://web:$port/large | wc -c
    done"#;

async fn nginx_serves_every_version_and_large_bodies(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let shell = |script: &str| format!("/bin/busybox, sh, -c, {}", json!(script));
    let machine = |name, node| Wanted { more: MACHINE, ..Wanted::new(name, node) };
    case.apply(
        &(machine("web", "node2").with(&[machine_container("nginx", &shell(NGINX), Some(8080))])
            + &machine("client", "node1").with(&[machine_container("client", "/bin/busybox, sleep, '86400'", None)])
            + &Wanted::new("outside", "node1").outside().waiting()
            + "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [
  {name: http, port: 80, targetPort: 8080}, {name: any-1, port: 81, targetPort: 8080},
  {name: http2, port: 90, targetPort: 9000}, {name: any-2, port: 91, targetPort: 9000},
  {name: https, port: 443, targetPort: 8443}, {name: any-tls, port: 444, targetPort: 8443}]}}"),
    );
    for pod in ["web", "client", "outside"] {
        case.ready(pod).await;
    }
    pods::known(case, "client", &[&format!("web.{}.svc.cluster.local", case.namespace)]).await;
    pods::refuses_plaintext(case, "outside", "http://web:81/who").await;

    let said = case.exec("client", &["/bin/busybox", "sh", "-c", CURL]);
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 4 * 4 + 2 * 3, "{said}");
    for (lines, version) in lines.chunks(4).zip(["HTTP/1.1", "HTTP/1.1", "HTTP/2.0", "HTTP/2.0"]) {
        assert_eq!(lines[..3], [version, "33554432", "33554432"]);
        // What comes slowly is passed on as it comes.
        let seconds: Vec<f64> = lines[3].split(' ').map(|text| text.parse().unwrap()).collect();
        assert!(seconds[0] < 1.0 && seconds[1] > 2.0, "{}", lines[3]);
    }
    for lines in lines[16..].chunks(3) {
        assert_eq!(lines, ["HTTP/2.0 TLSv1.3", "HTTP/1.1 TLSv1.3", "33554432"]);
    }
    let requests = count(case, "web", "istio_requests_total", &[AT_SERVER, MUTUAL]);
    assert_eq!((requests, connections(case, "web")), (16.0, 6.0), "each by mutual TLS");
}

fn options() -> anyhow::Result<Options> {
    Ok(Options { dual_stack: true, ..mesh::options()? })
}

pub(crate) const SUITE: Suite = Suite {
    name: "traffic",
    title: "Traffic across two nodes",
    prepare: options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        every_address_leads_to_the_other_node_by_mutual_tls,
        requests_are_as_without_a_mesh,
        grpc_streams_and_websockets_cross_nodes,
        every_protocol_crosses_the_border_of_the_mesh,
        redis_works_and_mariadb_speaks_first_without_a_wait,
        nginx_serves_every_version_and_large_bodies,
        peers_find_each_other_before_they_are_ready,
        node_ports_and_host_ports_serve_callers_from_outside,
    ],
};
