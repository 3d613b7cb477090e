//! The commands that need no sandbox and no privileges: inject, version, completions.

#![allow(clippy::unwrap_used)] // a test that can not go on should end here

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const EXAMPLE: &str = "../examples/canary";
const REFUSED: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec:\n  containers:\n    - {name: app, image: app, securityContext: {runAsUser: 1337}}\n";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(args).stdin(Stdio::null());
    command
}

fn weir(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// `weir inject` of a text by standard input.
fn inject(text: &str) -> Output {
    let mut command = command(&["inject", "-f", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    running.wait_with_output().unwrap()
}

/// Standard output of a command that must succeed without a word on standard error.
fn says(output: Output) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The line of a command that must fail with this code, with nothing on standard output.
fn fails(output: &Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("weir: ") && output.stdout.is_empty(), "{said}");
    said
}

fn examples() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(EXAMPLE).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files
}

fn inject_files(files: &[PathBuf]) -> Output {
    let mut args = vec!["inject"];
    for file in files {
        args.extend(["-f", file.to_str().unwrap()]);
    }
    weir(&args)
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// A folder that ends with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("weir-commands-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(file);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_pods_of_the_example_get_a_proxy_first() {
    let files = examples();
    let before: Vec<Value> = files.iter().flat_map(|file| objects(&fs::read_to_string(file).unwrap())).collect();
    let after = objects(&says(inject_files(&files)));
    assert_eq!(before.len(), after.len());
    let mut deployments = 0;
    for (before, after) in before.iter().zip(&after) {
        if before["kind"] != "Deployment" {
            assert_eq!(before, after, "only what has pods is changed");
            continue;
        }
        deployments += 1;
        let (name, pod) = (&after["metadata"]["name"], &after["spec"]["template"]["spec"]);
        let proxy = &pod["initContainers"][0];
        assert_eq!((&proxy["name"], &proxy["restartPolicy"]), (&"weir-proxy".into(), &"Always".into()), "{name}");
        let own = |object: &Value| object["spec"]["template"]["spec"]["containers"][0]["command"].clone();
        assert_eq!(own(before), own(after), "{name}");
    }
    assert_eq!(deployments, 5);
}

#[test]
fn injecting_again_changes_nothing() {
    let once = says(inject_files(&examples()));
    assert_eq!(says(inject(&once)), once);
}

#[test]
fn standard_input_is_a_file_as_others() {
    let file = Path::new(EXAMPLE).join("redis.yaml");
    let by_stdin = says(inject(&fs::read_to_string(&file).unwrap()));
    assert_eq!(by_stdin, says(inject_files(&[file])));
    assert!(by_stdin.contains("weir-proxy"));
    assert_eq!(says(inject("---\n---\n")), "", "nothing comes of nothing");
}

#[test]
fn what_is_no_manifest_is_said_in_one_line() {
    let folder = Folder::new("bad");
    let absent = folder.0.join("absent.yaml");
    let own = folder.0.to_str().unwrap();
    for (file, wanted) in [
        (absent.to_str().unwrap(), ["absent.yaml: No such file", "name a file of manifests"]),
        (own, ["Is a directory", "name a file of manifests"]),
        (&folder.write("broken.yaml", "kind: Pod\nspec: [1,\n"), ["broken.yaml:", "is no YAML"]),
        (&folder.write("tabs.yaml", "kind:\n\t- {\n"), ["tabs.yaml:2", "correct it"]),
        (&folder.write("binary.yaml", [0xff, 0xfe, 0]), ["binary.yaml", "UTF-8"]),
        (&folder.write("prose.yaml", "only words\n"), ["prose.yaml: document 1", "`kind`"]),
        (&folder.write("second.yaml", "kind: Service\n---\na: b\n"), ["second.yaml: document 2", "whole manifests"]),
    ] {
        let said = fails(&weir(&["inject", "-f", file]), 2);
        for part in wanted {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }
    let none = weir(&["inject"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("--filename"));
}

#[test]
fn a_refusal_names_file_object_and_field() {
    let folder = Folder::new("refused");
    let said = fails(&weir(&["inject", "-f", &folder.write("refused.yaml", REFUSED)]), 1);
    for part in ["refused.yaml: ", "Pod/p: ", "runAsUser of container app is 1337"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let said = fails(&inject("apiVersion: v1\nkind: Pod\n"), 1);
    assert!(said.contains("-: Pod (unnamed): spec: expected an object"), "{said}");
}

#[test]
fn version() {
    let wanted = format!("weir {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(says(weir(&["version"])), wanted);
    assert_eq!(says(weir(&["--version"])), wanted);
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = says(weir(&["completions", shell]));
        assert!(script.contains("weir") && script.contains("inject"), "{shell}: {script}");
        assert!(!script.contains("sandbox-serve"), "{shell} offers hidden commands");
    }
    assert_eq!(weir(&["completions", "cmd"]).status.code(), Some(2));
}

#[test]
fn a_reader_that_stops_early_ends_them_quietly() {
    let catalog = format!("{EXAMPLE}/catalog.yaml");
    let absent = format!("{EXAMPLE}/absent.yaml");
    let unread = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for args in [&["inject", "-f", &catalog] as &[&str], &["version"], &["completions", "bash"], &["--help"]] {
        says(command(args).stdout(unread()).output().unwrap());
    }
    let failed = command(&["inject", "-f", &absent]).stderr(unread()).output().unwrap();
    assert_eq!(failed.status.code(), Some(2), "nor does it matter that nobody reads the error");
}

#[test]
fn a_full_disk_is_an_error() {
    let catalog = format!("{EXAMPLE}/catalog.yaml");
    for args in [&["inject", "-f", &catalog] as &[&str], &["version"], &["completions", "bash"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let said = fails(&command(args).stdout(full).stderr(Stdio::piped()).output().unwrap(), 1);
        assert!(said.contains("standard output: No space left"), "{said}");
    }
}

#[test]
fn analyze_finds_nothing_in_what_can_be_done() {
    let rollout = |name: &str| format!("../examples/rollout/{name}.yaml");
    for given in [vec![EXAMPLE], vec!["../examples/traffic"], vec![&rollout("app"), &rollout("route")]] {
        let said = says(weir(&[&["analyze"], &given[..]].concat()));
        assert!(said.ends_with(" 0 problems\n"), "{given:?}: {said}");
    }
    // Objects of other tools are not ours to judge; what they are for is.
    for name in ["argo-rollouts", "flagger"] {
        let output = weir(&["analyze", &rollout(name)]);
        let said = String::from_utf8(output.stdout).unwrap();
        let problems: Vec<&str> = said.lines().filter(|line| line.contains(".yaml:")).collect();
        let theirs = |line: &&str| {
            ["rbac.authorization.k8s.io", "argoproj.io", "flagger.app"].iter().any(|api| line.contains(api))
        };
        assert!(!problems.is_empty() && problems.iter().all(theirs), "{name}: {said}");
    }
    // Together they have objects of one name twice.
    assert_eq!(weir(&["analyze", EXAMPLE, "../examples/traffic"]).status.code(), Some(1));
}

#[test]
fn analyze_tells_file_line_object_field_and_remedy_of_all_that_can_not_be_done() {
    let folder = Folder::new("analyze");
    let rules = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{group: '', kind: Service, name: nobody}]
  rules:
  - timeouts:
      request: 1s
      backendRequest: 2s
    backendRefs: [{name: there, port: 80}]
";
    let policy = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\nspec:\n  host: nobody\n  subsets: []\n  trafficPolicy: {}\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: there}\nspec: {ports: [{port: 81}]}\n";
    fs::create_dir(folder.0.join("below")).unwrap();
    for (name, text) in
        [("rules.yaml", rules), ("below/policy.yml", policy), ("service.yaml", service), ("notes.txt", "{")]
    {
        fs::write(folder.0.join(name), text).unwrap();
    }
    let output = weir(&["analyze", folder.0.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for want in [
        "rules.yaml:9: HTTPRoute default/r: spec.rules[0].timeouts.backendRequest: is longer than request",
        "policy.yml:6: DestinationRule default/d: spec.subsets: is not supported: give each version a Service",
    ] {
        assert!(said.lines().any(|line| line.contains(want)), "{said}");
    }
    // Once it can be read, what it names is looked for.
    fs::write(folder.0.join("rules.yaml"), rules.replace("backendRequest: 2s", "backendRequest: 1s")).unwrap();
    fs::remove_file(folder.0.join("below/policy.yml")).unwrap();
    let output = weir(&["analyze", "--output", "json", folder.0.to_str().unwrap()]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = found["problems"].as_array().unwrap();
    let fields: Vec<&str> = problems.iter().map(|problem| problem["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["spec.parentRefs[0].name", "spec.rules[0].backendRefs[0].port"], "{found}");
    assert_eq!((problems[1]["line"].as_u64(), problems[1]["kind"].as_str()), (Some(10), Some("HTTPRoute")), "{found}");
    assert!(fails(&weir(&["analyze", "/nowhere"]), 2).contains("/nowhere"));
    assert!(!weir(&["analyze"]).status.success(), "something has to be named");
}

#[test]
fn flags_are_explained() {
    let all = says(weir(&["describe", "flags"]));
    assert!(all.lines().count() > 40 && all.contains("UH     no endpoint of the service is healthy"), "{all}");
    let several: Value =
        serde_json::from_str(&says(weir(&["describe", "flag", "uf,URX", "--output", "json"]))).unwrap();
    assert_eq!((&several[0]["flag"], &several[1]["flag"]), (&"UF".into(), &"URX".into()));
    assert!(fails(&weir(&["describe", "flag/XX"]), 2).contains("`weir describe flags` lists them all"));
}

#[test]
fn what_can_not_be_described_is_said() {
    for wrong in ["deployment/a", "catalog", "pod/a/b", "service/A", "service/..%2f"] {
        let said = fails(&weir(&["describe", wrong, "--namespace", "shop", "--sandbox"]), 2);
        assert!(
            ["say pod/NAME", "is not the name of an object", "is not POD"].iter().any(|part| said.contains(part)),
            "{wrong}: {said}"
        );
    }
    assert!(fails(&weir(&["proxy-config", "a", "--namespace=-x"]), 2).contains("is not the name of an object"));
}

#[test]
fn without_kubectl_there_is_no_cluster() {
    for args in [["proxy-config", "a.shop"], ["describe", "service/a"]] {
        let said = fails(&command(&args).env("PATH", "/nowhere").output().unwrap(), 2);
        assert!(said.contains("kubectl can not be run") && said.contains("put it into PATH"), "{said}");
    }
}
