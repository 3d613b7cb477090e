//! What a namespace shows of iptables without any program being run: most pods have nothing of it.

use std::fs;

use super::{PREFIX, Variant};
use crate::{
    error::Error,
    nft::{self, NamedChain},
    rules::{Family, TABLE},
};

/// Tables that `iptables-nft` makes.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// What there may be, by variant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    /// Chains of ours, by the nft variant.
    pub(crate) ours_by_nft: bool,
    /// Our own table, by netlink.
    pub(crate) ours_by_netlink: bool,
    nft: bool,
    legacy: bool,
}

impl Traces {
    /// Has the variant been used here at all?
    pub(crate) fn any(&self, variant: Variant) -> bool {
        match variant {
            Variant::Nft => self.nft,
            Variant::Legacy => self.legacy,
        }
    }

    /// May there be rules of ours? Of the older interface only its programs can say.
    pub(crate) fn may_be_ours(&self) -> bool {
        self.ours_by_nft || self.legacy
    }
}

/// Looks at the current namespace.
pub(crate) fn traces(families: &[Family]) -> Result<Traces, Error> {
    let chains = match nft::chains(families) {
        // Where the kernel has no nf_tables there is nothing by it.
        Err(Error::NoNetfilter | Error::Unsupported { .. }) => Vec::new(),
        other => other?,
    };
    let by_nft: Vec<&NamedChain> = chains.iter().filter(|chain| TABLES.contains(&chain.table.as_str())).collect();
    Ok(Traces {
        ours_by_nft: by_nft.iter().any(|chain| chain.name.starts_with(PREFIX)),
        ours_by_netlink: chains.iter().any(|chain| chain.table == TABLE),
        nft: !by_nft.is_empty(),
        legacy: families.iter().any(|family| has_legacy_tables(*family)),
    })
}

/// The kernel makes a namespace's tables of the older interface when they are first asked for, and lists those that there are.
fn has_legacy_tables(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(file).is_ok_and(|names| !names.trim().is_empty())
}
