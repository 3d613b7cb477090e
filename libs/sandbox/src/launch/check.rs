//! What must be there before a sandbox starts.

use std::path::Path;

use super::{LaunchError, Up, search_path, user};
use crate::cni;

/// Programs of the system that the sandbox runs, with the Debian package that has each.
const PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("nft", "nftables")];
/// Weir's own programs that the mesh needs.
const MESH_PROGRAMS: [&str; 4] = ["weir-cni", "weir-control", "weir-proxy", "weir-webhook"];

pub(super) fn check(up: &Up) -> Result<(), LaunchError> {
    user::check()?;
    let path = search_path();
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
        .map(|(program, package)| format!("`{program}` (Debian package {package})"))
        .collect();
    for plugin in cni::NEEDED {
        if !cni::PLUGIN_FOLDERS.iter().any(|folder| Path::new(folder).join(plugin).is_file()) {
            missing.push(format!("the CNI plugin `{plugin}` (Debian package containernetworking-plugins)"));
        }
    }
    if !missing.is_empty() {
        return Err(LaunchError::Missing(format!("the sandbox needs {}: install it first", missing.join(", "))));
    }
    if up.mesh {
        let absent: Vec<&str> =
            MESH_PROGRAMS.into_iter().filter(|program| !up.bin_dir.join(program).is_file()).collect();
        if !absent.is_empty() {
            return Err(LaunchError::Missing(format!(
                "{} not found in {}: build them, name their folder by --bin-dir, or leave the mesh out by --without-mesh",
                absent.join(", "),
                up.bin_dir.display()
            )));
        }
    }
    Ok(())
}
