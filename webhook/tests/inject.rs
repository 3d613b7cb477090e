//! First look: an ordinary pod.

use serde_json::json;
use weir_webhook::{Settings, Verdict, inject_pod};

#[test]
fn an_ordinary_pod_gets_the_proxy_first_and_only_once() {
    let mut pod = json!({
        "metadata": {"generateName": "web-"},
        "spec": {
            "containers": [{"name": "web", "image": "web", "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": "http", "path": "/ok"}, "future": 1}}],
            "initContainers": [{"name": "migrate", "image": "m"}],
        },
    });
    let outcome = inject_pod(&Settings::default(), &pod, "shop").unwrap();
    assert_eq!(outcome.verdict, Verdict::Injected);
    json_patch::patch(&mut pod, &outcome.patch).unwrap();
    println!("{}", serde_json::to_string_pretty(&pod).unwrap());
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "weir-proxy");
    assert_eq!(pod["spec"]["containers"][0]["readinessProbe"]["future"], 1);
    let again = inject_pod(&Settings::default(), &pod, "shop").unwrap();
    assert_eq!((again.verdict, again.patch.len()), (Verdict::Unchanged, 0));
}
