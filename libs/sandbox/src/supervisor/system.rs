//! What an installer would bring into a cluster: Weir's control plane and webhook as ordinary Deployments, with their keys.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use weir_mesh::{
    bootstrap::DEFAULT_TRUST_DOMAIN,
    names::{CONTROL_SERVICE, SYSTEM_NAMESPACE, WEBHOOK_SERVICE},
    ports,
};

use super::{ServeError, failed};
use crate::{
    api::{
        admission::{self, Endpoint, Webhook},
        families::Family,
        load::Key,
        services::{Addresses, Backend},
        tokens::{ISSUER, TokenIssuer},
    },
    layout::{
        CLUSTER_DOMAIN, DNS_ADDRESS, DNS_ADDRESS_V6, Layout, POD_CIDR, POD_CIDR_V6, SERVICE_CIDR, SERVICE_CIDR_V6,
        node_addresses,
    },
};

/// User that the control plane and the webhook run as.
const USER: u32 = 65_532;
/// Port of the control plane's health and metrics.
const CONTROL_ADMIN: u16 = 15_014;
/// Port that the webhook listens on.
const WEBHOOK_PORT: u16 = 9443;

/// What was installed.
pub struct Installed {
    /// Objects in the cluster.
    pub objects: BTreeMap<Key, Value>,
    /// Entries of the webhook configuration.
    pub webhooks: Vec<Webhook>,
}

/// Makes the keys and the objects of the mesh.
///
/// # Errors
/// Where keys or files can not be made.
pub fn install(
    layout: &Layout,
    tokens: &TokenIssuer,
    addresses: &mut Addresses,
    ipv6: bool,
) -> Result<Installed, ServeError> {
    let server_name = format!("{WEBHOOK_SERVICE}.{SYSTEM_NAMESPACE}.svc");
    let root = keys(layout, tokens, &server_name)?;
    let address = (addresses.of(SYSTEM_NAMESPACE, WEBHOOK_SERVICE, Family::V4), 443).into();
    let endpoint = Endpoint { address, server_name, path: "/inject".into(), root: root.into() };
    let webhooks = admission::weir(&endpoint).map_err(failed("webhook configuration"))?;
    let mut objects = BTreeMap::new();
    for object in objects_of(layout, ipv6) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        objects.insert((text("/kind"), text("/metadata/namespace"), text("/metadata/name")), object.clone());
    }
    Ok(Installed { objects, webhooks })
}

/// Makes the webhook's serving certificate and writes the key that tokens are checked by. Gives the root as DER.
fn keys(layout: &Layout, tokens: &TokenIssuer, server_name: &str) -> Result<Vec<u8>, ServeError> {
    let pki = |error: rcgen::Error| ServeError::Pki(format!("certificate of the webhook: {error}"));
    let root_key = KeyPair::generate().map_err(pki)?;
    let mut root = CertificateParams::new(Vec::new()).map_err(pki)?;
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_certificate = root.self_signed(&root_key).map_err(pki)?;
    let key = KeyPair::generate().map_err(pki)?;
    let mut server = CertificateParams::new(vec![server_name.to_owned()]).map_err(pki)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = server.signed_by(&key, &Issuer::from_params(&root, &root_key)).map_err(pki)?;
    let folder = layout.pki();
    let write = |name: &str, text: &str, mode: u32| -> io::Result<()> {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
            own(parent)?;
        }
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        own(&path)
    };
    let all = || -> io::Result<()> {
        write("webhook/tls.crt", &certificate.pem(), 0o644)?;
        write("webhook/tls.key", &key.serialize_pem(), 0o600)?;
        write("tokens/public.pem", tokens.public_pem(), 0o644)?;
        own(&layout.ca())
    };
    all().map_err(failed("keys of the mesh"))?;
    Ok(root_certificate.der().to_vec())
}

fn own(path: &Path) -> io::Result<()> {
    chown(path, Some(USER), Some(USER))
}

