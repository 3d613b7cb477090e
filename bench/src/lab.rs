//! Network namespaces and their links. A namespace is held by an open file only and has no name, so nothing of it is left
//! when this program ends, however it ends. Addresses are from 198.18.0.0/15 (RFC 2544, for benchmarks).

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use weir_init::RuleSet;
use weir_mesh::CaptureSettings;

/// Thousands of connections a second leave thousands that wait for their last packets: room for them.
const SETTINGS: [(&str, &str); 3] = [
    ("ipv4/ip_local_port_range", "16000 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
];

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one.
    ///
    /// # Errors
    /// Where the kernel refuses, or `ip` is missing.
    pub fn new() -> anyhow::Result<Self> {
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a new network namespace (needs root)")?;
            ip("link set lo up\n")?;
            for (name, value) in SETTINGS {
                let _ = fs::write(format!("/proc/sys/net/{name}"), value); // those of conntrack are not there without it
            }
            Ok(File::open("/proc/thread-self/ns/net")?)
        })?;
        Ok(Self { file })
    }

    /// A path that names it as long as this process holds it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Moves the calling thread into it, for the rest of the thread's life.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn enter(&self) -> anyhow::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// Those of `work`, and where the namespace can not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        on_own_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Starts a program inside. It is started by the calling thread, which is back in its own namespace afterwards: a program
    /// that asked to die with its parent dies with the thread that started it.
    ///
    /// # Errors
    /// Where the program can not be started.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let own = File::open("/proc/thread-self/ns/net")?;
        self.enter()?;
        let child = command.spawn();
        setns(&own, CloneFlags::CLONE_NEWNET).context("returning to the own network namespace")?;
        child.with_context(|| format!("starting {:?}", command.get_program()))
    }

    /// Puts Weir's redirect in force, all TCP in and out, by the code that the CNI plugin and the init container use.
    ///
    /// # Errors
    /// Where the kernel refuses the rules.
    pub fn redirect(&self) -> anyhow::Result<()> {
        weir_init::apply_in_netns(&self.path(), &RuleSet::new(&CaptureSettings::default()))
            .context("the redirect rules")?;
        Ok(())
    }
}

/// The two sides of a candidate, joined by a veth pair. The client's default route leads to the server, so that Service
/// addresses have a way before the redirect takes them.
#[derive(Debug)]
pub struct Pair {
    /// The client's side.
    pub client: Netns,
    /// The server's side.
    pub server: Netns,
    /// Address of the client.
    pub client_ip: Ipv4Addr,
    /// Address of the server.
    pub server_ip: Ipv4Addr,
}

impl Pair {
    /// Pair number `index` (1 to 49), which gives its addresses.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn new(index: u8) -> anyhow::Result<Self> {
        ensure!((1..50).contains(&index), "pairs are numbered from 1 to 49");
        let (client, server) = (Netns::new()?, Netns::new()?);
        let (client_ip, server_ip) = (Ipv4Addr::new(198, 18, index, 1), Ipv4Addr::new(198, 18, index, 2));
        link((&client, "eth0", client_ip), (&server, "eth0", server_ip))?;
        client.run(|| ip(&format!("route add default via {server_ip}\n")))?;
        Ok(Self { client, server, client_ip, server_ip })
    }
}

/// Joins two namespaces by a veth pair with these names and addresses (/24).
///
/// # Errors
/// Where the kernel refuses, such as for a name that is taken.
pub fn link(a: (&Netns, &str, Ipv4Addr), b: (&Netns, &str, Ipv4Addr)) -> anyhow::Result<()> {
    let other = b.0.path();
    a.0.run(|| {
        // `ip` takes the path of a namespace where it takes a name, if the path is absolute.
        let (name, address, peer) = (a.1, a.2, b.1);
        ip(&format!(
            "link add {name} type veth peer name {peer} netns {}\naddr add {address}/24 dev {name}\nlink set {name} up\n",
            other.display()
        ))
    })?;
    b.0.run(|| ip(&format!("addr add {}/24 dev {1}\nlink set {1} up\n", b.2, b.1)))
}

/// Runs lines of `ip` in the calling thread's namespace.
fn ip(lines: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (Debian package iproute2)")?;
    child.stdin.take().context("ip has no input")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}\n{lines}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
