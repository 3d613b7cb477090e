//! The real binary, called as a container runtime calls it: by environment and standard input, and in a chain with Debian's
//! plugins.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

#[path = "../../init/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use support::{Netns, can_run};

const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";
/// Where Debian's containernetworking-plugins puts its programs.
const PLUGINS: &str = "/usr/lib/cni";

/// What a call of a plugin gave.
#[derive(Debug)]
struct Called {
    ok: bool,
    out: String,
    log: String,
}

impl Called {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn fails_with(&self, code: u64, text: &str) {
        let error = self.json();
        assert!(!self.ok, "{self:?}");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].is_string() && error["details"].is_string() && error["cniVersion"].is_string(), "{error}");
        assert!(self.out.contains(text), "{text} is not in {error}");
    }
}

/// Calls a plugin in the namespace of the node.
fn plugin(node: Option<&Netns>, program: &Path, command: &str, netns: &str, stdin: &str) -> Called {
    let mut call = match node {
        Some(node) => {
            let mut call = Command::new("ip");
            call.args(["netns", "exec", &node.name]).arg(program);
            call
        }
        None => Command::new(program),
    };
    call.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_COMMAND", command).env("CNI_PATH", PLUGINS);
    if !matches!(command, "VERSION" | "STATUS" | "GC") {
        call.env("CNI_CONTAINERID", "c0ffee").env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns);
        call.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=catalog-1");
    }
    let mut child = call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A plugin that fails before it reads closes its end.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Called { ok: output.status.success(), out: text(&output.stdout), log: text(&output.stderr) }
}

fn weir_cni(command: &str, netns: &str, stdin: &str) -> Called {
    plugin(None, Path::new(env!("CARGO_BIN_EXE_weir-cni")), command, netns, stdin)
}

const PREVIOUS: &str =
    r#"{"cniVersion":"1.1.0","ips":[{"address":"198.18.0.2/16","interface":0}], "later" : {"x":1e400}}"#;

/// A configuration as libcni writes it.
fn config(annotations: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.1.0","name":"pods","type":"weir-cni","capabilities":{{"{CAPABILITY}":true}},"unknown":[1],
            "runtimeConfig":{{"{CAPABILITY}":{annotations}}},"prevResult":{PREVIOUS}}}"#
    )
}

