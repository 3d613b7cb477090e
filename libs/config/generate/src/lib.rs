//! Rust types out of the schemas of CustomResourceDefinitions.
//!
//! Objects and enumerations that look the same are one type, wherever they stand: a `BackendRef` of an HTTPRoute's mirror is that of
//! a TCPRoute's rule. So the reading of each is written once. A type is named by its field, in the singular; where that name
//! is of several types, by the kind or the field around it as well.
//!
//! Not kopium: it makes a type for every place (four of a header, three of a backend), with attributes for kube and without a
//! list that may be `null`.

mod fields;
mod render;
mod schema;

pub use fields::fields;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// The Go module that has the definitions; its version is that of the tests' cluster.
const MODULE: &str = "sigs.k8s.io/gateway-api";
/// Where its version stands.
const GO_MOD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/cluster/gateway-api");
/// The Go module of Istio's definitions, of which nothing is made: a test compares with them.
const ISTIO_MODULE: &str = "istio.io/api";
/// Where its version stands.
const ISTIO_GO_MOD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/istio-api");
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
pub const VERSION: &str = "v1";

/// The folder of the Go module, fetched if it is not there.
///
/// # Errors
/// Where there is no Go, or no module.
pub fn module() -> anyhow::Result<PathBuf> {
    fetched(MODULE, GO_MOD)
}

fn fetched(module: &str, go_mod: &str) -> anyhow::Result<PathBuf> {
    let go = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new("go")
            .args(arguments)
            .current_dir(go_mod)
            .output()
            .context("go is missing: https://go.dev/dl")?;
        if !output.status.success() {
            bail!("go {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    go(&["mod", "download", module])?;
    Ok(go(&["list", "-m", "-f", "{{.Dir}}", module])?.into())
}

/// Gateway API's definition of a kind, by its plural.
///
/// # Errors
/// Where it can not be read.
pub fn definition(module: &Path, plural: &str) -> anyhow::Result<String> {
    let file = module.join(format!("config/crd/experimental/gateway.networking.k8s.io_{plural}.yaml"));
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// Istio's definition of DestinationRule.
///
/// # Errors
/// Where there is no Go, or no module.
pub fn destination_rule() -> anyhow::Result<String> {
    let file = fetched(ISTIO_MODULE, ISTIO_GO_MOD)?.join("kubernetes/customresourcedefinitions.gen.yaml");
    let all = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let ours = |text: &&str| text.contains("\n  name: destinationrules.networking.istio.io\n");
    all.split("\n---\n")
        .find(ours)
        .map(str::to_owned)
        .with_context(|| format!("{}: no DestinationRule", file.display()))
}

/// The text of `generated.rs`, not formatted.
///
/// # Errors
/// Where a definition is missing or has what is not understood.
pub fn generate(module: &Path) -> anyhow::Result<String> {
    let mut types = schema::Types::default();
    for (kind, plural) in KINDS {
        let schema = definition(module, plural).and_then(|text| fields::spec(&text, VERSION));
        types.add(kind, &schema.with_context(|| plural.to_owned())?)?;
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
