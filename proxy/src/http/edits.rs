//! Changes to headers: kept as lists, applied in order while a head is written.
//!
//! A route's lists are built and checked once, and borrowed by every request. The meaning is that of Gateway API's header
//! modifiers: `set` replaces all values, `remove` drops them, `add` appends to what is there as `old,new` in one line (what its
//! conformance tests expect, and what Envoy does for its known headers); only `set-cookie`, whose values hold commas, gets a line
//! of its own.

use bytes::Bytes;
use smallvec::SmallVec;
use weir_mesh::headers::OF_THE_CONNECTION;

use super::chars;

/// A header name that may be edited: a lower-case token, none that the codec itself answers for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(Bytes);

/// A header value: no control characters but tab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(Bytes);

/// Why a name or a value cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not a token, or too long.
    #[error("is not a header name")]
    BadName,
    /// Framing, routing of the connection, `Host`: the codec writes these itself.
    #[error("is a header that belongs to the connection and cannot be edited")]
    Reserved,
    /// A control character, or too long.
    #[error("is not a header value")]
    BadValue,
}

/// Longest name, as Gateway API has it.
const MAX_NAME: usize = 256;
/// Longest value, as Gateway API has it.
const MAX_VALUE: usize = 4096;

impl Name {
    /// Checks `name` and takes it in lower case.
    ///
    /// # Errors
    /// [`EditError::BadName`], [`EditError::Reserved`]
    pub fn new(name: &str) -> Result<Self, EditError> {
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(chars::is_token) {
            return Err(EditError::BadName);
        }
        let name = name.to_ascii_lowercase();
        if OF_THE_CONNECTION.contains(&&*name) { Err(EditError::Reserved) } else { Ok(Self(name.into())) }
    }

    /// The name of a header as it came, of any length; `None` if it is no token.
    #[must_use]
    pub fn received(name: &[u8]) -> Option<Self> {
        let is_token = !name.is_empty() && name.iter().all(|byte| chars::is_token(*byte));
        is_token.then(|| Self(name.to_ascii_lowercase().into()))
    }

    /// A name known when Weir is built; does not compile in a `const` unless it is a lower-case token.
    ///
    /// # Panics
    /// On anything that is no lower-case token.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty());
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            assert!(byte == b'-' || byte.is_ascii_lowercase() || byte.is_ascii_digit(), "not a lower-case header name");
            at += 1;
        }
        Self(Bytes::from_static(bytes))
    }

    /// The name, in lower case.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Value {
    /// Checks `value`; spaces around it are dropped.
    ///
    /// # Errors
    /// [`EditError::BadValue`]
    pub fn new(value: impl Into<Bytes>) -> Result<Self, EditError> {
        let value = value.into();
        if value.len() > MAX_VALUE || !value.iter().all(|byte| chars::is_value(*byte)) {
            return Err(EditError::BadValue);
        }
        let trimmed = chars::trim(&value);
        Ok(if trimmed.len() == value.len() { Self(value) } else { Self(Bytes::copy_from_slice(trimmed)) })
    }

    /// A value known when Weir is built.
    ///
    /// # Panics
    /// On anything but visible ASCII and single spaces between.
    #[must_use]
    pub const fn from_static(value: &'static str) -> Self {
        let bytes = value.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] >= b' ' && bytes[at] < 0x7f, "not a header value");
            at += 1;
        }
        Self(Bytes::from_static(bytes))
    }

    /// The value.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Replaces all values of the header by one.
    Set(Name, Value),
    /// Appends to the header, or makes it.
    Add(Name, Value),
    /// Drops all values of the header.
    Remove(Name),
}

impl Edit {
    pub(super) fn name(&self) -> &[u8] {
        match self {
            Self::Set(name, _) | Self::Add(name, _) | Self::Remove(name) => &name.0,
        }
    }
}

/// A list of changes, in order. Several lists are applied one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits(SmallVec<[Edit; 2]>);

impl Edits {
    /// No change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces all values of a header by one.
    pub fn set(&mut self, name: Name, value: Value) {
        self.0.push(Edit::Set(name, value));
    }

