//! From one back end to another: afterwards there is one set of rules, and which way it took is said.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{os::unix::fs::symlink, path::PathBuf, process::Command};

use support::{
    APP, APP_PORT, Lab, Netns,
    by::{ALL, IPTABLES_LEGACY, IPTABLES_NFT, NETLINK, everything, ours},
    can_run, families,
    refusing::without_nf_tables,
    settings,
};
use weir_init::{
    Backend, By, Error, RuleSet, Variant, clean_in_current_netns, in_force, in_netns, verify_in_current_netns,
};
use weir_mesh::CaptureSettings;

const FULL: &str = r#""excludeInboundPorts":[22],"dnsServers":["198.19.0.10","fd00:19::10"],"blockUdp":true"#;

#[test]
fn afterwards_there_is_one_set() {
    if !can_run() {
        return;
    }
    for first in ALL {
        for second in ALL {
            let lab = Lab::by(first, &settings(FULL));
            assert_eq!(ours(&lab.pod), [first]);
            let rules = RuleSet::new(&CaptureSettings::default());
            in_netns(&lab.pod.path(), || second.apply(&rules)).unwrap();
            assert_eq!(ours(&lab.pod), [second], "{first} then {second}:\n{}", everything(&lab.pod));
            in_netns(&lab.pod.path(), || verify_in_current_netns(&rules)).unwrap();
            let _servers = lab.serve();
            for family in families() {
                assert!(lab.call_out(APP, family.other, 80).starts_with("outbound "), "{first} then {second}");
                assert!(lab.call_in(family.pod, APP_PORT).starts_with("inbound "), "{first} then {second}");
                assert!(lab.call_in(family.pod, 22).starts_with("inbound "), "the first one's exclusion is gone");
            }
        }
    }
}

#[test]
fn jumps_that_others_added_or_took_are_put_right() {
    if !can_run() {
        return;
    }
    for (by, program) in [(IPTABLES_NFT, "ip6tables-nft"), (IPTABLES_LEGACY, "ip6tables-legacy")] {
        let pod = Netns::new("pod");
        let rules = RuleSet::new(&CaptureSettings::default());
        let apply = || in_netns(&pod.path(), || by.apply(&rules)).unwrap();
        let verify = || in_netns(&pod.path(), || verify_in_current_netns(&rules));
        apply();
        let whole = everything(&pod);
        for change in ["-A", "-D"] {
            pod.exec(program, &["-t", "nat", change, "OUTPUT", "-j", "WEIR_OUTPUT"]);
            if change == "-D" {
                // A rule of others that came before ours does not stay there.
                pod.exec(program, &["-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-j", "ACCEPT"]);
            }
            let error = verify().unwrap_err().to_string();
            assert!(error.contains("not exactly one jump leads to chain WEIR_OUTPUT of ip6tables"), "{error}");
            apply();
            verify().unwrap();
        }
        let theirs = format!("{program}: -A OUTPUT -p tcp -j ACCEPT\n");
        let now = everything(&pod);
        assert_eq!(now.replace(&theirs, ""), whole);
        assert!(now.find(&theirs) > now.find(&format!("{program}: -A OUTPUT -j WEIR_OUTPUT\n")), "{now}");
    }
}

#[test]
fn two_sets_are_seen_and_cleaned() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    let rules = RuleSet::new(&CaptureSettings::default());
    in_netns(&pod.path(), || IPTABLES_LEGACY.apply(&rules)).unwrap();
    pod.exec_with("nft", &["-f", "-"], Some(&rules.to_string()));
    let both = [By::Netlink, By::Iptables(Variant::Legacy)];
    assert_eq!(in_netns(&pod.path(), in_force).unwrap().iter().map(|set| set.by).collect::<Vec<_>>(), both);
    let error = in_netns(&pod.path(), || verify_in_current_netns(&rules)).unwrap_err().to_string();
    assert!(error.contains("more than one set of rules: by nf_tables and by iptables (legacy variant)"), "{error}");
    in_netns(&pod.path(), clean_in_current_netns).unwrap();
    assert_eq!(ours(&pod), []);
}

