//! Goldens: each `golden/NAME.yaml` is a manifest, `golden/NAME.out.json` is what becomes of it.
//!
//! `UPDATE_GOLDEN=1 cargo test -p weir-webhook --test golden` writes the results anew. A first line such as `# redirect: init`,
//! `# backend: iptables`, `# cluster-dns: IP`, `# roots: given` or `# namespace: shop` sets what the manifest can not say. Whatever the
//! golden says, every result is also judged by rules that hold for all.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not take for tests

mod common;

use std::path::Path;

use common::{assert_allowed, restricted, volume_is_restricted, without_ours};
use k8s_openapi::api::{apps::v1 as apps, batch::v1 as batch, core::v1 as core};
use serde_json::{Value, json};
use weir_webhook::{Redirect, Settings, Verdict, inject_manifest, inject_manifest_with_warnings, inject_pod};

struct Case {
    name: String,
    settings: Settings,
    namespace: String,
    manifest: Value,
}

fn cases() -> Vec<Case> {
    let folder = Path::new("tests/golden");
    let mut cases: Vec<Case> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let manifest: Value =
                serde_saphyr::from_str_with_options(&text, serde_saphyr::options! { strict_booleans: true })
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let namespace = manifest.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
            let mut case = Case {
                name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
                settings: common::settings(),
                namespace: namespace.to_owned(),
                manifest,
            };
            for line in text.lines().map_while(|line| line.strip_prefix("# ")) {
                match line.split_once(": ").unwrap() {
                    ("redirect", "init") => case.settings.redirect = Redirect::Init,
                    ("backend", word) => case.settings.redirect_backend = word.parse().unwrap(),
                    ("cluster-dns", ip) => case.settings.cluster_dns = vec![ip.parse().unwrap()],
                    ("roots", "given") => {
                        case.settings.roots =
                            Some("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into())
                    }
                    ("namespace", namespace) => case.namespace = namespace.to_owned(),
                    other => panic!("{}: unknown setting {other:?}", path.display()),
                }
            }
            case
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

#[test]
fn goldens() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let cases = cases();
    let mut wrong = Vec::new();
    for case in &cases {
        let got = format!("{}\n", serde_json::to_string_pretty(&outcome(case)).unwrap());
        let file = format!("tests/golden/{}.out.json", case.name);
        if update {
            std::fs::write(&file, &got).unwrap();
        } else if std::fs::read_to_string(&file).unwrap_or_default() != got {
            wrong.push(format!("{}:\n{got}", case.name));
        }
    }
    assert!(cases.len() >= 30, "only {} goldens", cases.len());
    assert!(wrong.is_empty(), "not as in the golden (UPDATE_GOLDEN=1 writes anew):\n{}", wrong.join("\n"));
}

/// What becomes of a manifest, after judging it by the rules.
fn outcome(case: &Case) -> Value {
    if case.manifest["kind"] == "Pod" {
        return pod_outcome(case);
    }
    let mut warnings = Vec::new();
    match inject_manifest_with_warnings(&case.settings, case.manifest.clone(), &mut warnings) {
        Err(error) => json!({ "refused": error.to_string() }),
        Ok(result) => {
            let again = inject_manifest(&case.settings, result.clone()).unwrap();
            assert_eq!(again, result, "{}: a second injection changes something", case.name);
            parses(&case.name, &result);
            for (before, after) in pods(&case.manifest).iter().zip(pods(&result)) {
                judge(case, before, &after, &warnings);
            }
            json!({ "warnings": warnings, "object": result })
        }
    }
}

fn pod_outcome(case: &Case) -> Value {
    let outcome = match inject_pod(&case.settings, &case.manifest, &case.namespace) {
        Ok(outcome) => outcome,
        Err(refusal) => {
            let reasons: Vec<String> = refusal.reasons().iter().map(ToString::to_string).collect();
            return json!({ "refused": reasons });
        }
    };
    assert_allowed(&outcome.patch);
    let mut pod = case.manifest.clone();
    json_patch::patch(&mut pod, &outcome.patch).unwrap();
    if let Verdict::Skipped(why) = outcome.verdict {
        assert_eq!(pod, case.manifest, "{}: skipped and changed", case.name);
        return json!({ "skipped": why.to_string(), "warnings": outcome.warnings });
    }
    parses(&case.name, &pod);
    judge(case, &case.manifest, &pod, &outcome.warnings);
    let again = inject_pod(&case.settings, &pod, &case.namespace).unwrap();
    assert!(again.patch.is_empty(), "{}: a second injection changes {}", case.name, again.patch);
    assert_eq!(again.verdict, Verdict::Unchanged);
    let stored = as_the_api_server_stores(&pod);
    let again = inject_pod(&case.settings, &stored, &case.namespace).unwrap();
    assert!(again.patch.is_empty(), "{}: once stored, a second injection changes {}", case.name, again.patch);
    let operations: Vec<String> = outcome
        .patch
        .iter()
        .map(|op| format!("{} {}", serde_json::to_value(op).unwrap()["op"].as_str().unwrap(), op.path()))
        .collect();
    let verdict = format!("{:?}", outcome.verdict).to_lowercase();
    json!({ "verdict": verdict, "warnings": outcome.warnings, "operations": operations, "object": pod })
}

/// Rules for every injected pod.
fn judge(case: &Case, before: &Value, after: &Value, warnings: &[String]) {
    if before == after {
        return;
    }
    let name = &case.name;
    let list = |pod: &Value, key: &str| pod["spec"][key].as_array().cloned().unwrap_or_default();
    let ours: Vec<Value> = list(after, "initContainers")
        .into_iter()
        .filter(|c| ["weir-proxy", "weir-init"].contains(&c["name"].as_str().unwrap()))
        .collect();
    let names: Vec<&str> = ours.iter().map(|c| c["name"].as_str().unwrap()).collect();
    match case.settings.redirect {
        Redirect::Cni => assert_eq!(names, ["weir-proxy"], "{name}"),
        Redirect::Init => assert_eq!(names, ["weir-init", "weir-proxy"], "{name}"),
    }
    assert_eq!(list(after, "initContainers")[..ours.len()], ours, "{name}: something comes before ours");
    for container in &ours {
        let broken = restricted(container, after);
        if container["name"] == "weir-proxy" {
            assert_eq!(broken, Vec::<String>::new(), "{name}: Pod Security restricted");
            assert_eq!(container["restartPolicy"], "Always");
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        } else {
            let known = ["runAsNonRoot is not true", "runAsUser is 0", "capabilities are added"];
            assert_eq!(broken, known, "{name}: weir-init is privileged by more than it must");
        }
        // No field that Kubernetes does not know: what its types read and write again is what we wrote.
        let typed: core::Container = serde_json::from_value(container.clone()).unwrap();
        let written = serde_json::to_value(typed).unwrap();
        assert_eq!(written, *container, "{name}: a field that Kubernetes does not know");
    }
    for volume in list(after, "volumes").iter().filter(|v| v["name"].as_str().unwrap().starts_with("weir-")) {
        assert!(volume_is_restricted(volume), "{name}: {volume}");
        assert!(
            volume.get("emptyDir").is_none(),
            "{name}: an emptyDir would keep the autoscaler from removing the node"
        );
        let typed: core::Volume = serde_json::from_value(volume.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), *volume, "{name}");
    }
    if !warnings.iter().any(|warning| warning.contains("Guaranteed") || warning.contains("BestEffort")) {
        assert_eq!(qos(before), qos(after), "{name}: the class of the pod");
    }
    assert_eq!(without_calls(&without_ours(before)), without_calls(&without_ours(after)), "{name}: the user's part");
    let capture = after["metadata"]["annotations"]["weir.dev/capture"].as_str().unwrap();
    weir_mesh::CaptureSettings::from_json(capture).unwrap();
    let env = ours.last().unwrap()["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|e| e["name"] == name).and_then(|e| e["value"].as_str());
    assert_eq!(value("WEIR_CAPTURE").map(|json| json.replace("\\u0024", "$")).as_deref(), Some(capture));
    assert!(
        env.iter().all(|e| e["value"].as_str().is_none_or(|v| !v.contains('$'))),
        "{name}: the kubelet would expand"
    );
    let calls: weir_mesh::probe::AppCalls =
        value("WEIR_PROBES").map(|json| serde_json::from_str(json).unwrap()).unwrap_or_default();
    let text = serde_json::to_string(&json!([after["spec"]["containers"], after["spec"]["initContainers"]])).unwrap();
    for path in calls.keys() {
        assert!(text.contains(&format!("\"path\":\"{path}\"")), "{name}: nothing calls {path}");
    }
    assert_eq!(text.matches("\"path\":\"/app/").count(), calls.len(), "{name}: a call that is not recorded");
}

/// The class by the rules of the Kubernetes documentation, for the quantities that the goldens use.
fn qos(pod: &Value) -> &'static str {
    let amount = |v: &Value| -> f64 {
        let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let factor = match &text[end..] {
            "m" => 1e-3,
            "" => 1.0,
            "Mi" => 1048576.0,
            "Gi" => 1073741824.0,
            "G" => 1e9,
            other => panic!("{other}"),
        };
        text[..end].parse::<f64>().unwrap() * factor
    };
    let level = |resources: &Value| -> (bool, bool) {
        let (mut any, mut equal) = (false, true);
        for name in ["cpu", "memory"] {
            let (limit, request) = (&resources["limits"][name], &resources["requests"][name]);
            any |= !limit.is_null() || !request.is_null();
            equal &= !limit.is_null() && (request.is_null() || amount(limit) == amount(request));
        }
        (any, equal)
    };
    let mut all = vec![];
    if pod["spec"].get("resources").is_some() {
        all.push(level(&pod["spec"]["resources"]));
    } else {
        for key in ["containers", "initContainers"] {
            all.extend(pod["spec"][key].as_array().into_iter().flatten().map(|c| level(&c["resources"])));
        }
    }
    match (all.iter().any(|(any, _)| *any), all.iter().all(|(_, equal)| *equal)) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A pod without what a probe or hook calls; how it is timed, and fields that are not known, stay.
fn without_calls(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            for place in
                ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"]
            {
                let Some(handler) = container.pointer_mut(place).and_then(Value::as_object_mut) else { continue };
                handler.remove("tcpSocket");
                handler.remove("grpc");
                let get = handler.get_mut("httpGet").and_then(Value::as_object_mut);
                let empty = get.is_none_or(|get| {
                    get.retain(|key, _| !["path", "port", "scheme", "host", "httpHeaders"].contains(&key.as_str()));
                    get.is_empty()
                });
                if empty {
                    handler.remove("httpGet");
                }
            }
        }
    }
    pod.as_object_mut().unwrap().entry("spec").and_modify(|spec| {
        spec.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    });
    pod
}

