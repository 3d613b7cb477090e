//! What a container is, as the supervisor hands it to the container's first process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where this executable is found inside every container.
pub const OWN_PATH: &str = "/.weir/weir";

/// One container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Host name: the pod's.
    pub hostname: String,
    /// Folder of the machine on which the root is built, in the container's own mount namespace.
    pub root: PathBuf,
    /// This executable on the machine.
    pub weir: PathBuf,
    /// What is mounted, in order.
    pub mounts: Vec<Mount>,
    /// Whether the program may write nowhere but into its volumes.
    pub read_only_root: bool,
    /// The program.
    pub process: ProcessSpec,
}

/// One file or folder of the machine inside a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// On the machine.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// Whether the container can only read it.
    pub read_only: bool,
}

/// One program and what it may do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Numbers of the capabilities that it can have.
    pub capabilities: Vec<u8>,
    /// Whether it can gain no privileges by running a program.
    pub no_new_privileges: bool,
}
