//! Manifests as users write them, good and bad: what is read, and what is said of what is not.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use weir_config::{
    Manifest, Object, Problem, frontend,
    model::{Addressing, Condition, Name, Protocol, TargetPort},
    parse, validate,
};

fn good(text: &str) -> Vec<Manifest> {
    parse("a.yaml", text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn bad(text: &str) -> Vec<String> {
    parse("a.yaml", text).expect_err("was accepted").iter().map(Problem::to_string).collect()
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop, labels: {app: catalog}}
spec:
  selector: {app: catalog}
  clusterIP: 198.19.0.10
  clusterIPs: [198.19.0.10, 'fd00::10']
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: dns, port: 53, protocol: UDP}
  - {name: redis, port: 6379}
  - {name: any, port: 9000, targetPort: 9001}
  - {name: x, port: 9002, appProtocol: kubernetes.io/ws}
  - {name: http-h2, port: 9003, appProtocol: kubernetes.io/h2c}
";

fn route(rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: catalog\n  namespace: shop\nspec:\n  \
         parentRefs:\n  - {{kind: Service, group: '', name: catalog, port: 80}}\n{rest}"
    )
}

#[test]
fn a_service_with_all_that_the_model_takes_of_it() {
    let manifests = good(SERVICE);
    let Object::Service(service) = &manifests[0].object else { panic!("no Service") };
    let service = frontend::kubernetes::service(service);
    assert_eq!(service.host("cluster.local"), "catalog.shop.svc.cluster.local");
    assert_eq!(
        service.addressing,
        Addressing::Cluster(vec!["198.19.0.10".parse().unwrap(), "fd00::10".parse().unwrap()])
    );
    let ports: Vec<_> = service.ports.iter().map(|port| (port.number, port.protocol)).collect();
    assert_eq!(
        ports,
        [
            (80, Protocol::Http),
            (6379, Protocol::Opaque),
            (9000, Protocol::Undeclared),
            (9002, Protocol::Http),
            (9003, Protocol::Http)
        ]
    );
    assert_eq!(service.port(80).unwrap().target, TargetPort::Name("web".into()));
    assert_eq!(service.port(9000).unwrap().target, TargetPort::Number(9001));
}

#[test]
fn a_pod_as_the_api_server_holds_it() {
    let manifests = good(
        "
apiVersion: v1
kind: Pod
metadata:
  name: catalog-v1-7c9d-abcde
  namespace: shop
  uid: u-1
  labels: {app: catalog, version: v1, pod-template-hash: 7c9d}
  annotations: {weir.dev/opaque-ports: '6379', other.dev/x: z, weir.dev/capture: '{\"version\":1,\"excludeInboundPorts\":[9100]}'}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: catalog-v1-7c9d, uid: u-2, controller: true}
spec:
  serviceAccountName: catalog
  initContainers:
  - {name: weir-proxy, image: p, restartPolicy: Always, ports: [{containerPort: 15090}]}
  containers:
  - name: app
    image: a
    ports: [{name: web, containerPort: 8080}, {containerPort: 53, protocol: UDP}]
status:
  phase: Running
  podIP: 198.18.0.5
  podIPs: [{ip: 198.18.0.5}, {ip: 'fd00::5'}]
  conditions: [{type: Ready, status: 'True'}]
",
    );
    let Object::Pod(pod) = &manifests[0].object else { panic!("no Pod") };
    let workload = frontend::kubernetes::workload(pod);
    assert_eq!(workload.name, Name::new("shop", "catalog-v1-7c9d-abcde"));
    assert_eq!((workload.owner.as_str(), workload.app(), workload.version()), ("catalog-v1", "catalog", "v1"));
    assert_eq!((workload.canonical_name(), workload.canonical_revision()), ("catalog", "v1"));
    assert_eq!(workload.addresses.len(), 2);
    assert!(workload.meshed && workload.ready && !workload.terminating);
    assert_eq!(workload.named_port("web"), Some(8080));
    assert_eq!(workload.ports.len(), 1);
    assert_eq!(workload.opaque_ports, [6379]);
    // What is not redirected can not be mutual TLS: excluded ports, and the proxy's own.
    let captured: Vec<u16> =
        [8080, 9100, 15020, 15021, 15090, 53].into_iter().filter(|port| workload.captures(*port)).collect();
    assert_eq!(captured, [8080, 53]);
    assert_eq!(manifests[0].raw["metadata"]["uid"], "u-1");
}

