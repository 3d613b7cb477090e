//! Whatever comes in: an answer, no panic, and a patch that touches nothing but what injection is about.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not take for tests

mod common;

use common::{assert_allowed, settings, without_ours};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use weir_webhook::{Settings, inject_manifest, inject_pod, review::review};

/// Any JSON, of the names that a pod has.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(1337), Just(15020), Just(8080), Just(0), Just(70000)].prop_map(Value::from),
        prop_oneof![
            Just("weir-proxy"),
            Just("weir-init"),
            Just("weir-token"),
            Just("weir-root"),
            Just("Always"),
            Just("true"),
            Just("weir/proxy:test"),
            Just("/weir-proxy"),
            Just("/app/a/livez"),
            Just("a"),
            Just("1Gi"),
            Just("http"),
            Just("1e999999999"),
            Just("WEIR_PROBES"),
            Just("{}"),
            Just("windows"),
        ]
        .prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let key = prop_oneof![
        4 => prop::sample::select(vec![
            "metadata", "spec", "annotations", "labels", "containers", "initContainers", "ephemeralContainers", "volumes",
            "name", "image", "command", "env", "value", "ports", "containerPort", "resources", "limits", "requests", "cpu",
            "memory", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "postStart", "preStop", "httpGet",
            "tcpSocket", "grpc", "port", "path", "host", "httpHeaders", "scheme", "securityContext", "runAsUser",
            "restartPolicy", "volumeMounts", "mountPath", "projected", "sources", "configMap", "hostNetwork", "os",
            "weir.dev/inject", "weir.dev/capture", "weir.dev/status", "weir.dev/drain-seconds", "prometheus.io/scrape",
            "prometheus.io/port", "terminationGracePeriodSeconds", "timeoutSeconds", "service", "kind", "items", "template",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| Value::Object(Map::from_iter(pairs))),
        ]
    })
}

/// A probe or hook that calls something, more or less well-formed.
fn handler() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        4 => (0u32..70_000).prop_map(Value::from),
        2 => prop::sample::select(vec!["http", "8080", "none", ""]).prop_map(Value::from),
        1 => any_json(),
    ];
    let text = prop_oneof![Just(Value::Null), any::<String>().prop_map(Value::from), any_json()];
    let kind = prop::sample::select(vec!["httpGet", "tcpSocket", "grpc", "exec", "future"]);
    let key = prop::sample::select(vec!["path", "host", "scheme", "service", "httpHeaders", "future"]);
    let headers = prop::collection::vec((any::<String>(), any::<String>()), 0..3);
    (kind, port, key, text, headers, any::<Option<u32>>()).prop_map(|(kind, port, key, text, headers, timeout)| {
        let headers: Vec<Value> =
            headers.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut call = json!({"port": port, "httpHeaders": headers});
        call[key] = text;
        let mut handler = json!({"timeoutSeconds": timeout});
        handler[kind] = call;
        handler
    })
}

/// A pod that is good except for one place of a container, of the spec and of the metadata.
fn almost_a_pod() -> impl Strategy<Value = Value> {
    let place = prop_oneof![
        4 => (
            prop::sample::select(vec!["livenessProbe", "readinessProbe", "startupProbe", "postStart", "preStop"]),
            handler()
        ),
        1 => (
            prop::sample::select(vec!["ports", "resources", "securityContext", "env", "restartPolicy", "name", "lifecycle"]),
            any_json()
        ),
    ];
    let spec_key =
        prop::sample::select(vec!["initContainers", "volumes", "securityContext", "hostNetwork", "os", "resources"]);
    let rarely = || prop_oneof![4 => Just(Value::Null), 1 => any_json()];
    (place, spec_key, rarely(), rarely()).prop_map(|((place, value), spec_key, spec, annotations)| {
        let mut pod = json!({
            "metadata": {"name": "a", "annotations": annotations},
            "spec": {"containers": [{"name": "a", "ports": [{"name": "http", "containerPort": 80}]}, {"name": "b"}]},
        });
        let container = &mut pod["spec"]["containers"][0];
        match place {
            "postStart" | "preStop" => container["lifecycle"][place] = value,
            _ => container[place] = value,
        }
        pod["spec"][spec_key] = spec;
        pod
    })
}

/// The strategy above is only worth something if most of its pods are injected.
#[test]
fn most_of_the_almost_good_pods_are_injected() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let injected = (0..500).filter(|_| {
        let pod = almost_a_pod().new_tree(&mut runner).unwrap().current();
        inject_pod(&settings(), &pod, "shop").is_ok_and(|outcome| outcome.verdict == weir_webhook::Verdict::Injected)
    });
    let injected = injected.count();
    assert!(injected > 250, "only {injected} of 500");
}

