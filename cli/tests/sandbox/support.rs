//! A sandbox of a test: a name and folders of its own, taken down whatever happens, and looked through for what it left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::user::User;

/// The example of the demo, from the package that the tests run in.
pub(crate) const EXAMPLE: &str = "../examples/canary";
/// What the mesh needs beside `weir`.
pub(crate) const MESH_PROGRAMS: [&str; 4] = ["weir-cni", "weir-control", "weir-proxy", "weir-webhook"];
const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// Whether tests that need root can run. Says so where they can not; in CI that is an error.
pub(crate) fn root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "these tests need root, also in CI");
        eprintln!("skipped: it needs root (network namespaces and mounts)");
    }
    root
}

pub(crate) struct Sandbox {
    pub(crate) name: String,
    /// Manifests.
    pub(crate) folder: PathBuf,
    base: PathBuf,
    before: Machine,
    /// Whose it is, where it is not root's.
    user: Option<User>,
}

impl Sandbox {
    pub(crate) fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let base = std::env::temp_dir().join(format!("weir-test-{name}"));
        let folder = std::env::temp_dir().join(format!("weir-test-{name}-manifests"));
        fs::create_dir_all(&folder).unwrap();
        Self { name, folder, base, before: Machine::look(), user: None }
    }

    /// A sandbox of an ordinary user.
    pub(crate) fn of_user(what: &str, user: User) -> Self {
        let mut sandbox = Self::new(what);
        sandbox.base = user.base();
        sandbox.user = Some(user);
        sandbox
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        let temporary = self.folder.join(format!(".{file}"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.folder.join(file)).unwrap();
    }

    /// `weir sandbox COMMAND --name NAME ARGS`, not started yet.
    pub(crate) fn command(&self, command: &str, args: &[&str]) -> Command {
        let mut weir = match &self.user {
            Some(user) => user.command(Path::new(WEIR)),
            None => {
                let mut weir = Command::new(WEIR);
                weir.env("WEIR_SANDBOX_DIR", &self.base);
                weir
            }
        };
        weir.args(["sandbox", command, "--name", &self.name]).args(args).stdin(Stdio::null());
        weir
    }

    pub(crate) fn run(&self, command: &str, args: &[&str]) -> Output {
        self.command(command, args).output().unwrap()
    }

    /// Without the mesh.
    pub(crate) fn up(&self, seconds: &str) -> Output {
        self.run("up", &[self.folder.to_str().unwrap(), "--without-mesh", "--timeout", seconds])
    }

    pub(crate) fn must_be_up(&self) {
        let output = self.up("30");
        assert!(output.status.success(), "{}", text(&output));
    }

    pub(crate) fn start_up(&self, seconds: &str) -> Child {
        let mut command = self.command("up", &[self.folder.to_str().unwrap(), "--without-mesh", "--timeout", seconds]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Output {
        let mut args = vec![pod, "--"];
        args.extend(command);
        self.run("exec", &args)
    }

    /// Standard output of a program that must succeed.
    pub(crate) fn says(&self, pod: &str, command: &[&str]) -> String {
        let output = self.exec(pod, command);
        assert!(output.status.success(), "{command:?} in {pod}: {}\n{}", text(&output), self.story());
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.run("status", &["--json"]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What happened so far, for messages.
    pub(crate) fn story(&self) -> String {
        text(&self.run("status", &["--events"]))
    }

    /// Names of the pods, by Deployment or all.
    pub(crate) fn pods(&self, deployment: Option<&str>) -> Vec<String> {
        let status = self.status();
        let pods = status["pods"].as_object().unwrap();
        pods.iter()
            .filter(|(_, pod)| deployment.is_none_or(|name| pod["deployment"] == name))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Waits until the status satisfies the condition.
    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        while !condition(&self.status()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what} did not happen\n{}", self.story());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where its folder is made.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Its folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    /// Where the supervisor is on record.
    fn record(&self) -> PathBuf {
        self.state().join("supervisor.json")
    }

    pub(crate) fn owner(&self) -> u32 {
        let text = fs::read_to_string(self.record()).unwrap();
        let owner: Value = serde_json::from_str(&text).unwrap();
        owner["pid"].as_u64().unwrap().try_into().unwrap()
    }

    pub(crate) fn exists(&self) -> bool {
        self.base.exists()
    }

    /// Everything that belongs to the running sandbox.
    pub(crate) fn processes(&self) -> BTreeSet<Process> {
        descendants(self.owner())
    }

    /// Takes it down and looks whether anything is left.
    pub(crate) fn down(&self) {
        let processes = if self.record().exists() { self.processes() } else { BTreeSet::new() };
        let output = self.run("down", &[]);
        assert!(output.status.success(), "{}", text(&output));
        self.nothing_is_left(&processes);
    }

    pub(crate) fn nothing_is_left(&self, processes: &BTreeSet<Process>) {
        assert!(!self.exists(), "files are left in {}", self.base.display());
        let alive: Vec<&Process> = processes.iter().filter(|process| process.is_alive()).collect();
        assert!(alive.is_empty(), "processes are left: {alive:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.name), "mounts are left");
        assert_eq!(Machine::look(), self.before, "the machine's own network is not as it was");
    }
}

impl Sandbox {
    /// Looks through all processes for one that was started for this sandbox: the supervisor has its name as an argument,
    /// and all other processes end with it. Bounded, since a killed process needs a moment to go.
    pub(crate) fn has_no_process(&self) {
        let begun = Instant::now();
        loop {
            let left: Vec<String> = all_processes()
                .into_iter()
                .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
                .map(|command| command.replace('\0', " "))
                .filter(|command| command.split(' ').any(|part| part == self.name))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "processes are left: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.exists() {
            if std::thread::panicking() {
                eprintln!("{}", self.story());
            }
            let _ = self.run("down", &[]);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A pipe that nobody reads.
pub(crate) fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A folder of Weir's programs without some of them; the caller can put others in their place.
pub(crate) fn bin_dir(sandbox: &Sandbox, without: &str) -> PathBuf {
    let folder = sandbox.folder.join("bin");
    fs::create_dir(&folder).unwrap();
    let built = Path::new(WEIR).parent().unwrap();
    for program in MESH_PROGRAMS.into_iter().filter(|program| *program != without) {
        assert!(built.join(program).is_file(), "{program} is not built: run `cargo build --workspace` first");
        std::os::unix::fs::symlink(built.join(program), folder.join(program)).unwrap();
    }
    folder
}

/// Both outputs.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a sandbox could leave in the machine's own network namespace.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    rules: String,
    routes: String,
    forwarding: String,
}

impl Machine {
    fn look() -> Self {
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        Self {
            rules: run("nft", &["--stateless", "list", "ruleset"]),
            routes: run("ip", &["-4", "route", "show", "table", "all"]),
            forwarding: fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        }
    }
}

/// A process that can not be mistaken for a later one with the same id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    started: u64,
    command: String,
}

impl Process {
    pub(crate) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(_, started)| started == self.started)
    }
}

/// Parent and start time of a process that is not a zombie.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let alive = !matches!(*fields.first()?, "Z" | "X");
    alive.then_some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn descendants(root: u32) -> BTreeSet<Process> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in all_processes() {
        if let Some((parent, _)) = stat(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut rest = vec![root];
    while let Some(pid) = rest.pop() {
        if let Some((_, started)) = stat(pid) {
            let command = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cmdline"));
            found.insert(Process { pid, started, command: command.unwrap_or_default().replace('\0', " ") });
        }
        rest.extend(children.get(&pid).into_iter().flatten());
    }
    found
}

impl Sandbox {
    /// Waits until the supervisor answers.
    pub(crate) fn wait_for_socket(&self) {
        let begun = Instant::now();
        while !self.run("status", &[]).status.success() {
            assert!(begun.elapsed() < Duration::from_secs(15), "the supervisor does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