#[test]
fn conditions_of_an_endpoint() {
    let manifests = good(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: catalog-x, namespace: shop, labels: {kubernetes.io/service-name: catalog}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [198.18.0.1]}
- {addresses: [198.18.0.2], conditions: {ready: false, serving: true, terminating: true}, targetRef: {kind: Pod, name: p}}
- {addresses: [198.18.0.3], conditions: {ready: false}}
",
    );
    let Object::EndpointSlice(slice) = &manifests[0].object else { panic!("no slice") };
    let set = frontend::kubernetes::endpoints(slice).unwrap();
    let got: Vec<Condition> = set.endpoints.iter().map(|endpoint| endpoint.condition).collect();
    assert_eq!(got, [Condition::Ready, Condition::Draining, Condition::Unready]);
    assert_eq!(set.endpoints[1].workload, Some(Name::new("shop", "p")));
}

#[test]
fn a_list_is_taken_apart_and_the_namespace_defaults() {
    let manifests = good(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: a}\n- apiVersion: v1\n  \
         kind: Namespace\n  metadata: {name: b}\n",
    );
    let names: Vec<String> = manifests.iter().map(|manifest| manifest.object.reference().to_string()).collect();
    assert_eq!(names, ["ServiceAccount default/a", "Namespace b"]);
}

#[test]
fn unknown_fields_name_file_line_object_and_field() {
    let errors = bad(&SERVICE.replace("targetPort: 9001", "targetport: 9001").replace("selector:", "selectors:"));
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[0].starts_with("a.yaml:6: Service shop/catalog: spec.selectors: "), "{errors:#?}");
    assert!(errors[1].starts_with("a.yaml:13: Service shop/catalog: spec.ports[3].targetport: "), "{errors:#?}");
}

#[test]
fn all_problems_of_a_file_at_once() {
    let errors = bad(
        "apiVersion: v1\nkind: Servise\nmetadata: {name: a}\n---\napiVersion: apps/v1\nkind: Service\nmetadata: {name: b}\n---\njust \
         text\n---\nkind: Pod\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: c, labels: {on: yes}}\nspec: {containers: []}\n",
    );
    let want = [
        "a.yaml:2: Servise a: kind: Servise of v1 is not known here",
        "a.yaml:5: Service b: apiVersion: Service of apps/v1 is not known; Service of v1 is",
        "a.yaml:9: is not a Kubernetes object",
        "a.yaml:11: Pod (no name): apiVersion: is missing",
        "a.yaml:15: Pod c: metadata.labels.on: invalid type: boolean `true`, expected a string",
    ];
    assert_eq!(errors.len(), want.len(), "{errors:#?}");
    for (error, want) in errors.iter().zip(want) {
        assert!(error.starts_with(want), "{error}\nwant {want}");
    }
}

#[test]
fn values_that_make_no_sense() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, annotations: {weir.dev/opaque-ports: redis, \
               weir.dev/nope: x}}\nspec: {containers: [{name: A_, image: x, ports: [{containerPort: 70000, protocol: tcp}]}]}\n";
    for (text, want) in [
        (SERVICE.replace("port: 80,", "port: 0,"), "spec.ports[0].port: 0 is not a port"),
        (SERVICE.replace("name: redis", "name: http"), "spec.ports[2].name: is the name of an earlier port"),
        (SERVICE.replace("{name: redis, port", "{port"), "spec.ports[2].name: is missing"),
        (SERVICE.replace("port: 6379", "port: 80"), "spec.ports[2].port: 80 is the number of an earlier port"),
        (SERVICE.replace("name: catalog,", "name: Catalog,"), "metadata.name: \"Catalog\" is not a name"),
        (SERVICE.replace("protocol: UDP", "protocol: udp"), "spec.ports[1].protocol: \"udp\" is not TCP"),
        (pod.into(), "metadata.annotations[weir.dev/opaque-ports]: \"redis\" is not a port"),
        (pod.into(), "metadata.annotations[weir.dev/nope]: is not known"),
        (pod.into(), "spec.containers[0].name: \"A_\" is not a container's name"),
        (pod.into(), "spec.containers[0].ports[0].containerPort: 70000 is not a port"),
    ] {
        let errors = bad(&text);
        assert!(errors.iter().any(|error| error.contains(want)), "{errors:#?}\nwant {want}");
    }
}

#[test]
fn a_route_with_all_that_is_supported() {
    good(&route(
        "  rules:
  - name: canary
    matches:
    - path: {type: Exact, value: /a}
      method: GET
      headers: [{name: X-Canary, value: 'yes'}, {type: RegularExpression, name: x, value: '^a.*'}]
      queryParams: [{name: q, value: '1'}]
    - path: {type: RegularExpression, value: '/v[0-9]+/.*'}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: a, value: b}]}
    backendRefs:
    - {name: v1, port: 80, weight: 90}
    - name: v2
      port: 80
      weight: 10
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: a, value: b}]}
",
    ));
}

