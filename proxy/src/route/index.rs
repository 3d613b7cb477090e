//! Finds the routes whose path may match without trying them all.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::matching::PathMatch;

/// Positions of routes in the table, ascending.
type Positions = SmallVec<[u32; 2]>;

/// From a path to the positions of the routes that it matches, in the table's order. Routes whose path is a regular expression,
/// or any, are candidates for every request.
#[derive(Debug, Default)]
pub(super) struct PathIndex {
    exact: FxHashMap<Box<[u8]>, Positions>,
    prefix: FxHashMap<Box<[u8]>, Positions>,
    others: Vec<u32>,
    /// No prefix is longer, so that a request with a long path costs no more look-ups than the rules ask for.
    longest_prefix: usize,
}

impl PathIndex {
    pub(super) fn new<'a>(paths: impl Iterator<Item = &'a PathMatch>) -> Self {
        let mut index = Self::default();
        for (position, path) in (0_u32..).zip(paths) {
            match path {
                PathMatch::Exact(path) => index.exact.entry(path.clone()).or_default().push(position),
                PathMatch::Prefix(path) => {
                    index.longest_prefix = index.longest_prefix.max(path.len());
                    index.prefix.entry(path.clone()).or_default().push(position);
                }
                PathMatch::Any | PathMatch::Regex(_) => index.others.push(position),
            }
        }
        index
    }

    /// Positions of the candidates, ascending. Exact paths and prefixes match for certain; regular expressions are still to try.
    pub(super) fn candidates<'a>(&'a self, path: &[u8]) -> Candidates<'a> {
        let mut lists: SmallVec<[&[u32]; 8]> = SmallVec::new();
        lists.push(&self.others);
        if let Some(positions) = self.exact.get(path) {
            lists.push(positions);
        }
        if !self.prefix.is_empty() {
            let window = path.get(..self.longest_prefix.saturating_add(1)).unwrap_or(path);
            let boundaries = memchr::memchr_iter(b'/', window).filter(|at| *at > 0);
            let whole = (path.len() <= self.longest_prefix).then_some(path.len());
            let prefixes = boundaries.chain(whole).filter_map(|end| path.get(..end));
            lists.extend(prefixes.filter_map(|prefix| self.prefix.get(prefix)).map(|positions| &positions[..]));
        }
        Candidates { lists }
    }
}

/// Merges ascending lists.
pub(super) struct Candidates<'a> {
    lists: SmallVec<[&'a [u32]; 8]>,
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let least = self.lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list.first().copied())?;
        let (first, rest) = least.split_first()?;
        *least = rest;
        Some(*first)
    }
}
