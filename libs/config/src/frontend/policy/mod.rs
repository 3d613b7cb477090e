//! Policies to the model: Istio's DestinationRule ([`destination_rule`]) and Weir's TrafficPolicy ([`traffic_policy`]); everything
//! wrong with one is said by field.

mod destination;
mod traffic;

pub use destination::destination_rule;
pub use traffic::traffic_policy;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    model::{FieldError, Name, Origin, PolicySet, RequestPolicy, ServicePolicy},
    path::FieldPath,
};

/// What a read of an object gives.
pub type Read = Result<PolicySet, Vec<FieldError>>;

/// A share of everything.
const ALL_MILLIONTHS: u32 = 1_000_000;
const MILLIONTHS_OF_A_PERCENT: f64 = 10_000.0;

/// Gathers what is wrong with an object.
struct Reader {
    name: Name,
    created: String,
    errors: Vec<FieldError>,
}

impl Reader {
    fn new(metadata: &ObjectMeta) -> Self {
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        Self { name: Name::new(text(&metadata.namespace), text(&metadata.name)), created, errors: Vec::new() }
    }

    fn error(&mut self, field: FieldPath, message: impl Into<String>) {
        self.errors.push((field, message.into()));
    }

    /// A number of these bounds.
    fn number(&mut self, number: Option<i64>, bounds: std::ops::RangeInclusive<u32>, at: FieldPath) -> Option<u32> {
        let number = number?;
        let known = u32::try_from(number).ok().filter(|number| bounds.contains(number));
        if known.is_none() {
            self.error(at, format!("{number} is not a number from {} to {}", bounds.start(), bounds.end()));
        }
        known
    }

    /// A duration above zero, such as `1.5s`, `250ms` or `5m`.
    fn duration(&mut self, text: Option<&str>, at: FieldPath) -> Option<Duration> {
        let text = text?;
        let known = duration(text).filter(|duration| !duration.is_zero() && *duration <= MAX_DURATION);
        if known.is_none() {
            self.error(at, format!("{text:?} is not a duration above zero such as 250ms, 1.5s, 5m or 1h"));
        }
        known
    }

    /// Percent with parts of it, in millionths.
    fn percent(&mut self, percent: Option<f64>, otherwise: u32, at: FieldPath) -> u32 {
        let Some(percent) = percent else { return otherwise };
        if !(0.0..=100.0).contains(&percent) {
            self.error(at, format!("{percent} is not a share (0 to 100)"));
            return 0;
        }
        // Between 0 and 1,000,000, so that nothing is cut off.
        let millionths = (percent * MILLIONTHS_OF_A_PERCENT).round() as u32;
        if percent > 0.0 { millionths.max(1) } else { 0 }.min(ALL_MILLIONTHS)
    }

    fn finish(self, kind: &'static str, services: Vec<ServicePolicy>, requests: Vec<RequestPolicy>) -> Read {
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        Ok(PolicySet { origin: Origin { kind, name: self.name }, services, requests })
    }
}

/// Longer ones are no time of a request or an endpoint.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// Numbers with their units, as Go reads them, from hours to microseconds.
fn duration(text: &str) -> Option<Duration> {
    const MAX_LEN: usize = 32;
    let (mut rest, mut total) = (text, Duration::ZERO);
    if text.is_empty() || text.len() > MAX_LEN {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, unit) = rest.split_at_checked(digits)?;
        let letters = unit.len() - unit.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, next) = unit.split_at_checked(letters)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go() {
        for (text, millis) in
            [("1s", 1000), ("1.5s", 1500), ("0.250s", 250), ("5m", 300_000), ("1h1m", 3_660_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "1", "s", "-1s", "1..5s", "1e9s", "1d", "99999999999999999999999999h", "NaNs", "infs"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn shares() {
        let mut reader = Reader::new(&ObjectMeta::default());
        let mut share = |percent| reader.percent(Some(percent), 7, FieldPath::root());
        assert_eq!([share(100.0), share(0.5), share(0.0), share(1e-9)], [1_000_000, 5000, 0, 1]);
        assert_eq!([share(f64::NAN), share(-1.0), share(101.0)], [0, 0, 0]);
        assert_eq!(reader.errors.len(), 3);
    }
}
