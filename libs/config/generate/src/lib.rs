//! Rust types out of the schemas of CustomResourceDefinitions.
//!
//! Objects and enumerations that look the same are one type, wherever they stand: a `BackendRef` of an HTTPRoute's mirror is that of
//! a TCPRoute's rule. So the reading of each is written once. A type is named by its field, in the singular; where that name
//! is of several types, by the kind or the field around it as well.
//!
//! Not kopium: it makes a type for every place (four of a header, three of a backend), with attributes for kube and without a
//! list that may be `null`.

mod render;
mod schema;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde_json::Value as Json;

/// The Go module that has the definitions; its version is that of the tests' cluster.
const MODULE: &str = "sigs.k8s.io/gateway-api";
/// Where its version stands.
const GO_MOD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/cluster/gateway-api");
/// What is made.
pub const GENERATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/gateway/generated.rs");

/// Kinds that are read: Rust's name, and the plural in the file's name. The experimental channel has every field of the standard one.
const KINDS: [(&str, &str); 5] = [
    ("HttpRoute", "httproutes"),
    ("GrpcRoute", "grpcroutes"),
    ("TlsRoute", "tlsroutes"),
    ("TcpRoute", "tcproutes"),
    ("ReferenceGrant", "referencegrants"),
];
/// The version of each that is read.
const VERSION: &str = "v1";

/// The folder of the Go module, fetched if it is not there.
///
/// # Errors
/// Where there is no Go, or no module.
pub fn module() -> anyhow::Result<PathBuf> {
    let go = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new("go")
            .args(arguments)
            .current_dir(GO_MOD)
            .output()
            .context("go is missing: https://go.dev/dl")?;
        if !output.status.success() {
            bail!("go {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    go(&["mod", "download", MODULE])?;
    Ok(go(&["list", "-m", "-f", "{{.Dir}}", MODULE])?.into())
}

/// The text of `generated.rs`, not formatted.
///
/// # Errors
/// Where a definition is missing or has what is not understood.
pub fn generate(module: &Path) -> anyhow::Result<String> {
    let mut types = schema::Types::default();
    for (kind, plural) in KINDS {
        let file = module.join(format!("config/crd/experimental/gateway.networking.k8s.io_{plural}.yaml"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let definition: Json = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
        let versions = definition.pointer("/spec/versions").and_then(Json::as_array);
        let schema = versions
            .and_then(|versions| versions.iter().find(|version| version.get("name") == Some(&VERSION.into())))
            .and_then(|version| version.pointer("/schema/openAPIV3Schema/properties/spec"))
            .with_context(|| format!("{}: no schema of version {VERSION}", file.display()))?;
        types.add(kind, schema)?;
    }
    let version = module.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('@'));
    Ok(render::file(&types, version.map_or("", |(_, version)| version)))
}

/// Formats as the project is formatted.
///
/// # Errors
/// Where rustfmt is missing, or the text is no Rust.
pub fn format(text: &str) -> anyhow::Result<String> {
    use std::{io::Write as _, process::Stdio};
    let configuration = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../rustfmt.toml");
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path", configuration])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("rustfmt is missing")?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let text = text.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().ok().context("the writer ended")??;
    if !output.status.success() {
        bail!("rustfmt does not take what was made");
    }
    Ok(String::from_utf8(output.stdout)?)
}
