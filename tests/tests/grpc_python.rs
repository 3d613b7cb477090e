//! gRPC's own implementation (the core in C, by Python) as client and server, and grpcurl (in Go): the interoperability cases of gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{net::SocketAddr, path::Path, time::Duration};

use serde_json::{Value, json};
use weir_tests::{Netns, Pod, PodSpec, Process, World, at, is_root, tool, until};

/// Cases of the client, in their order.
const CASES: [&str; 17] = [
    "empty_unary",
    "large_unary",
    "huge_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "health",
    "many_at_once",
];
/// A declared port and one that is not: target, and the Service's.
const PORTS: [(&str, u16, u16); 2] = [("grpc", 90, 9000), ("", 91, 9001)];
const LIMIT: Duration = Duration::from_secs(120);

/// Starts a program of the tests in Python.
fn python(netns: &Netns, packages: &Path, script: &str, words: &[&str]) -> Process {
    let mut command = netns.command("setpriv");
    command.args(["--pdeathsig=KILL", "--", "python3"]).arg(tool::file("tests/python").join(script)).args(words);
    command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    Process::start(script, &mut command)
}

fn server(netns: &Netns, packages: &Path) -> Process {
    let ports = PORTS.map(|(_, _, port)| port.to_string());
    let server = python(netns, packages, "grpc_server.py", &[&ports[0], &ports[1]]);
    until("the server in Python serves", || (!server.out.with(&["serving"]).is_empty()).then_some(()));
    server
}

/// Runs all cases from inside a namespace.
fn run(from: &Netns, packages: &Path, to: SocketAddr) {
    let mut client = python(from, packages, "grpc_client.py", &[&to.to_string()]);
    let status = client.wait(LIMIT);
    let expected: Vec<String> = CASES.iter().map(|case| format!("ok {case}")).collect();
    let said = || Some(client.out.all()).filter(|lines| lines.len() >= expected.len());
    let lines = until("the client has said how each case went", said);
    assert_eq!(lines, expected, "{to}: {:?}", client.err.all());
    assert!(status.success(), "{to}: {status}");
}

/// Lines of a proxy's log for a method.
fn logged(pod: &Pod, method: &str) -> Vec<Value> {
    let is =
        |line: &Value| line["path"].as_str().is_some_and(|path| path.ends_with(method)) && line["protocol"] == "HTTP/2";
    pod.access_log().into_iter().filter(is).collect()
}

#[test]
fn interoperability_cases_pass_within_the_mesh_into_it_and_out_of_it() {
    let Some(packages) = is_root().then(tool::python_packages).flatten() else { return };
    let world = World::new("grpc-python");
    let mut spec = PodSpec::new("calls");
    for (name, _, port) in PORTS {
        spec = spec.port(name, port);
    }
    let inside = world.pod(spec);
    let services: Vec<_> = (10..)
        .zip(PORTS)
        .map(|(last, port)| {
            at(world.service(&format!("calls-{last}"), last, &json!({"app": "calls"}), &[port]), port.1)
        })
        .collect();
    let outside = world.pod(PodSpec::new("foreign").outside());
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    let _servers = [server(&inside.netns, &packages), server(&outside.netns, &packages)];
    // Declared and not; through both proxies, through the server's alone, through the client's alone.
    let runs = [
        (&client, services[0]),
        (&client, services[1]),
        (&stranger, at(inside.ip, PORTS[1].2)),
        (&client, at(outside.ip, PORTS[1].2)),
    ];
    for (from, to) in runs {
        run(&from.netns, &packages, to);
    }
    // No call went past a proxy, and none was sent twice. The one with a short deadline may have ended before it left the client.
    for pod in [&inside, &client] {
        for (method, calls) in [("/Unary", 324), ("/BothStreaming", 4)] {
            let all = until(&format!("{} logged every call of {method}", pod.name), || {
                Some(logged(pod, method).len()).filter(|all| *all >= 3 * (calls - 1))
            });
            assert!(all <= 3 * calls, "{} {method}: {all}", pod.name);
        }
    }
}

#[test]
fn grpcurl_reads_services_by_reflection_and_asks_for_health() {
    let Some(packages) = is_root().then(tool::python_packages).flatten() else { return };
    let Some(program) = tool::go("grpcurl") else { return };
    let world = World::new("grpcurl");
    let pod = world.pod(PodSpec::new("calls").port("grpc", PORTS[0].2));
    let to = at(world.service("calls", 10, &json!({"app": "calls"}), &[PORTS[0]]), PORTS[0].1).to_string();
    let client = world.pod(PodSpec::new("client"));
    let mut server = server(&pod.netns, &packages);
    let call = |words: &[&str]| {
        let mut command = client.netns.command("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(&program).args(["-plaintext", "-max-time", "60"]).args(words);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let said = |words: &[&str], text: &str| {
        let (good, output) = call(words);
        assert!(good && output.contains(text), "{words:?}: {output}");
    };
    said(&[&to, "list"], "grpc.health.v1.Health\ngrpc.reflection.v1alpha.ServerReflection");
    said(&[&to, "describe", "grpc.health.v1.Health"], "rpc Check");
    said(&["-d", r#"{"service": "weir.test.Calls"}"#, &to, "grpc.health.v1.Health/Check"], r#""status": "SERVING""#);
    let (good, output) = call(&["-d", r#"{"service": "none"}"#, &to, "grpc.health.v1.Health/Check"]);
    assert!(!good && output.contains("NotFound"), "{output}");
    for proxied in [&client, &pod] {
        until("the checks are logged", || (logged(proxied, "/Check").len() == 2).then_some(()));
    }
    server.kill();
    let (good, output) = call(&[&to, "list"]);
    assert!(!good && output.contains("Unavailable"), "{output}");
}
