//! Figures that are easy to work out by hand.

use super::*;
use crate::scenario::Part;

fn round(number: u32, kind: Kind, cpu: f64, rate: f64) -> Round {
    let measured = |scenario| Measured {
        scenario,
        count: 1.0,
        rate,
        p50_ms: Some(1.0),
        p99_ms: Some(2.0),
        cpu_s: vec![if scenario == Scenario::ManyRoutes { cpu * 1.2 } else { cpu }, cpu],
        reopened: 0,
    };
    let all = Scenario::ALL.into_iter().filter(|scenario| scenario.is_of(kind));
    Round {
        round: number,
        candidate: kind.name(),
        measured: all.map(measured).collect(),
        machine: Machine { busy: 1.0, idle: 1.0, steal: 0.0, ours: 1.0 },
    }
}

fn memory(kind: Kind, kb: u64) -> Memory {
    let both = vec![kb, kb];
    let with = |each: u64| Idle { kb: vec![kb + each * 2_000, kb + each * 2_000], sockets: vec![1, 1] };
    Memory {
        candidate: kind.name(),
        idle_kb: both.clone(),
        connections_500_kb: both.clone(),
        accepted: with(3),
        whole_way: with(7),
        opaque: with(9),
        after_rounds_kb: both,
    }
}

fn report() -> Report {
    let mut rounds = Vec::new();
    for (number, noise) in [(1, 1.0), (2, 2.0), (3, 1.5)] {
        rounds.push(round(number, Kind::Relay, 0.015 * noise, 9000.0 / noise));
        rounds.push(round(number, Kind::Weir(1), 0.03 * noise, 9000.0 / noise));
        rounds.push(round(number, Kind::Weir(2), 0.05 * noise, 8000.0 / noise));
        rounds.push(round(number, Kind::Envoy(1), 0.1 * noise, 3000.0 / noise));
        rounds.push(round(number, Kind::Envoy(2), 0.1 * noise, 4000.0 / noise));
    }
    let memory = vec![
        memory(Kind::Weir(1), 10_000),
        memory(Kind::Weir(2), 12_000),
        memory(Kind::Envoy(1), 60_000),
        memory(Kind::Envoy(2), 60_000),
    ];
    Report { envoy_version: Some("1"), processors: 2, kernel: "6".into(), seconds: 1, rounds, memory }
}

#[test]
fn ratios_are_made_inside_rounds_and_the_worse_counts() {
    let json = report().json().unwrap();
    let near = |pointer: &str, wanted: f64| {
        let value = json.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
        assert!((value - wanted).abs() < 1e-9, "{pointer}: {value}");
    };
    for scenario in Scenario::ALL.into_iter().filter(|scenario| scenario.part() != Part::Routes) {
        near(&format!("/cpu_vs_envoy/{}", scenario.key()), 0.5);
        near(&format!("/rate_vs_envoy/{}", scenario.key()), 2.0);
    }
    near("/cpu_vs_relay/grpc_unary/median", 2.0);
    near("/many_routes_vs_one/2/median", 1.2);
    near("/by_workers/http1/cpu/1/median", 0.3);
    near("/rss_vs_envoy/idle", 0.2);
    near("/rss_vs_envoy/connections_500", 0.2);
    near("/rss_per_idle_connection/by_candidate/weir-1/accepted/kb/0", 3.0);
    near("/rss_per_idle_connection/by_candidate/weir-1/whole_way/kb/1", 7.0);
    near("/rss_per_idle_connection/by_candidate/weir-1/opaque/kb/1", 9.0);
    assert_eq!(json["raw"]["rounds"].as_array().unwrap().len(), 15);
    let text = report().text();
    for line in [
        "CPU per request, HTTP/1.1 saturated <= 0.33 x Envoy: MISSED (0.50 x Envoy)",
        "CPU of the caller's proxy, 1,000 rules <= 1.1 x one rule: MISSED (1.20 x one rule)",
        "resident memory, idle <= 12 MB: met (11.72 MB)",
        "resident memory, idle <= 0.22 x Envoy: met (0.20 x Envoy)",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_was_not_measured_is_not_told() {
    let mut report = report();
    report.envoy_version = None;
    report.memory.clear();
    report.rounds.retain(|round| round.candidate.starts_with("weir"));
    for round in &mut report.rounds {
        round.measured.retain(|measured| measured.scenario == Scenario::Tcp);
    }
    assert!(report.json().unwrap()["cpu_vs_envoy"]["http1"].is_null());
    let text = report.text();
    assert!(!text.contains("Goals") && !text.contains("gRPC") && !text.contains("idle MB"), "{text}");
}

#[test]
fn spread() {
    assert_eq!(Spread::of([]), None);
    assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
    assert_eq!(Spread::of([1.0, 2.0, f64::NAN]), Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
}
