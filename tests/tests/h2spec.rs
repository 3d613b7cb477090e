//! The conformance suite h2spec against each of our proxies as a server: the one beside a client, and the one beside a server.
//!
//! nginx is the application. What h2spec finds wrong in nginx alone says nothing of the proxies (`docs/protocols.md` has the figures):
//! no frame of a caller reaches it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use serde_json::json;
use weir_tests::{Netns, Pod, PodSpec, Process, World, at, is_root, nginx, tool, until};

/// Cases of h2spec 2.2.1, the strict ones among them.
const CASES: usize = 146;
/// What fails, each with its reason in `docs/protocols.md`. A port that takes HTTP/1.1 and HTTP/2 reads what is no preface as HTTP/1.1: it
/// answers 400 in that version, and closes.
const EXCEPTIONS: [&str; 1] = ["http2/3.5/2"];
/// Ports of the server: how each is declared. The last is not.
const PORTS: [(&str, u16, u16); 4] = [("grpc", 90, 9000), ("http2", 91, 9001), ("http", 92, 9002), ("", 93, 9003)];

/// Runs all of h2spec from inside a namespace: the cases that failed.
fn h2spec(program: &Path, from: &Netns, to: SocketAddr, report: &Path) -> BTreeSet<String> {
    let mut command = from.command("setpriv");
    command.args(["--pdeathsig=KILL", "--"]).arg(program).args(["--strict", "--timeout", "5"]);
    command.args(["--host", &to.ip().to_string(), "--port", &to.port().to_string(), "--junit-report"]).arg(report);
    let mut run = Process::start("h2spec", &mut command);
    run.wait(Duration::from_secs(120));
    let text = fs::read_to_string(report).unwrap_or_else(|error| panic!("{to}: {error}: {:?}", run.err.all()));
    let (all, failed) = failures(&text);
    assert_eq!(all, CASES, "{to}");
    if failed.iter().any(|case| !EXCEPTIONS.contains(&case.as_str())) {
        run.print();
    }
    failed
}

/// Number of cases in a report, and the names of those that failed as h2spec takes them: group and number in it.
fn failures(report: &str) -> (usize, BTreeSet<String>) {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut failed = BTreeSet::new();
    for case in report.split("<testcase ").skip(1) {
        let group = case.split('"').nth(1).expect("a package");
        let number = numbers.entry(group).or_default();
        *number += 1;
        if ["<failure", "<error", "<skipped"].iter().any(|end| case.contains(end)) {
            failed.insert(format!("{group}/{number}"));
        }
    }
    (numbers.values().sum(), failed)
}

/// Requests of HTTP/2 that a proxy has logged.
fn requests(pod: &Pod) -> usize {
    pod.access_log().iter().filter(|line| line["protocol"] == "HTTP/2").count()
}

#[test]
fn both_proxies_conform() {
    let Some(program) = is_root().then(|| tool::go("h2spec")).flatten() else { return };
    let world = World::new("h2spec");
    let mut spec = PodSpec::new("catalog");
    for (name, _, port) in PORTS {
        spec = spec.port(name, port);
    }
    let server = world.pod(spec);
    let listen: String = PORTS.iter().map(|(_, _, port)| format!("listen {port} http2; ")).collect();
    let servers = format!("server {{ {listen} root ROOT; }}");
    let _nginx = nginx::start(&server.netns, &world.path("nginx"), &servers, PORTS[0].2);
    let services: Vec<_> = (10..)
        .zip(PORTS)
        .map(|(last, port)| world.service(&format!("catalog-{last}"), last, &json!({"app": "catalog"}), &[port]))
        .collect();
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    let mut report = 0;
    let mut wrong = Vec::new();
    for ((name, port, target), ip) in PORTS.into_iter().zip(services) {
        for (from, to) in
            [(&client, at(ip, port)), (&client, at(server.ip, target)), (&stranger, at(server.ip, target))]
        {
            report += 1;
            let before = requests(&server);
            let failed = h2spec(&program, &from.netns, to, &world.path(&format!("report-{report}.xml")));
            // On a port that is not declared, the first bytes are looked at before anybody reads them as a request.
            let excepted: BTreeSet<String> =
                EXCEPTIONS.iter().filter(|_| !name.is_empty()).map(|case| (*case).to_owned()).collect();
            wrong.extend(
                failed.difference(&excepted).map(|case| format!("{name:?} at {to}, called by {}: {case}", from.name)),
            );
            let through = || (requests(&server) > before + 50).then_some(());
            until("the calls came through the server's proxy", through);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(requests(&client) > 300, "{}", requests(&client));
}
