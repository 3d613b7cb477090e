//! From measurements to ratios, tables and JSON.
//!
//! A ratio is made inside each round, between figures measured seconds apart, and the median of the rounds is told: what else
//! the machine does moves single figures by a factor of two, but both sides of a ratio alike. Where a figure stands for one
//! and two workers, it is the worse of the two.

mod goals;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    candidate::Kind,
    memory::{IDLE, Idle, Memory},
    rounds::{Measured, Round},
    scenario::Scenario,
    usage::Machine,
};

pub use goals::Goal;

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

/// What is compared of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// CPU time for a unit, mean of both proxies.
    Cpu,
    /// That of the client's proxy, which is the one that routes.
    CallersCpu,
    /// Units a second.
    Rate,
    /// Median latency.
    P50,
    /// 99th percentile.
    P99,
}

impl Figure {
    const ALL: [Self; 4] = [Self::Cpu, Self::Rate, Self::P50, Self::P99];

    fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::Cpu => mean(measured.cpu_s.iter().copied()),
            Self::CallersCpu => measured.cpu_s.first().copied().unwrap_or(f64::NAN),
            Self::Rate => measured.rate,
            Self::P50 => measured.p50_ms.unwrap_or(f64::NAN),
            Self::P99 => measured.p99_ms.unwrap_or(f64::NAN),
        }
    }

    fn worse(self) -> fn(f64, f64) -> f64 {
        if self == Self::Rate { f64::min } else { f64::max }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CallersCpu => "callers_cpu",
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }
}

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

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

fn mean_kb(values: &[u64]) -> f64 {
    mean(values.iter().map(|value| *value as f64))
}

type MemoryFigure = fn(&Memory) -> f64;

const MEMORY: [(&str, MemoryFigure); 5] = [
    ("idle", |memory| mean_kb(&memory.idle_kb)),
    ("connections_500", |memory| mean_kb(&memory.connections_500_kb)),
    ("accepted_connection", |memory| memory.accepted.each_kb(&memory.idle_kb).first().copied().unwrap_or(f64::NAN)),
    ("whole_way_connection", |memory| mean(memory.whole_way.each_kb(&memory.idle_kb).into_iter())),
    ("opaque_connection", |memory| mean(memory.opaque.each_kb(&memory.idle_kb).into_iter())),
];

impl Report {
    fn of(&self, kind: Kind, scenario: Scenario) -> impl Iterator<Item = (u32, &Measured)> {
        let name = kind.name();
        self.rounds.iter().filter(move |round| round.candidate == name).filter_map(move |round| {
            Some((round.round, round.measured.iter().find(|measured| measured.scenario == scenario)?))
        })
    }

    /// Ratios inside rounds, one for each round that has both.
    fn ratio(&self, this: (Kind, Scenario), to: (Kind, Scenario), figure: Figure) -> Option<Spread> {
        let others: Vec<_> = self.of(to.0, to.1).collect();
        Spread::of(self.of(this.0, this.1).filter_map(|(round, measured)| {
            let (_, other) = others.iter().find(|other| other.0 == round)?;
            Some(figure.of(measured) / figure.of(other))
        }))
    }

    /// Weir with so many workers to Envoy with as many. A session that Envoy resumes stands against our full handshake.
    fn to_envoy(&self, workers: u8, scenario: Scenario, figure: Figure) -> Option<Spread> {
        let ours = if scenario == Scenario::HandshakesResumed { Scenario::Handshakes } else { scenario };
        self.ratio((Kind::Weir(workers), ours), (Kind::Envoy(workers), scenario), figure)
    }

    fn worst(&self, scenario: Scenario, figure: Figure) -> Option<f64> {
        let both = [1, 2].into_iter().filter_map(|workers| self.to_envoy(workers, scenario, figure));
        both.map(|spread| spread.median).reduce(figure.worse())
    }

    /// A thousand rules to one, by Weir with so many workers.
    fn many_to_one(&self, workers: u8) -> Option<Spread> {
        let kind = Kind::Weir(workers);
        self.ratio((kind, Scenario::ManyRoutes), (kind, Scenario::OneRoute), Figure::CallersCpu)
    }

    fn memory_of(&self, kind: Kind) -> Option<&Memory> {
        let name = kind.name();
        self.memory.iter().find(|memory| memory.candidate == name)
    }

    fn memory_ratio(&self, workers: u8, figure: MemoryFigure) -> Option<f64> {
        Some(figure(self.memory_of(Kind::Weir(workers))?) / figure(self.memory_of(Kind::Envoy(workers))?))
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

    /// The JSON form.
    ///
    /// # Errors
    /// Never in practice: all fields are plain data.
    pub fn json(&self) -> anyhow::Result<Value> {
        let measured = || Scenario::ALL.into_iter().filter(|scenario| self.worst(*scenario, Figure::Rate).is_some());
        let of = |figure: Figure| -> Map<String, Value> {
            measured().map(|scenario| (scenario.key().into(), json!(self.worst(scenario, figure)))).collect()
        };
        let floor: Map<String, Value> = Scenario::ALL
            .into_iter()
            .filter_map(|scenario| {
                let ratio = self.ratio((Kind::Weir(1), scenario), (Kind::Relay, scenario), Figure::Cpu)?;
                Some((scenario.key().into(), json!(ratio)))
            })
            .collect();
        let detail: Map<String, Value> = measured()
            .map(|scenario| {
                let figures: Map<String, Value> = Figure::ALL
                    .into_iter()
                    .map(|figure| {
                        let of = |workers| self.to_envoy(workers, scenario, figure);
                        (figure.key().into(), json!({"1": of(1), "2": of(2)}))
                    })
                    .collect();
                (scenario.key().into(), Value::Object(figures))
            })
            .collect();
        let memory: Map<String, Value> =
            MEMORY.iter().map(|(key, figure)| ((*key).to_owned(), json!(self.worst_memory(*figure)))).collect();
        let per_connection: Map<String, Value> = self
            .memory
            .iter()
            .map(|memory| {
                let each = |idle: &Idle| json!({"kb": idle.each_kb(&memory.idle_kb), "sockets": idle.sockets});
                let kb = json!({
                    "accepted": each(&memory.accepted), "whole_way": each(&memory.whole_way), "opaque": each(&memory.opaque),
                });
                (memory.candidate.clone(), kb)
            })
            .collect();
        let machine = self.machine();
        Ok(json!({
            "cpu_vs_envoy": of(Figure::Cpu),
            "cpu_vs_relay": floor,
            "many_routes_vs_one": {"1": self.many_to_one(1), "2": self.many_to_one(2)},
            "rate_vs_envoy": of(Figure::Rate),
            "latency_vs_envoy": {"p50": of(Figure::P50), "p99": of(Figure::P99)},
            "rss_vs_envoy": memory,
            "rss_per_idle_connection": {"connections": IDLE, "by_candidate": per_connection},
            "goals": self.goals(),
            "by_workers": detail,
            "machine": {"steal_share": machine.steal_share(), "other_programs_share": machine.others_share()},
            "raw": self,
        }))
    }
}
