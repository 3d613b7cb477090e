//! What is wrong with a manifest, said so that a person finds the place.

use std::{fmt, sync::Arc};

use crate::{object::ObjectRef, path::FieldPath};

/// One thing that is wrong: file, line, object, field and what to do.
///
/// Shown as `routes.yaml:12: HTTPRoute shop/catalog: spec.rules[0].timeouts: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the file as it was given; for objects of a cluster, where they come from.
    pub file: Arc<str>,
    /// Number of the document in the file, from 1; 0 for the file as a whole.
    pub document: usize,
    /// Line in the file, from 1; 0 where there is none.
    pub line: u64,
    /// The object, as far as it could be read.
    pub object: Option<ObjectRef>,
    /// The field; the root for the object as a whole.
    pub field: FieldPath,
    /// What is wrong with it, and what is expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        } else if self.document > 0 {
            write!(f, " (document {})", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_root() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Problem {}
