//! Writes the fields of one JSON object into a byte buffer, without allocation.

use std::{
    fmt::{self, Display},
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

/// Longest value, in bytes; the rest is cut.
const MAX_VALUE: usize = 2048;
const HEX: &[u8; 16] = b"0123456789abcdef";
const REPLACEMENT: &str = "\u{fffd}";
const SECONDS_IN_DAY: u64 = 86_400;

pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// `name` is a word of the program and needs no escaping.
    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(if self.first { b"\"" } else { b",\"" });
        self.first = false;
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A text that may hold anything.
    pub(super) fn text(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        escape(self.out, value.get(..MAX_VALUE).unwrap_or(value));
        self.out.push(b'"');
    }

    pub(super) fn optional(&mut self, name: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// A value whose text needs no escaping: addresses, identities, flags.
    pub(super) fn plain(&mut self, name: &str, value: impl Display) {
        self.name(name);
        let _ = write!(self.out, "\"{value}\"");
    }

    pub(super) fn time(&mut self, name: &str, at: SystemTime) {
        self.name(name);
        let _ = write!(self.out, "\"{}\"", Rfc3339(at));
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

/// Shows a time as RFC 3339 has it, in UTC with milliseconds.
pub(crate) struct Rfc3339(pub(crate) SystemTime);

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = date(since.as_secs() / SECONDS_IN_DAY);
        let second = since.as_secs() % SECONDS_IN_DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
    }
}

/// Escapes for JSON, and so that a terminal that shows the line is not steered by it: control characters, also those of
/// the second block (U+0080 to U+009F), are written as `\u00XX`. Bytes that are no UTF-8 become U+FFFD.
fn escape(out: &mut Vec<u8>, value: &[u8]) {
    for chunk in value.utf8_chunks() {
        let text = chunk.valid();
        let bytes = text.as_bytes();
        let mut done = 0;
        for (at, c) in text.char_indices() {
            let short: Option<&[u8]> = match c {
                '"' => Some(b"\\\""),
                '\\' => Some(b"\\\\"),
                '\n' => Some(b"\\n"),
                '\r' => Some(b"\\r"),
                '\t' => Some(b"\\t"),
                c if c.is_control() => None,
                _ => continue,
            };
            out.extend_from_slice(bytes.get(done..at).unwrap_or_default());
            match short {
                Some(short) => out.extend_from_slice(short),
                None => {
                    let code = u32::from(c);
                    let digit = |shift: u32| HEX.get(((code >> shift) & 15) as usize).copied().unwrap_or(b'0');
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(4), digit(0)]);
                }
            }
            done = at.saturating_add(c.len_utf8());
        }
        out.extend_from_slice(bytes.get(done..).unwrap_or_default());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(REPLACEMENT.as_bytes());
        }
    }
}

/// Year, month and day of a number of days since 1970-01-01 (the civil calendar in 400-year eras).
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn escaped(value: &[u8]) -> String {
        let mut out = Vec::new();
        escape(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes() {
        assert_eq!(escaped(b"plain"), "plain");
        assert_eq!(escaped(b"a\"b\\c\r\nd\te"), "a\\\"b\\\\c\\r\\nd\\te");
        assert_eq!(escaped(b"\x00\x1b[31m\x7f"), "\\u0000\\u001b[31m\\u007f");
        assert_eq!(escaped("\u{9b}31m gr\u{fc}n".as_bytes()), "\\u009b31m gr\u{fc}n");
        assert_eq!(escaped(b"a\xff\xfeb\xc3"), "a\u{fffd}\u{fffd}b\u{fffd}");
    }

    #[test]
    fn every_byte_makes_valid_json() {
        for a in 0..=255_u8 {
            for b in [0, b'"', b'\\', 0x80, 0xc2, 0xff, a] {
                let text = format!("\"{}\"", escaped(&[a, b, a]));
                let back: String = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
                assert!(back.chars().count() <= 3);
            }
        }
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let mut out = Vec::new();
            let mut object = Object::new(&mut out);
            object.time("t", UNIX_EPOCH + Duration::from_secs(seconds));
            object.end();
            assert_eq!(String::from_utf8(out).unwrap(), format!("{{\"t\":\"{text}\"}}\n"));
        }
    }
}
