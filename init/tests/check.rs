//! The two checks: the proxy's own, and the operator's.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use support::{
    Lab, Netns, PROXY, Servers,
    by::{NETLINK, flush, unhook},
    can_run, families, listen, settings,
};
use weir_init::{
    Backend, CheckError, Direction, INBOUND_BANNER, Line, OUTBOUND_BANNER, Outcome, check_as_proxy,
    check_in_current_netns, in_netns,
};
use weir_mesh::CaptureSettings;

const SOON: Duration = Duration::from_millis(300);
const LATER: Duration = Duration::from_secs(10);

/// The proxy's listeners, as far as the check sees them.
fn proxy(pod: &Netns) -> Servers {
    let mut servers = Servers::default();
    for family in families() {
        for (port, banner) in [(15001, OUTBOUND_BANNER), (15006, INBOUND_BANNER)] {
            let listener = pod.run(PROXY, PROXY, || listen(SocketAddr::new(family.any, port)));
            servers.accept(listener, move |mut stream, _| {
                let _ = stream.write_all(banner.as_bytes());
            });
        }
    }
    servers
}

fn own() -> Vec<IpAddr> {
    families().map(|family| family.pod).to_vec()
}

fn the_proxy_proves_both_directions_of_both_families(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = proxy(&lab.pod);
    lab.pod.run(PROXY, PROXY, || check_as_proxy(&own(), LATER)).unwrap();
}

fn the_proxy_says_which_rules_are_missing(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = proxy(&lab.pod);
    let check = || lab.pod.run(PROXY, PROXY, || check_as_proxy(&own(), LATER)).unwrap_err();
    flush(&lab.pod, by, false, "inbound");
    let start = Instant::now();
    let error = check();
    assert!(start.elapsed() < LATER / 2, "missing rules are said at once");
    assert!(
        matches!(error, CheckError::NotRedirected { direction: Direction::Inbound, address: IpAddr::V6(_) }),
        "{error}"
    );
    assert!(error.to_string().starts_with("IPv6 inbound: not redirected"), "{error}");
    unhook(&lab.pod, by, true);
    let error = check();
    assert!(error.to_string().starts_with("IPv4 inbound: not redirected"), "{error}");
}

fn the_proxy_notices_another_listener(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = lab.serve();
    let error = lab.pod.run(PROXY, PROXY, || check_as_proxy(&own(), SOON)).unwrap_err();
    assert!(matches!(error, CheckError::WrongAnswer { direction: Direction::Inbound, .. }), "{error}");
}

fn the_proxy_waits_for_a_listener_that_does_not_answer_yet(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let listener = lab.pod.run(PROXY, PROXY, || listen("0.0.0.0:15006".parse().unwrap()));
    let own = [families()[0].pod];
    let error = lab.pod.run(PROXY, PROXY, || check_as_proxy(&own, SOON)).unwrap_err();
    assert!(matches!(error, CheckError::NoAnswer { direction: Direction::Inbound, .. }), "{error}");
    drop(listener);
}

fn the_proxy_waits_out_duplicate_address_detection(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let _servers = proxy(&lab.pod);
    let late: IpAddr = "fd00:7::77".parse().unwrap();
    lab.pod.ip("addr add fd00:7::77/64 dev eth0\n");
    assert!(lab.pod.exec("ip", &["addr"]).contains("tentative"));
    let error = lab.pod.run(PROXY, PROXY, || check_as_proxy(&[late], Duration::ZERO)).unwrap_err();
    assert!(matches!(error, CheckError::Tentative(_)), "{error}");
    lab.pod.run(PROXY, PROXY, || check_as_proxy(&[late], LATER)).unwrap();
    // An address that the node has: detection finds it.
    let taken: IpAddr = "fd00:7::1".parse().unwrap();
    lab.pod.ip("addr add fd00:7::1/64 dev eth0\n");
    let error = lab.pod.run(PROXY, PROXY, || check_as_proxy(&[taken], LATER)).unwrap_err();
    assert!(matches!(error, CheckError::Duplicate(_)), "{error}");
}

fn findings(lab: &Lab) -> Vec<Line> {
    in_netns(&lab.pod.path(), check_in_current_netns).unwrap()
}

