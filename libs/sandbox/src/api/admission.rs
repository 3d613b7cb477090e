//! Admission: the pod's raw form goes to the webhooks that select it, over HTTPS, and their patches are applied, as an API
//! server does it.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::selector::{Labels, matches};

/// Time that a webhook has, as its configuration says.
const TIME_OUT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Why a pod was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The webhook said no.
    #[error("admission webhook {webhook} denied the request: {message}")]
    Denied {
        /// Name of the webhook.
        webhook: String,
        /// Why.
        message: String,
    },
    /// The webhook could not be asked, and its failure policy is `Fail`.
    #[error("failed calling webhook {webhook}: {reason}")]
    Unreachable {
        /// Name of the webhook.
        webhook: String,
        /// What went wrong.
        reason: String,
    },
}

/// What came out of admission.
#[derive(Debug, Default)]
pub struct Reviewed {
    /// The object as it is now; none where no webhook changed it.
    pub object: Option<Value>,
    /// What the webhooks want a person to know.
    pub warnings: Vec<String>,
}

/// One entry of a MutatingWebhookConfiguration for pods.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Name.
    pub name: String,
    /// Namespaces it is for.
    pub namespaces: LabelSelector,
    /// Objects it is for.
    pub objects: LabelSelector,
    /// Where it is.
    pub endpoint: Endpoint,
}

/// Where a webhook is: a Service of the cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Address of the Service.
    pub address: std::net::SocketAddr,
    /// Name in its certificate.
    pub server_name: String,
    /// Path.
    pub path: String,
    /// Certificate that its certificate is checked by (`caBundle`), DER.
    pub root: CertificateDer<'static>,
}

/// All webhooks, and what the selection needs to know.
#[derive(Debug, Default)]
pub struct Admission {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    webhooks: Vec<Webhook>,
    namespaces: HashMap<String, Labels>,
}

impl Admission {
    /// Replaces the webhooks.
    pub fn set_webhooks(&self, webhooks: Vec<Webhook>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).webhooks = webhooks;
    }

    /// Replaces what is known of the namespaces.
    pub fn set_namespaces(&self, namespaces: HashMap<String, Labels>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).namespaces = namespaces;
    }

    /// The webhooks that select an object.
    fn selected(&self, namespace: &str, labels: &Labels) -> Vec<Webhook> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let none = Labels::new();
        let of_namespace = inner.namespaces.get(namespace).unwrap_or(&none);
        inner
            .webhooks
            .iter()
            .filter(|webhook| matches(&webhook.namespaces, of_namespace) && matches(&webhook.objects, labels))
            .cloned()
            .collect()
    }

    /// Asks all webhooks that select a pod which is about to be created, one after the other.
    ///
    /// # Errors
    /// The first that denies it or can not be asked.
    pub async fn review(&self, pod: &Value) -> Result<Reviewed, AdmissionError> {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let labels: Labels = pod
            .pointer("/metadata/labels")
            .and_then(|labels| serde_json::from_value(labels.clone()).ok())
            .unwrap_or_default();
        let mut reviewed = Reviewed::default();
        for webhook in self.selected(&text("/metadata/namespace"), &labels) {
            let object = reviewed.object.as_ref().unwrap_or(pod);
            let review = review_of(object);
            let response = timeout(TIME_OUT, call(&webhook.endpoint, &review))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", TIME_OUT.as_secs())))
                .and_then(|answer| checked(answer, &review))
                .map_err(|reason| AdmissionError::Unreachable { webhook: webhook.name.clone(), reason })?;
            if response.get("allowed").and_then(Value::as_bool) != Some(true) {
                let message = response.pointer("/status/message").and_then(Value::as_str).unwrap_or("(no reason)");
                return Err(AdmissionError::Denied { webhook: webhook.name, message: message.to_owned() });
            }
            let warnings = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
            reviewed.warnings.extend(warnings.filter_map(|warning| warning.as_str().map(str::to_owned)));
            if let Some(patched) = patched(object, &response)
                .map_err(|reason| AdmissionError::Unreachable { webhook: webhook.name, reason })?
            {
                reviewed.object = Some(patched);
            }
        }
        Ok(reviewed)
    }
}

