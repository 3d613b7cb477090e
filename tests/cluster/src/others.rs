//! Mutating webhooks of other people, which see the pods of one test: `app admission`, over HTTPS, in a namespace of their own.

use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use crate::{case::Case, said};

/// How long the API server may take until it asks a new webhook.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server of all of them. Its end is theirs too.
pub struct Others<'a> {
    case: &'a Case<'a>,
    namespace: String,
    bundle: String,
}

/// One that is asked about the test's pods, until this is dropped.
pub struct Registered<'a> {
    case: &'a Case<'a>,
    name: &'static str,
}

impl<'a> Others<'a> {
    /// Starts the server and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(case: &'a Case<'a>) -> Others<'a> {
        let namespace = format!("{}-others", case.namespace);
        let name = format!("others.{namespace}.svc");
        let (certificate, key) = certificate(&name).unwrap_or_else(|error| panic!("{error}"));
        let others = Self { case, namespace, bundle: certificate.clone() };
        let run = |arguments: &[&str]| case.cluster.kubectl(arguments).unwrap_or_else(|error| panic!("{error:#}"));
        run(&["create", "namespace", &others.namespace]);
        let inner = Case { cluster: case.cluster, namespace: &others.namespace };
        inner.wait_for_service_account().await;
        let tls = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate, "tls.key": key}});
        inner.apply(&tls.to_string());
        inner.apply(
            "
{apiVersion: v1, kind: Service, metadata: {name: others}, spec: {selector: {app: others}, ports: [{port: 443, targetPort: 8443}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: others, labels: {app: others}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: others
    image: weir.test/app:1
    args: [admission, --tls, /tls]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
    volumeMounts: [{name: tls, mountPath: /tls}]
  volumes: [{name: tls, secret: {secretName: tls}}]
",
        );
        inner.ready("others").await;
        others
    }

    /// Registers the webhook `path` of the server under a name, which decides when it is asked: the API server goes by names. Returns
    /// when it is asked.
    ///
    /// # Panics
    /// When it is not asked in time.
    pub async fn register(&self, name: &'static str, path: &str, reinvocation: &str) -> Registered<'a> {
        let registered = Registered { case: self.case, name };
        let service = json!({"namespace": self.namespace, "name": "others", "path": format!("/{path}")});
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": "others.weir.test",
                "clientConfig": {"service": service, "caBundle": ByteString(self.bundle.clone().into_bytes())},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.case.namespace}},
                "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "reinvocationPolicy": reinvocation,
            }],
        });
        self.case.apply(&configuration.to_string());
        let end = Instant::now() + PATIENCE;
        // A pod of its own, which is never made and which the mesh leaves alone.
        let asked = "{apiVersion: v1, kind: Pod, metadata: {name: asked, labels: {weir.dev/inject: 'false'}},
                      spec: {containers: [{name: app, image: 'weir.test/app:1'}]}}";
        loop {
            let said = said::create(self.case, asked, &["--dry-run=server", "--output=json"]);
            if said.ok && said.text.contains(&format!("seen-by-{path}")) {
                return registered;
            }
            assert!(Instant::now() < end, "the webhook {name} is not asked: {}", said.text);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Others<'_> {
    fn drop(&mut self) {
        let _ = self.case.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let ended =
            self.case.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", self.name, "--ignore-not-found"]);
        if let Err(error) = ended {
            eprintln!("{error:#}");
        }
    }
}

/// Certificate and key of a name, which is its own authority.
fn certificate(name: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