fn count(lines: &[Line], wanted: impl Fn(&Outcome) -> bool) -> usize {
    lines.iter().filter(|line| wanted(&line.outcome)).count()
}

const DNS: &str = r#""dnsServers":["198.19.0.10","fd00:19::10"]"#;

fn the_operator_proves_everything_without_a_proxy(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(DNS));
    let before = lab.pod.addresses();
    let lines = findings(&lab);
    assert_eq!(count(&lines, |outcome| matches!(outcome, Outcome::Proven)), 8, "{lines:#?}");
    assert_eq!(lines.len(), 8, "{lines:#?}");
    assert_eq!(lab.pod.addresses(), before, "the check leaves nothing");
}

fn the_operator_proves_it_beside_a_proxy(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &settings(DNS));
    let mut servers = proxy(&lab.pod);
    for family in families() {
        servers.add_udp(&lab.pod, PROXY, "proxy", SocketAddr::new(family.loopback, 15053));
        servers.add(&lab.pod, PROXY, "proxy", SocketAddr::new(family.loopback, 15053));
    }
    let lines = findings(&lab);
    assert_eq!(count(&lines, |outcome| matches!(outcome, Outcome::Proven)), 4, "{lines:#?}");
    assert_eq!(count(&lines, |outcome| matches!(outcome, Outcome::NotTried(_))), 4, "{lines:#?}");
}

fn the_operator_sees_what_does_not_work(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let failed = |lines: &[Line]| -> Vec<String> {
        let failed = lines.iter().filter(|line| matches!(line.outcome, Outcome::Failed(_)));
        failed.map(|line| line.to_string().split(':').next().unwrap().to_owned()).collect()
    };
    assert_eq!(failed(&findings(&lab)), ["IPv4 inbound", "IPv4 outbound", "IPv6 inbound", "IPv6 outbound"]);
    let rules = weir_init::RuleSet::new(&settings(DNS));
    in_netns(&lab.pod.path(), || by.apply(&rules)).unwrap();
    // Somebody else's rules come first and send everything past us.
    let escape = "table ip early { chain o { type nat hook output priority -101; meta l4proto {tcp,udp} dnat to 198.18.7.1; }; }";
    lab.pod.exec_with("nft", &["-f", "-"], Some(escape));
    let lines = findings(&lab);
    let mut wrong = failed(&lines);
    wrong.sort();
    assert_eq!(wrong, ["IPv4 DNS by tcp", "IPv4 DNS by udp", "IPv4 outbound"], "{lines:#?}");
}

fn the_program_prints_what_it_found(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    let run = |arguments: &[&str]| {
        let netns = lab.pod.path();
        let output = Command::new(env!("CARGO_BIN_EXE_weir-init"))
            .args(["check", "--netns", netns.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, error) = run(&["--capture", r#"{"version":1}"#]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(
        out,
        "rules: as they should be\nIPv4 inbound: works\nIPv4 outbound: works\nIPv6 inbound: works\nIPv6 outbound: works\n"
    );
    let (code, _, error) = run(&["--capture", r#"{"version":1,"excludeInboundPorts":[9]}"#]);
    assert_eq!(code, Some(1));
    let rule = if by == NETLINK { "tcp dport 9 return" } else { "-p tcp -m tcp --dport 9 -m comment" };
    assert!(error.contains(&format!("should be `{rule}")), "{error}");
    unhook(&lab.pod, by, true);
    let (code, _, error) = run(&[]);
    assert_eq!(code, Some(1));
    assert!(error.contains("IPv4 inbound: not redirected") && !error.contains("IPv6 inbound"), "{error}");
}

with_each_backend!(
    the_proxy_proves_both_directions_of_both_families,
    the_proxy_says_which_rules_are_missing,
    the_proxy_notices_another_listener,
    the_proxy_waits_for_a_listener_that_does_not_answer_yet,
    the_proxy_waits_out_duplicate_address_detection,
    the_operator_proves_everything_without_a_proxy,
    the_operator_proves_it_beside_a_proxy,
    the_operator_sees_what_does_not_work,
    the_program_prints_what_it_found,
);