fn mesh() -> String {
    config(&json!({"weir.dev/capture": r#"{"version":1,"excludeInboundPorts":[22]}"#, "a": "b"}).to_string())
}

fn gone() -> &'static str {
    "/var/run/netns/weir-no-such"
}

#[test]
fn version() {
    let answer = weir_cni("VERSION", "", r#"{"cniVersion":"1.0.0"}"#);
    let want = json!({"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]});
    assert_eq!((answer.ok, answer.json()), (true, want));
    for odd in ["", "{", r#"{"cniVersion":"x\n"}"#] {
        let answer = weir_cni("VERSION", "", odd);
        assert_eq!((answer.ok, answer.json()["cniVersion"].clone()), (true, json!("1.1.0")), "{odd}");
    }
}

#[test]
fn bad_input_is_answered_as_the_specification_says() {
    let bad = |command: &str, stdin: &str| weir_cni(command, gone(), stdin);
    bad("ADD", "").fails_with(6, "can not be decoded");
    bad("ADD", "[]").fails_with(6, "can not be decoded");
    bad("ADD", &"[".repeat(100_000)).fails_with(6, "can not be decoded");
    bad("ADD", &" ".repeat(weir_cni::MAX_STDIN + 1)).fails_with(6, "too large");
    for version in ["0.1.0", "0.3.0", "1.2.0", "2.0.0"] {
        bad("ADD", &format!(r#"{{"cniVersion":"{version}"}}"#)).fails_with(1, version);
    }
    bad("ADD", "{}").fails_with(1, "incompatible CNI version");
    bad("ADD", r#"{"cniVersion":"1.1.0"}"#).fails_with(7, "prevResult is missing");
    bad("CHECK", r#"{"cniVersion":"1.1.0"}"#).fails_with(7, "prevResult is missing");
    bad("CHECK", r#"{"cniVersion":"0.3.1"}"#).fails_with(1, "CHECK exists since version 0.4.0");
    bad("STATUS", r#"{"cniVersion":"1.0.0"}"#).fails_with(1, "STATUS exists since version 1.1.0");
    bad("GC", r#"{"cniVersion":"1.0.0"}"#).fails_with(1, "GC exists since version 1.1.0");
    bad("MOVE", r#"{"cniVersion":"1.1.0"}"#).fails_with(4, "CNI_COMMAND");
    weir_cni("ADD", "", &mesh()).fails_with(4, "CNI_NETNS");
    bad("ADD", &mesh()).fails_with(4, "the pod's sandbox is gone");
    bad("CHECK", &mesh()).fails_with(4, "the pod's sandbox is gone");
    weir_cni("ADD", "/proc/self/ns/net", &mesh()).fails_with(4, "the node is never redirected");
    for capture in ["", "{}", r#"{"version":2}"#, r#"{"version":1,"other":1}"#] {
        let stdin = config(&json!({"weir.dev/capture": capture}).to_string());
        bad("ADD", &stdin).fails_with(7, "weir.dev/capture");
    }
    // The error is written in the version that was spoken.
    assert_eq!(bad("ADD", r#"{"cniVersion":"0.4.0"}"#).json()["cniVersion"], "0.4.0");
}

#[test]
fn a_pod_that_is_not_ours_is_not_touched() {
    // Its namespace is not even looked at: there is none.
    for annotations in [r#"{"a":"b"}"#, "{}", "null"] {
        let answer = weir_cni("ADD", gone(), &config(annotations));
        assert_eq!((answer.ok, answer.out.as_str(), answer.log.as_str()), (true, &*format!("{PREVIOUS}\n"), ""));
        let answer = weir_cni("CHECK", gone(), &config(annotations));
        assert_eq!((answer.ok, answer.out.as_str()), (true, ""));
    }
}

#[test]
fn a_runtime_that_hands_no_annotations_over_is_said_once() {
    let folder = std::env::temp_dir().join(format!("weir-cni-test-{}", std::process::id()));
    let stdin =
        format!(r#"{{"cniVersion":"1.0.0","type":"weir-cni","stateDir":{},"prevResult":{PREVIOUS}}}"#, json!(folder));
    let calls: Vec<Called> = (0..3).map(|_| weir_cni("ADD", gone(), &stdin)).collect();
    fs::remove_dir_all(&folder).unwrap();
    assert!(calls.iter().all(|call| call.ok && call.out == format!("{PREVIOUS}\n")), "{calls:?}");
    assert!(calls[0].log.contains("hands no pod annotations"), "{calls:?}");
    assert_eq!(calls[0].log.lines().count(), 1);
    assert!(calls[1..].iter().all(|call| call.log.is_empty()), "{calls:?}");
}

#[test]
fn nothing_to_delete_and_nothing_to_collect() {
    for netns in [gone(), ""] {
        for stdin in [mesh(), config("{}"), r#"{"cniVersion":"0.3.1"}"#.to_owned()] {
            let answer = weir_cni("DEL", netns, &stdin);
            assert_eq!((answer.ok, answer.out.as_str()), (true, ""), "{answer:?}");
        }
    }
    let answer = weir_cni("GC", "", r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[]}"#);
    assert_eq!((answer.ok, answer.out.as_str()), (true, ""), "{answer:?}");
}

#[test]
fn the_node_is_ready_or_says_why() {
    if !can_run() {
        return;
    }
    let answer = weir_cni("STATUS", "", r#"{"cniVersion":"1.1.0"}"#);
    assert_eq!((answer.ok, answer.out.as_str()), (true, ""), "{answer:?}");
    let program = env!("CARGO_BIN_EXE_weir-cni");
    let mut child = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "--bounding-set", "-all", program])
        .env("CNI_COMMAND", "STATUS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"cniVersion":"1.1.0"}"#).unwrap();
    let output = child.wait_with_output().unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.success(), error["code"].clone()), (false, json!(50)), "{error}");
}

#[test]
fn adding_twice_gives_the_same_state_and_check_sees_it() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let path = pod.path();
    let netns = path.to_str().unwrap();
    weir_cni("CHECK", netns, &mesh()).fails_with(101, "table ip weir is missing");
    let first = weir_cni("ADD", netns, &mesh());
    assert_eq!((first.ok, first.out.as_str()), (true, &*format!("{PREVIOUS}\n")), "{first:?}");
    let line: Value = serde_json::from_str(&first.log).unwrap();
    assert_eq!((&line["msg"], &line["pod"]), (&json!("redirect in force"), &json!("shop/catalog-1")));
    assert_eq!((&line["netns"], &line["rules"]), (&json!(netns), &json!(30)));
    assert!(line["elapsed_us"].is_u64() && line["level"] == "info");
    let ruleset = pod.ruleset();
    assert!(ruleset.contains("tcp dport 22 return"), "{ruleset}");
    assert!(weir_cni("CHECK", netns, &mesh()).ok);
    let second = weir_cni("ADD", netns, &mesh());
    assert!(second.ok && pod.ruleset() == ruleset, "{second:?}");
    // DEL leaves the rules to end with the namespace; after it ADD works as before.
    assert!(weir_cni("DEL", netns, &mesh()).ok && weir_cni("ADD", netns, &mesh()).ok);
    assert_eq!(pod.ruleset(), ruleset);
    pod.exec("nft", &["flush", "chain", "ip6", "weir", "output"]);
    weir_cni("CHECK", netns, &mesh()).fails_with(101, "chain output of table ip6 weir, rule 1 is missing");
}

/// What libcni does with a conflist: each plugin gets the result of the one before it; DEL goes backwards.
struct Chain<'a> {
    node: &'a Netns,
    pod: String,
    version: &'a str,
    entries: Vec<(PathBuf, Value)>,
}

impl<'a> Chain<'a> {
    fn new(node: &'a Netns, pod: &Netns, version: &'a str, annotations: &Value, leases: &Path) -> Self {
        let ptp = json!({"type": "ptp", "ipMasq": false, "ipam": {
            "type": "host-local", "dataDir": leases,
            "ranges": [[{"subnet": "198.18.30.0/24"}], [{"subnet": "fd00:30::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }});
        let ours = json!({"type": "weir-cni", "capabilities": {CAPABILITY: true},
            "runtimeConfig": {CAPABILITY: annotations}});
        let entries =
            vec![(Path::new(PLUGINS).join("ptp"), ptp), (PathBuf::from(env!("CARGO_BIN_EXE_weir-cni")), ours)];
        Self { node, pod: pod.path().to_str().unwrap().to_owned(), version, entries }
    }

    fn call(&self, entry: &(PathBuf, Value), command: &str, previous: Option<&Value>) -> Called {
        let mut config = entry.1.clone();
        config["name"] = json!("pods");
        config["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        plugin(Some(self.node), &entry.0, command, &self.pod, &config.to_string())
    }

    fn add(&self) -> Value {
        let mut previous = None;
        for entry in &self.entries {
            let called = self.call(entry, "ADD", previous.as_ref());
            assert!(called.ok, "{}: {called:?}", entry.0.display());
            previous = Some(called.json());
        }
        previous.unwrap()
    }

    fn all(&self, command: &str, previous: &Value, backwards: bool) {
        let mut entries: Vec<_> = self.entries.iter().collect();
        if backwards {
            entries.reverse();
        }
        for entry in entries {
            let called = self.call(entry, command, Some(previous));
            assert!(called.ok, "{command} {}: {called:?}", entry.0.display());
        }
    }
}

#[test]
fn in_a_chain_with_ptp_and_host_local() {
    if !can_run() {
        return;
    }
    assert!(Path::new(PLUGINS).join("ptp").exists(), "Debian package containernetworking-plugins is not installed");
    let leases = std::env::temp_dir().join(format!("weir-cni-leases-{}", std::process::id()));
    let node = Netns::new("node");
    node.ip("link set lo up\n");
    let capture = json!({"weir.dev/capture": r#"{"version":1}"#});
    for (version, annotations) in
        [("0.3.1", &capture), ("0.4.0", &capture), ("1.0.0", &capture), ("1.0.0", &json!({"a": "b"}))]
    {
        let pod = Netns::new("pod");
        let chain = Chain::new(&node, &pod, version, annotations, &leases);
        let result = chain.add();
        assert_eq!(result["cniVersion"], version, "{result}");
        assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
        assert_eq!(pod.ruleset().contains("table ip6 weir"), annotations == &capture);
        if version != "0.3.1" {
            chain.all("CHECK", &result, false);
        }
        chain.all("DEL", &result, true);
        chain.all("DEL", &result, true); // of nothing
        assert!(!pod.exec("ip", &["-o", "link"]).contains("eth0"));
    }
    assert_eq!(node.ruleset(), "", "the node is not touched");
    fs::remove_dir_all(&leases).unwrap();
}
