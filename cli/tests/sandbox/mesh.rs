//! A mesh that does not come up: the report names the cause, not only the pods that wait for it.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use super::support::{EXAMPLE, Sandbox, bin_dir, root, text};

/// `up` with another program as control plane; what it said.
fn up_with_control(sandbox: &Sandbox, program: &str) -> String {
    let folder = bin_dir(sandbox, "weir-control");
    let control = folder.join("weir-control");
    fs::write(&control, program).unwrap();
    fs::set_permissions(&control, fs::Permissions::from_mode(0o755)).unwrap();
    let output = sandbox.run("up", &[EXAMPLE, "--bin-dir", folder.to_str().unwrap(), "--timeout", "4"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    sandbox.nothing_is_left(&BTreeSet::new());
    said
}

#[test]
fn a_control_plane_that_does_not_start() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("mesh");
    let said = up_with_control(&sandbox, "#!/bin/sh\necho no key for the tokens >&2\nexit 1\n");
    // First of all pods, with its own words.
    let report = said.split("weir: ").nth(1).unwrap();
    assert!(report.starts_with("pod weir-system/weir-control-"), "{said}");
    for part in ["container weir-control: CrashLoopBackOff: ended with exit code 1", "| no key for the tokens"] {
        assert!(report.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_control_plane_that_does_not_answer() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("mesh");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = root.self_signed(&key).unwrap().pem();
    // With a root certificate the pods can start, and it is their proxies that are not ready.
    let control = format!("#!/bin/sh\ncat > /var/lib/weir/ca/root-cert.pem <<END\n{root}END\nexec sleep infinity\n");
    let said = up_with_control(&sandbox, &control);
    for part in ["container weir-proxy: running, not ready", "the proxy is not ready", "certificate: ", "weir-control"]
    {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}
