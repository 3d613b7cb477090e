//! `weir inject`: what the webhook would do, on files.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::Value;
use weir_webhook::{Redirect, RedirectBackend, Settings, inject_manifest_with_warnings};

use crate::{failure::Failure, out};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Manifests to read; `-` is standard input
    #[arg(short = 'f', long = "filename", required = true)]
    files: Vec<PathBuf>,
    /// Image of the proxy
    #[arg(long, default_value = concat!("weir.dev/proxy:", env!("CARGO_PKG_VERSION")))]
    proxy_image: String,
    /// Image of the init container, used with `--redirect init`
    #[arg(long, default_value = concat!("weir.dev/init:", env!("CARGO_PKG_VERSION")))]
    init_image: String,
    /// Who redirects a pod's traffic: `cni` or `init`
    #[arg(long, default_value = "cni")]
    redirect: Redirect,
    /// How the init container does: `nft`, `iptables` (the image must have its programs) or `auto`
    #[arg(long, default_value = "nft")]
    redirect_backend: RedirectBackend,
    /// Addresses of the cluster's DNS, for pods with `weir.dev/block-udp`
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<std::net::IpAddr>,
    /// The control plane, HOST:PORT
    #[arg(long)]
    control: Option<String>,
    /// Trust domain of the mesh
    #[arg(long, default_value = weir_mesh::bootstrap::DEFAULT_TRUST_DOMAIN)]
    trust_domain: weir_mesh::TrustDomain,
    /// Service and pod ranges of the mesh
    #[arg(long, value_delimiter = ',')]
    mesh_cidrs: Vec<ipnet::IpNet>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let defaults = Settings::default();
    let settings = Settings {
        proxy_image: arguments.proxy_image.clone(),
        init_image: arguments.init_image.clone(),
        redirect: arguments.redirect,
        redirect_backend: arguments.redirect_backend,
        cluster_dns: arguments.cluster_dns.clone(),
        control: arguments.control.clone().unwrap_or(defaults.control.clone()),
        trust_domain: arguments.trust_domain.clone(),
        mesh_cidrs: arguments.mesh_cidrs.clone(),
        ..defaults
    };
    settings.check().map_err(Failure::usage)?;
    let mut out = String::new();
    for path in &arguments.files {
        let name = path.display().to_string();
        let text = read(path).map_err(|error| {
            Failure::usage(format!("{name}: {error}: name a file of manifests, or `-` for standard input"))
        })?;
        for document in documents(&name, &text)? {
            let mut warnings = Vec::new();
            let injected = inject_manifest_with_warnings(&settings, document, &mut warnings)
                .map_err(|error| Failure::failed(format!("{name}: {error}")))?;
            for warning in warnings {
                complain!("weir: {name}: {warning}");
            }
            let yaml = serde_saphyr::to_string(&injected).map_err(Failure::failed)?;
            out.push_str("---\n");
            out.push_str(&yaml);
            if !out.ends_with('\n') {
                out.push('\n');
            }
        }
    }
    out::text(format_args!("{out}"));
    Ok(ExitCode::SUCCESS)
}

/// The objects of a file; empty documents are left out.
fn documents(name: &str, text: &str) -> Result<Vec<Value>, Failure> {
    let options = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or_else(String::new, |location| format!(":{}", location.line()));
        let cause = error.to_string();
        let cause = cause.lines().next().unwrap_or_default();
        Failure::usage(format!("{name}{line}: is no YAML: {cause}: correct it there; nothing was injected"))
    })?;
    for (at, document) in documents.iter().enumerate().filter(|(_, document)| !document.is_null()) {
        if document.get("kind").and_then(Value::as_str).is_none() {
            let which = at.saturating_add(1);
            return Err(Failure::usage(format!(
                "{name}: document {which} is no object with a `kind`: give whole manifests, as for `kubectl apply`"
            )));
        }
    }
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn read(path: &PathBuf) -> io::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(path)
}
