//! When a request is sent again because a rule says so, how often, and after which pause. Conditions have Envoy's names.

use std::time::Duration;

/// Pauses where the rule names none: Envoy's, from nothing up to this, longer each time.
const DEFAULT_BASE: Duration = Duration::from_millis(25);
/// The longest pause, in base intervals, where the rule names none.
const LONGEST: u32 = 10;

/// What is worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions(u16);

macro_rules! conditions {
    ($($name:ident = $bit:literal, $text:literal;)*) => {
        impl Conditions {
            $(const $name: Self = Self(1 << $bit);)*
            const ALL: &[(&str, Self)] = &[$(($text, Self::$name),)*];
        }
    };
}

conditions! {
    ANY_5XX = 0, "5xx";
    GATEWAY = 1, "gateway-error";
    RESET = 2, "reset";
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    CONNECT = 4, "connect-failure";
    REFUSED_STREAM = 5, "refused-stream";
    RETRIABLE_4XX = 6, "retriable-4xx";
    STATUSES = 7, "retriable-status-codes";
    CANCELLED = 8, "cancelled";
    DEADLINE = 9, "deadline-exceeded";
    INTERNAL = 10, "internal";
    EXHAUSTED = 11, "resource-exhausted";
    UNAVAILABLE = 12, "unavailable";
}

impl Conditions {
    /// Reads names with commas between.
    ///
    /// # Errors
    /// The name that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.try_fold(Self::default(), |all, name| {
            let (_, condition) = Self::ALL
                .iter()
                .find(|(known, _)| *known == name)
                .ok_or_else(|| format!("the retry condition {name:?} is not understood"))?;
            Ok(Self(all.0 | condition.0))
        })
    }

    const fn has(self, any: &[Self]) -> bool {
        let mut at = 0;
        let mut bits = 0;
        while at < any.len() {
            bits |= any[at].0;
            at += 1;
        }
        self.0 & bits != 0
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// An answer: its status, and that of gRPC where the head has one.
    Answered(u16, Option<u8>),
    /// There was no connection; nothing was sent.
    Unconnected,
    /// The endpoint's side says that it did not take the request.
    Refused,
    /// It was sent, and no answer came: the connection or stream ended, or time ran out.
    Unanswered,
}

/// When, how often and how a request is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// What is worth it.
    pub on: Conditions,
    /// Statuses of "retriable-status-codes".
    pub statuses: Box<[u16]>,
    /// At most so many times.
    pub retries: u32,
    /// The time of one attempt.
    pub per_try: Option<Duration>,
    /// The pauses between.
    pub pause: Pause,
}

impl Retry {
    /// True where the rule wants another attempt.
    pub fn wants(&self, attempt: Attempt) -> bool {
        type C = Conditions;
        match attempt {
            Attempt::Answered(status, grpc) => {
                let by_status = match status {
                    502..=504 => self.on.has(&[C::ANY_5XX, C::GATEWAY]),
                    500..=599 => self.on.has(&[C::ANY_5XX]),
                    409 => self.on.has(&[C::RETRIABLE_4XX]),
                    _ => false,
                };
                let by_grpc = match grpc {
                    Some(1) => self.on.has(&[C::CANCELLED]),
                    Some(4) => self.on.has(&[C::DEADLINE]),
                    Some(8) => self.on.has(&[C::EXHAUSTED]),
                    Some(13) => self.on.has(&[C::INTERNAL]),
                    Some(14) => self.on.has(&[C::UNAVAILABLE]),
                    _ => false,
                };
                by_status || by_grpc || self.on.has(&[C::STATUSES]) && self.statuses.contains(&status)
            }
            Attempt::Unconnected => {
                self.on.has(&[C::ANY_5XX, C::GATEWAY, C::RESET, C::RESET_BEFORE_REQUEST, C::CONNECT])
            }
            Attempt::Refused => self.on.has(&[C::ANY_5XX, C::GATEWAY, C::RESET, C::REFUSED_STREAM]),
            Attempt::Unanswered => self.on.has(&[C::ANY_5XX, C::GATEWAY, C::RESET]),
        }
    }

    /// True where the status of gRPC decides, so that it has to be looked for.
    pub fn looks_at_grpc(&self) -> bool {
        type C = Conditions;
        self.on.has(&[C::CANCELLED, C::DEADLINE, C::EXHAUSTED, C::INTERNAL, C::UNAVAILABLE])
    }
}