/// The AdmissionReview for the creation of a pod, by the controller that makes pods.
fn review_of(pod: &Value) -> Value {
    let mut object = pod.clone();
    // An API server asks before it gives name and uid to an object with a generated name.
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata.contains_key("generateName")
    {
        for made_later in ["name", "uid", "creationTimestamp"] {
            metadata.remove(made_later);
        }
    }
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": crate::util::uuid(),
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "name": object.pointer("/metadata/name").cloned().unwrap_or_default(),
            "namespace": object.pointer("/metadata/namespace").cloned().unwrap_or_default(),
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn checked(answer: Value, review: &Value) -> Result<Value, String> {
    if answer.get("kind").and_then(Value::as_str) != Some("AdmissionReview") {
        return Err("the answer is no AdmissionReview".into());
    }
    if answer.pointer("/response/uid") != review.pointer("/request/uid") {
        return Err("the answer is for another request".into());
    }
    answer.get("response").cloned().ok_or_else(|| "the answer has no response".into())
}

fn patched(object: &Value, response: &Value) -> Result<Option<Value>, String> {
    let Some(patch) = response.get("patch").and_then(Value::as_str) else { return Ok(None) };
    if response.get("patchType").and_then(Value::as_str) != Some("JSONPatch") {
        return Err("a patch needs patchType JSONPatch".into());
    }
    let patch = STANDARD.decode(patch).map_err(|error| format!("patch: {error}"))?;
    let patch: json_patch::Patch = serde_json::from_slice(&patch).map_err(|error| format!("patch: {error}"))?;
    let mut result = object.clone();
    json_patch::patch(&mut result, &patch).map_err(|error| format!("patch: {error}"))?;
    Ok(Some(result))
}

async fn call(endpoint: &Endpoint, review: &Value) -> Result<Value, String> {
    let said = |error: &dyn std::fmt::Display| format!("https://{}{}: {error}", endpoint.server_name, endpoint.path);
    let mut roots = RootCertStore::empty();
    roots.add(endpoint.root.clone()).map_err(|error| said(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| said(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(endpoint.server_name.clone()).map_err(|error| said(&error))?;
    let stream = TcpStream::connect(endpoint.address).await.map_err(|error| said(&error))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| said(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| said(&error))?;
    let driver = tokio::spawn(connection);
    let request = Request::post(endpoint.path.as_str())
        .header(header::HOST, endpoint.server_name.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| said(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| said(&error));
    let result = match answer {
        Ok(answer) => {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| said(&error))?;
            let body = body.to_bytes();
            if status == StatusCode::OK {
                serde_json::from_slice(&body).map_err(|error| said(&error))
            } else {
                let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
                Err(said(&format!("{status} {text}")))
            }
        }
        Err(error) => Err(error),
    };
    driver.abort();
    result
}

/// The two entries that the chart installs: by the label of the namespace, and by the label of the pod in other namespaces.
/// Both leave kube-system and Weir's own namespace alone.
///
/// # Errors
/// Never for the selectors below; they are data, read by the same code as a user's.
pub fn weir(endpoint: &Endpoint) -> io::Result<Vec<Webhook>> {
    use weir_mesh::names::{INJECT_ENABLED, INJECT_LABEL, SYSTEM_NAMESPACE};
    let own = json!({
        "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", SYSTEM_NAMESPACE],
    });
    let labelled = |operator: &str| json!({"key": INJECT_LABEL, "operator": operator, "values": [INJECT_ENABLED]});
    let pod = |operator: &str, value: &str| json!({"key": INJECT_LABEL, "operator": operator, "values": [value]});
    let webhook = |name: &str, namespaces: Value, objects: Value| -> io::Result<Webhook> {
        Ok(Webhook {
            name: name.to_owned(),
            namespaces: serde_json::from_value(json!({"matchExpressions": namespaces}))?,
            objects: serde_json::from_value(json!({"matchExpressions": objects}))?,
            endpoint: endpoint.clone(),
        })
    };
    Ok(vec![
        webhook("namespace.inject.weir.dev", json!([labelled("In"), own]), json!([pod("NotIn", "false")]))?,
        webhook("pod.inject.weir.dev", json!([labelled("NotIn"), own]), json!([pod("In", "true")]))?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        let endpoint = Endpoint {
            address: ([198, 19, 0, 1], 443).into(),
            server_name: "x".into(),
            path: "/inject".into(),
            root: CertificateDer::from(Vec::new()),
        };
        let admission = Admission::default();
        admission.set_webhooks(weir(&endpoint).unwrap());
        let labels = |name: &str, inject: Option<&str>| {
            let mut labels = Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
            if let Some(inject) = inject {
                labels.insert("weir.dev/inject".into(), inject.into());
            }
            (name.to_owned(), labels)
        };
        admission.set_namespaces(HashMap::from([
            labels("shop", Some("enabled")),
            labels("outside", None),
            labels("weir-system", Some("enabled")),
        ]));
        admission
    }

    #[test]
    fn which_pods_are_asked_about() {
        let admission = admission();
        let label = |value: &str| Labels::from([("weir.dev/inject".to_owned(), value.to_owned())]);
        for (namespace, labels, wanted) in [
            ("shop", Labels::new(), 1),
            ("shop", label("true"), 1),
            ("shop", label("false"), 0),
            ("shop", label("yes"), 1),
            ("outside", Labels::new(), 0),
            ("outside", label("true"), 1),
            ("weir-system", label("true"), 0),
        ] {
            assert_eq!(admission.selected(namespace, &labels).len(), wanted, "{namespace} {labels:?}");
        }
    }

    #[test]
    fn a_patch_is_applied_to_the_raw_object() {
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]"#);
        let response = json!({"patchType": "JSONPatch", "patch": patch});
        let got = patched(&json!({"metadata": {"unknownField": 1}}), &response).unwrap().unwrap();
        assert_eq!(got, json!({"metadata": {"unknownField": 1, "labels": {"a": "b"}}}));
        assert!(patched(&json!({}), &json!({"patch": patch})).is_err());
    }
}
