//! Outlier detection: endpoints that answer badly are left out for a while. Envoy's rules, but for what is said in `docs/resilience.md`.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Endpoint, EndpointSet, Standing};
use crate::net::random;

/// What a cluster asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    /// So many answers of 5xx in a row.
    pub consecutive_5xx: Option<u32>,
    /// So many of 502, 503 or 504.
    pub gateway: Option<u32>,
    /// So many times no answer, where these are counted apart.
    pub local: Option<u32>,
    /// What has no answer is counted apart, and not as a 5xx.
    pub split: bool,
    /// How often all endpoints are compared, and how long one has to stay for its next ejection to be shorter.
    pub interval: Duration,
    /// The first ejection; the second is twice as long, and so on.
    pub base: Duration,
    /// The longest.
    pub longest: Duration,
    /// Most endpoints outside, in percent; one may always be, unless this is 0.
    pub share: u32,
    /// By comparing.
    pub success_rate: Option<SuccessRate>,
}

/// Endpoints whose share of good answers is far below the others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// So many endpoints must have had enough requests.
    pub hosts: u32,
    /// Enough, in one interval.
    pub requests: u32,
    /// Far, in thousandths of a standard deviation.
    pub factor: u32,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An answer with this status; for gRPC the status that its own stands for.
    Answered(u16),
    /// None: no connection, or one that ended, or time ran out.
    Unanswered,
}

/// An ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// What for, as in Envoy's names.
    pub why: &'static str,
    /// For how long.
    pub pause: Duration,
}

/// What one cluster's detection has to remember, for all workers.
#[derive(Debug)]
pub struct Detector {
    /// When all were compared last, in milliseconds since it was made.
    compared: AtomicU64,
    /// One at a time may decide who is ejected: else two might go where one may.
    deciding: Mutex<()>,
    epoch: Instant,
}

impl Default for Detector {
    fn default() -> Self {
        Self { compared: AtomicU64::new(0), deciding: Mutex::new(()), epoch: Instant::now() }
    }
}

const FIVES: usize = 0;
const GATEWAY: usize = 1;
const LOCAL: usize = 2;

