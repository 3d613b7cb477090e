//! What is in force after a call: the same for the same input, nothing of others, nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output},
};

use support::{
    Lab, Netns,
    by::{NETLINK, append, everything, flush, insert, unhook},
    can_run, settings,
};
use weir_init::{
    Applied, Backend, Error, RuleSet, apply_in_netns, clean_in_current_netns, in_netns, show_in_current_netns,
    verify_in_current_netns,
};
use weir_mesh::CaptureSettings;

const FULL: &str = r#""excludeInboundPorts":[22],"excludeOutboundPorts":[25],"skipInterfaces":["net1"],
    "includeOutboundCidrs":["198.18.0.0/16","fd00::/8"],"excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32"],
    "dnsServers":["198.19.0.10","fd00:19::10"]"#;

fn apply(by: Backend, pod: &Netns, rules: &RuleSet) -> Applied {
    in_netns(&pod.path(), || by.apply(rules)).unwrap()
}

fn the_same_input_gives_the_same_state(by: Backend) {
    if !can_run() {
        return;
    }
    let (pod, fresh) = (Netns::new("pod"), Netns::new("fresh"));
    let rules = RuleSet::new(&settings(FULL));
    let applied = apply(by, &pod, &rules);
    assert_eq!((applied.rules, applied.ipv6), (rules.len(), true));
    let (first, addresses) = (everything(&pod), pod.addresses());
    apply(by, &pod, &rules);
    assert_eq!(everything(&pod), first);
    assert_eq!(pod.addresses(), addresses);
    // Other settings leave nothing of the old ones.
    let plain = RuleSet::new(&CaptureSettings::default());
    apply(by, &pod, &plain);
    apply(by, &fresh, &plain);
    assert_eq!(everything(&pod), everything(&fresh));
    assert_ne!(everything(&pod), first);
}

fn many_callers_at_once_leave_one_whole_set(by: Backend) {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let sets = [settings(FULL), CaptureSettings::default()].map(|settings| RuleSet::new(&settings));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (pod, rules) = (&pod, &sets[n % 2]);
            scope.spawn(move || apply(by, pod, rules));
        }
    });
    let whole = sets.iter().filter(|rules| in_netns(&pod.path(), || verify_in_current_netns(rules)).is_ok());
    assert_eq!(whole.count(), 1);
}

fn clean_leaves_nothing(by: Backend) {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    pod.ip("link set lo up\n");
    let before = pod.addresses();
    let rules = RuleSet::new(&settings(FULL));
    apply(by, &pod, &rules);
    for _ in 0..2 {
        in_netns(&pod.path(), clean_in_current_netns).unwrap();
        assert!(!everything(&pod).to_lowercase().contains("weir"), "{}", everything(&pod));
        assert_eq!(pod.addresses(), before);
    }
}

fn rules_of_others_are_not_touched(by: Backend) {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let theirs = "table inet weir { chain c { type filter hook input priority 0; tcp dport 1 drop; }; }
                  table ip other { chain c { type nat hook output priority -100; tcp dport 2 redirect to :3; }; }";
    pod.exec_with("nft", &["-f", "-"], Some(theirs));
    // Rules, a chain, a policy, and a jump to a chain whose name is nearly ours.
    let theirs = "*nat\n:THEIRS - [0:0]\n:WEIRD - [0:0]\n-A OUTPUT -p tcp -m comment --comment \"to WEIR_OUTPUT\" -j THEIRS\n\
                  -A OUTPUT -j WEIRD\n-A THEIRS -p tcp -m tcp --dport 9 -j REDIRECT --to-ports 8\nCOMMIT\n\
                  *mangle\n:INPUT DROP [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n";
    for program in
        ["iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore", "ip6tables-legacy-restore"]
    {
        pod.exec_with(program, &["--noflush"], Some(theirs));
    }
    let before = everything(&pod);
    let rules = RuleSet::new(&settings(FULL));
    apply(by, &pod, &rules);
    apply(by, &pod, &rules);
    let during = everything(&pod);
    for line in before.lines() {
        assert!(during.contains(line), "{line} is gone");
    }
    assert_ne!(during, before);
    in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap();
    in_netns(&pod.path(), clean_in_current_netns).unwrap();
    assert_eq!(everything(&pod), before);
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

fn a_difference_is_named(by: Backend) {
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
    apply(by, &pod, &rules);
    insert(&pod, by, false, "output");
    let (output, inbound) = match by {
        NETLINK => ("chain output of table ip6 weir", "chain inbound of table ip weir"),
        _ => ("chain WEIR_OUTPUT of ip6tables", "chain WEIR_INBOUND of iptables"),
    };
    let said = difference();
    assert!(said.starts_with(&format!("{output}, rule 1: is `")) && said.contains("unreadable"), "{said}");
    apply(by, &pod, &rules);
    append(&pod, by, true, "inbound");
    assert!(difference().contains("is not ours"));
    apply(by, &pod, &rules);
    flush(&pod, by, true, "inbound");
    let said = difference();
    let rule = if by == NETLINK { "tcp dport 15020 return" } else { "-p tcp -m tcp --dport 15020 -m comment" };
    assert!(said.starts_with(&format!("{inbound}, rule 1 is missing: `{rule}")), "{said}");
    apply(by, &pod, &rules);
    unhook(&pod, by, true);
    let said = difference();
    let want = if by == NETLINK { "table ip weir is missing" } else { "not exactly one jump leads to chain WEIR_" };
    assert!(said.starts_with(want), "{said}");
    apply(by, &pod, &rules);
    in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap();
}

/// The longest lists that settings may have: the batch is larger than a socket's usual buffer.
fn the_largest_settings_fit_in_one_batch(by: Backend) {
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
    let applied = apply(by, &pod, &rules);
    assert!(applied.rules > 3000, "{applied:?}");
    in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap();
}

fn a_namespace_without_ipv6_is_served(by: Backend) {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    pod.exec("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1"]);
    let rules = RuleSet::new(&CaptureSettings::default());
    apply(by, &pod, &rules);
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
    assert!(out.ends_with(", by nf_tables: the kernel takes it, and no program is needed\n"), "{out}");
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

with_each_backend!(
    the_same_input_gives_the_same_state,
    many_callers_at_once_leave_one_whole_set,
    clean_leaves_nothing,
    rules_of_others_are_not_touched,
    a_difference_is_named,
    the_largest_settings_fit_in_one_batch,
    a_namespace_without_ipv6_is_served,
);
