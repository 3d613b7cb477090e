//! What an API server sends for judgement.

use std::{fs, path::Path};

use json_patch::{Patch, PatchOperation, jsonptr::Token};
use serde_json::Value;
use weir_config::yaml;
use weir_webhook::{Settings, Verdict, inject_pod, review::review};

use super::{JSON, text};
use crate::{Shape, Target, magnitude, none};

const WORDS: &[&[u8]] = &[
    b"-1",
    b"1e400",
    b"\"\\u0000\"",
    b"\"\\ud800\"",
    b"\"~1../~0\"",
    b"\"apiVersion\":\"admission.k8s.io/v1\"",
    b"\"kind\":\"AdmissionReview\"",
    b"\"request\":{",
    b"\"uid\":\"u\"",
    b"\"resource\":{\"resource\":\"pods\"}",
    b"\"operation\":\"CREATE\"",
    b"\"subResource\":\"ephemeralcontainers\"",
    b"\"object\":{",
    b"\"namespace\":\"shop\"",
];

pub(super) const REVIEW: Target = Target {
    name: "admission_review",
    holds: "an answer is a review of the same uid in printable text; a patch is there only where it is allowed, and it applies",
    max_len: 16 * 1024,
    words: &[JSON, WORDS],
    seeds: none,
    run: admission,
};

pub(super) const INJECTION: Target = Target {
    name: "injection",
    holds: "a patch stays inside what injection may touch, applies, and a second injection changes nothing",
    max_len: 16 * 1024,
    words: &[&[
        b"\n",
        b"  ",
        b"- ",
        b": ",
        b"{}",
        b"[]",
        b"null",
        b"~",
        b"true",
        b"\"\"",
        b"name: weir-proxy",
        b"name: weir-init",
        b"name: weir-token",
        b"weir.dev/inject: 'false'",
        b"weir.dev/inject: 'true'",
        b"weir.dev/drain-seconds: '5'",
        b"weir.dev/capture: x",
        b"hostNetwork: true",
        b"runAsUser: 1337",
        b"restartPolicy: Always",
        b"livenessProbe: {httpGet: {port: web}}",
        b"readinessProbe: {tcpSocket: {port: 80}}",
        b"startupProbe: {grpc: {port: 1}}",
        b"lifecycle: {preStop: {httpGet: {port: 70000}}}",
        b"initContainers: [",
        b"volumes: [",
        b"ephemeralContainers: [{name: d}]",
        b"os: {name: windows}",
        b"resources: {limits: {cpu: 1, memory: 64Mi}}",
        b"env: [{name: A, value: '1'}]",
        b"prometheus.io/scrape: 'true'",
        b"prometheus.io/port: '9090'",
        b"terminationGracePeriodSeconds: -1",
        b"metadata:",
        b"annotations:",
    ]],
    seeds: pods,
    run: injection,
};

fn settings() -> Settings {
    Settings { pre_stop_seconds: 1, ..Settings::default() }
}

/// The webhook's goldens.
fn pods() -> Vec<Vec<u8>> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../webhook/tests/golden"));
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    let texts = files.iter().filter_map(|file| fs::read(file).ok());
    texts.filter(|text| text.windows(10).any(|part| part == b"kind: Pod\n")).collect()
}

