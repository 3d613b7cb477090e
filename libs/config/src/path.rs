//! The path of a field inside an object, such as `spec.rules[0].matches[1].path.value`.

use std::fmt;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// A field or a map's key.
    Key(String),
    /// A list's element.
    Index(usize),
}

/// The path of a field inside an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldPath(Vec<Step>);

impl FieldPath {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads the plain form `spec.rules[0].name`; meant for constants of this crate.
    pub fn of(text: &str) -> Self {
        text.split('.').filter(|part| !part.is_empty()).fold(Self::root(), |path, part| path.key(part))
    }

    /// The path of a field of this one.
    #[must_use]
    pub fn key(&self, key: impl Into<String>) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.into()));
        Self(steps)
    }

    /// The path of an element of this one.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    /// The steps from the object to the field.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// True for the object itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields' names without list positions: `spec.rules.name`.
    pub fn pattern(&self) -> String {
        let keys: Vec<&str> = self
            .0
            .iter()
            .filter_map(|step| match step {
                Step::Key(key) => Some(key.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        keys.join(".")
    }

    pub(crate) fn from_ignored(path: &serde_ignored::Path<'_>) -> Self {
        use serde_ignored::Path;
        match path {
            Path::Root => Self::root(),
            Path::Seq { parent, index } => Self::from_ignored(parent).index(*index),
            Path::Map { parent, key } => Self::from_ignored(parent).key(key.clone()),
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                Self::from_ignored(parent)
            }
        }
    }

    pub(crate) fn from_error(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;
        let steps = path.iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { variant } => Some(Step::Key(variant.clone())),
            Segment::Unknown => None,
        });
        Self(steps.collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '/', '[', ' ']) => write!(f, "[{}]", Printable(key))?,
                Step::Key(key) if i == 0 => write!(f, "{}", Printable(key))?,
                Step::Key(key) => write!(f, ".{}", Printable(key))?,
            }
        }
        Ok(())
    }
}

/// Text of a user, shortened and without what would break a log line.
pub(crate) struct Printable<'a>(pub &'a str);

/// Most characters of a user's text in a message.
const MAX_PRINTED: usize = 128;

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(MAX_PRINTED) {
            f.write_char(if c.is_control() { '\u{fffd}' } else { c })?;
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_kubectl_shows_it() {
        let path = FieldPath::of("spec.rules").index(0).key("filters").index(12);
        assert_eq!(path.to_string(), "spec.rules[0].filters[12]");
        assert_eq!(path.pattern(), "spec.rules.filters");
        let path = FieldPath::of("metadata.annotations").key("weir.dev/opaque-ports");
        assert_eq!(path.to_string(), "metadata.annotations[weir.dev/opaque-ports]");
        assert_eq!(FieldPath::root().key("a\nb").to_string(), "a\u{fffd}b");
    }
}
