//! The report for people.

use std::fmt::Write as _;

use super::{Figure, MEMORY, Report, Spread};
use crate::{
    candidate::Kind,
    memory::{IDLE, Idle, Memory},
    rounds::{Measured, RATE},
    scenario::Scenario,
};

impl Report {
    /// The text for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for scenario in Scenario::ALL {
            self.scenario(scenario, &mut text);
        }
        self.memory_table(&mut text);
        if let Some(rounds) = self.rounds.iter().map(|round| round.round).max() {
            self.circumstances(rounds, &mut text);
        }
        let goals: Vec<_> = self.goals().into_iter().filter(|goal| goal.measured.is_some()).collect();
        if !goals.is_empty() {
            text += "\nGoals, by the worse of 1 and 2 workers:\n";
            for goal in goals {
                let _ = writeln!(text, "  {} <= {} {}: {}", goal.about, goal.at_most, goal.unit, goal.verdict());
            }
        }
        text
    }

    fn circumstances(&self, rounds: u32, text: &mut String) {
        let machine = self.machine();
        let _ = writeln!(
            text,
            "\n{rounds} rounds of {} s a measurement on {} processors, Linux {}. Taken by other guests of the host (steal): \
             {:.1} %; used by other programs of this machine: {:.1} %.",
            self.seconds,
            self.processors,
            self.kernel,
            machine.steal_share() * 100.0,
            machine.others_share() * 100.0
        );
        if machine.steal_share() + machine.others_share() > 0.05 {
            *text +=
                "The machine was not quiet: trust the ratios, which are made inside rounds, and not single figures.\n";
        }
        let _ = writeln!(
            text,
            "Latencies at {RATE} requests/s count from when each request was due. Our proxies resume no session: Envoy's resumed \
             ones stand beside our full handshakes."
        );
    }

    fn scenario(&self, scenario: Scenario, text: &mut String) {
        if Kind::ALL.iter().all(|kind| self.of(*kind, scenario).next().is_none()) {
            return;
        }
        let (rate, unit, _) = scenario.unit();
        let cpu = format!("CPU s/{unit}");
        let _ = writeln!(text, "\n{}\n", scenario.title());
        let _ = writeln!(
            text,
            "{:<9}{rate:>14}{:>9}{:>9}{cpu:>29}{:>26}{:>26}",
            "", "p50 ms", "p99 ms", "CPU / Envoy's", "rate / Envoy's"
        );
        for kind in Kind::ALL {
            if self.of(kind, scenario).next().is_none() {
                continue;
            }
            let spread = |figure: &dyn Fn(&Measured) -> f64| {
                Spread::of(self.of(kind, scenario).map(|(_, measured)| figure(measured)))
            };
            let median = |figure: Figure, digits: usize| {
                spread(&|measured| figure.of(measured))
                    .map_or("-".to_owned(), |spread| format!("{:.digits$}", spread.median))
            };
            let side = |side: usize| spread(&|measured| measured.cpu_s.get(side).copied().unwrap_or(f64::NAN));
            let sides = match (side(0), side(1)) {
                (Some(a), Some(b)) => format!("{:.4} {:.4}", a.median, b.median),
                _ => "-".to_owned(),
            };
            let ratio = |figure: Figure| {
                let Kind::Weir(workers) = kind else { return String::new() };
                cell(self.to_envoy(workers, scenario, figure))
            };
            let _ = writeln!(
                text,
                "{:<9}{:>14}{:>9}{:>9}{sides:>29}{:>26}{:>26}",
                kind.name(),
                median(Figure::Rate, 0),
                median(Figure::P50, 2),
                median(Figure::P99, 2),
                ratio(Figure::Cpu),
                ratio(Figure::Rate)
            );
        }
        if scenario == Scenario::HandshakesResumed {
            for workers in [1, 2] {
                let cpu = self.to_envoy(workers, scenario, Figure::Cpu);
                if cpu.is_some() {
                    let rate = self.to_envoy(workers, scenario, Figure::Rate);
                    let _ = writeln!(text, "weir-{workers}, full handshakes{:>71}{:>26}", cell(cpu), cell(rate));
                }
            }
        }
        if scenario == Scenario::ManyRoutes {
            for workers in [1, 2] {
                if let Some(ratio) = self.many_to_one(workers) {
                    let _ = writeln!(text, "CPU of the client's weir-{workers} / with one rule: {}", cell(Some(ratio)));
                }
            }
        }
        if let Some(floor) = self.ratio((Kind::Weir(1), scenario), (Kind::Relay, scenario), Figure::Cpu) {
            let _ = writeln!(text, "CPU of weir-1 / the relay's: {}", cell(Some(floor)));
        }
    }

    fn memory_table(&self, text: &mut String) {
        if self.memory.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\nResident memory; two figures are of the client's proxy and of the server's. A connection's part is by {IDLE} idle ones.\n"
        );
        let _ = writeln!(
            text,
            "{:<9}{:>12}{:>15}{:>14}{:>14}{:>14}{:>14}{:>16}",
            "", "idle", "500 conn.", "accepted", "whole way", "sockets", "opaque", "afterwards"
        );
        let _ = writeln!(
            text,
            "{:<9}{:>12}{:>15}{:>14}{:>14}{:>14}{:>14}{:>16}",
            "", "MB", "MB", "kB each", "kB each", "", "kB each", "MB"
        );
        let pair = |values: Vec<String>| if values.is_empty() { "-".to_owned() } else { values.join(" ") };
        let megabytes = |kb: &[u64]| pair(kb.iter().map(|kb| format!("{:.1}", *kb as f64 / 1024.0)).collect());
        for memory in &self.memory {
            let Memory { candidate, idle_kb, connections_500_kb, accepted, whole_way, opaque, after_rounds_kb } =
                memory;
            let each = |idle: &Idle| pair(idle.each_kb(idle_kb).into_iter().map(|kb| format!("{kb:.1}")).collect());
            let _ = writeln!(
                text,
                "{candidate:<9}{:>12}{:>15}{:>14}{:>14}{:>14}{:>14}{:>16}",
                megabytes(idle_kb),
                megabytes(connections_500_kb),
                each(accepted),
                each(whole_way),
                pair(whole_way.sockets.iter().map(ToString::to_string).collect()),
                each(opaque),
                megabytes(after_rounds_kb),
            );
        }
        for (key, figure) in MEMORY {
            let of = |workers| self.memory_ratio(workers, figure).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(text, "Weir / Envoy, {key}: {} with 1 worker, {} with 2", of(1), of(2));
        }
    }
}

fn cell(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |spread| format!("{:.2} ({:.2} to {:.2})", spread.median, spread.min, spread.max),
    )
}