/// Defaults that the API server fills in between two calls of the webhook, and the token that its ServiceAccount plugin
/// mounts into every container.
fn as_the_api_server_stores(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let set = |object: &mut Value, key: &str, value: Value| {
        object.as_object_mut().unwrap().entry(key).or_insert(value);
    };
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            set(container, "terminationMessagePath", json!("/dev/termination-log"));
            set(container, "terminationMessagePolicy", json!("File"));
            set(container, "imagePullPolicy", json!("IfNotPresent"));
            set(container, "resources", json!({}));
            set(container, "volumeMounts", json!([]));
            container["volumeMounts"].as_array_mut().unwrap().push(json!({
                "name": "kube-api-access-x7k2p", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }));
        }
    }
    set(&mut pod["spec"], "volumes", json!([]));
    let access = json!({"name": "kube-api-access-x7k2p", "projected": {"sources": []}});
    pod["spec"]["volumes"].as_array_mut().unwrap().push(access);
    for volume in pod["spec"]["volumes"].as_array_mut().unwrap() {
        for kind in ["projected", "configMap"] {
            if let Some(source) = volume.get_mut(kind) {
                set(source, "defaultMode", json!(420));
            }
        }
    }
    pod
}

/// The pods and pod templates of a manifest.
fn pods(manifest: &Value) -> Vec<Value> {
    if let Some(items) = manifest.get("items").and_then(Value::as_array) {
        return items.iter().flat_map(pods).collect();
    }
    let place = match manifest["kind"].as_str().unwrap() {
        "Pod" => "",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => "/spec/template",
    };
    manifest.pointer(place).filter(|pod| pod["spec"]["containers"].is_array()).cloned().into_iter().collect()
}

