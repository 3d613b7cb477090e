//! Network namespaces without names: they end with the last file and process that hold them.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::until;

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Netns(Arc<File>);

impl Netns {
    /// A new one, with its loopback up.
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").ok();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(Arc::new(file.join().unwrap()));
        netns.ip("link set lo up");
        netns
    }

    /// A path that stands for it as long as this process lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip` with these words.
    pub fn ip(&self, words: &str) {
        self.tool("ip", words);
    }

    /// Runs `nft` with these words.
    pub fn nft(&self, words: &str) {
        self.tool("nft", words);
    }

    fn tool(&self, tool: &str, words: &str) {
        let output = self.run(|| Command::new(tool).args(words.split_whitespace()).output().unwrap());
        assert!(output.status.success(), "{tool} {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Connects from inside.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(15)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// Listens inside. A port that was given up may still be held for a moment, by a program that another thread is just starting.
    pub fn listen(&self, at: SocketAddr) -> TcpListener {
        self.run(|| {
            until(&format!("{at} can be listened on"), || match TcpListener::bind(at) {
                Ok(listener) => Some(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
                Err(error) => panic!("{at}: {error}"),
            })
        })
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}
