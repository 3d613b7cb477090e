//! Certificates and kubeconfigs of a cluster: one CA, a day long, with its keys in the cluster's folder only.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::{
    address::{API, API_SERVICE},
    layout::Layout,
};

/// How long certificates hold, in hours: longer than any cluster lives.
const LIFE: i64 = 30 * 24;

/// Makes all files in `pki/`.
pub(crate) fn create(layout: &Layout, nodes: u8) -> Result<()> {
    let folder = layout.pki();
    let ca_key = KeyPair::generate()?;
    let mut ca = params("kubernetes", None, &[])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    write(&folder, "ca", &ca.self_signed(&ca_key)?.pem(), &ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let names = [
        API,
        API_SERVICE,
        "127.0.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut wanted = vec![
        ("apiserver".to_owned(), params("kube-apiserver", None, &names)?),
        ("admin".to_owned(), params("admin", Some("system:masters"), &[])?),
        ("controller-manager".to_owned(), params("system:kube-controller-manager", None, &[])?),
        ("scheduler".to_owned(), params("system:kube-scheduler", None, &[])?),
        ("proxy".to_owned(), params("system:kube-proxy", None, &[])?),
    ];
    for node in 1..=nodes {
        let name = format!("system:node:node{node}");
        wanted.push((format!("node{node}"), params(&name, Some("system:nodes"), &[])?));
    }
    for (name, params) in wanted {
        let key = KeyPair::generate()?;
        write(&folder, &name, &params.signed_by(&key, &issuer)?.pem(), &key)?;
        if name != "apiserver" {
            let config = kubeconfig(&folder, &name, &format!("https://{API}:6443"));
            fs::write(folder.join(format!("{name}.conf")), config)?;
        }
    }
    let accounts = KeyPair::generate()?;
    write(&folder, "sa", &accounts.public_key_pem(), &accounts)
}

/// A kubeconfig for one of the certificates.
pub(crate) fn kubeconfig(folder: &Path, user: &str, server: &str) -> String {
    let folder = folder.display();
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: weir, cluster: {{server: \"{server}\", certificate-authority: \"{folder}/ca.crt\"}}}}]
users: [{{name: {user}, user: {{client-certificate: \"{folder}/{user}.crt\", client-key: \"{folder}/{user}.key\"}}}}]
contexts: [{{name: weir, context: {{cluster: weir, user: {user}}}}}]
current-context: weir
"
    )
}

fn params(name: &str, group: Option<&str>, addresses: &[&str]) -> Result<CertificateParams> {
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let mut params = CertificateParams::new(addresses)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::minutes(5);
    params.not_after = now + time::Duration::hours(LIFE);
    Ok(params)
}

fn write(folder: &Path, name: &str, public: &str, key: &KeyPair) -> Result<()> {
    let path = folder.join(format!("{name}.key"));
    fs::write(&path, key.serialize_pem()).with_context(|| path.display().to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    fs::write(folder.join(format!("{name}.crt")), public)?;
    Ok(())
}