/// What must hold of any pod that is injected.
fn check(settings: &Settings, pod: &Value) {
    let Ok(outcome) = inject_pod(settings, pod, "shop") else { return };
    assert_allowed(&outcome.patch);
    let mut after = pod.clone();
    json_patch::patch(&mut after, &outcome.patch).unwrap();
    let again = inject_pod(settings, &after, "shop").expect("what was injected is accepted");
    assert!(again.patch.is_empty(), "{pod}\nis injected, and then again by {}", again.patch);
    // No operation of ours takes away or changes a container or volume of the user (probes and hooks aside).
    for list in ["containers", "ephemeralContainers"] {
        let names = |pod: &Value| -> Vec<Value> {
            pod["spec"][list].as_array().into_iter().flatten().map(|c| c["name"].clone()).collect()
        };
        assert_eq!(names(pod), names(&after));
    }
    assert_eq!(without_ours(pod)["spec"]["volumes"], without_ours(&after)["spec"]["volumes"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = review(&settings(), &body);
    }

    #[test]
    fn any_json_as_pod(pod in any_json()) {
        check(&settings(), &pod);
        check(&common::init_mode(), &pod);
    }

    #[test]
    fn almost_any_pod(pod in almost_a_pod()) {
        check(&settings(), &pod);
        check(&common::init_mode(), &pod);
    }

    #[test]
    fn any_json_as_review(request in any_json(), object in any_json()) {
        let mut request = request;
        if let Value::Object(map) = &mut request {
            map.insert("uid".into(), "1".into());
            map.insert("operation".into(), "CREATE".into());
            map.insert("resource".into(), json!({"group": "", "resource": "pods"}));
            map.insert("object".into(), object);
        }
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        if let Ok(answer) = review(&settings(), body.to_string().as_bytes()) {
            let answer: Value = serde_json::from_slice(&answer.body).unwrap();
            prop_assert_eq!(&answer["response"]["uid"], "1");
            prop_assert!(answer["response"]["allowed"].is_boolean());
        }
    }

    #[test]
    fn a_review_with_bytes_changed(at in 0usize..600, byte in any::<u8>(), cut in 0usize..600) {
        let object = json!({"metadata": {"annotations": {"weir.dev/drain-seconds": "5"}}, "spec": {"containers": [{"name": "a",
            "livenessProbe": {"httpGet": {"port": 8080, "path": "/"}}}]}});
        let mut body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "1",
            "operation": "CREATE", "resource": {"group": "", "resource": "pods"}, "object": object}}).to_string().into_bytes();
        let len = body.len();
        body[at % len] = byte;
        let _ = review(&settings(), &body);
        let _ = review(&settings(), &body[..cut % len]);
    }

    #[test]
    fn any_manifest(manifest in any_json(), kind in prop::sample::select(vec!["Pod", "Deployment", "CronJob", "List"])) {
        let mut manifest = manifest;
        if let Value::Object(map) = &mut manifest {
            map.insert("kind".into(), kind.into());
            let group = match kind { "Deployment" => "apps/v1", "CronJob" => "batch/v1", _ => "v1" };
            map.insert("apiVersion".into(), group.into());
        }
        let _ = inject_manifest(&settings(), manifest);
    }

    /// Annotations with quotes, braces, line ends, YAML and JSON in them: refused, or kept inside the one place they belong.
    #[test]
    fn any_annotation_value(
        name in prop::sample::select(weir_mesh::annotations::KNOWN.to_vec()),
        value in prop_oneof![
            any::<String>(),
            "[\\x00-\\x7f]{0,40}",
            "[0-9,./:a-fMGik \n\"'{}\\[\\]$()-]{0,40}",
            prop::sample::select(vec![
                "\"}],\"privileged\":true,\"x\":[{\"a\":\"", "1\nprivileged: true", "$(KUBERNETES_SERVICE_HOST)", "{{ .Values.x }}",
                "../../etc/passwd", "1,2,3,4", "info,weir_proxy=debug", "64Mi", "fd00::/8",
            ]).prop_map(str::to_owned),
        ],
    ) {
        let mut pod = json!({"metadata": {"annotations": {}}, "spec": {"containers": [{"name": "a"}]}});
        pod["metadata"]["annotations"][format!("weir.dev/{name}")] = value.clone().into();
        check(&settings(), &pod);
        check(&common::init_mode(), &pod);
        if let Ok(outcome) = inject_pod(&settings(), &pod, "shop") {
            let plain = json!({"spec": {"containers": [{"name": "a"}]}});
            let plain_patch = inject_pod(&settings(), &plain, "shop").unwrap().patch;
            let container = |mut pod: Value, patch| -> Value {
                json_patch::patch(&mut pod, patch).unwrap();
                let mut proxy = pod["spec"]["initContainers"][0].take();
                proxy["env"].take();
                proxy["resources"].take();
                proxy
            };
            prop_assert_eq!(container(pod, &outcome.patch), container(plain, &plain_patch));
        } else {
            let refusal = inject_pod(&settings(), &pod, "shop").unwrap_err().to_string();
            prop_assert!(refusal.contains(&format!("weir.dev/{name}")), "{}", refusal);
            prop_assert!(!refusal.contains('\n'), "{:?}", refusal);
        }
    }
}
