//! From measurements to ratios, a table and JSON.
//!
//! A ratio is made inside each round, between figures measured seconds apart, and the median of the rounds is told: what else
//! the machine does moves single figures by a factor of two, but both sides of a ratio alike. Where a figure stands for one
//! and two workers, it is the worse of the two.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    candidate::Kind,
    rounds::{MANY, Memory, RATE, Round},
    usage::Machine,
};

/// Goal for CPU time for a request at saturation, as a share of Envoy's.
pub const CPU_GOAL: f64 = 0.4;
/// Goal for resident memory, as a share of Envoy's.
pub const MEMORY_GOAL: f64 = 0.22;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of Envoy, where it took part.
    pub envoy_version: Option<&'static str>,
    /// Processors of the machine.
    pub processors: usize,
    /// Kernel.
    pub kernel: String,
    /// Seconds of each measurement.
    pub seconds: u64,
    /// Each candidate in each round.
    pub rounds: Vec<Round>,
    /// Memory of each candidate.
    pub memory: Vec<Memory>,
}

/// Takes one figure from a round.
type Figure = fn(&Round) -> f64;
/// Takes one figure from the memory of a candidate.
type MemoryFigure = fn(&Memory) -> f64;

/// Median, least and greatest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of any figures; `None` of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        let (low, high) = (all.get((all.len() - 1) / 2)?, all.get(all.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, min, max })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn mean_kb(values: &[u64]) -> f64 {
    values.iter().sum::<u64>() as f64 / values.len() as f64
}

/// What is compared with Envoy in every round: a title, the figure, and whether less is better.
const RATIOS: [(&str, Figure, bool); 9] = [
    ("CPU per request, saturated", |round| mean(&round.http1.cpu_s_per_1000), true),
    ("CPU per request, 1,000/s", |round| mean(&round.http1_1000rps.cpu_s_per_1000), true),
    ("requests/s", |round| round.http1.rps, false),
    ("p50, saturated", |round| round.http1.p50_ms, true),
    ("p99, saturated", |round| round.http1.p99_ms, true),
    ("p50, 1,000/s", |round| round.http1_1000rps.p50_ms, true),
    ("p99, 1,000/s", |round| round.http1_1000rps.p99_ms, true),
    ("TCP throughput", |round| round.tcp.gbit_per_s, false),
    ("CPU per byte, TCP", |round| mean(&round.tcp.cpu_s_per_gb), true),
];

