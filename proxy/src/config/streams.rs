//! Where opaque streams of a destination go: by the name of the server that their ClientHello asks for, or all of them; to one
//! cluster or by shares.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use weir_xds::BAD_BACKEND_CLUSTER;

use crate::{
    http::Edits,
    route::{Split, Target, TargetSpec},
    upstream::Cluster,
};

/// A cluster of a share; none where the share can go nowhere.
type Share = Option<Arc<Cluster>>;

/// Where streams go that are treated alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Clusters with their weights.
    pub clusters: Vec<(String, u32)>,
    /// The rule and its object, where a user wrote one.
    pub route: Option<(String, String)>,
    /// Where a cluster chooses endpoints by a key, it is where the stream comes from; else there is none.
    pub by_source: bool,
}

/// Where streams go, by names of clusters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StreamsSpec {
    /// Those that no name is for.
    pub every: Option<Shares>,
    /// By server name; `*.` before it stands for one or more labels.
    pub named: Vec<(Vec<String>, Shares)>,
}

impl StreamsSpec {
    /// Names of all clusters that streams may go to.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &String> {
        let all = self.every.iter().chain(self.named.iter().map(|(_, shares)| shares));
        all.flat_map(|shares| &shares.clusters)
            .map(|(cluster, _)| cluster)
            .filter(|cluster| *cluster != BAD_BACKEND_CLUSTER)
    }
}

/// Where streams go.
#[derive(Debug)]
pub struct Streams {
    every: Option<Arc<Way>>,
    named: FxHashMap<Box<str>, Arc<Way>>,
}

#[derive(Debug)]
struct Way {
    split: Split<Share>,
    route: Option<(String, String)>,
    by_source: bool,
}

/// Where one stream goes.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// The rule and its object, for logs.
    pub route: Option<&'a (String, String)>,
    /// The cluster.
    pub target: &'a Target<Share>,
    /// Its key is where it comes from.
    pub by_source: bool,
}

impl Streams {
    /// The counters of shares go on from the previous ones.
    pub(super) fn new(spec: &StreamsSpec, cluster: impl Fn(&str) -> Share, previous: Option<&Self>) -> Self {
        let way = |shares: &Shares, previous: Option<&Arc<Way>>| {
            let targets = shares.clusters.iter().map(|(name, weight)| TargetSpec {
                name: name.clone(),
                weight: *weight,
                cluster: cluster(name),
                request_edits: Edits::new(),
                response_edits: Edits::new(),
            });
            let split = Split::new(targets.collect(), previous.map(|way| &way.split))?;
            Some(Arc::new(Way { split, route: shares.route.clone(), by_source: shares.by_source }))
        };
        let every = spec.every.as_ref().and_then(|shares| way(shares, previous.and_then(|old| old.every.as_ref())));
        let mut named = FxHashMap::default();
        for (names, shares) in &spec.named {
            let old = previous.and_then(|old| names.iter().find_map(|name| old.named.get(name.as_str())));
            let Some(way) = way(shares, old) else { continue };
            for name in names {
                named.entry(name.to_ascii_lowercase().into()).or_insert_with(|| way.clone());
            }
        }
        Self { every, named }
    }

    /// True where the server's name decides.
    pub fn ask_for_name(&self) -> bool {
        !self.named.is_empty()
    }

    /// True where streams without a name of ours go somewhere.
    pub fn take_all(&self) -> bool {
        self.every.is_some()
    }

    /// The target of the next stream: the exact name, else the closest `*.`, else that of all.
    pub fn pick(&self, server_name: Option<&str>) -> Option<Stream<'_>> {
        let name = server_name.map(str::to_ascii_lowercase);
        let named = name.as_deref().and_then(|name| {
            let mut rest = name;
            let mut found = self.named.get(name);
            while found.is_none() {
                rest = rest.split_once('.')?.1;
                found = self.named.get(format!("*.{rest}").as_str());
            }
            found
        });
        let way = named.or(self.every.as_ref())?;
        Some(Stream { route: way.route.as_ref(), target: way.split.pick(), by_source: way.by_source })
    }

    /// The clusters that streams go to, for dumps.
    pub fn clusters(&self) -> Vec<&str> {
        let ways = self.every.iter().chain(self.named.values());
        let mut names: Vec<&str> = ways.flat_map(|way| way.split.shares()).map(Target::name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(all: &[(&str, u32)]) -> Shares {
        let clusters = all.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        Shares { clusters, route: None, by_source: false }
    }

    fn streams(every: Option<&str>, named: &[(&str, &str)]) -> Streams {
        let shares = |cluster: &str| shares(&[(cluster, 1)]);
        let spec = StreamsSpec {
            every: every.map(shares),
            named: named.iter().map(|(name, cluster)| (vec![(*name).to_owned()], shares(cluster))).collect(),
        };
        Streams::new(&spec, |_| None, None)
    }

    #[test]
    fn the_closest_name_decides() {
        let streams = streams(None, &[("a.b.c", "exact"), ("*.b.c", "near"), ("*.c", "far")]);
        let to = |name: &str| streams.pick(Some(name)).map(|stream| stream.target.name());
        assert_eq!(to("a.b.c"), Some("exact"));
        assert_eq!(to("A.B.C"), Some("exact"));
        assert_eq!(to("x.b.c"), Some("near"));
        assert_eq!(to("x.y.b.c"), Some("near"));
        assert_eq!(to("b.c"), Some("far"), "a star stands for at least one label");
        assert_eq!(to("c"), None);
        assert_eq!(to(""), None);
        assert!(streams.pick(None).is_none() && streams.ask_for_name() && !streams.take_all());
    }

    #[test]
    fn what_has_no_name_of_ours_goes_where_all_go() {
        let streams = streams(Some("all"), &[("a", "a")]);
        assert_eq!(streams.pick(Some("b")).map(|stream| stream.target.name()), Some("all"));
        assert_eq!(streams.pick(None).map(|stream| stream.target.name()), Some("all"));
        assert_eq!(streams.clusters(), ["a", "all"]);
    }

    #[test]
    fn shares_hold_over_a_change() {
        let spec = |b: u32| StreamsSpec { every: Some(shares(&[("a", 3), ("b", b)])), named: Vec::new() };
        let mut streams = Streams::new(&spec(1), |_| None, None);
        let mut count = 0;
        for i in 0..400 {
            if i % 7 == 0 {
                streams = Streams::new(&spec(1), |_| None, Some(&streams));
            }
            count += usize::from(streams.pick(None).unwrap().target.name() == "b");
        }
        assert_eq!(count, 100);
        assert!(
            Streams::new(&StreamsSpec { every: Some(shares(&[("a", 0)])), named: Vec::new() }, |_| None, None)
                .pick(None)
                .is_none()
        );
    }
}
