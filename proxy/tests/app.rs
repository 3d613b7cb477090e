//! The real program, in a network namespace of its own: what it says when it can not become ready.

#![allow(clippy::unwrap_used)] // a step that fails is a failed test

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

/// Ends the program whatever happens.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = env::temp_dir().join(format!("weir-proxy-app-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn is_root() -> bool {
    let root = geteuid().is_root();
    assert!(root || env::var_os("CI").is_none(), "CI must run the tests that need root");
    if !root {
        eprintln!("skipped: a network namespace needs root");
    }
    root
}

fn start(folder: &Path) -> Proxy {
    let message = folder.join("message");
    fs::write(&message, "").unwrap();
    let child = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up; exec \"$0\" run", env!("CARGO_BIN_EXE_weir-proxy")])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("WEIR_POD_NAME", "app-1")
        .env("WEIR_POD_NAMESPACE", "shop")
        .env("WEIR_SERVICE_ACCOUNT", "app")
        .env("WEIR_POD_IPS", "127.0.0.1")
        .env("WEIR_CONTROL", "127.0.0.1:15012")
        .env("WEIR_ROOT_FILE", folder.join("no-root.pem"))
        .env("WEIR_TOKEN_FILE", folder.join("no-token"))
        .env("WEIR_TERMINATION_LOG", &message)
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("log")).unwrap())
        .spawn()
        .unwrap();
    Proxy(child)
}

fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "{what} did not come");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_proxy_that_is_given_up_before_it_is_ready_says_why() {
    if !is_root() {
        return;
    }
    let folder = folder("why");
    let mut proxy = start(&folder);
    let log = || fs::read_to_string(folder.join("log")).unwrap();
    wait_for("a word on the missing roots", Duration::from_secs(20), || log().contains("no-root.pem"));
    kill(Pid::from_raw(i32::try_from(proxy.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    wait_for("the end", Duration::from_secs(20), || proxy.0.try_wait().unwrap().is_some());
    let message = fs::read_to_string(folder.join("message")).unwrap();
    for part in ["certificate: ", "inbound configuration: ", "no-root.pem"] {
        assert!(message.contains(part), "{part:?} is not in the message {message:?}; log:\n{}", log());
    }
    assert!(log().contains("stopped before it was ready"));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_wrong_setting_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_weir-proxy"))
        .arg("run")
        .env_clear()
        .env("WEIR_POD_NAMESPACE", "shop")
        .env("WEIR_SERVICE_ACCOUNT", "app")
        .env("WEIR_CONTROL", "no-port")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.trim(), "weir-proxy: environment variable WEIR_CONTROL: \"no-port\" is not HOST:PORT");
}