fn objects_of(layout: &Layout, ipv6: bool) -> Vec<Value> {
    let mut mesh = format!("{POD_CIDR},{SERVICE_CIDR}");
    if ipv6 {
        mesh += &format!(",{POD_CIDR_V6},{SERVICE_CIDR_V6}");
    }
    let control = vec![
        "--listen".to_owned(),
        format!("0.0.0.0:{}", ports::CONTROL),
        "--config-dir".into(),
        "/etc/weir/cluster".into(),
        "--ca-dir".into(),
        "/var/lib/weir/ca".into(),
        "--trust-domain".into(),
        DEFAULT_TRUST_DOMAIN.into(),
        "--token-key".into(),
        "/etc/weir/tokens/public.pem".into(),
        "--token-issuer".into(),
        ISSUER.into(),
        "--cluster-domain".into(),
        CLUSTER_DOMAIN.into(),
        "--admin".into(),
        format!("0.0.0.0:{CONTROL_ADMIN}"),
    ];
    let webhook = vec![
        "--listen".to_owned(),
        format!("0.0.0.0:{WEBHOOK_PORT}"),
        "--tls-cert".into(),
        "/etc/weir/tls/tls.crt".into(),
        "--tls-key".into(),
        "/etc/weir/tls/tls.key".into(),
        "--proxy-image".into(),
        format!("weir.dev/proxy:{}", env!("CARGO_PKG_VERSION")),
        "--init-image".into(),
        format!("weir.dev/init:{}", env!("CARGO_PKG_VERSION")),
        "--redirect".into(),
        "cni".into(),
        "--control".into(),
        format!("{CONTROL_SERVICE}.{SYSTEM_NAMESPACE}.svc:{}", ports::CONTROL),
        "--trust-domain".into(),
        DEFAULT_TRUST_DOMAIN.into(),
        "--mesh-cidrs".into(),
        mesh,
    ];
    let health = json!({"httpGet": {"path": "/healthz", "port": CONTROL_ADMIN}, "periodSeconds": 1});
    // The webhook's health is behind its TLS port.
    let open = json!({"tcpSocket": {"port": WEBHOOK_PORT}, "periodSeconds": 1});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}),
        account(CONTROL_SERVICE),
        account(WEBHOOK_SERVICE),
        service(CONTROL_SERVICE, "tls-xds", ports::CONTROL, ports::CONTROL),
        service(WEBHOOK_SERVICE, "https", 443, WEBHOOK_PORT),
        deployment(
            CONTROL_SERVICE,
            "weir.dev/control",
            &control,
            &health,
            &[
                ("cluster", &layout.cluster(), "/etc/weir/cluster", true),
                ("tokens", &layout.pki().join("tokens"), "/etc/weir/tokens", true),
                ("ca", &layout.ca(), "/var/lib/weir/ca", false),
            ],
        ),
        deployment(
            WEBHOOK_SERVICE,
            "weir.dev/webhook",
            &webhook,
            &open,
            &[("tls", &layout.pki().join("webhook"), "/etc/weir/tls", true)],
        ),
    ]
}

fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE}})
}

fn service(name: &str, port_name: &str, port: u16, target: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": port_name, "port": port, "targetPort": target, "protocol": "TCP"}],
        },
    })
}

fn deployment(
    name: &str,
    image: &str,
    args: &[String],
    readiness: &Value,
    folders: &[(&str, &Path, &str, bool)],
) -> Value {
    let volumes: Vec<Value> = folders
        .iter()
        .map(|(name, path, ..)| json!({"name": name, "hostPath": {"path": path, "type": "Directory"}}))
        .collect();
    let mounts: Vec<Value> = folders
        .iter()
        .map(|(name, _, target, read_only)| json!({"name": name, "mountPath": target, "readOnly": read_only}))
        .collect();
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "serviceAccountName": name,
                    "securityContext": {"runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER},
                    "containers": [{
                        "name": name,
                        "image": format!("{image}:{}", env!("CARGO_PKG_VERSION")),
                        "args": args,
                        "readinessProbe": readiness,
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": mounts,
                    }],
                    "volumes": volumes,
                },
            },
        },
    })
}

/// The Service of the cluster DNS, which runs on the node itself.
pub fn dns_service(ipv6: bool) -> Value {
    let mut addresses = vec![DNS_ADDRESS.to_string()];
    addresses.extend(ipv6.then(|| DNS_ADDRESS_V6.to_string()));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {
            "clusterIP": DNS_ADDRESS,
            "clusterIPs": addresses,
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}

/// The endpoint of the cluster DNS.
pub fn dns_backend(ipv6: bool) -> Backend {
    Backend {
        addresses: node_addresses(ipv6),
        pod: String::new(),
        uid: String::new(),
        ready: true,
        serving: true,
        terminating: false,
        ports: BTreeMap::new(),
    }
}
