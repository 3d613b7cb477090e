//! A node's folders, its agent and its container runtime, for the tests of `weir-cni node`.
//!
//! The folders are real and made by each test; the agent is the real program. The runtime does what libcni does with a folder
//! of configurations: it takes the first by name, runs its chain with the pod's annotations, and notes the result as libcni
//! 1.1 (containerd 1.6) does, field by field; `tests/cache` holds notes that libcni itself wrote.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::support::Netns;

pub const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";
/// Where Debian's containernetworking-plugins puts its programs.
pub const PLUGINS: &str = "/usr/lib/cni";
pub const CONFLIST: &str = "00-weir.conflist";
/// How long a repair may take.
pub const REPAIR: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(10);

/// The folders of one node, gone when dropped.
pub struct Node {
    root: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("weir-cni-node-{}-{count}", std::process::id()));
        let node = Self { root };
        for folder in [node.bin(), node.conf(), node.cache()] {
            fs::create_dir_all(folder).unwrap();
        }
        node
    }

    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    pub fn conf(&self) -> PathBuf {
        self.root.join("net.d")
    }

    pub fn cache(&self) -> PathBuf {
        self.root.join("lib")
    }

    pub fn plugin(&self) -> PathBuf {
        self.bin().join("weir-cni")
    }

    pub fn conflist(&self) -> PathBuf {
        self.conf().join(CONFLIST)
    }

    /// Puts a configuration in place as network plugins do: in one step.
    pub fn put(&self, name: &str, text: &str) {
        let temporary = self.conf().join(format!("{name}.tmp"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.conf().join(name)).unwrap();
    }

    /// A primary whose chain works: ptp with addresses of the test networks.
    pub fn put_primary(&self, name: &str) {
        self.put(name, &self.primary("pods").to_string());
    }

    pub fn primary(&self, network: &str) -> Value {
        json!({"cniVersion": "1.0.0", "name": network, "kept": {"by": ["us"]}, "plugins": [{
        "type": "ptp", "ipMasq": false, "unknown": 1, "ipam": {
            "type": "host-local", "dataDir": self.root.join("leases"),
            "ranges": [[{"subnet": "198.18.32.0/20"}], [{"subnet": "fd00:31::/64"}]], "routes": [{"dst": "0.0.0.0/0"}],
        }}]})
    }

    /// The command of another program (or version) than the one that was built.
    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        // Runtimes and `ip netns` make it with their first namespace, which need not have been there.
        fs::create_dir_all("/var/run/netns").unwrap();
        let mut command = Command::new(program);
        command.arg("node").arg("--cni-bin-dir").arg(self.bin()).arg("--cni-conf-dir").arg(self.conf());
        command.arg("--cache-dir").arg(self.cache()).arg("--host-cache-dir").arg(self.cache());
        command.args(["--netns-dir", "/var/run/netns"]).args(arguments);
        command
    }

    pub fn start(&self) -> Agent {
        self.start_program(&weir_cni())
    }

    pub fn start_program(&self, program: &Path) -> Agent {
        self.start_command(self.command(program, &[]))
    }

    /// With what a container gives it that drops all capabilities but these.
    pub fn start_with_capabilities(&self, capabilities: &str) -> Agent {
        let agent = self.command(&weir_cni(), &[]);
        let mut command = Command::new("setpriv");
        command.args(["--no-new-privs", "--bounding-set", &format!("-all,{capabilities}")]);
        command.arg(agent.get_program()).args(agent.get_args());
        self.start_command(command)
    }

    fn start_command(&self, mut command: Command) -> Agent {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let log = self.root.join(format!("log-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Agent { child, log }
    }

    /// Runs the agent's program to its end: exit code and what it said.
    pub fn call(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(&weir_cni(), arguments).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn is_ready(&self) -> bool {
        self.call(&["--check"]).0 == 0
    }

    pub fn conflist_json(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.conflist()).ok()?).ok()
    }

    /// Everything in bin and conf: names, permissions, contents.
    pub fn everything(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        for folder in [self.bin(), self.conf(), self.cache()] {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let data = path.symlink_metadata().unwrap();
                let bytes = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                all.insert(path, (data.mode(), bytes));
            }
        }
        all
    }

    /// A copy of the program that is another version: bytes behind an ELF file's end change nothing else.
    pub fn version(&self, mark: &str) -> PathBuf {
        let path = self.root.join(format!("weir-cni-{mark}"));
        let mut bytes = fs::read(weir_cni()).unwrap();
        bytes.extend_from_slice(mark.as_bytes());
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts a pod's network (`{"absent": true}`: by a runtime that hands no annotations over): the first configuration's chain, run in the node's namespace; then the note.
    pub fn add(&self, node: &Netns, pod: &Netns, annotations: &Value) -> Result<(), String> {
        let (list, previous) = self.chain(node, pod, annotations)?;
        let args: Vec<[String; 2]> = arguments(pod).into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
        let mut capabilities = json!({"dns": {"Servers": ["198.19.0.10"]}, "portMappings": []});
        if !annotations["absent"].is_boolean() {
            capabilities[CAPABILITY] = annotations.clone();
        }
        let network = list["name"].as_str().unwrap().to_owned();
        let note = json!({"kind": "cniCacheV1", "containerId": pod.name, "config": "e30=", "ifName": "eth0",
            "networkName": network, "cniArgs": args, "capabilityArgs": capabilities, "result": previous});
        self.note(&format!("{network}-{}-eth0", pod.name), note.to_string().as_bytes());
        Ok(())
    }

    fn chain(&self, node: &Netns, pod: &Netns, annotations: &Value) -> Result<(Value, Value), String> {
        let mut names: Vec<_> = fs::read_dir(self.conf()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|path| path.extension().is_some_and(|end| end == "conflist" || end == "conf"));
        names.sort();
        let first = names.first().ok_or("no configuration")?;
        let text = fs::read(first).map_err(|error| format!("{}: {error}", first.display()))?;
        let list: Value = serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", first.display()))?;
        let mut previous = Value::Null;
        for entry in list["plugins"].as_array().ok_or("no chain")? {
            let kind = entry["type"].as_str().unwrap();
            let mut config = entry.clone();
            config["name"] = list["name"].clone();
            config["cniVersion"] = list["cniVersion"].clone();
            if entry["capabilities"][CAPABILITY] == true && !annotations["absent"].is_boolean() {
                config["runtimeConfig"] = json!({CAPABILITY: annotations});
            }
            if !previous.is_null() {
                config["prevResult"] = previous;
            }
            let folder = [self.bin(), PLUGINS.into()].into_iter().find(|folder| folder.join(kind).exists());
            let program = folder.ok_or(format!("failed to find plugin {kind:?}"))?.join(kind);
            previous = plugin(node, &program, pod, &config)?;
        }
        Ok((list, previous))
    }

    /// Writes a note as libcni does: in place, not by renaming.
    pub fn note(&self, name: &str, bytes: &[u8]) {
        let folder = self.cache().join("results");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn arguments(pod: &Netns) -> [(&'static str, String); 3] {
    [("IgnoreUnknown", "1".into()), ("K8S_POD_NAMESPACE", "shop".into()), ("K8S_POD_NAME", pod.name.clone())]
}

fn plugin(node: &Netns, program: &Path, pod: &Netns, config: &Value) -> Result<Value, String> {
    let args: Vec<String> = arguments(pod).iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut child = Command::new("ip")
        .args(["netns", "exec", &node.name])
        .arg(program)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_PATH", PLUGINS)
        .env("CNI_CONTAINERID", &pod.name)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", pod.path())
        .env("CNI_ARGS", args.join(";"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        return Err(format!("{}: {}{}", program.display(), text(&output.stdout), text(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {}", text(&output.stdout)))
}

pub fn weir_cni() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_weir-cni"))
}

/// A mesh pod's annotations.
pub fn mesh() -> Value {
    json!({"weir.dev/capture": r#"{"version":1}"#, "a": "b"})
}

/// A running agent, ended when dropped.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Tells it to end, and waits until it has: true if it ended well.
    pub fn stop(&mut self) -> bool {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.ended()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn ended(&mut self) -> bool {
        let end = Instant::now() + LIMIT;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.success(),
                None if Instant::now() > end => panic!("does not end; {}", self.log()),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Every line is a JSON object with a level and a message.
    pub fn lines(&self) -> Vec<Value> {
        let line = |text: &str| {
            let line: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(line["level"].is_string() && line["msg"].is_string(), "{line}");
            line
        };
        self.log().lines().map(line).collect()
    }

    pub fn count(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until the log has a line with the text.
    #[track_caller]
    pub fn says(&self, text: &str) {
        self.until(text, LIMIT, || self.log().contains(text));
    }

    /// Waits for a condition; fails with the log.
    #[track_caller]
    pub fn until(&self, what: &str, limit: Duration, condition: impl Fn() -> bool) -> Duration {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < limit, "not within {limit:?}: {what}\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
        start.elapsed()
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("agent:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
