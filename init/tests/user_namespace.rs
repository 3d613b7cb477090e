//! Pods whose users are not the node's (`hostUsers: false`): their network namespace belongs to a user namespace, and the rules'
//! user 1337 must be the pod's 1337, not the node's.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{
    io::Write as _,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use support::{APP, PROXY, by::NETLINK, can_run};
use weir_init::{Backend, Error, RuleSet, apply_in_netns, in_force, in_netns};
use weir_mesh::{CaptureSettings, ports};

/// Where the pod's users begin on the node.
const FIRST: u32 = 100_000;
const NOBODY_THERE: [&str; 2] = ["198.18.99.9", "fd00:99::9"];

/// A user namespace with a network namespace of its own, gone when dropped.
struct Pod {
    holder: Child,
}

impl Pod {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["--user", "--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let pod = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::read_link(pod.netns()).unwrap() == own {
            assert!(Instant::now() < end, "no namespaces");
            std::thread::sleep(Duration::from_millis(5));
        }
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", pod.holder.id()), format!("0 {FIRST} 65536")).unwrap();
        }
        pod
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Runs a script as a user of the pod; what it printed.
    fn shell(&self, user: u32, script: &str) -> String {
        let (process, user) = (self.holder.id().to_string(), user.to_string());
        let output = Command::new("nsenter")
            .args(["--target", &process, "--user", "--net", "--setuid", &user, "--setgid", &user, "bash", "-c", script])
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn the_proxy_is_known_by_its_user_of_the_pod(by: Backend) {
    if !can_run() {
        return;
    }
    let pod = Pod::new();
    if by == NETLINK {
        // As the node's plugin does it.
        apply_in_netns(&pod.netns(), &RuleSet::new(&CaptureSettings::default())).unwrap();
    } else {
        // From the node, iptables' match for users does not know whose users are meant; nothing is left of the attempt.
        let refused = in_netns(&pod.netns(), || by.apply(&RuleSet::new(&CaptureSettings::default()))).unwrap_err();
        assert!(matches!(refused, Error::IptablesRefused(_)), "{refused}");
        assert_eq!(in_netns(&pod.netns(), in_force).unwrap(), []);
        // The init container is in the pod's user namespace.
        let said = pod.shell(0, &format!("{} apply --backend {by}", env!("CARGO_BIN_EXE_weir-init")));
        assert!(said.starts_with("redirect in force: 28 rules, IPv4 and IPv6, "), "{said}");
    }
    // A way out, at whose end nobody is.
    let said = pod.shell(
        0,
        "set -e; ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
         ip addr add 198.18.99.1/24 dev v0; ip addr add fd00:99::1/64 dev v0 nodad",
    );
    assert_eq!(said, "");
    for (address, nobody) in ["0.0.0.0", "[::]"].iter().zip(NOBODY_THERE) {
        let listen = format!("{address}:{}", ports::OUTBOUND);
        let listener = in_netns(&pod.netns(), || Ok(TcpListener::bind(listen).unwrap())).unwrap();
        let proxy = std::thread::spawn(move || {
            for _ in 0..2 {
                listener.accept().unwrap().0.write_all(b"captured").unwrap();
            }
        });
        let call = format!("exec 3<>/dev/tcp/{nobody}/80 && cat <&3");
        for user in [0, APP] {
            assert_eq!(pod.shell(user, &format!("timeout 10 bash -c '{call}'")), "captured", "{user} to {nobody}");
        }
        proxy.join().unwrap();
        // The listener is gone: who is captured is refused at once, who is not waits for an answer of nobody.
        // The kernel takes a moment for it where a process that was just forked holds the socket for as long.
        let end = Instant::now() + Duration::from_secs(10);
        let mut said = pod.shell(APP, &format!("timeout 5 bash -c '{call}'"));
        while !said.contains("refused") {
            assert!(Instant::now() < end, "{nobody}: {said}");
            said = pod.shell(APP, &format!("timeout 5 bash -c '{call}'"));
        }
        let said = pod.shell(PROXY, &format!("timeout 1 bash -c '{call}'; echo $?"));
        assert!(said.trim() == "124" || said.contains("No route to host"), "{nobody}: {said}");
    }
}

with_each_backend!(the_proxy_is_known_by_its_user_of_the_pod);
