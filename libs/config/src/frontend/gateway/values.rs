//! Texts that several kinds have: paths, names and values of headers, regular expressions, durations.

use std::time::Duration;

use regex_automata::meta;
use weir_mesh::headers::OF_THE_CONNECTION;

use super::Reader;
use crate::{
    gateway::generated::{ValueMatch, ValueMatchType},
    model::NamedMatcher,
    path::FieldPath,
};

const MAX_NAMED_MATCHES: usize = 16;
pub(super) const MAX_PATH: usize = 1024;
pub(super) const MAX_VALUE: usize = 4096;
const MAX_HEADER_NAME: usize = 256;
/// Longest regular expression, in bytes: the API's for a path.
pub(super) const MAX_REGEX: usize = 1024;
/// Largest compiled regular expression, in bytes: enough for any that a person wrote.
const MAX_REGEX_BYTES: usize = 256 * 1024;
/// What a normalised path never holds.
const NEVER: [&str; 6] = ["//", "/./", "/../", "%2f", "#", "?"];

impl Reader<'_> {
    /// A path, or the beginning of one, that requests are compared with after they were normalised.
    pub(super) fn path(&mut self, value: &str, field: &FieldPath) {
        if value.len() > MAX_PATH {
            self.error(field.clone(), format!("is longer than {MAX_PATH} bytes"));
        }
        if !value.starts_with('/') {
            self.error(field.clone(), format!("{value:?} must start with /"));
        }
        let lower = value.to_ascii_lowercase();
        let never = NEVER.into_iter().find(|never| lower.contains(never));
        let never = never.or_else(|| ["/..", "/."].into_iter().find(|end| value.ends_with(end)));
        if let Some(never) = never {
            self.error(field.clone(), format!("{value:?} holds {never:?}, which no path has once it is normalised"));
        }
        if value.chars().any(|c| c.is_control() || c == ' ' || !c.is_ascii()) {
            self.error(field.clone(), "has a character that no path has: percent-encode it");
        }
    }

    /// Names that come twice (header names in any case) are taken once, as the API says.
    pub(super) fn named(&mut self, list: &[ValueMatch], at: &FieldPath, headers: bool) -> Vec<NamedMatcher> {
        self.limit(at, list.len(), MAX_NAMED_MATCHES);
        let mut named: Vec<NamedMatcher> = Vec::new();
        for (i, entry) in list.iter().enumerate() {
            let at = at.index(i);
            self.name(&entry.name, at.key("name"));
            let regex = entry.kind == Some(ValueMatchType::RegularExpression);
            let field = at.key("value");
            if entry.value.is_empty() || entry.value.len() > MAX_VALUE {
                self.error(field, format!("must have 1 to {MAX_VALUE} bytes"));
            } else if regex {
                self.regex(&entry.value, &field);
            } else if headers {
                self.value(&entry.value, field);
            }
            let name = if headers { entry.name.to_ascii_lowercase() } else { entry.name.clone() };
            if !named.iter().any(|earlier| earlier.name == name) {
                named.push(NamedMatcher { name, value: entry.value.clone(), regex });
            }
        }
        named
    }

    /// A header name (RFC 9110, "token"); the API asks the same of query parameters.
    pub(super) fn name(&mut self, name: &str, field: FieldPath) {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(token) {
            self.error(field, format!("must be 1 to {MAX_HEADER_NAME} letters, digits or !#$%&'*+-.^_`|~"));
        }
    }

    pub(super) fn value(&mut self, value: &str, field: FieldPath) {
        if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            self.error(field, "has a control character");
        }
    }

    /// Framing belongs to the proxy: a rule that changes it would let requests be read in two ways.
    pub(super) fn changeable(&mut self, name: &str, field: FieldPath) {
        self.name(name, field.clone());
        if OF_THE_CONNECTION.contains(&name.to_ascii_lowercase().as_str()) {
            self.error(field, format!("{name} can not be changed by a rule"));
        }
    }

    /// The engine takes time that grows with the text alone; its size is bounded here.
    pub(super) fn regex(&mut self, regex: &str, field: &FieldPath) {
        if regex.len() > MAX_REGEX {
            self.error(field.clone(), format!("is a regular expression of more than {MAX_REGEX} bytes"));
            return;
        }
        let config = meta::Config::new().nfa_size_limit(Some(MAX_REGEX_BYTES)).onepass(false).backtrack(false);
        if let Err(error) = meta::Builder::new().configure(config).build(regex) {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let cause = cause.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            self.error(
                field.clone(),
                format!("is no regular expression of RE2's syntax (no look-around, no back-references): {cause}"),
            );
        }
    }

    /// A host name without port, in lower case.
    pub(super) fn host(&mut self, host: &str, field: FieldPath) {
        if !is_host(host) {
            self.error(field, format!("{host:?} is not a host name: lower-case labels with dots, without a port"));
        }
    }

    /// A duration of the API (GEP-2257).
    pub(super) fn duration(&mut self, text: &str, field: FieldPath) -> Option<Duration> {
        let duration = duration(text);
        if duration.is_none() {
            let message = format!("{text:?} is not a duration such as 500ms, 10s, 1m30s or 1h");
            self.error(field, message);
        }
        duration
    }
}

/// RFC 1123, in lower case.
pub(super) fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        label.len() <= 63
            && end(bytes.first())
            && end(bytes.last())
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    host.len() <= 253 && host.split('.').all(label)
}

/// `^([0-9]{1,5}(h|m|s|ms)){1,4}$`
fn duration(text: &str) -> Option<Duration> {
    const MAX_DIGITS: usize = 5;
    const MAX_PARTS: usize = 4;
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = rest.split_at_checked(digits)?;
        let letters = unit.len() - unit.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, next) = unit.split_at_checked(letters)?;
        let number: u64 = number.parse().ok().filter(|_| digits <= MAX_DIGITS)?;
        let part = match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        total += part;
        parts += 1;
        rest = next;
    }
    (1..=MAX_PARTS).contains(&parts).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_the_api() {
        for (text, millis) in
            [("0s", 0), ("10ms", 10), ("1h2m3s4ms", 3_723_004), ("99999h", 359_996_400_000), ("1s1s", 2000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "1", "s", "-1s", "1.5s", "100000s", "1s1s1s1s1s", "1d", "1 s", "1S", "1sms", "é"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn hosts() {
        assert!(["a", "a.b", "1.2", "xn--a"].into_iter().all(is_host));
        assert!(!["", ".", "a.", ".a", "-a", "a-", "A", "a:80", "*.a", "a_b", "[::1]"].into_iter().any(is_host));
        assert!(!is_host(&"a.".repeat(200)) && !is_host(&"a".repeat(64)));
    }
}