#[test]
fn every_unsupported_or_wrong_part_of_a_route_is_refused_by_path() {
    let rules = |rule: &str| route(&format!("  rules:\n  - {rule}\n"));
    for (text, want) in [
        (route("  hostnames: [a.example]\n"), "spec.hostnames: is for Gateways"),
        (route("  useDefaultGateways: All\n"), "spec.useDefaultGateways: is not supported"),
        (rules("timeout: 1s"), "spec.rules[0].timeout: is not a field that this kind has"),
        (
            rules("filters: [{type: RequestMirror, requestMirror: {}}]"),
            "spec.rules[0].filters[0].requestMirror: missing field `backendRef`",
        ),
        (
            rules("filters: [{type: ExternalAuth}]"),
            "spec.rules[0].filters[0].type: ExternalAuth is not supported: use an AuthorizationPolicy",
        ),
        (
            rules("filters: [{type: RequestHeaderModifier}]"),
            "spec.rules[0].filters[0].requestHeaderModifier: is missing",
        ),
        (
            rules("filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a}]}}]"),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: Host can not be changed",
        ),
        (
            rules(
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\nc\"}]}}]",
            ),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].value: has a control character",
        ),
        (rules("matches: [{path: {value: a}}]"), "spec.rules[0].matches[0].path.value: \"a\" must start with /"),
        (rules("matches: [{path: {value: /a//b}}]"), "spec.rules[0].matches[0].path.value: \"/a//b\" holds \"//\""),
        (rules("matches: [{path: {value: /a%2Fb}}]"), "holds \"%2f\""),
        (
            rules("matches: [{path: {type: RegularExpression, value: '(?=a)'}}]"),
            "spec.rules[0].matches[0].path.value: is no regular expression",
        ),
        (
            rules("matches: [{path: {type: RegularExpression, value: '((a{1,99}){1,99}){1,99}'}}]"),
            "spec.rules[0].matches[0].path.value: is no regular expression",
        ),
        (
            rules("matches: [{path: {type: Regex, value: /}}]"),
            "spec.rules[0].matches[0].path.type: unknown variant `Regex`",
        ),
        (
            rules("matches: [{method: get}]"),
            "spec.rules[0].matches[0].method: unknown variant `get`, expected one of `GET`",
        ),
        (rules("matches: [{headers: [{name: 'a b', value: c}]}]"), "spec.rules[0].matches[0].headers[0].name: must be"),
        (rules("backendRefs: [{name: v1}]"), "spec.rules[0].backendRefs[0].port: is missing"),
        (
            rules("backendRefs: [{name: v1, port: 80, weight: -1}]"),
            "spec.rules[0].backendRefs[0].weight: -1 is not a weight",
        ),
        (
            route("").replace("kind: Service,", "kind: Gateway,"),
            "spec.parentRefs[0].kind: Gateway is not supported yet",
        ),
        (route("").replace("group: '', ", ""), "spec.parentRefs[0].group: a Service is of group \"\""),
        (route("").replace("port: 80", "sectionName: http"), "spec.parentRefs[0].sectionName: is not supported: name"),
    ] {
        let errors = bad(&text);
        assert!(errors.iter().any(|error| error.contains(want)), "{errors:#?}\nwant {want}");
        assert!(errors.iter().all(|error| error.contains("HTTPRoute shop/catalog: spec.")), "{errors:#?}");
    }
}

#[test]
fn rules_to_what_is_not_there_name_file_object_and_field() {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---{SERVICE}---\n{}",
        route("  rules:\n  - backendRefs:\n    - {name: nope, port: 80}\n    - {name: catalog, port: 81}\n")
            .replace("port: 80}\n  rules", "port: 6379}\n  rules")
    );
    let problems: Vec<String> = validate(&good(&text)).iter().map(Problem::to_string).collect();
    let want = [
        "a.yaml:27: HTTPRoute shop/catalog: spec.parentRefs[0].port: port 6379 of Service shop/catalog does not speak HTTP by its name or appProtocol: rules have no effect on it",
        "a.yaml:30: HTTPRoute shop/catalog: spec.rules[0].backendRefs[0].name: there is no Service shop/nope",
        "a.yaml:31: HTTPRoute shop/catalog: spec.rules[0].backendRefs[1].port: Service shop/catalog has no TCP port 81; it has 80, 6379",
    ];
    assert_eq!(problems.len(), want.len(), "{problems:#?}");
    for (problem, want) in problems.iter().zip(want) {
        assert!(problem.starts_with(want), "{problem}\nwant {want}");
    }
}

#[test]
fn sizes_are_bounded() {
    let large = "# x\n".repeat(weir_config::MAX_FILE_BYTES / 4 + 1);
    assert!(bad(&large)[0].contains("is larger than"));
}
