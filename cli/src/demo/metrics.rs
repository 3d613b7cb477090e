//! Part 5: golden metrics, read from the proxies as Prometheus would.

use std::collections::BTreeMap;

use super::{Demo, Step, Stop, view};
use crate::samples::Sample;

/// Where every proxy serves its metrics, on a port that is never redirected.
const URL: &str = "http://127.0.0.1:15090/stats/prometheus";
const ROUTES: &str = "weir_route_duration_milliseconds";

/// All samples of a pod's proxy, asked for from inside the pod.
pub(super) fn of(demo: &Demo, pod: &str) -> Step<Vec<Sample>> {
    let output = demo.run(pod, &["curl", "-sS", "-m", "5", URL])?;
    if output.code != 0 {
        return Err(Stop::Failed(format!("metrics of {pod}: {}", output.stderr.trim())));
    }
    Ok(output.stdout.lines().filter_map(Sample::parse).collect())
}

/// Requests of one route: bounds in milliseconds with cumulative counts, by success.
#[derive(Default)]
struct Route {
    success: f64,
    failure: f64,
    buckets: BTreeMap<u64, f64>,
}

impl Route {
    fn add(&mut self, sample: &Sample) {
        let good = sample.is("classification", "success");
        if sample.name.ends_with("_count") {
            *(if good { &mut self.success } else { &mut self.failure }) += sample.value;
        }
        if sample.name.ends_with("_bucket")
            && let Some(bound) = sample.labels.get("le").and_then(|bound| bound.parse::<f64>().ok())
            && bound.is_finite()
        {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounds are small and positive
            let micros = (bound * 1000.0).round() as u64;
            *self.buckets.entry(micros).or_default() += sample.value;
        }
    }

    /// The bound that holds a share of the requests.
    fn quantile(&self, share: f64) -> String {
        let wanted = (self.success + self.failure) * share;
        let bound = self.buckets.iter().find(|(_, count)| **count >= wanted).map(|(bound, _)| *bound);
        bound.map_or_else(|| "more".to_owned(), |bound| format!("<= {}", view::ms(bound)))
    }
}

pub(super) fn golden(demo: &mut Demo) -> Step {
    view::title("5. Golden metrics by route", "port 15090 of the client's proxy");
    let status = demo.client.status()?;
    let mut routes: BTreeMap<(String, String), Route> = BTreeMap::new();
    for (name, _) in status.pods.iter().filter(|(name, _)| name.starts_with("shop/client-")) {
        for sample in of(demo, name)?.iter().filter(|sample| sample.name.starts_with(ROUTES)) {
            let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            if sample.is("direction", "outbound") {
                routes.entry((label("destination_service"), label("route"))).or_default().add(sample);
            }
        }
    }
    let mut rows = vec![view::row(["SERVICE", "ROUTE", "REQUESTS", "SUCCESS", "p50", "p99"])];
    let mut total = 0.0;
    for ((service, route), counts) in &routes {
        let all = counts.success + counts.failure;
        total += all;
        let success = if all > 0.0 { format!("{:.2} %", counts.success / all * 100.0) } else { "-".into() };
        rows.push(view::row([
            service,
            route,
            &format!("{all:.0}"),
            &success,
            &counts.quantile(0.5),
            &counts.quantile(0.99),
        ]));
    }
    view::rows(&rows);
    demo.expect(total > 1000.0, &format!("the client's proxy counted {total:.0} requests by route"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_that_holds_it() {
        let mut route = Route { success: 100.0, ..Route::default() };
        route.buckets = BTreeMap::from([(1000, 60.0), (5000, 99.0), (10_000, 100.0)]);
        assert_eq!(route.quantile(0.5), "<= 1.00 ms");
        assert_eq!(route.quantile(0.99), "<= 5.00 ms");
    }
}
