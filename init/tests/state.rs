//! What is in force after a call: the same for the same input, nothing of others, nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output},
};

use support::{Lab, Netns, can_run, settings};
use weir_init::{
    Error, RuleSet, apply_in_netns, clean_in_current_netns, in_netns, show_in_current_netns, verify_in_current_netns,
};
use weir_mesh::CaptureSettings;

const FULL: &str = r#""excludeInboundPorts":[22],"excludeOutboundPorts":[25],"skipInterfaces":["net1"],
    "includeOutboundCidrs":["198.18.0.0/16","fd00::/8"],"excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32"],
    "dnsServers":["198.19.0.10","fd00:19::10"]"#;

/// The ruleset as JSON, without the handles, which the kernel counts on.
fn listing(netns: &Netns) -> serde_json::Value {
    fn strip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                map.remove("handle");
                map.values_mut().for_each(strip);
            }
            serde_json::Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(&netns.exec("nft", &["-j", "list", "ruleset"])).unwrap();
    strip(&mut value);
    value
}

#[test]
fn the_same_input_gives_the_same_state() {
    if !can_run() {
        return;
    }
    let (pod, fresh) = (Netns::new("pod"), Netns::new("fresh"));
    let rules = RuleSet::new(&settings(FULL));
    let applied = apply_in_netns(&pod.path(), &rules).unwrap();
    assert_eq!((applied.rules, applied.ipv6), (rules.len(), true));
    let (first, addresses) = (listing(&pod), pod.exec("ip", &["addr"]));
    apply_in_netns(&pod.path(), &rules).unwrap();
    assert_eq!(listing(&pod), first);
    assert_eq!(pod.exec("ip", &["addr"]), addresses);
    // Other settings leave nothing of the old ones.
    let plain = RuleSet::new(&CaptureSettings::default());
    apply_in_netns(&pod.path(), &plain).unwrap();
    apply_in_netns(&fresh.path(), &plain).unwrap();
    assert_eq!(listing(&pod), listing(&fresh));
    assert_ne!(listing(&pod), first);
}

#[test]
fn many_callers_at_once_leave_one_whole_set() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let sets = [settings(FULL), CaptureSettings::default()].map(|settings| RuleSet::new(&settings));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (path, rules) = (pod.path(), &sets[n % 2]);
            scope.spawn(move || apply_in_netns(&path, rules).unwrap());
        }
    });
    let whole = sets.iter().filter(|rules| in_netns(&pod.path(), || verify_in_current_netns(rules)).is_ok());
    assert_eq!(whole.count(), 1);
}

#[test]
fn clean_leaves_nothing() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    pod.ip("link set lo up\n");
    let before = pod.exec("ip", &["addr"]);
    let rules = RuleSet::new(&settings(FULL));
    apply_in_netns(&pod.path(), &rules).unwrap();
    for _ in 0..2 {
        in_netns(&pod.path(), clean_in_current_netns).unwrap();
        assert_eq!(pod.ruleset(), "");
        assert_eq!(pod.exec("ip", &["addr"]), before);
    }
}

#[test]
fn tables_of_others_are_not_touched() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let theirs = "table inet weir { chain c { type filter hook input priority 0; tcp dport 1 drop; }; }
                  table ip other { chain c { type nat hook output priority -100; tcp dport 2 redirect to :3; }; }";
    pod.exec_with("nft", &["-f", "-"], Some(theirs));
    let before = pod.ruleset();
    let rules = RuleSet::new(&CaptureSettings::default());
    apply_in_netns(&pod.path(), &rules).unwrap();
    apply_in_netns(&pod.path(), &rules).unwrap();
    let during = pod.ruleset();
    for line in before.lines() {
        assert!(during.contains(line), "{line} is gone");
    }
    in_netns(&pod.path(), clean_in_current_netns).unwrap();
    assert_eq!(pod.ruleset(), before);
}

/// Our batch and the `nft` program make the same of the rules, and reading them back gives what was written.
#[test]
fn the_kernel_holds_what_the_text_says() {
    if !can_run() {
        return;
    }
    for json in ["", FULL] {
        let (ours, theirs) = (Netns::new("ours"), Netns::new("theirs"));
        let rules = RuleSet::new(&settings(json));
        apply_in_netns(&ours.path(), &rules).unwrap();
        theirs.exec_with("nft", &["-f", "-"], Some(&rules.to_string()));
        assert_eq!(ours.ruleset(), theirs.ruleset());
        assert_eq!(in_netns(&ours.path(), show_in_current_netns).unwrap(), rules);
    }
}

