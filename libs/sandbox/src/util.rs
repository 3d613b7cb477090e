//! Time as Kubernetes writes it, random identifiers, and time-outs in words.

use std::{
    fs::File,
    io::Read,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Letters of generated names: those that Kubernetes uses, which spell no words.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A point in time as RFC 3339 in UTC, to the second.
pub(crate) fn rfc3339(unix: u64) -> String {
    // Days to a civil date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let (days, rest) = (unix / 86_400, unix % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // /dev/urandom can not fail on a running Linux; zeros would only make names collide, which is noticed.
    if let Ok(mut file) = File::open("/dev/urandom") {
        let _ = file.read_exact(&mut bytes);
    }
    bytes
}

/// A random UUID (version 4).
pub(crate) fn uuid() -> String {
    let b: [u8; 16] = random();
    let hex: String = b
        .iter()
        .enumerate()
        .map(|(i, byte)| match i {
            6 => format!("{:02x}", byte & 0x0f | 0x40),
            8 => format!("{:02x}", byte & 0x3f | 0x80),
            _ => format!("{byte:02x}"),
        })
        .collect();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

/// Spells bytes with the letters of generated names.
pub(crate) fn spell(bytes: &[u8]) -> String {
    bytes
        .iter()
        .filter_map(|byte| NAME_LETTERS.get(usize::from(*byte) % NAME_LETTERS.len()))
        .map(|letter| char::from(*letter))
        .collect()
}

/// The random end of a generated pod name.
pub(crate) fn suffix() -> String {
    spell(&random::<5>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_440_957), "2026-11-23T13:35:57Z");
    }

    #[test]
    fn identifiers() {
        let id = uuid();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert_ne!(uuid(), id);
        assert_eq!(suffix().len(), 5);
    }
}
