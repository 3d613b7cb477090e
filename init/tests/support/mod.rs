//! A pod, its node and what listens there, as real network namespaces: made by each test and gone with it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

#[macro_use]
pub mod by;
pub mod refusing;

use std::{
    fmt::Write as _,
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::{Gid, Uid, geteuid, setfsgid, setfsuid},
};
use socket2::{Domain, SockRef, Socket, Type};
use weir_init::{Backend, RuleSet};
use weir_mesh::CaptureSettings;

/// An ordinary application's user.
pub const APP: u32 = 1000;
/// The proxy's user.
pub const PROXY: u32 = 1337;
/// Port of the application.
pub const APP_PORT: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(2);

/// True where the test can run. Says why it is skipped, and fails instead of skipping in CI.
pub fn can_run() -> bool {
    if geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "the redirect's tests need root");
    eprintln!("SKIPPED: needs root, for network namespaces");
    false
}

/// A network namespace with a name, gone when dropped.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(tag: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-t{}-{}-{tag}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        command("ip", &["netns", "add", &name], None);
        Self { name }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    /// Runs a program in the namespace and returns what it prints; fails if it fails.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> String {
        self.exec_with(program, arguments, None)
    }

    pub fn exec_with(&self, program: &str, arguments: &[&str], input: Option<&str>) -> String {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(arguments);
        command("ip", &all, input)
    }

    pub fn ip(&self, batch: &str) {
        command("ip", &["-n", &self.name, "-batch", "-"], Some(batch));
    }

    pub fn ruleset(&self) -> String {
        self.exec("nft", &["list", "ruleset"])
    }

    /// Interfaces and their addresses, to be compared: without what the kernel changes by itself in the meantime. That is the progress
    /// of duplicate address detection, and addresses of the link, which come some time after it is up.
    pub fn addresses(&self) -> String {
        let links = self.exec("ip", &["-o", "link"]);
        let links = links.lines().filter_map(|line| line.split(": ").nth(1));
        let addresses = self.exec("ip", &["-o", "addr"]);
        let addresses = addresses.lines().filter(|line| !line.contains(" scope link "));
        let addresses = addresses.map(|line| line.replace(" tentative", ""));
        links.map(str::to_owned).chain(addresses).map(|line| line + "\n").collect()
    }

    /// Runs `work` in the namespace, as a user and group: sockets made by it belong to them.
    pub fn run<T: Send>(&self, user: u32, group: u32, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                setfsgid(Gid::from_raw(group));
                setfsuid(Uid::from_raw(user));
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn command(program: &str, arguments: &[&str], input: Option<&str>) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error} (Debian packages iproute2 and nftables)"));
    child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}\n{input:?}\n{}", text(&output.stderr));
    text(&output.stdout)
}

/// The addresses of one family.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The pod's own.
    pub pod: IpAddr,
    /// The pod's own on its second interface.
    pub pod2: IpAddr,
    /// The node's end of the pod's link; calls into the pod come from here.
    pub node: IpAddr,
    /// The node's end of the pod's second link.
    pub node2: IpAddr,
    /// Somebody else.
    pub other: IpAddr,
    /// Somebody in a network of their own.
    pub apart: IpAddr,
    /// A Service of which the pod is the one endpoint.
    pub service: IpAddr,
    /// A name server.
    pub name_server: IpAddr,
    pub loopback: IpAddr,
    /// The proxy's address when it calls its application.
    pub app_source: IpAddr,
    pub any: IpAddr,
}

pub fn families() -> [Addresses; 2] {
    let make = |texts: [&str; 11]| {
        let [pod, pod2, node, node2, other, apart, service, name_server, loopback, app_source, any] =
            texts.map(|text| text.parse().unwrap());
        Addresses { pod, pod2, node, node2, other, apart, service, name_server, loopback, app_source, any }
    };
    [
        make([
            "198.18.7.2",
            "198.18.8.2",
            "198.18.7.1",
            "198.18.8.1",
            "198.18.50.1",
            "198.18.9.9",
            "198.19.0.80",
            "198.19.0.10",
            "127.0.0.1",
            "127.0.0.6",
            "0.0.0.0",
        ]),
        make([
            "fd00:7::2",
            "fd00:8::2",
            "fd00:7::1",
            "fd00:8::1",
            "fd00:50::1",
            "fd00:9::9",
            "fd00:19::80",
            "fd00:19::10",
            "::1",
            "::6",
            "::",
        ]),
    ]
}

/// A pod with two interfaces, its node, and everybody else (who are all on the node).
pub struct Lab {
    pub pod: Netns,
    pub node: Netns,
}