/// What injection has business with.
fn check_patch(patch: &Patch) {
    for operation in patch.iter() {
        let path: Vec<String> =
            operation.path().tokens().map(|token: Token<'_>| token.decoded().into_owned()).collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let index = |text: &str| text.parse::<usize>().is_ok();
        let value = match operation {
            PatchOperation::Add(add) => Some(&add.value),
            PatchOperation::Replace(replace) => Some(&replace.value),
            PatchOperation::Remove(_) => None,
            other => panic!("another operation: {other}"),
        };
        let empty = value
            .is_some_and(|value| *value == Value::Array(Vec::new()) || *value == Value::Object(serde_json::Map::new()));
        let named = |names: [&str; 2]| {
            value.is_none_or(|value| value["name"].as_str().is_some_and(|name| names.contains(&name)))
        };
        let fine = match path.as_slice() {
            ["metadata"] | ["metadata", "annotations"] | ["spec", "initContainers" | "volumes"] => empty,
            ["metadata", "annotations", name] => {
                name.starts_with("weir.dev/") || ["prometheus.io/port", "prometheus.io/path"].contains(name)
            }
            ["spec", "initContainers", at] => index(at) && named(["weir-proxy", "weir-init"]),
            ["spec", "volumes", at] => index(at) && named(["weir-token", "weir-root"]),
            [
                "spec",
                "initContainers" | "containers",
                at,
                "livenessProbe" | "readinessProbe" | "startupProbe" | "lifecycle",
                ..,
            ] => index(at),
            _ => false,
        };
        assert!(fine, "the patch touches {}: {operation}", operation.path());
    }
}

fn injection(bytes: &[u8]) -> Shape {
    let Ok(nodes) = yaml::read(&text(bytes)) else { return Shape::of("no YAML") };
    let Some(pod) = nodes.first().map(yaml::Node::to_json) else { return Shape::of("nothing") };
    let settings = settings();
    let outcome = match inject_pod(&settings, &pod, "shop") {
        Ok(outcome) => outcome,
        Err(refusal) => {
            assert!(!refusal.reasons().is_empty());
            let kinds: Vec<String> =
                refusal.reasons().iter().map(|reason| format!("{reason:?}").chars().take(8).collect()).collect();
            return Shape::of(kinds);
        }
    };
    check_patch(&outcome.patch);
    let mut patched = pod.clone();
    if let Err(error) = json_patch::patch(&mut patched, &outcome.patch) {
        panic!("the patch does not apply: {error}");
    }
    let verdict = match &outcome.verdict {
        Verdict::Skipped(_) | Verdict::Unchanged => {
            assert_eq!(patched, pod, "nothing to do, and changed");
            0
        }
        Verdict::Injected => 1,
        Verdict::Repaired => 2,
    };
    if verdict > 0 {
        let own = &patched["spec"]["initContainers"][0];
        assert_eq!(
            (&own["name"], &own["restartPolicy"]),
            (&Value::from("weir-proxy"), &Value::from("Always")),
            "ours is not first"
        );
        // What its owner wrote stands as it stood.
        let others = |pod: &Value, list: &str| {
            let names = |one: &&Value| !["weir-proxy", "weir-init"].contains(&one["name"].as_str().unwrap_or_default());
            pod["spec"][list]
                .as_array()
                .into_iter()
                .flatten()
                .filter(names)
                .map(|one| {
                    (
                        one["name"].clone(),
                        one["image"].clone(),
                        one["env"].clone(),
                        one["command"].clone(),
                        one["securityContext"].clone(),
                    )
                })
                .collect::<Vec<_>>()
        };
        for list in ["containers", "initContainers"] {
            assert_eq!(others(&pod, list), others(&patched, list));
        }
    }
    match inject_pod(&settings, &patched, "shop") {
        Ok(again) => assert!(again.patch.is_empty(), "a second injection changes {}", again.patch),
        Err(refusal) => panic!("a second injection refuses it: {refusal}"),
    }
    Shape::of((verdict, magnitude(outcome.patch.len()), outcome.warnings.len().min(4)))
}

fn admission(bytes: &[u8]) -> Shape {
    let answer = match review(&settings(), bytes) {
        Err(bad) => return Shape::of(bad.to_string().chars().take(24).collect::<String>()),
        Ok(answer) => answer,
    };
    let Ok(reply) = serde_json::from_slice::<Value>(&answer.body) else { panic!("an answer that is no JSON") };
    // Fields that nobody looks at may hold malformed text.
    let Ok(asked) = serde_json::from_slice::<Value>(bytes) else { return Shape::of("answered in part") };
    assert_eq!(
        (&reply["apiVersion"], &reply["kind"]),
        (&Value::from("admission.k8s.io/v1"), &Value::from("AdmissionReview"))
    );
    let response = &reply["response"];
    assert_eq!(response["uid"], asked["request"]["uid"]);
    let allowed = response["allowed"].as_bool();
    assert!(allowed.is_some());
    let printable = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n');
    assert_eq!(allowed == Some(false), answer.message.is_some());
    if let Some(message) = &answer.message {
        assert!(printable(message) && message.chars().count() <= 4200, "{message:?}");
        assert!(response["patch"].is_null(), "refused, with a patch");
    }
    for warning in &answer.warnings {
        assert!(printable(warning) && warning.chars().count() <= 256, "{warning:?}");
    }
    assert!(
        answer.body.len() <= 64 * 1024 + 64 * bytes.len(),
        "{} bytes of answer to {}",
        answer.body.len(),
        bytes.len()
    );
    Shape::of((answer.result.as_str(), response["patch"].is_null(), answer.warnings.len().min(4)))
}