/// Panics unless Kubernetes' own types read the object.
fn parses(name: &str, object: &Value) {
    fn read<T: serde::de::DeserializeOwned>(name: &str, object: &Value) {
        if let Err(error) = serde_json::from_value::<T>(object.clone()) {
            panic!("{name} is no valid object: {error}");
        }
    }
    match (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()) {
        ("v1", "Pod") => read::<core::Pod>(name, object),
        ("v1", "ReplicationController") => read::<core::ReplicationController>(name, object),
        ("v1", "Service") => read::<core::Service>(name, object),
        ("v1", "Namespace") => read::<core::Namespace>(name, object),
        ("apps/v1", "Deployment") => read::<apps::Deployment>(name, object),
        ("apps/v1", "StatefulSet") => read::<apps::StatefulSet>(name, object),
        ("apps/v1", "DaemonSet") => read::<apps::DaemonSet>(name, object),
        ("apps/v1", "ReplicaSet") => read::<apps::ReplicaSet>(name, object),
        ("batch/v1", "Job") => read::<batch::Job>(name, object),
        ("batch/v1", "CronJob") => read::<batch::CronJob>(name, object),
        ("v1", "List" | "PodList") => object["items"].as_array().unwrap().iter().for_each(|item| parses(name, item)),
        ("example.org/v1", _) => {}
        other => panic!("{name}: {other:?}"),
    }
}

