//! What is to be reached.

use serde::Serialize;

use super::{Figure, MEMORY, Report, mean_kb};
use crate::{candidate::Kind, scenario::Scenario};

/// A bar, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// What it is about.
    pub about: &'static str,
    /// At most this.
    pub at_most: f64,
    /// Unit of both figures.
    pub unit: &'static str,
    /// The worse of 1 and 2 workers; `None`: not measured.
    pub measured: Option<f64>,
}

impl Goal {
    /// For people.
    pub fn verdict(&self) -> String {
        match self.measured {
            None => "not measured".to_owned(),
            Some(measured) => {
                let verdict = if measured <= self.at_most { "met" } else { "MISSED" };
                format!("{verdict} ({measured:.2} {})", self.unit)
            }
        }
    }
}

impl Report {
    pub(super) fn goals(&self) -> Vec<Goal> {
        let [(_, idle), (_, many), ..] = MEMORY;
        let cpu = |about, scenario, at_most| Goal {
            about,
            at_most,
            unit: "x Envoy",
            measured: self.worst(scenario, Figure::Cpu),
        };
        let megabytes = [1, 2]
            .into_iter()
            .filter_map(|workers| Some(mean_kb(&self.memory_of(Kind::Weir(workers))?.idle_kb) / 1024.0))
            .reduce(f64::max);
        let routes = [1, 2].into_iter().filter_map(|workers| Some(self.many_to_one(workers)?.median)).reduce(f64::max);
        vec![
            cpu("CPU per request, HTTP/1.1 saturated", Scenario::Http1, 0.33),
            cpu("CPU per call, gRPC saturated", Scenario::GrpcUnary, 0.27),
            Goal {
                about: "CPU of the caller's proxy, 1,000 rules",
                at_most: 1.1,
                unit: "x one rule",
                measured: routes,
            },
            Goal { about: "resident memory, idle", at_most: 12.0, unit: "MB", measured: megabytes },
            Goal { about: "resident memory, idle", at_most: 0.22, unit: "x Envoy", measured: self.worst_memory(idle) },
            Goal {
                about: "resident memory, 500 connections",
                at_most: 0.22,
                unit: "x Envoy",
                measured: self.worst_memory(many),
            },
        ]
    }
}