/// Pauses between attempts: doubled each time, and never the same for all callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pause {
    /// The rule names none: between nothing and 25 ms, 75 ms, 175 ms, at most 250 ms.
    #[default]
    Short,
    /// At least this long, twice that, four times that, and up to a quarter more.
    AtLeast {
        /// The first.
        base: Duration,
        /// The longest, but for the quarter.
        max: Duration,
    },
}

impl Pause {
    /// With this base; `max` is ten times that where it is not named.
    pub fn at_least(base: Duration, max: Option<Duration>) -> Self {
        Self::AtLeast { base, max: max.unwrap_or(base.saturating_mul(LONGEST)) }
    }

    /// The pause before retry number `retry`, from 1; `random` is any number.
    pub fn before(self, retry: u32, random: u64) -> Duration {
        let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
        let doubled = 1_u32.checked_shl(retry.saturating_sub(1)).unwrap_or(u32::MAX);
        match self {
            Self::Short => {
                let most = doubled.saturating_mul(2).saturating_sub(1).min(LONGEST);
                DEFAULT_BASE.saturating_mul(most).mul_f64(part)
            }
            Self::AtLeast { base, max } => base.saturating_mul(doubled).min(max).mul_f64(1.0 + part / 4.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(on: &str) -> Retry {
        Retry {
            on: Conditions::parse(on).unwrap(),
            statuses: Box::new([429]),
            retries: 2,
            per_try: None,
            pause: Pause::Short,
        }
    }

    #[test]
    fn conditions_mean_what_envoy_says() {
        let all = [
            Attempt::Answered(500, None),
            Attempt::Answered(503, None),
            Attempt::Answered(409, None),
            Attempt::Answered(429, None),
            Attempt::Answered(200, Some(14)),
            Attempt::Unconnected,
            Attempt::Refused,
            Attempt::Unanswered,
        ];
        for (on, wanted) in [
            ("5xx", [true, true, false, false, false, true, true, true]),
            ("gateway-error", [false, true, false, false, false, true, true, true]),
            ("reset", [false, false, false, false, false, true, true, true]),
            ("reset-before-request", [false, false, false, false, false, true, false, false]),
            ("connect-failure", [false, false, false, false, false, true, false, false]),
            ("refused-stream", [false, false, false, false, false, false, true, false]),
            ("retriable-4xx", [false, false, true, false, false, false, false, false]),
            ("retriable-status-codes", [false, false, false, true, false, false, false, false]),
            ("unavailable", [false, false, false, false, true, false, false, false]),
            ("cancelled, unavailable,connect-failure", [false, false, false, false, true, true, false, false]),
            ("", [false; 8]),
        ] {
            assert_eq!(all.map(|attempt| retry(on).wants(attempt)), wanted, "{on}");
        }
        for (status, name) in [(1, "cancelled"), (4, "deadline-exceeded"), (8, "resource-exhausted"), (13, "internal")]
        {
            assert!(retry(name).wants(Attempt::Answered(200, Some(status))), "{name}");
            assert!(!retry(name).wants(Attempt::Answered(200, Some(0))) && retry(name).looks_at_grpc());
        }
        assert!(Conditions::parse("5xx,sometimes").unwrap_err().contains("sometimes"));
    }

    #[test]
    fn pauses_grow_and_have_an_end() {
        let named = Pause::at_least(Duration::from_millis(100), Some(Duration::from_millis(300)));
        for (retry, least) in [(1, 100), (2, 200), (3, 300), (4, 300), (u32::MAX, 300)] {
            for random in [0, u64::MAX / 2, u64::MAX] {
                let pause = named.before(retry, random).as_millis();
                assert!((least..=least + least / 4).contains(&pause), "{retry}: {pause}");
            }
            assert!(Pause::Short.before(retry, u64::MAX) <= DEFAULT_BASE * LONGEST);
            assert_eq!(Pause::Short.before(retry, 0), Duration::ZERO);
        }
        assert!(Pause::Short.before(1, u64::MAX) <= DEFAULT_BASE);
        assert!(Pause::Short.before(2, u64::MAX) > DEFAULT_BASE * 2);
    }
}
