//! Which crates may be in the tree: the same list as `deny.toml`, held without an extra program.

#![allow(clippy::unwrap_used)] // a step that fails is a failed test
use std::{collections::BTreeSet, process::Command};

/// Never built for any part, on this platform.
const BANNED: [&str; 13] = [
    "ring",
    "openssl",
    "openssl-sys",
    "boring",
    "boring-sys",
    "mbedtls",
    "native-tls",
    "schannel",
    "security-framework",
    "rustls-rustcrypto",
    "wolfssl",
    "reqwest",
    "serde_yaml",
];
/// Not linked into what runs at every pod's start.
const HEAVY: [&str; 7] = ["tokio", "hyper", "kube", "tonic", "clap", "rustls", "regex"];

/// Names of all crates that a package is built from, without those of its tests.
fn crates(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--prefix", "none", "--format", "{p}", "-e"])
        .args(arguments)
        .current_dir("..")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn no_banned_crate_is_built() {
    let all = crates(&["normal,build,dev", "--workspace"]);
    assert!(all.len() > 100, "cargo tree listed only {} crates", all.len());
    for banned in BANNED {
        assert!(!all.contains(banned), "{banned} is in the tree: `cargo tree -i {banned}` says who brings it");
    }
    assert!(all.contains("aws-lc-rs"));
}

#[test]
fn what_starts_with_every_pod_stays_small() {
    for package in ["weir-cni", "weir-init"] {
        let tree = crates(&["normal", "-p", package]);
        assert!(tree.contains("serde_json"), "cargo tree lists {tree:?}");
        for heavy in HEAVY {
            assert!(!tree.contains(heavy), "{package} links {heavy}");
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let parts = ["weir-webhook", "weir-cni", "weir-proxy", "weir-control", "weir-cli", "weir-sandbox", "weir-config"];
    for (package, may_use) in [
        ("weir-mesh", &[][..]),
        ("weir-init", &[]),
        ("weir-xds", &[]),
        ("weir-config", &["weir-config"]),
        ("weir-cni", &["weir-cni"]),
        ("weir-webhook", &["weir-webhook", "weir-config"]),
        ("weir-proxy", &["weir-proxy"]),
        ("weir-control", &["weir-control", "weir-config"]),
        ("weir-sandbox", &["weir-sandbox", "weir-config"]),
    ] {
        let tree = crates(&["normal", "-p", package]);
        for part in parts {
            assert!(may_use.contains(&part) || !tree.contains(part), "{package} depends on {part}");
        }
    }
}
