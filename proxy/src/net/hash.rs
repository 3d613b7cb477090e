//! A hash that is the same in every proxy and for ever: by it requests with one key meet at one endpoint, whoever sends them.

/// FNV-1a (Fowler, Noll, Vo), and the finaliser of MurmurHash3 (Appleby), which spreads what differs in the last bytes only. No defence
/// against chosen keys: whoever chooses them can as well send everything with the same key.
pub fn hash64(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash)
}

/// Spreads a number over all 64 bits.
pub fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A changed value would send every key elsewhere while proxies of two versions run side by side.
    #[test]
    fn values_stay_what_they_are() {
        assert_eq!(hash64(&[b"a", b"b"]), hash64(&[b"ab"]));
        assert_ne!(hash64(&[b"ab"]), hash64(&[b"ba"]));
        assert_eq!(mix(0), 0);
        assert_eq!(hash64(&[]), mix(0xcbf2_9ce4_8422_2325));
    }
}