    /// Appends to a header, or makes it.
    pub fn add(&mut self, name: Name, value: Value) {
        self.0.push(Edit::Add(name, value));
    }

    /// Drops a header.
    pub fn remove(&mut self, name: Name) {
        self.0.push(Edit::Remove(name));
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Edit> {
        self.0.iter()
    }
}

impl FromIterator<Edit> for Edits {
    fn from_iter<T: IntoIterator<Item = Edit>>(edits: T) -> Self {
        Self(edits.into_iter().collect())
    }
}

/// Whether several values may stand in one line (RFC 9110, 5.3).
pub(super) fn is_list(name: &[u8]) -> bool {
    !name.eq_ignore_ascii_case(b"set-cookie")
}

/// All changes to one header, summed up over all lists.
pub(super) struct Change<'a> {
    /// Received values are dropped.
    pub(super) drops: bool,
    lists: &'a [&'a Edits],
    name: &'a [u8],
}

/// What `lists` change about the header `name` (any letter case); `None` if nothing.
pub(super) fn change<'a>(lists: &'a [&'a Edits], name: &'a [u8]) -> Option<Change<'a>> {
    let mut change = None;
    for edit in lists.iter().flat_map(|list| list.iter()).filter(|edit| edit.name().eq_ignore_ascii_case(name)) {
        let change = change.get_or_insert(Change { drops: false, lists, name });
        change.drops |= !matches!(edit, Edit::Add(..));
    }
    change
}

impl<'a> Change<'a> {
    /// The new values: a set one, and those added after it.
    pub(super) fn values(&self) -> SmallVec<[&'a [u8]; 4]> {
        let mut values: SmallVec<[&[u8]; 4]> = SmallVec::new();
        let edits = self.lists.iter().flat_map(|list| list.iter());
        for edit in edits.filter(|edit| edit.name().eq_ignore_ascii_case(self.name)) {
            match edit {
                Edit::Set(_, value) => {
                    values.clear();
                    values.push(&value.0);
                }
                Edit::Add(_, value) => values.push(&value.0),
                Edit::Remove(_) => values.clear(),
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_checked() {
        assert_eq!(Name::new("X-Canary").map(|name| name.0), Ok(Bytes::from_static(b"x-canary")));
        for bad in ["", "a b", "a:", "a\r\nb", "ä", "a\0", &"a".repeat(257)] {
            assert_eq!(Name::new(bad), Err(EditError::BadName), "{bad:?}");
        }
        for reserved in ["Host", "Content-Length", "transfer-encoding", "TE", "Connection", "Upgrade"] {
            assert_eq!(Name::new(reserved), Err(EditError::Reserved), "{reserved}");
        }
        assert_eq!(Value::new(&b" a\tb "[..]).map(|value| value.0), Ok(Bytes::from_static(b"a\tb")));
        for bad in [&b"a\r\nb: c"[..], b"a\nb", b"\0", b"\x7f", b"\x1b[0m"] {
            assert_eq!(Value::new(bad), Err(EditError::BadValue), "{bad:?}");
        }
    }

    #[test]
    fn lists_are_applied_in_order() {
        let name = || Name::from_static("x-a");
        let mut one = Edits::new();
        one.set(name(), Value::from_static("1"));
        let mut two = Edits::new();
        two.add(name(), Value::from_static("2"));
        let mut three = Edits::new();
        three.remove(name());
        let values = |lists: &[&Edits]| {
            change(lists, b"X-A")
                .map(|change| (change.drops, change.values().iter().map(|v| v.to_vec()).collect::<Vec<_>>()))
        };
        assert_eq!(values(&[&one, &two]), Some((true, vec![b"1".to_vec(), b"2".to_vec()])));
        assert_eq!(values(&[&two, &one]), Some((true, vec![b"1".to_vec()])));
        assert_eq!(values(&[&two]), Some((false, vec![b"2".to_vec()])));
        assert_eq!(values(&[&one, &three]), Some((true, vec![])));
        assert_eq!(values(&[&one, &three, &two]), Some((true, vec![b"2".to_vec()])));
        assert!(change(&[&one], b"x-b").is_none() && change(&[], b"x-a").is_none());
    }
}
