//! Which way the rules take into the kernel. Whatever way is taken, afterwards there is one set of ours: what another way left is
//! taken away.

use std::{fmt, str::FromStr, time::Instant};

use crate::{
    Applied,
    error::Error,
    families,
    in_force::left_by_iptables,
    iptables::{Iptables, Variant, traces},
    lock::lock,
    loopback, nft,
    rules::{Family, RuleSet},
};

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// nf_tables by netlink; iptables where the kernel refuses that.
    #[default]
    Auto,
    /// nf_tables by netlink, without any program.
    Nft,
    /// The programs of iptables; the variant is found, or is this.
    Iptables(Option<Variant>),
}

impl Backend {
    /// All that can be asked for.
    pub const ALL: [Self; 5] = [
        Self::Auto,
        Self::Nft,
        Self::Iptables(None),
        Self::Iptables(Some(Variant::Nft)),
        Self::Iptables(Some(Variant::Legacy)),
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nft => "nft",
            Self::Iptables(None) => "iptables",
            Self::Iptables(Some(Variant::Nft)) => "iptables-nft",
            Self::Iptables(Some(Variant::Legacy)) => "iptables-legacy",
        }
    }

    /// Puts the rules in force in the calling thread's network namespace: all of them or none. Rules of an earlier call are
    /// replaced, by whichever way they came; rules of others are not touched.
    ///
    /// # Errors
    /// [`Error`]; then the rules are as before, unless it says otherwise.
    pub fn apply(self, rules: &RuleSet) -> Result<Applied, Error> {
        let start = Instant::now();
        let families = families();
        let ipv6 = families.contains(&Family::V6);
        loopback::prepare(ipv6)?;
        let Done { rules, by, reason } = match self {
            Self::Nft => by_netlink(rules, families)?,
            Self::Iptables(variant) => by_iptables(rules, families, variant)?,
            Self::Auto => match by_netlink(rules, families) {
                Err(first @ (Error::NoNetfilter | Error::Unsupported { .. })) => {
                    let done = by_iptables(rules, families, None);
                    let done =
                        done.map_err(|second| Error::NoBackend { first: Box::new(first), second: Box::new(second) })?;
                    Done { reason: format!("the kernel refuses nf_tables' own redirect, and {}", done.reason), ..done }
                }
                other => other?,
            },
        };
        Ok(Applied { rules, ipv6, by, reason, elapsed: start.elapsed() })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|backend| backend.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|backend| backend.as_str()).collect();
            format!("{text:?} is no back end ({})", all.join(", "))
        })
    }
}

/// The way that rules took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// nf_tables by netlink.
    Netlink,
    /// `iptables-restore`.
    Iptables(Variant),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netlink => f.write_str("nf_tables"),
            Self::Iptables(variant) => write!(f, "iptables ({variant} variant)"),
        }
    }
}

struct Done {
    rules: usize,
    by: By,
    reason: String,
}

fn by_netlink(rules: &RuleSet, families: &'static [Family]) -> Result<Done, Error> {
    let traces = traces(families)?;
    let _lock = traces.may_be_ours().then(lock).transpose()?;
    // Looked for first: what can not be taken away must not end up beside the new rules.
    let left = left_by_iptables(families, &traces)?;
    let count = nft::apply(rules, families)?;
    clean_left(By::Netlink, &left)?;
    Ok(Done { rules: count, by: By::Netlink, reason: "the kernel takes it, and no program is needed".into() })
}

