//! What a cluster is to be like.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a cluster is to be like.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Machines that run pods, 1 to 9. The control plane has a place of its own beside them.
    pub nodes: u8,
    /// Nodes, pods and Services have IPv6 addresses too.
    pub dual_stack: bool,
    /// Starts CoreDNS and waits for it; without it, names do not resolve.
    pub dns: bool,
    /// More images for every node: `docker-archive` files, as [`crate::images::Image::build`] writes them.
    pub images: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, dual_stack: false, dns: true, images: Vec::new() }
    }
}