/// Settings that change what an injected pod should hold, and webhooks that damage one.
#[test]
fn another_injection_of_an_injected_pod() {
    let settings = common::settings();
    let mut pod = json!({
        "metadata": {"name": "web"},
        "spec": {
            "initContainers": [{"name": "migrate"}],
            "containers": [{"name": "web", "livenessProbe": {"tcpSocket": {"port": 8080}}}],
        },
    });
    let inject = |settings: &Settings, pod: &Value| {
        let outcome = inject_pod(settings, pod, "shop").unwrap();
        assert_allowed(&outcome.patch);
        let mut pod = pod.clone();
        json_patch::patch(&mut pod, &outcome.patch).unwrap();
        (pod, outcome)
    };
    (pod, _) = inject(&settings, &pod);
    let good = pod.clone();

    // Each of these is put right, and the result is the good pod again.
    type Damage = fn(&mut Value);
    let damages: [(&str, Damage); 8] = [
        ("restartPolicy dropped", |pod| {
            drop(pod["spec"]["initContainers"][0].as_object_mut().unwrap().remove("restartPolicy"))
        }),
        ("another container first", |pod| pod["spec"]["initContainers"].as_array_mut().unwrap().swap(0, 1)),
        ("annotations dropped", |pod| pod["metadata"]["annotations"] = json!({})),
        ("a volume dropped", |pod| drop(pod["spec"]["volumes"].as_array_mut().unwrap().pop())),
        ("a volume changed", |pod| pod["spec"]["volumes"][0]["projected"]["defaultMode"] = json!(511)),
        ("the security context changed", |pod| {
            pod["spec"]["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"] = json!(false);
        }),
        ("the probe restored", |pod| {
            pod["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 8080}})
        }),
        ("an older image", |pod| pod["spec"]["initContainers"][0]["image"] = json!("weir/proxy:older")),
    ];
    for (what, damage) in damages {
        let mut damaged = good.clone();
        damage(&mut damaged);
        let (repaired, outcome) = inject(&settings, &damaged);
        assert_eq!(outcome.verdict, Verdict::Repaired, "{what}");
        assert_eq!(repaired, good, "{what}");
        assert_eq!(outcome.warnings.is_empty(), what != "restartPolicy dropped", "{what}: {:?}", outcome.warnings);
    }

    // The whole container taken away, but the probe still calls it: what it was can not be known.
    let mut lost = good.clone();
    lost["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
    let refusal = inject_pod(&settings, &lost, "shop").unwrap_err();
    assert!(refusal.to_string().contains("livenessProbe of container web"), "{refusal}");

    // A webhook that comes after us adds a container with a probe: it is rewritten, the first stays.
    let mut more = good.clone();
    let added = json!({"name": "late", "readinessProbe": {"httpGet": {"port": 7000}}});
    more["spec"]["containers"].as_array_mut().unwrap().push(added);
    let (more, _) = inject(&settings, &more);
    assert_eq!(more["spec"]["containers"][1]["readinessProbe"]["httpGet"]["path"], "/app/late/readyz");
    let env = more["spec"]["initContainers"][0]["env"].to_string();
    assert!(env.contains("/app/late/readyz") && env.contains("/app/web/livez"), "{env}");

    // Environment that others add to every container stays, and so do resources that a LimitRange has set.
    let mut others = good.clone();
    let proxy = &mut others["spec"]["initContainers"][0];
    proxy["env"].as_array_mut().unwrap().push(json!({"name": "DD_TRACE", "value": "1"}));
    proxy["resources"] = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}});
    assert_eq!(inject(&settings, &others).1.verdict, Verdict::Unchanged);

    // Prometheus is sent to the proxy, which knows where the application's own metrics are: also the second time, and from a
    // copied template. Taken away with the container, only the proxy's are left.
    let mut scraped = good.clone();
    scraped["metadata"]["annotations"]["prometheus.io/scrape"] = json!("true");
    scraped["metadata"]["annotations"]["prometheus.io/port"] = json!("9100");
    let (scraped, _) = inject(&settings, &scraped);
    let target = |pod: &Value| {
        let env = pod["spec"]["initContainers"][0]["env"].as_array().unwrap();
        env.iter().find(|entry| entry["name"] == "WEIR_APP_METRICS").map(|entry| entry["value"].clone())
    };
    assert_eq!(scraped["metadata"]["annotations"]["prometheus.io/port"], "15020");
    assert_eq!(scraped["metadata"]["annotations"]["prometheus.io/path"], "/stats/prometheus");
    assert_eq!(target(&scraped), Some(json!("9100/metrics")));
    assert_eq!(inject(&settings, &scraped).1.verdict, Verdict::Unchanged);
    for forged in ["15020/stats/prometheus", "0/metrics", "9100", "9100/$(X)", "/metrics"] {
        let mut pod = scraped.clone();
        let env = pod["spec"]["initContainers"][0]["env"].as_array_mut().unwrap();
        env.iter_mut().find(|entry| entry["name"] == "WEIR_APP_METRICS").unwrap()["value"] = json!(forged);
        assert_eq!(target(&inject(&settings, &pod).0), None, "{forged}");
    }

    // From one way of redirecting to the other and back.
    let (init, _) = inject(&common::init_mode(), &good);
    assert_eq!(init["spec"]["initContainers"][0]["name"], "weir-init");
    assert_eq!(inject(&settings, &init).0, good);

    // With roots and back.
    let with_roots = Settings { roots: Some("roots\n".into()), ..common::settings() };
    let (roots, _) = inject(&with_roots, &good);
    assert_eq!(roots["metadata"]["annotations"]["weir.dev/roots"], "roots\n");
    assert_eq!(inject(&settings, &roots).0, good);
}