#[test]
fn the_namespaces_own_variant_is_taken() {
    if !can_run() {
        return;
    }
    let rules = RuleSet::new(&CaptureSettings::default());
    let taken = |pod: &Netns| {
        let applied = in_netns(&pod.path(), || Backend::Iptables(None).apply(&rules)).unwrap();
        (applied.by, applied.reason)
    };
    let (nft, legacy) = (By::Iptables(Variant::Nft), By::Iptables(Variant::Legacy));
    let pod = Netns::new("pod");
    assert_eq!(taken(&pod), (nft, "it is the newer one".into()));
    assert_eq!(taken(&pod), (nft, "Weir's rules are there already".into()));
    let pod = Netns::new("pod");
    // That a table is there says nothing: only rules do.
    pod.exec("iptables-legacy", &["-t", "nat", "-L"]);
    assert_eq!(taken(&pod).0, nft);
    for (program, want) in [("ip6tables-legacy", legacy), ("iptables-nft", nft)] {
        let pod = Netns::new("pod");
        pod.exec(program, &["-A", "INPUT", "-p", "tcp", "-j", "ACCEPT"]);
        assert_eq!(taken(&pod), (want, "the namespace has rules of it".into()), "{program}");
    }
    let pod = Netns::new("pod");
    in_netns(&pod.path(), || Backend::Auto.apply(&rules)).unwrap();
    assert_eq!(ours(&pod), [NETLINK]);
}

fn weir_init(pod: &Netns, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-init"));
    command.args(arguments).arg("--netns").arg(pod.path());
    command
}