impl Report {
    fn of<'a>(&'a self, kind: Kind) -> impl Iterator<Item = &'a Round> + use<'a> {
        let name = kind.name();
        self.rounds.iter().filter(move |round| round.candidate == name)
    }

    /// Ratios of Weir to Envoy with the same number of workers, one for each round that has both.
    fn ratio(&self, workers: u8, figure: Figure) -> Option<Spread> {
        let envoys: Vec<&Round> = self.of(Kind::Envoy(workers)).collect();
        Spread::of(self.of(Kind::Weir(workers)).filter_map(|weir| {
            let envoy = envoys.iter().find(|envoy| envoy.round == weir.round)?;
            Some(figure(weir) / figure(envoy))
        }))
    }

    fn worst(&self, figure: Figure, less_is_better: bool) -> Option<f64> {
        let both = [1, 2].into_iter().filter_map(|workers| self.ratio(workers, figure)).map(|spread| spread.median);
        if less_is_better { both.reduce(f64::max) } else { both.reduce(f64::min) }
    }

    fn memory_ratio(&self, workers: u8, figure: MemoryFigure) -> Option<f64> {
        let of = |kind: Kind| self.memory.iter().find(|memory| memory.candidate == kind.name()).map(figure);
        Some(of(Kind::Weir(workers))? / of(Kind::Envoy(workers))?)
    }

    fn worst_memory(&self, figure: MemoryFigure) -> Option<f64> {
        [1, 2].into_iter().filter_map(|workers| self.memory_ratio(workers, figure)).reduce(f64::max)
    }

    /// The machine over all measurements.
    fn machine(&self) -> Machine {
        self.rounds.iter().fold(Machine::default(), |sum, round| Machine {
            busy: sum.busy + round.machine.busy,
            idle: sum.idle + round.machine.idle,
            steal: sum.steal + round.machine.steal,
            ours: sum.ours + round.machine.ours,
        })
    }

    fn figure(title: &str) -> (Figure, bool) {
        RATIOS.iter().find(|ratio| ratio.0 == title).map_or((|_| f64::NAN, true), |ratio| (ratio.1, ratio.2))
    }

    /// The JSON form.
    ///
    /// # Errors
    /// Never in practice: all fields are plain data.
    pub fn json(&self) -> anyhow::Result<Value> {
        let worst = |title| {
            let (figure, less_is_better) = Self::figure(title);
            self.worst(figure, less_is_better)
        };
        let detail: serde_json::Map<String, Value> = RATIOS
            .iter()
            .map(|(title, figure, _)| {
                ((*title).to_owned(), json!({"1": self.ratio(1, *figure), "2": self.ratio(2, *figure)}))
            })
            .collect();
        let machine = self.machine();
        Ok(json!({
            "cpu_per_request_vs_envoy": {
                "http1": worst("CPU per request, saturated"),
                "http1_1000rps": worst("CPU per request, 1,000/s"),
            },
            "rss_vs_envoy": {
                "idle": self.worst_memory(|memory| mean_kb(&memory.idle_kb)),
                "connections_500": self.worst_memory(|memory| mean_kb(&memory.connections_500_kb)),
            },
            "throughput_vs_envoy": {"http1_rps": worst("requests/s"), "tcp": worst("TCP throughput")},
            "latency_vs_envoy": {
                "http1_1000rps_p50": worst("p50, 1,000/s"),
                "http1_1000rps_p99": worst("p99, 1,000/s"),
            },
            "goals": {"cpu_per_request_vs_envoy.http1": CPU_GOAL, "rss_vs_envoy": MEMORY_GOAL},
            "by_workers": detail,
            "machine": {"steal_share": machine.steal_share(), "other_programs_share": machine.others_share()},
            "raw": self,
        }))
    }

    /// The text for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.medians(&mut text);
        if self.envoy_version.is_some() {
            self.ratios(&mut text);
        }
        let machine = self.machine();
        let rounds = self.rounds.iter().map(|round| round.round).max().unwrap_or_default();
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
            text +=
                "The machine was not quiet: trust the ratios, which are made inside rounds, and not single figures.\n";
        }
        if self.envoy_version.is_some() {
            self.verdicts(&mut text);
        }
        text
    }

    fn medians(&self, text: &mut String) {
        *text += "\nMedians of the rounds; two figures are of the client's proxy and of the server's.\n\n";
        let _ = writeln!(
            text,
            "{:<9}{:>9}{:>8}{:>8}{:>15}  {:>8}{:>8}{:>15}  {:>8}{:>13}  {:>13}{:>13}",
            "",
            "saturated",
            "p50",
            "p99",
            "CPU s/1,000",
            "at 1k/s",
            "p99",
            "CPU s/1,000",
            "TCP",
            "CPU s/GB",
            "idle",
            "500 conn."
        );
        let _ = writeln!(
            text,
            "{:<9}{:>9}{:>8}{:>8}{:>15}  {:>8}{:>8}{:>15}  {:>8}{:>13}  {:>13}{:>13}",
            "", "req/s", "ms", "ms", "", "p50 ms", "ms", "", "Gbit/s", "", "MB", "MB"
        );
        for kind in [Kind::Direct, Kind::Weir(1), Kind::Weir(2), Kind::Envoy(1), Kind::Envoy(2)] {
            if self.of(kind).next().is_none() {
                continue;
            }
            let median =
                |figure: Figure| Spread::of(self.of(kind).map(figure)).map_or(f64::NAN, |spread| spread.median);
            let sides = |figure: fn(&Round) -> &Vec<f64>, digits: usize| {
                let side = |side: usize| Spread::of(self.of(kind).filter_map(|round| figure(round).get(side).copied()));
                match (side(0), side(1)) {
                    (Some(a), Some(b)) => format!("{:.digits$} {:.digits$}", a.median, b.median),
                    _ => "-".to_owned(),
                }
            };
            let memory = |figure: fn(&Memory) -> &Vec<u64>| {
                let memory = self.memory.iter().find(|memory| memory.candidate == kind.name()).map(figure);
                match memory.map(Vec::as_slice) {
                    Some([a, b]) => format!("{:.1} {:.1}", *a as f64 / 1024.0, *b as f64 / 1024.0),
                    _ => "-".to_owned(),
                }
            };
            let _ = writeln!(
                text,
                "{:<9}{:>9.0}{:>8.2}{:>8.2}{:>15}  {:>8.2}{:>8.2}{:>15}  {:>8.2}{:>13}  {:>13}{:>13}",
                kind.name(),
                median(|round| round.http1.rps),
                median(|round| round.http1.p50_ms),
                median(|round| round.http1.p99_ms),
                sides(|round| &round.http1.cpu_s_per_1000, 4),
                median(|round| round.http1_1000rps.p50_ms),
                median(|round| round.http1_1000rps.p99_ms),
                sides(|round| &round.http1_1000rps.cpu_s_per_1000, 4),
                median(|round| round.tcp.gbit_per_s),
                sides(|round| &round.tcp.cpu_s_per_gb, 2),
                memory(|memory| &memory.idle_kb),
                memory(|memory| &memory.connections_500_kb),
            );
        }
    }

    fn ratios(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\nWeir / Envoy {}, median of the rounds (least to greatest)\n",
            self.envoy_version.unwrap_or_default()
        );
        let _ = writeln!(text, "{:<30}{:>24}{:>24}", "", "1 worker", "2 workers");
        for (title, figure, less) in RATIOS {
            let cell = |workers| {
                self.ratio(workers, figure).map_or_else(
                    || "-".to_owned(),
                    |spread| format!("{:.2} ({:.2} to {:.2})", spread.median, spread.min, spread.max),
                )
            };
            let better = if less { "less is better" } else { "more is better" };
            let _ = writeln!(text, "{title:<30}{:>24}{:>24}   {better}", cell(1), cell(2));
        }
        let many = format!("resident memory, {MANY} conn.");
        let figures: [(&str, MemoryFigure); 2] = [
            ("resident memory, idle", |memory| mean_kb(&memory.idle_kb)),
            (&many, |memory| mean_kb(&memory.connections_500_kb)),
        ];
        for (title, figure) in figures {
            let cell =
                |workers| self.memory_ratio(workers, figure).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(text, "{title:<30}{:>24}{:>24}   less is better", cell(1), cell(2));
        }
    }

    fn verdicts(&self, text: &mut String) {
        let (cpu, _) = Self::figure("CPU per request, saturated");
        let bars = [
            ("CPU per request at saturation", self.worst(cpu, true), CPU_GOAL),
            ("resident memory, idle", self.worst_memory(|memory| mean_kb(&memory.idle_kb)), MEMORY_GOAL),
            (
                "resident memory, 500 connections",
                self.worst_memory(|memory| mean_kb(&memory.connections_500_kb)),
                MEMORY_GOAL,
            ),
        ];
        *text += "\nGoals, by the worse of 1 and 2 workers:\n";
        for (title, ratio, goal) in bars {
            let verdict = match ratio {
                None => "not measured".to_owned(),
                Some(ratio) if ratio <= goal => format!("met ({ratio:.2} x Envoy)"),
                Some(ratio) => format!("MISSED ({ratio:.2} x Envoy)"),
            };
            let _ = writeln!(text, "  {title} <= {goal} x Envoy: {verdict}");
        }
        let _ =
            writeln!(text, "The open loop is {RATE} requests/s, its latencies count from when each request was due.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::{Http, Tcp};

    fn round(number: u32, kind: Kind, cpu: f64, rps: f64) -> Round {
        let http = Http { requests: 1, rps, p50_ms: 1.0, p99_ms: 2.0, cpu_s_per_1000: vec![cpu, cpu], reopened: 0 };
        Round {
            round: number,
            candidate: kind.name(),
            http1: http.clone(),
            http1_1000rps: http,
            tcp: Tcp { gbit_per_s: 1.0, cpu_s_per_gb: vec![1.0, 1.0] },
            machine: Machine { busy: 1.0, idle: 1.0, steal: 0.0, ours: 1.0 },
        }
    }

    fn memory(kind: Kind, kb: u64) -> Memory {
        let both = vec![kb, kb];
        Memory {
            candidate: kind.name(),
            idle_kb: both.clone(),
            connections_500_kb: both.clone(),
            after_rounds_kb: both,
        }
    }

    fn report() -> Report {
        let mut rounds = Vec::new();
        for (number, noise) in [(1, 1.0), (2, 2.0), (3, 1.5)] {
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
        near("/cpu_per_request_vs_envoy/http1", 0.5);
        near("/throughput_vs_envoy/http1_rps", 2.0);
        near("/rss_vs_envoy/idle", 0.2);
        near("/rss_vs_envoy/connections_500", 0.2);
        assert_eq!(json["raw"]["rounds"].as_array().unwrap().len(), 12);
        let text = report().text();
        assert!(text.contains("CPU per request at saturation <= 0.4 x Envoy: MISSED (0.50 x Envoy)"), "{text}");
        assert!(text.contains("resident memory, idle <= 0.22 x Envoy: met (0.20 x Envoy)"), "{text}");
    }

    #[test]
    fn without_envoy_there_is_no_ratio() {
        let mut report = report();
        report.envoy_version = None;
        report.rounds.retain(|round| round.candidate.starts_with("weir"));
        assert!(report.json().unwrap()["cpu_per_request_vs_envoy"]["http1"].is_null());
        assert!(!report.text().contains("Goals"));
    }

    #[test]
    fn spread() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([1.0, 2.0, f64::NAN]), Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
    }
}
