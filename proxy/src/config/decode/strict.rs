//! Parts that several resources have, and the parts of which nothing may be said.

use std::{collections::HashMap, hash::BuildHasher, time::Duration};

use weir_xds::envoy::protobuf;

use super::DecodeError;

/// Longer times are as good as none, and sums with them stay far from the end of the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A duration; `what` names it in the error.
pub(super) fn duration(what: &str, value: &protobuf::Duration) -> Result<Duration, DecodeError> {
    let bad = || DecodeError::new(format!("{what} is no duration"));
    let seconds = u64::try_from(value.seconds).map_err(|_| bad())?;
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(bad)?;
    Ok(Duration::new(seconds.min(LONGEST.as_secs()), nanos).min(LONGEST))
}

/// The same, where it may be missing.
pub(super) fn optional(what: &str, value: Option<&protobuf::Duration>) -> Result<Option<Duration>, DecodeError> {
    value.map(|value| duration(what, value)).transpose()
}

/// The same, where 0 means none.
pub(super) fn limit(what: &str, value: Option<&protobuf::Duration>) -> Result<Option<Duration>, DecodeError> {
    Ok(optional(what, value)?.filter(|time| !time.is_zero()))
}

/// Whether a part of a message says something.
pub(super) trait Says {
    fn says(&self) -> bool;
}

impl<T> Says for Option<T> {
    fn says(&self) -> bool {
        self.is_some()
    }
}

impl<T> Says for Vec<T> {
    fn says(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V, S: BuildHasher> Says for HashMap<K, V, S> {
    fn says(&self) -> bool {
        !self.is_empty()
    }
}

impl Says for String {
    fn says(&self) -> bool {
        !self.is_empty()
    }
}

macro_rules! zero_says_nothing {
    ($($kind:ty),*) => {
        $(impl Says for $kind {
            fn says(&self) -> bool {
                *self != Self::default()
            }
        })*
    };
}

zero_says_nothing!(bool, i32, u32, i64, u64);

/// Refuses a message that says something in one of these fields, and names the field.
macro_rules! refuse {
    ($message:expr, $($field:ident),* $(,)?) => {
        $(if $crate::config::decode::strict::Says::says(&$message.$field) {
            return Err($crate::config::decode::DecodeError::new(concat!(stringify!($field), " is not understood")));
        })*
    };
}
pub(super) use refuse;