impl Detector {
    /// Takes note of what came of a request; the ejection that followed, if one did.
    pub fn judge(
        &self,
        rule: &Outlier,
        set: &EndpointSet,
        endpoint: &Endpoint,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Ejected> {
        let standing = &endpoint.standing;
        let failed = !matches!(verdict, Verdict::Answered(..500));
        standing.requests.fetch_add(1, Relaxed);
        if !failed {
            standing.good.fetch_add(1, Relaxed);
        }
        self.compare(rule, set, now);
        if standing.is_probing() {
            if failed {
                return self.eject(rule, set, standing, "probation", now);
            }
            standing.readmit(now);
            return None;
        }
        let [fives, gateway, local] = &standing.failures;
        match verdict {
            Verdict::Unanswered if rule.split => Self::count(local),
            Verdict::Unanswered => {
                Self::count(fives);
                Self::count(gateway);
            }
            Verdict::Answered(status) => {
                clear(local);
                if status >= 500 {
                    Self::count(fives)
                } else {
                    clear(fives)
                }
                if matches!(status, 502..=504) { Self::count(gateway) } else { clear(gateway) }
            }
        }
        if !failed {
            return None;
        }
        for (counter, most, why) in [
            (FIVES, rule.consecutive_5xx, "consecutive_5xx"),
            (GATEWAY, rule.gateway, "consecutive_gateway_failure"),
            (LOCAL, rule.local.filter(|_| rule.split), "consecutive_local_origin_failure"),
        ] {
            let count = standing.failures.get(counter).map_or(0, |count| count.load(Relaxed));
            if most.is_some_and(|most| count >= most.max(1)) {
                return self.eject(rule, set, standing, why, now);
            }
        }
        None
    }

    fn count(counter: &AtomicU32) {
        counter.fetch_add(1, Relaxed);
    }

    /// Ejects an endpoint, unless too many are out already.
    fn eject(
        &self,
        rule: &Outlier,
        set: &EndpointSet,
        standing: &Standing,
        why: &'static str,
        now: Instant,
    ) -> Option<Ejected> {
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let again = standing.is_probing();
        if standing.is_ejected() && !again {
            return None; // by another worker, a moment ago
        }
        let out = set.endpoints.iter().filter(|other| other.standing.is_ejected()).count();
        let most = set.endpoints.len().saturating_mul(usize::try_from(rule.share.min(100)).unwrap_or(0)) / 100;
        if !again && (rule.share == 0 || out >= most.max(1)) {
            standing.failures.iter().for_each(clear);
            return None;
        }
        // What was well for some time counts less.
        let stayed = standing.millis(now).saturating_sub(standing.back.load(Relaxed));
        let interval = u64::try_from(rule.interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let shorter = u32::try_from(stayed / interval).unwrap_or(u32::MAX);
        let before = standing.times.load(Relaxed);
        let times = if again { before } else { before.saturating_sub(shorter) }.saturating_add(1);
        standing.times.store(times, Relaxed);
        let pause = rule.base.saturating_mul(times).min(rule.longest.max(rule.base));
        standing.eject(now, pause);
        Some(Ejected { why, pause })
    }

    /// Compares all endpoints when an interval has passed; the first worker that notices does it.
    fn compare(&self, rule: &Outlier, set: &EndpointSet, now: Instant) {
        let Some(by) = rule.success_rate else { return };
        let at = u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        let last = self.compared.load(Relaxed);
        let interval = u64::try_from(rule.interval.as_millis()).unwrap_or(u64::MAX);
        if at.saturating_sub(last) < interval || self.compared.compare_exchange(last, at, Relaxed, Relaxed).is_err() {
            return;
        }
        let mut rates: Vec<(&Standing, f64)> = Vec::with_capacity(set.endpoints.len());
        for endpoint in &set.endpoints {
            let standing = &endpoint.standing;
            let (all, good) = (standing.requests.swap(0, Relaxed), standing.good.swap(0, Relaxed));
            if all >= by.requests.max(1) && !standing.is_ejected() {
                rates.push((standing, f64::from(good.min(all)) / f64::from(all)));
            }
        }
        if rates.is_empty() || rates.len() < usize::try_from(by.hosts).unwrap_or(usize::MAX) {
            return;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let least = mean - variance.sqrt() * f64::from(by.factor) / 1000.0;
        rates.retain(|(_, rate)| *rate < least);
        rates.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        for (standing, rate) in rates {
            if let Some(Ejected { pause, .. }) = self.eject(rule, set, standing, "success_rate", now) {
                tracing::warn!(rate, mean, seconds = pause.as_secs_f32(), "an endpoint is ejected: success_rate");
            }
        }
    }
}

fn clear(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

/// True in so many of a hundred cases.
pub fn in_percent(percent: u32) -> bool {
    percent >= 100 || random() % 100 < u64::from(percent)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::upstream::{Balancing, Part, balance::tests::endpoints};

    fn rule() -> Outlier {
        Outlier {
            consecutive_5xx: Some(3),
            gateway: None,
            local: None,
            split: false,
            interval: Duration::from_secs(10),
            base: Duration::from_secs(30),
            longest: Duration::from_secs(70),
            share: 50,
            success_rate: None,
        }
    }

    fn set(count: u8) -> EndpointSet {
        EndpointSet::new(endpoints(count), &Balancing::default(), true)
    }

    fn fail(detector: &Detector, rule: &Outlier, set: &EndpointSet, of: usize, now: Instant) -> Option<Ejected> {
        detector.judge(rule, set, &set.endpoints[of], Verdict::Answered(503), now)
    }

    #[test]
    fn failures_in_a_row_eject_and_the_share_holds() {
        let (detector, rule, set, now) = (Detector::default(), rule(), set(4), Instant::now());
        assert_eq!((fail(&detector, &rule, &set, 0, now), fail(&detector, &rule, &set, 0, now)), (None, None));
        detector.judge(&rule, &set, &set.endpoints[0], Verdict::Answered(200), now);
        assert_eq!(fail(&detector, &rule, &set, 0, now), None, "not in a row");
        fail(&detector, &rule, &set, 0, now);
        let ejected = fail(&detector, &rule, &set, 0, now).expect("the third in a row");
        assert_eq!(ejected, Ejected { why: "consecutive_5xx", pause: Duration::from_secs(30) });
        let ejected = (1..4).filter(|of| (0..9).any(|_| fail(&detector, &rule, &set, *of, now).is_some()));
        assert_eq!(ejected.count(), 1, "half of four are two");
        let none = Outlier { share: 0, ..rule.clone() };
        let other = super::tests::set(2);
        assert!((0..9).all(|_| fail(&detector, &none, &other, 0, now).is_none()));
        let few = Outlier { share: 10, ..rule };
        assert!((0..9).any(|_| fail(&detector, &few, &other, 0, now).is_some()), "one may always be");
    }

    #[test]
    fn the_end_is_a_probation_and_the_next_time_is_longer() {
        let (detector, rule, set, mut now) = (Detector::default(), rule(), set(2), Instant::now());
        let standing = set.endpoints[0].standing.clone();
        while fail(&detector, &rule, &set, 0, now).is_none() {}
        for seconds in [60, 70, 70] {
            now += Duration::from_secs(80);
            assert!(standing.part(now) == Part::Due && standing.claim(now));
            let ejected = fail(&detector, &rule, &set, 0, now).expect("one failure is enough");
            assert_eq!((ejected.why, ejected.pause), ("probation", Duration::from_secs(seconds)));
        }
        now += Duration::from_secs(80);
        assert!(standing.claim(now));
        detector.judge(&rule, &set, &set.endpoints[0], Verdict::Answered(200), now);
        assert_eq!(standing.part(now), Part::In);
        now += Duration::from_secs(1000);
        let again = (0..3).find_map(|_| fail(&detector, &rule, &set, 0, now)).expect("it is ejected");
        assert_eq!(again.pause, Duration::from_secs(30), "it was well for long");
    }

    #[test]
    fn kinds_of_failures_are_counted_apart() {
        let now = Instant::now();
        let (detector, two) = (Detector::default(), set(2));
        let of =
            |rule: &Outlier, verdict| (0..5).find_map(|_| detector.judge(rule, &two, &two.endpoints[0], verdict, now));
        let gateway = Outlier { consecutive_5xx: None, gateway: Some(2), ..rule() };
        assert_eq!(of(&gateway, Verdict::Answered(500)), None);
        assert_eq!(of(&gateway, Verdict::Answered(502)).map(|one| one.why), Some("consecutive_gateway_failure"));
        let two = set(2);
        let of =
            |rule: &Outlier, verdict| (0..5).find_map(|_| detector.judge(rule, &two, &two.endpoints[0], verdict, now));
        let split = Outlier { split: true, local: Some(2), ..rule() };
        assert_eq!(of(&Outlier { local: None, ..split.clone() }, Verdict::Unanswered), None);
        assert_eq!(of(&split, Verdict::Unanswered).map(|one| one.why), Some("consecutive_local_origin_failure"));
        let two = set(2);
        let whole = (0..5).find_map(|_| detector.judge(&rule(), &two, &two.endpoints[0], Verdict::Unanswered, now));
        assert_eq!(whole.map(|one| one.why), Some("consecutive_5xx"));
    }

    #[test]
    fn who_answers_far_worse_than_the_others_is_ejected() {
        let (detector, now) = (Detector::default(), Instant::now());
        let by = SuccessRate { hosts: 5, requests: 100, factor: 1900 };
        let rule = Outlier { consecutive_5xx: None, success_rate: Some(by), ..rule() };
        let set = set(10);
        let ask = |of: usize, failing: usize, now| {
            for number in 0..100 {
                let status = if number < failing { 500 } else { 200 };
                detector.judge(&rule, &set, &set.endpoints[of], Verdict::Answered(status), now);
            }
        };
        (0..10).for_each(|of| ask(of, if of == 3 { 40 } else { 2 }, now));
        ask(0, 0, now + Duration::from_secs(11));
        let out: Vec<usize> = (0..10).filter(|of| set.endpoints[*of].standing.is_ejected()).collect();
        assert_eq!(out, [3]);
    }

    #[test]
    fn four_threads_eject_no_more_than_the_share() {
        let (detector, rule, set) = (Arc::new(Detector::default()), Arc::new(rule()), Arc::new(set(8)));
        let now = Instant::now();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (detector, rule, set) = (detector.clone(), rule.clone(), set.clone());
                std::thread::spawn(move || {
                    (0..800).filter(|at| fail(&detector, &rule, &set, at % 8, now).is_some()).count()
                })
            })
            .collect();
        let ejected: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(ejected, 4);
        assert_eq!(set.endpoints.iter().filter(|endpoint| endpoint.standing.is_ejected()).count(), 4);
    }
}
