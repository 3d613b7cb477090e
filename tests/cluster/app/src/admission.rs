//! Mutating webhooks of others, good and bad. Each path is one; all label the pod, so that a test sees that it was asked.

use std::{collections::BTreeSet, convert::Infallible, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming};
use serde_json::{Value, json};

/// As large as an object of Kubernetes can be.
const MAX_BODY: usize = 3 * 1024 * 1024;
/// Name of the mesh's container.
const PROXY: &str = "weir-proxy";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "[::]:8443")]
    listen: SocketAddr,
    /// Folder with tls.crt and tls.key
    #[arg(long)]
    tls: PathBuf,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tls = crate::tls::of_folder(&arguments.tls)?;
    crate::listen::serve_by(arguments.listen, Some(tls), |request, _| answer(request)).await
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map(|body| body.to_bytes());
    let review: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
    let asked = review.get("request").cloned().unwrap_or_default();
    let mut pod = asked.get("object").cloned().unwrap_or_default();
    let mut response = Response::new(Full::default());
    let Some(changed) = change(&path, &mut pod) else {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    };
    println!("{path} {}", asked.get("name").unwrap_or(&Value::Null));
    let patch: Vec<Value> =
        changed.iter().map(|part| json!({"op": "add", "path": format!("/{part}"), "value": pod.get(part)})).collect();
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
        "uid": asked.get("uid"), "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(json!(patch).to_string()),
    }});
    *response.body_mut() = Full::new(Bytes::from(review.to_string()));
    Ok(response)
}

/// Changes a pod; the parts of it that are to be replaced.
fn change(webhook: &str, pod: &mut Value) -> Option<BTreeSet<&'static str>> {
    object(pod, &["metadata", "labels"])?.insert(format!("seen-by-{webhook}"), json!("yes"));
    let spec = object(pod, &["spec"])?;
    match webhook {
        // Does nothing else.
        "quiet" => {}
        // Types of Kubernetes before 1.29: what it read and writes back has no restartPolicy of containers.
        "old" => {
            for container in list(spec, "initContainers")? {
                container.as_object_mut()?.remove("restartPolicy");
            }
        }
        // A container, a volume, and environment and a mount for everyone.
        "adds" => {
            let late = json!({"name": "late", "image": "weir.test/app:1", "args": ["serve", "--listen", "[::]:7070"],
                "readinessProbe": {"httpGet": {"port": 7070}, "periodSeconds": 1}});
            if !list(spec, "containers")?.iter().any(|container| is(container, "late")) {
                list(spec, "containers")?.push(late);
                list(spec, "volumes")?.push(json!({"name": "late", "emptyDir": {}}));
            }
            for key in ["initContainers", "containers"] {
                for container in list(spec, key)? {
                    let container = container.as_object_mut()?;
                    put(list(container, "env")?, json!({"name": "LATE", "value": "yes"}));
                    put(list(container, "volumeMounts")?, json!({"name": "late", "mountPath": "/late"}));
                }
            }
        }
        // Takes the proxy's rights and settings for its own.
        "tampers" => {
            for proxy in list(spec, "initContainers")?.iter_mut().filter(|container| is(container, PROXY)) {
                let proxy = proxy.as_object_mut()?;
                proxy.insert("securityContext".to_owned(), json!({"runAsUser": 0}));
                proxy.insert("args".to_owned(), json!(["help"]));
                let control = json!({"name": "WEIR_CONTROL", "value": "elsewhere.example:15012"});
                let env = list(proxy, "env")?;
                env.retain(|entry| !is(entry, "WEIR_CONTROL"));
                env.push(control);
            }
        }
        // Puts another program into the proxy's place.
        "replaces" => {
            for proxy in list(spec, "initContainers")?.iter_mut().filter(|container| is(container, PROXY)) {
                let proxy = proxy.as_object_mut()?;
                proxy.insert("image".to_owned(), json!("weir.test/app:1"));
                proxy.insert("command".to_owned(), json!(["/app", "pause"]));
            }
        }
        _ => return None,
    }
    Some(BTreeSet::from(["metadata", "spec"]))
}

fn is(value: &Value, name: &str) -> bool {
    value.get("name").and_then(Value::as_str) == Some(name)
}

/// Adds what is not there.
fn put(list: &mut Vec<Value>, value: Value) {
    if !list.contains(&value) {
        list.push(value);
    }
}

type Object = serde_json::Map<String, Value>;

/// The object at a path, made where it is missing.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Object> {
    let mut at = value;
    for key in path {
        at = at.as_object_mut()?.entry(*key).or_insert_with(|| json!({}));
    }
    at.as_object_mut()
}

/// The list at a key, made where it is missing.
fn list<'a>(object: &'a mut Object, key: &str) -> Option<&'a mut Vec<Value>> {
    object.entry(key).or_insert_with(|| json!([])).as_array_mut()
}