impl Lab {
    pub fn new() -> Self {
        let (pod, node) = (Netns::new("pod"), Netns::new("node"));
        let mut batch = format!("link set lo up\nlink add p0 type veth peer name eth0 netns {}\n", pod.name);
        let _ =
            writeln!(batch, "link add p1 type veth peer name net1 netns {}\nlink set p0 up\nlink set p1 up", pod.name);
        let mut inside = "link set lo up\nlink set eth0 up\nlink set net1 up\n".to_owned();
        let mut services = String::new();
        for family in families() {
            let (prefix, host, nft) = if family.pod.is_ipv4() { (24, 32, "ip") } else { (64, 128, "ip6") };
            let nodad = if family.pod.is_ipv4() { "" } else { "nodad" };
            let _ = writeln!(batch, "addr add {}/{prefix} dev p0 {nodad}", family.node);
            let _ = writeln!(batch, "addr add {}/{prefix} dev p1 {nodad}", family.node2);
            for address in [family.other, family.apart, family.name_server] {
                let _ = writeln!(batch, "addr add {address}/{host} dev lo {nodad}");
            }
            let _ = writeln!(inside, "addr add {}/{prefix} dev eth0 {nodad}", family.pod);
            let _ = writeln!(inside, "addr add {}/{prefix} dev net1 {nodad}", family.pod2);
            let _ = writeln!(inside, "route add default via {}", family.node);
            let _ = writeln!(
                services,
                "table {nft} services {{
                    chain to {{ type nat hook prerouting priority -100; {nft} daddr {} tcp dport 80 dnat to {}; }}
                    chain back {{ type nat hook postrouting priority 100; ct status dnat masquerade; }}
                }}",
                family.service,
                SocketAddr::new(family.pod, APP_PORT),
            );
        }
        node.ip(&batch);
        pod.ip(&inside);
        node.exec_with("nft", &["-f", "-"], Some(&services));
        node.exec("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        Self { pod, node }
    }

    /// A lab whose pod has the rules of `settings` in force, made as users of the library make them.
    pub fn by(backend: Backend, settings: &CaptureSettings) -> Self {
        let lab = Self::new();
        weir_init::in_netns(&lab.pod.path(), || backend.apply(&RuleSet::new(settings))).unwrap();
        lab
    }

    /// Starts the proxy's stand-in and the application in the pod, and everybody else's servers.
    pub fn serve(&self) -> Servers {
        let mut servers = Servers::default();
        for family in families() {
            let any = |port| SocketAddr::new(family.any, port);
            servers.add(&self.pod, PROXY, "outbound", any(15001));
            servers.add(&self.pod, PROXY, "inbound", any(15006));
            for port in [15020, 15021, 15053, 15090] {
                servers.add(&self.pod, PROXY, "own", any(port));
            }
            for port in [APP_PORT, 22] {
                servers.add(&self.pod, APP, "app", any(port));
            }
            for port in [80, 25, 15009] {
                servers.add(&self.node, APP, "other", any(port));
            }
        }
        servers
    }

    /// What a call from the pod ends at.
    pub fn call_out(&self, user: u32, to: IpAddr, port: u16) -> String {
        self.pod.run(user, user, || call(None, SocketAddr::new(to, port)))
    }

    /// What a call into the pod ends at.
    pub fn call_in(&self, to: IpAddr, port: u16) -> String {
        self.node.run(APP, APP, || call(None, SocketAddr::new(to, port)))
    }
}

/// Connects and returns the line that the server says, or how it failed.
pub fn call(source: Option<SocketAddr>, to: SocketAddr) -> String {
    let result = connect(source, to).and_then(|mut stream| {
        let mut line = String::new();
        stream.read_to_string(&mut line)?;
        Ok(line)
    });
    match result {
        Ok(line) => line,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => "refused".into(),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => "timed out".into(),
            _ => format!("{error}"),
        },
    }
}

pub fn connect(source: Option<SocketAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    when_free(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if let Some(source) = source {
            socket.bind(&source.into())?;
        }
        socket.connect_timeout(&to.into(), LIMIT)?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket.into())
    })
}

/// A program that another test starts at this moment holds copies of all our sockets between its fork and its exec, also of
/// those that we have closed since: their ports are free a moment later. So is a pair of ports whose last connection waits for
/// the other side's last word (`AddrNotAvailable`).
fn when_free<T>(mut bind: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    for _ in 0..200 {
        match bind() {
            Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
    bind()
}

pub fn listen(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_reuse_address(true).unwrap();
    when_free(|| socket.bind(&address.into())).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.listen(64).unwrap();
    socket.into()
}

/// Listeners that say `NAME ORIGINAL-DESTINATION PEER` and close; stopped when dropped.
#[derive(Default)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    pub fn add(&mut self, netns: &Netns, user: u32, name: &'static str, address: SocketAddr) {
        let listener = netns.run(user, user, || listen(address));
        self.accept(listener, move |mut stream, peer| {
            let _ = stream.write_all(format!("{name} {} {}", original(&stream), peer.ip()).as_bytes());
        });
    }

    /// Hands each connection to `each`.
    pub fn accept(&mut self, listener: TcpListener, each: impl Fn(TcpStream, SocketAddr) + Send + 'static) {
        listener.set_nonblocking(true).unwrap();
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(LIMIT)).unwrap();
                        each(stream, peer);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        }));
    }

    /// Answers every datagram with `NAME`.
    pub fn add_udp(&mut self, netns: &Netns, user: u32, name: &'static str, address: SocketAddr) {
        let socket = netns.run(user, user, || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            when_free(|| socket.bind(&address.into())).unwrap();
            UdpSocket::from(socket)
        });
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || {
            let mut buffer = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(name.as_bytes(), peer);
                }
            }
        }));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Where the connection was meant to go.
pub fn original(stream: &TcpStream) -> String {
    let socket = SockRef::from(stream);
    let v4 = stream.local_addr().is_ok_and(|address| address.is_ipv4());
    let original = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match original.ok().and_then(|address| address.as_socket()) {
        Some(address) => address.to_string(),
        None => "untracked".into(),
    }
}

/// Asks by UDP and returns the answer, or how it failed.
pub fn ask(source: SocketAddr, to: SocketAddr) -> String {
    let ask = || {
        let socket = when_free(|| UdpSocket::bind(source))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    ask().unwrap_or_else(|error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock => "no answer".into(),
        _ => error.to_string(),
    })
}

/// Capture settings by their JSON form, without the version.
pub fn settings(json: &str) -> CaptureSettings {
    let comma = if json.is_empty() { "" } else { "," };
    CaptureSettings::from_json(&format!("{{\"version\":1{comma}{json}}}")).unwrap()
}
