//! What our containers ask for: enough to work, nothing that changes the pod's class, and what the pod's annotations say.

use serde_json::{Map, Value, json};
use weir_mesh::PodSettings;

use crate::{
    qos::{Class, Quantity},
    refusal::Reason,
};

/// Processor share that an ordinary proxy is scheduled with.
const CPU_REQUEST: &str = "20m";
/// Memory that an ordinary proxy is scheduled with: about 12 MB idle, and room for a few hundred connections.
const MEMORY_REQUEST: &str = "32Mi";
/// In a Guaranteed pod requests must be limits, so these are limits: a proxy that is throttled or killed hurts more than
/// what it reserves.
const GUARANTEED_CPU: &str = "200m";
const GUARANTEED_MEMORY: &str = "128Mi";
/// The init container runs for milliseconds, before all others.
const INIT_CPU: &str = "10m";
const INIT_MEMORY: &str = "16Mi";

/// One of the two resources: what the annotations say, and what is used where they do not.
struct Wanted<'a> {
    name: &'static str,
    request: Option<&'a str>,
    limit: Option<&'a str>,
    ordinary: &'static str,
    guaranteed: &'static str,
}

/// Resources of the proxy container.
pub(crate) fn proxy(
    class: Class,
    settings: &PodSettings,
    warnings: &mut Vec<String>,
    reasons: &mut Vec<Reason>,
) -> Value {
    let wanted = [
        Wanted {
            name: "cpu",
            request: settings.proxy_cpu_request.as_deref(),
            limit: settings.proxy_cpu_limit.as_deref(),
            ordinary: CPU_REQUEST,
            guaranteed: GUARANTEED_CPU,
        },
        Wanted {
            name: "memory",
            request: settings.proxy_memory_request.as_deref(),
            limit: settings.proxy_memory_limit.as_deref(),
            ordinary: MEMORY_REQUEST,
            guaranteed: GUARANTEED_MEMORY,
        },
    ];
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for wanted in wanted {
        let (request, limit) = one(class, &wanted, warnings, reasons);
        requests.extend(request.map(|value| (wanted.name.to_owned(), value.into())));
        limits.extend(limit.map(|value| (wanted.name.to_owned(), value.into())));
    }
    together(requests, limits)
}

/// True where an annotation speaks of the proxy's resources.
pub(crate) fn said(settings: &PodSettings) -> bool {
    settings.proxy_cpu_request.is_some()
        || settings.proxy_cpu_limit.is_some()
        || settings.proxy_memory_request.is_some()
        || settings.proxy_memory_limit.is_some()
}

/// Resources of the init container.
pub(crate) fn init(class: Class) -> Value {
    let amounts = || Map::from_iter([("cpu".to_owned(), INIT_CPU.into()), ("memory".to_owned(), INIT_MEMORY.into())]);
    match class {
        Class::BestEffort | Class::PodLevel => json!({}),
        Class::Burstable => together(amounts(), Map::new()),
        Class::Guaranteed => together(amounts(), amounts()),
    }
}

fn one<'a>(
    class: Class,
    wanted: &Wanted<'a>,
    warnings: &mut Vec<String>,
    reasons: &mut Vec<Reason>,
) -> (Option<&'a str>, Option<&'a str>) {
    let name = wanted.name;
    let greater = |a: &str, b: &str| Quantity::parse(a).is_none_or(|a| Quantity::parse(b).is_none_or(|b| a > b));
    if let (Some(request), Some(limit)) = (wanted.request, wanted.limit)
        && greater(request, limit)
    {
        reasons.push(Reason::Resources(format!(
            "annotation weir.dev/proxy-{name}-request: {request:?} is more than weir.dev/proxy-{name}-limit, {limit:?}"
        )));
    }
    let said = wanted.request.or(wanted.limit).is_some();
    match class {
        Class::Guaranteed => {
            let request = wanted.request.or(wanted.limit).unwrap_or(wanted.guaranteed);
            let limit = wanted.limit.or(wanted.request).unwrap_or(wanted.guaranteed);
            if Quantity::parse(request) != Quantity::parse(limit) {
                warnings.push(format!(
                    "the pod loses its class Guaranteed: weir.dev/proxy-{name}-request is not weir.dev/proxy-{name}-limit"
                ));
            }
            (Some(request), Some(limit))
        }
        Class::BestEffort if said => {
            warnings
                .push(format!("the pod was BestEffort and becomes Burstable by weir.dev/proxy-{name}-request|limit"));
            (wanted.request.or(wanted.limit), wanted.limit)
        }
        // With resources for the whole pod, what a container asks for counts against them: nothing unless it was said.
        Class::BestEffort | Class::PodLevel => (wanted.request.or(wanted.limit), wanted.limit),
        Class::Burstable => {
            let ordinary = wanted.limit.filter(|limit| greater(wanted.ordinary, limit)).unwrap_or(wanted.ordinary);
            (Some(wanted.request.unwrap_or(ordinary)), wanted.limit)
        }
    }
}

fn together(requests: Map<String, Value>, limits: Map<String, Value>) -> Value {
    let parts = [("requests", requests), ("limits", limits)];
    let parts = parts.into_iter().filter(|(_, amounts)| !amounts.is_empty());
    Value::Object(parts.map(|(name, amounts)| (name.to_owned(), Value::Object(amounts))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(class: Class, annotations: &[(&str, &str)]) -> (Value, usize, usize) {
        let settings = PodSettings::from_annotations(annotations.iter().copied()).unwrap();
        let (mut warnings, mut reasons) = (Vec::new(), Vec::new());
        let resources = proxy(class, &settings, &mut warnings, &mut reasons);
        (resources, warnings.len(), reasons.len())
    }

    #[test]
    fn the_class_is_kept() {
        assert_eq!(with(Class::BestEffort, &[]), (json!({}), 0, 0));
        assert_eq!(with(Class::PodLevel, &[]), (json!({}), 0, 0));
        let ordinary = json!({"requests": {"cpu": CPU_REQUEST, "memory": MEMORY_REQUEST}});
        assert_eq!(with(Class::Burstable, &[]), (ordinary, 0, 0));
        let (guaranteed, ..) = with(Class::Guaranteed, &[("weir.dev/proxy-cpu-limit", "1")]);
        assert_eq!(guaranteed["requests"], guaranteed["limits"]);
        assert_eq!(guaranteed["limits"], json!({"cpu": "1", "memory": GUARANTEED_MEMORY}));
    }

    #[test]
    fn annotations_are_met_or_refused() {
        let (low, ..) = with(Class::Burstable, &[("weir.dev/proxy-memory-limit", "16Mi")]);
        assert_eq!(low["requests"]["memory"], "16Mi");
        let both = [("weir.dev/proxy-cpu-request", "2"), ("weir.dev/proxy-cpu-limit", "1000m")];
        assert_eq!(with(Class::Burstable, &both).2, 1);
        let different = [("weir.dev/proxy-cpu-request", "1"), ("weir.dev/proxy-cpu-limit", "2")];
        assert_eq!(with(Class::Guaranteed, &different).1, 1);
        assert_eq!(with(Class::BestEffort, &different).1, 1);
    }
}
