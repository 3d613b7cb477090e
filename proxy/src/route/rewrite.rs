//! Other paths than those that came: for the endpoint, or in the place that a redirect names.

use super::pattern::Substitution;
use crate::http::{RequestHead, path};

/// Longest path that a rule may make, in bytes: what this proxy itself would take.
const MAX_PATH: usize = 16 * 1024;

/// What becomes of a path.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// This takes the place of what the route's match has matched: its prefix, or the whole path.
    Matched(Box<[u8]>),
    /// Every match of an expression is replaced.
    Pattern(Substitution),
}

/// A path that no request can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path that it becomes is not valid: {0}")]
pub struct BadPath(&'static str);

impl PathRewrite {
    /// The path as it goes on, normal, without the query; `matched` bytes of it are what the route has matched.
    ///
    /// # Errors
    /// [`BadPath`]
    pub(super) fn apply(&self, head: &RequestHead, matched: usize) -> Result<Vec<u8>, BadPath> {
        let path = head.path();
        let new = match self {
            Self::Matched(with) => [with, path.get(matched..).unwrap_or_default()].concat(),
            Self::Pattern(substitution) => substitution.replace(path, MAX_PATH).ok_or(BadPath("it is too long"))?,
        };
        checked(if new.is_empty() { b"/".to_vec() } else { new })
    }
}

/// A path, without a query, as this proxy would take it.
fn checked(new: Vec<u8>) -> Result<Vec<u8>, BadPath> {
    if new.len() > MAX_PATH {
        return Err(BadPath("it is too long"));
    }
    match path::normalise(&new) {
        Ok(None) => Ok(new),
        Ok(Some(normal)) => Ok(normal),
        Err(error) => Err(BadPath(error.reason())),
    }
}

/// A path with a query behind it, where there is one.
pub(super) fn with_query(mut path: Vec<u8>, query: Option<&[u8]>) -> Vec<u8> {
    if let Some(query) = query {
        path.push(b'?');
        path.extend_from_slice(query);
    }
    path
}
