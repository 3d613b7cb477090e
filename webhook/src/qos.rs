//! The quality-of-service class that the kubelet and scheduler give a pod, so that injection does not change it.
//!
//! The rules are those of Kubernetes' `ComputePodQOS`: only processor and memory count, over containers and init containers;
//! resources of the whole pod (1.34) decide alone where they are given.

use std::cmp::Ordering;

use serde_json::Value;

use crate::{edit::get, user::Container};

/// The two resources that decide.
pub(crate) const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// A class, as far as it matters to what we add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    BestEffort,
    Burstable,
    Guaranteed,
    /// The pod has resources as a whole: containers need none, and what they ask for counts against the pod's.
    PodLevel,
}

/// The class of a pod with these containers.
pub(crate) fn class<'a>(pod: &Value, containers: impl Iterator<Item = &'a Container<'a>>) -> Class {
    let whole = get(pod, &["spec", "resources"]);
    if whole.is_some_and(|whole| COMPUTE.iter().any(|name| request(whole, name).is_some())) {
        return Class::PodLevel;
    }
    let (mut any, mut all_equal) = (false, true);
    for container in containers {
        for name in COMPUTE {
            let resources = container.raw.get("resources").unwrap_or(&Value::Null);
            let (request, limit) = (request(resources, name), limit(resources, name));
            any |= request.is_some() || limit.is_some();
            all_equal &= limit.is_some() && request == limit;
        }
    }
    match (any, all_equal) {
        (false, _) => Class::BestEffort,
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
    }
}

fn limit(resources: &Value, name: &str) -> Option<Quantity> {
    positive(get(resources, &["limits", name]))
}

/// The request, which is the limit where it is not said.
fn request(resources: &Value, name: &str) -> Option<Quantity> {
    match get(resources, &["requests", name]) {
        None => limit(resources, name),
        said => positive(said),
    }
}

fn positive(raw: Option<&Value>) -> Option<Quantity> {
    let quantity = match raw? {
        Value::String(text) => Quantity::parse(text)?,
        Value::Number(number) => Quantity::parse(&number.to_string())?,
        _ => return None,
    };
    (quantity.nanos > 0).then_some(quantity)
}

/// A Kubernetes quantity in billionths, the finest that the API keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity {
    nanos: u128,
}

impl Quantity {
    /// Reads a quantity that is not negative; `None` for what is none, or is out of the API's range.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at_checked(end)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.len() > 40 || (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let places = i32::try_from(fraction.len()).ok()?;
        let (factor, exponent) = match suffix {
            "n" => (1, -9),
            "u" => (1, -6),
            "m" => (1, -3),
            "" => (1, 0),
            "k" => (1, 3),
            "M" => (1, 6),
            "G" => (1, 9),
            "T" => (1, 12),
            "P" => (1, 15),
            "E" => (1, 18),
            "Ki" => (1 << 10, 0),
            "Mi" => (1 << 20, 0),
            "Gi" => (1 << 30, 0),
            "Ti" => (1 << 40, 0),
            "Pi" => (1 << 50, 0),
            "Ei" => (1u128 << 60, 0),
            _ => (1, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
        };
        let power = exponent.checked_add(9)?.checked_sub(places)?;
        let scaled = digits.checked_mul(factor)?;
        let ten = 10u128.checked_pow(power.unsigned_abs());
        let nanos = match power.cmp(&0) {
            Ordering::Less => ten.map_or(u128::from(scaled > 0), |ten| scaled.div_ceil(ten)), // the API rounds up
            _ if scaled == 0 => 0,
            _ => scaled.checked_mul(ten?)?,
        };
        Some(Self { nanos })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::user::{List, UserPod};

    #[test]
    fn quantities_compare_as_the_api_compares_them() {
        let q = |text| Quantity::parse(text).unwrap();
        for (a, b) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1e3", "1k"),
            ("1Gi", "1024Mi"),
            ("1.5Ki", "1536"),
            ("0.1n", "1n"),
            ("2E", "2000P"),
            ("0e999", "0"),
        ] {
            assert_eq!(q(a), q(b), "{a} {b}");
        }
        assert!(q("64Mi") > q("64M"));
        for bad in ["", ".", "-1", "1.2.3", "1x", "one", "1e999", "9999999999999999999999999999999999999999999", "1 Gi"]
        {
            assert_eq!(Quantity::parse(bad), None, "{bad}");
        }
    }

    fn class_of(spec: Value) -> Class {
        let pod = json!({ "spec": spec });
        let read = UserPod::read(&pod).unwrap();
        class(&pod, read.containers.iter().filter(|container| container.list != List::Ephemeral))
    }

    #[test]
    fn classes() {
        let c = |resources: Value| json!({"name": "a", "resources": resources});
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(class_of(json!({"containers": [{"name": "a"}]})), Class::BestEffort);
        assert_eq!(class_of(json!({"containers": [c(full.clone())]})), Class::Guaranteed);
        assert_eq!(
            class_of(json!({"containers": [c(json!({
                "limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}))]})),
            Class::Guaranteed
        );
        assert_eq!(class_of(json!({"containers": [c(full.clone()), {"name": "b"}]})), Class::Burstable);
        assert_eq!(
            class_of(json!({"containers": [c(full)], "initContainers": [{"name": "i"}]})),
            Class::Burstable,
            "init containers count"
        );
        assert_eq!(class_of(json!({"containers": [c(json!({"requests": {"cpu": "0"}}))]})), Class::BestEffort);
        assert_eq!(
            class_of(json!({"resources": {"limits": {"cpu": "1"}}, "containers": [{"name": "a"}]})),
            Class::PodLevel
        );
    }
}
