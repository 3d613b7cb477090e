//! Programs of other people: where they are, or why a test is left out.
//!
//! Debian's come by `tools/setup test`, those in Go by `tools/go-tools`, packages of Python by `tools/python-packages`; `make test` has
//! all of them. Without one a test is skipped and says so; where tests must not be left out (`CI=true`) it fails.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// A folder of h2spec and grpcurl for who has built them otherwise.
const GO_TOOLS_ENV: &str = "WEIR_GO_TOOLS";
/// A folder of Python packages for who has installed them otherwise.
const PYTHON_PACKAGES_ENV: &str = "WEIR_PYTHON_PACKAGES";

/// A file of this project.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// A program of Debian's.
pub fn debian(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"]);
    let found = folders.map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is missing: run `tools/setup test`")).map_or_else(skip, Some)
}

/// A program in Go.
pub fn go(name: &str) -> Option<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder(GO_TOOLS_ENV, "tools/go-tools", &["clients"]));
    folder.clone().map(|folder| folder.join(name)).map_or_else(skip, Some)
}

/// The folder of Python's packages, for `PYTHONPATH`.
pub fn python_packages() -> Option<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder(PYTHON_PACKAGES_ENV, "tools/python-packages", &[]));
    folder.clone().map_or_else(skip, Some)
}

/// What a script prints, which first makes what is not there; or the folder that a variable names.
fn folder(variable: &str, script: &str, words: &[&str]) -> Result<PathBuf, String> {
    if let Some(folder) = env::var_os(variable).filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let output = Command::new(file(script)).args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{script}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{script} failed; {variable} may name a folder that has what it makes"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn skip<T>(why: String) -> Option<T> {
    assert!(env::var_os("CI").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}