fn by_iptables(rules: &RuleSet, families: &'static [Family], variant: Option<Variant>) -> Result<Done, Error> {
    let _lock = lock()?;
    let traces = traces(families)?;
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for variant in Variant::ALL {
        // What can not be read may be ours.
        match Iptables::open(variant, families, &traces)? {
            Some(one) => found.push(one),
            None if variant == Variant::Nft && traces.ours_by_nft => return Err(Error::NoIptablesForOurs),
            None => {}
        }
    }
    let seen = |one: &Iptables| Seen { variant: one.variant, ours: one.has_ours(), others: one.has_others() };
    for (variant, reason) in order(&found.iter().map(seen).collect::<Vec<_>>(), variant) {
        let Some(one) = found.iter().find(|one| one.variant == variant) else { continue };
        match one.apply(rules) {
            Ok(count) => {
                let by = By::Iptables(variant);
                clean_left(by, found.iter().filter(|other| other.variant != variant && other.has_ours()))?;
                if traces.ours_by_netlink {
                    nft::clean(families).map_err(left_behind(by))?;
                }
                let reason = failures.iter().fold(reason.to_owned(), |reason, failed| format!("{reason}; {failed}"));
                return Ok(Done { rules: count, by, reason });
            }
            Err(Error::Iptables { program, text }) => failures.push(format!("{program}: {text}")),
            Err(error) => return Err(error),
        }
    }
    Err(if failures.is_empty() { Error::NoIptables } else { Error::IptablesRefused(failures) })
}

/// Takes away what other ways left, once the rules are in force by this one.
fn clean_left<'i>(by: By, left: impl IntoIterator<Item = &'i Iptables>) -> Result<(), Error> {
    left.into_iter().try_for_each(Iptables::clean).map_err(left_behind(by))
}

fn left_behind(by: By) -> impl FnOnce(Error) -> Error {
    move |source| Error::LeftBehind { by, source: Box::new(source) }
}

/// A variant whose programs are here.
#[derive(Debug, Clone, Copy)]
struct Seen {
    variant: Variant,
    ours: bool,
    others: bool,
}

/// Which variant first, and why: the namespace's own before our taste, or its tools would not see our rules.
fn order(found: &[Seen], asked: Option<Variant>) -> Vec<(Variant, &'static str)> {
    if let Some(asked) = asked {
        let found = found.iter().filter(|one| one.variant == asked);
        return found.map(|one| (one.variant, "asked for")).collect();
    }
    let mut all: Vec<(u8, Variant, &'static str)> = found
        .iter()
        .map(|one| match (one.variant, one.ours, one.others) {
            (variant, true, _) => (0, variant, "Weir's rules are there already"),
            (variant, false, true) => (1, variant, "the namespace has rules of it"),
            (Variant::Nft, ..) => (2, Variant::Nft, "it is the newer one"),
            (Variant::Legacy, ..) => (3, Variant::Legacy, "the nft variant can not be used"),
        })
        .collect();
    // Stable: of two alike, the nft variant.
    all.sort_by_key(|one| one.0);
    all.into_iter().map(|(_, variant, reason)| (variant, reason)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(variant: Variant, ours: bool, others: bool) -> Seen {
        Seen { variant, ours, others }
    }

    #[test]
    fn the_namespaces_own_variant_comes_first() {
        use Variant::{Legacy, Nft};
        let variants = |found: &[Seen], asked| order(found, asked).into_iter().map(|one| one.0).collect::<Vec<_>>();
        for (nft, legacy, want) in [
            ((false, false), (false, false), [Nft, Legacy]),
            ((false, false), (false, true), [Legacy, Nft]),
            ((false, true), (false, true), [Nft, Legacy]),
            ((false, true), (true, false), [Legacy, Nft]),
            ((true, false), (true, true), [Nft, Legacy]),
        ] {
            let found = [seen(Nft, nft.0, nft.1), seen(Legacy, legacy.0, legacy.1)];
            assert_eq!(variants(&found, None), want, "{found:?}");
            assert_eq!(variants(&found, Some(Legacy)), [Legacy]);
        }
        assert_eq!(variants(&[seen(Legacy, false, false)], None), [Legacy]);
        assert_eq!(variants(&[seen(Legacy, false, false)], Some(Nft)), []);
    }

    #[test]
    fn words() {
        for backend in Backend::ALL {
            assert_eq!(backend.as_str().parse(), Ok(backend));
        }
        let said = "nftables".parse::<Backend>().unwrap_err();
        assert_eq!(said, "\"nftables\" is no back end (auto, nft, iptables, iptables-nft, iptables-legacy)");
    }
}