#[test]
fn a_difference_is_named() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let rules = RuleSet::new(&CaptureSettings::default());
    let difference = || match in_netns(&pod.path(), || verify_in_current_netns(&rules)) {
        Err(Error::Differs(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(difference(), "table ip weir is missing");
    apply_in_netns(&pod.path(), &rules).unwrap();
    pod.exec("nft", &["insert", "rule", "ip6", "weir", "output", "accept"]);
    assert!(difference().starts_with("chain output of table ip6 weir, rule 1: is `return comment \"unreadable"));
    apply_in_netns(&pod.path(), &rules).unwrap();
    pod.exec("nft", &["add", "rule", "ip", "weir", "inbound", "counter"]);
    assert!(difference().contains("is not ours"));
    apply_in_netns(&pod.path(), &rules).unwrap();
    pod.exec("nft", &["flush", "chain", "ip", "weir", "inbound"]);
    assert!(difference().contains("rule 1 is missing: `tcp dport 15020 return"));
    apply_in_netns(&pod.path(), &rules).unwrap();
    in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap();
}

/// The longest lists that settings may have: the batch is larger than a socket's usual buffer.
#[test]
fn the_largest_settings_fit_in_one_batch() {
    if !can_run() {
        return;
    }
    let ports: Vec<u16> = (1..=256).collect();
    let nets = |second: u8| -> Vec<ipnet::IpNet> {
        (0..128u8)
            .flat_map(|n| [format!("198.{second}.{n}.0/24"), format!("fd00:{second}:{n}::/48")])
            .map(|text| text.parse().unwrap())
            .collect()
    };
    let most = CaptureSettings {
        exclude_inbound_ports: ports.clone(),
        exclude_outbound_ports: ports,
        include_outbound_cidrs: nets(18),
        exclude_outbound_cidrs: nets(19),
        skip_interfaces: (0..256).map(|n| format!("eth{n}")).collect(),
        ..CaptureSettings::default()
    };
    let pod = Netns::new("pod");
    let rules = RuleSet::new(&most);
    let applied = apply_in_netns(&pod.path(), &rules).unwrap();
    assert!(applied.rules > 3000, "{applied:?}");
    in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap();
}

#[test]
fn a_namespace_without_ipv6_is_served() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    pod.exec("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1"]);
    let rules = RuleSet::new(&CaptureSettings::default());
    apply_in_netns(&pod.path(), &rules).unwrap();
    in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap();
    in_netns(&pod.path(), clean_in_current_netns).unwrap();
    let switched = pod.exec("sysctl", &["-n", "net.ipv6.conf.all.disable_ipv6"]);
    assert_eq!(switched.trim(), "1", "the pod's settings are not ours to change");
}

#[test]
fn the_callers_namespace_does_not_change() {
    if !can_run() {
        return;
    }
    let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (before, pod) = (here(), Netns::new("pod"));
    let there = in_netns(&pod.path(), || Ok(here())).unwrap();
    assert_ne!(there, before);
    assert_eq!(here(), before);
}

#[test]
fn a_namespace_that_is_gone() {
    let rules = RuleSet::new(&CaptureSettings::default());
    let error = apply_in_netns(Path::new("/var/run/netns/weir-no-such"), &rules).unwrap_err();
    assert!(error.to_string().contains("the pod's sandbox is gone"), "{error}");
    if can_run() {
        // What is left of a namespace when it is unmounted under its name: an ordinary file.
        let error = apply_in_netns(Path::new("/etc/hostname"), &rules).unwrap_err();
        assert!(error.to_string().contains("is no network namespace"), "{error}");
    }
}

fn weir_init(netns: &Netns, user: u32, arguments: &[&str]) -> Output {
    let namespace = std::fs::File::open(netns.path()).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            Command::new(env!("CARGO_BIN_EXE_weir-init")).args(arguments).uid(user).gid(user).output().unwrap()
        });
        thread.join().unwrap()
    })
}

#[test]
fn the_program() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let run = |arguments: &[&str]| {
        let output = weir_init(&lab.pod, 0, arguments);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(run(&["show"]), (Some(0), "no redirect is in force here\n".into(), String::new()));
    let (code, out, error) = run(&["apply", "--capture", r#"{"version":1,"excludeInboundPorts":[22]}"#]);
    assert!(code == Some(0) && out.starts_with("redirect in force: 30 rules, IPv4 and IPv6, in "), "{out}{error}");
    assert!(run(&["show"]).1.contains("tcp dport 22 return comment \"excluded inbound port\""));
    assert_eq!(run(&["clean"]).0, Some(0));
    assert_eq!(lab.pod.ruleset(), "");
    // Nobody but who may.
    let output = weir_init(&lab.pod, 65534, &["apply"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("NET_ADMIN"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let (code, _, error) = run(&["aply"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("\"aply\" is no command"), "{error}");
}
