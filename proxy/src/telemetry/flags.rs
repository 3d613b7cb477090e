//! Response flags: why an answer is not simply the application's. Short names as Envoy's, so that queries and boards fit.

use std::fmt;

/// A set of flags; empty for an answer that went the normal way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($name:ident = $bit:literal, $doc:literal;)*) => {
        impl ResponseFlags {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*
        }
        const NAMES: &[(u32, &str)] = &[$((1 << $bit, stringify!($name)),)*];
    };
}

flags! {
    UH = 0, "No healthy endpoint.";
    UF = 1, "Connecting to the endpoint, or TLS with it, failed.";
    UO = 2, "A limit of the pool or circuit breaker was reached.";
    NR = 3, "No route matched.";
    NC = 4, "The route's cluster is not known.";
    URX = 5, "Retries are used up.";
    UT = 6, "The endpoint did not answer in time.";
    UC = 7, "The endpoint closed the connection after the request was sent.";
    UR = 8, "The endpoint reset the stream.";
    LR = 9, "This proxy reset the stream.";
    DC = 10, "The caller went away.";
    DT = 11, "The connection reached its longest duration.";
    SI = 12, "The stream was idle for too long.";
    DPE = 13, "The caller broke the protocol.";
    UPE = 14, "The endpoint broke the protocol.";
    RL = 15, "A local rate limit refused the request.";
    UAEX = 16, "An external authorization refused the request.";
    DF = 17, "Name resolution failed.";
    OM = 18, "The proxy protects itself from overload.";
    DI = 19, "A delay was injected.";
    FI = 20, "An abort was injected.";
    IH = 21, "A header that is checked strictly has a bad value.";
    UMSDR = 22, "The stream reached its longest duration.";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// The flags of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True where every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) const fn bits(self) -> u32 {
        self.0
    }

    /// True where none is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The short names of the flags that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().filter(move |(bit, _)| self.0 & bit != 0).map(|(_, name)| *name)
    }
}

impl std::ops::BitOr for ResponseFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl std::ops::BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.with(other);
    }
}

/// Comma-joined, `-` for none.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use weir_mesh::flags::FLAGS;

    use super::*;

    /// `weir describe` explains flags from that table.
    #[test]
    fn every_flag_is_explained_and_nothing_else() {
        let ours: Vec<&str> = std::iter::once("-").chain(NAMES.iter().map(|(_, name)| *name)).collect();
        let explained: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        assert_eq!(explained, ours);
    }

    #[test]
    fn names_are_joined() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!((ResponseFlags::URX | ResponseFlags::UF).to_string(), "UF,URX");
        assert!((ResponseFlags::URX | ResponseFlags::UF).contains(ResponseFlags::UF));
        assert!(!ResponseFlags::UF.contains(ResponseFlags::URX | ResponseFlags::UF));
    }
}