fn said(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn without_nf_tables_there_is_the_older_interface() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let run = |arguments: &[&str]| said(without_nf_tables(&mut weir_init(&lab.pod, arguments)));
    let (code, text) = run(&["apply", "--backend", "nft"]);
    assert!(code == Some(1) && text.contains("this kernel has no netfilter netlink"), "{text}");
    let (code, text) = run(&["apply", "--backend", "iptables-nft"]);
    assert!(code == Some(1) && text.contains("iptables does not take the rules, and nothing was changed"), "{text}");
    assert_eq!(ours(&lab.pod), []);
    let (code, text) = run(&["apply"]);
    assert!(code == Some(0), "{text}");
    let reason = ", by iptables (legacy variant): the kernel refuses nf_tables' own redirect, and the nft variant can not be used";
    assert!(text.contains(reason) && text.lines().count() == 1, "{text}");
    assert_eq!(ours(&lab.pod), [IPTABLES_LEGACY]);
    let (code, text) = run(&["check", "--capture", r#"{"version":1}"#]);
    assert!(code == Some(0) && text.contains("IPv6 outbound: works"), "{text}");
    let (code, text) = run(&["show"]);
    assert!(
        code == Some(0) && text.contains("# iptables-legacy-save\n*") && text.contains("-A WEIR_OUTPUT "),
        "{text}"
    );
    assert_eq!(run(&["clean"]).0, Some(0));
    assert_eq!(ours(&lab.pod), []);
}

#[test]
fn without_the_programs_it_says_what_to_install() {
    if !can_run() {
        return;
    }
    // The image of the proxy has none: what is seen of the machine there is nothing.
    let pod = Netns::new("pod");
    let run = |arguments: &str| {
        let program = env!("CARGO_BIN_EXE_weir-init");
        let script = format!("mount -t tmpfs none /usr/sbin && exec {program} {arguments}");
        let mut command = Command::new("ip");
        said(command.args(["netns", "exec", &pod.name, "unshare", "--mount", "sh", "-c", &script]))
    };
    let (code, text) = run("apply --backend iptables");
    assert!(code == Some(1) && text.contains("the programs of iptables are not here"), "{text}");
    assert!(text.contains("install the package iptables") && text.lines().count() == 1, "{text}");
    // Nor can what is there by them be taken away, and there will be no second set beside it.
    let rules = RuleSet::new(&CaptureSettings::default());
    in_netns(&pod.path(), || IPTABLES_NFT.apply(&rules)).unwrap();
    for arguments in ["apply --backend nft", "clean", "show"] {
        let (code, text) = run(arguments);
        assert!(code == Some(1) && text.contains("the programs of iptables are not here"), "{arguments}: {text}");
    }
    assert_eq!(ours(&pod), [IPTABLES_NFT]);
}

/// IPv6 refuses after IPv4 was changed: IPv4 has again what it had.
#[test]
fn all_or_nothing() {
    if !can_run() {
        return;
    }
    for by in [IPTABLES_NFT, IPTABLES_LEGACY] {
        let Backend::Iptables(Some(variant)) = by else { unreachable!() };
        for settings in [None, Some(settings(FULL))] {
            let pod = Netns::new("pod");
            pod.exec(&format!("iptables-{variant}"), &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT"]);
            if let Some(settings) = &settings {
                in_netns(&pod.path(), || by.apply(&RuleSet::new(settings))).unwrap();
            }
            // A program that, the first time, takes all of the last family but its last table, as a kernel without that table
            // would; then it is the real one.
            let folder = programs(&pod, |name, path| {
                let script = format!(
                    "#!/bin/sh\nif [ -e \"$0.tried\" ]; then exec {path} \"$@\"; fi\n: >\"$0.tried\"\n\
                     sed '/^\\*nat/,$d' | {path} \"$@\"\necho 'no table nat' >&2\nexit 1\n"
                );
                (name == "ip6tables").then_some(script)
            });
            let before = everything(&pod);
            let mut command = weir_init(&pod, &["apply", "--backend", by.as_str()]);
            let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
            let (code, said) = said(command.env("PATH", path));
            std::fs::remove_dir_all(&folder).unwrap();
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("no table nat") && said.lines().count() == 1, "{said}");
            assert_eq!(everything(&pod), before, "{by}");
        }
    }
}

#[test]
fn what_can_not_be_taken_away_is_said() {
    if !can_run() {
        return;
    }
    let pod = Netns::new("pod");
    in_netns(&pod.path(), || IPTABLES_LEGACY.apply(&RuleSet::new(&CaptureSettings::default()))).unwrap();
    let folder = programs(&pod, |_, _| Some("#!/bin/sh\necho 'it is stuck' >&2\nexit 1\n".into()));
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    let (code, text) = said(weir_init(&pod, &["apply", "--backend", "nft"]).env("PATH", path));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(code == Some(1) && text.lines().count() == 1, "{text}");
    let wanted = "the rules are in force by nf_tables, but what another back end left can not be taken away: ";
    assert!(text.contains(wanted) && text.contains("iptables-legacy-restore: it is stuck"), "{text}");
    assert_eq!(ours(&pod), [NETLINK, IPTABLES_LEGACY]);
}

/// A folder of programs in the place of iptables' own: for those that `replace` has a script for.
fn programs(pod: &Netns, replace: impl Fn(&str, &str) -> Option<String>) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("weir-programs-{}", pod.name));
    std::fs::create_dir_all(&folder).unwrap();
    for family in ["iptables", "ip6tables"] {
        for variant in Variant::ALL {
            for kind in ["restore", "save"] {
                let name = format!("{family}-{variant}-{kind}");
                let (real, path) = (format!("/usr/sbin/{name}"), folder.join(&name));
                match replace(family, &real).filter(|_| kind == "restore") {
                    Some(script) => {
                        std::fs::write(&path, script).unwrap();
                        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
                    }
                    None => symlink(real, path).unwrap(),
                }
            }
        }
    }
    folder
}

#[test]
fn what_iptables_can_not_say_changes_nothing() {
    if !can_run() {
        return;
    }
    for by in [Backend::Iptables(None), IPTABLES_NFT, IPTABLES_LEGACY] {
        let pod = Netns::new("pod");
        let rules = RuleSet::new(&settings(r#""skipInterfaces":["eth+"]"#));
        let error = in_netns(&pod.path(), || by.apply(&rules)).unwrap_err();
        assert!(matches!(error, Error::Inexpressible(_)), "{error}");
        assert_eq!(
            error.to_string(),
            "iptables can not express the interface name \"eth+\": use --backend nft, or settings without it"
        );
        assert_eq!(ours(&pod), []);
    }
}
