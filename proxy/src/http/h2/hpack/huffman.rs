//! The Huffman code of header values (RFC 7541, appendix B): read, never written, since a copy costs less than a code.
//!
//! The code is canonical: within a length, codes rise with the symbols. So the lengths say all, and the tables are made of them when Weir
//! is built.

/// Length of each symbol's code in bits; the last symbol ends the text, and may not occur.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
/// The longest code.
const LONGEST: usize = 30;
/// The symbol that ends a text.
const END: usize = 256;

/// What the code looks like from the reader's side.
struct Tables {
    /// By the next eight bits: a symbol whose code is no longer, and its length; length 0 where the code is longer.
    short: [(u8, u8); 256],
    /// By length: the first code, and one behind the last.
    codes: [(u32, u32); LONGEST + 1],
    /// By length: where its symbols begin in `symbols`.
    begin: [usize; LONGEST + 1],
    /// Symbols by length, and by value within it.
    symbols: [u16; 257],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables =
        Tables { short: [(0, 0); 256], codes: [(0, 0); LONGEST + 1], begin: [0; LONGEST + 1], symbols: [0; 257] };
    let mut code = 0_u32;
    let mut count = 0;
    let mut length = 1;
    while length <= LONGEST {
        code <<= 1;
        tables.begin[length] = count;
        let first = code;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                tables.symbols[count] = symbol as u16;
                count += 1;
                if length <= 8 {
                    let from = (code as usize) << (8 - length);
                    let mut at = from;
                    while at < from + (1 << (8 - length)) {
                        tables.short[at] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        tables.codes[length] = (first, code);
        length += 1;
    }
    tables
}

/// The text is not in the code, or is not padded as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadCode;

/// Appends the decoded text to `out`: at most 8/5 of the code's length.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), BadCode> {
    out.reserve(code.len().saturating_mul(8) / 5);
    let mut bits = 0_u64; // from the top
    let mut count = 0_u32;
    let mut rest = code.iter();
    loop {
        while count <= 56
            && let Some(byte) = rest.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let [top, ..] = bits.to_be_bytes();
        let (symbol, length) = TABLES.short[usize::from(top)];
        let (symbol, length) = if length > 0 { (symbol, u32::from(length)) } else { long(bits)? };
        if length > count {
            // Less than a byte of ones fills the last one (RFC 7541, 5.2).
            let padding = u64::MAX.checked_shl(64 - count).unwrap_or(0);
            return if count < 8 && bits == padding { Ok(()) } else { Err(BadCode) };
        }
        out.push(symbol);
        bits <<= length;
        count -= length;
    }
}

/// The symbol whose code of more than eight bits comes next.
fn long(bits: u64) -> Result<(u8, u32), BadCode> {
    for length in 9..=LONGEST {
        let code = u32::try_from(bits >> (64 - length)).map_err(|_| BadCode)?;
        let (first, end) = TABLES.codes[length];
        if code < end {
            let at = TABLES.begin[length] + usize::try_from(code - first).map_err(|_| BadCode)?;
            let symbol = TABLES.symbols.get(at).copied().map_or(END, usize::from);
            // Ones to the end are padding, and look like the beginning of the last symbol: it can only be told by who knows the length.
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            return Ok((u8::try_from(symbol).unwrap_or(0), if symbol == END { u32::MAX } else { length }));
        }
    }
    Err(BadCode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code written, for tests alone.
    pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut count, mut out) = (0_u64, 0, Vec::new());
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let at = (TABLES.begin[length]..).find(|at| TABLES.symbols[*at] == u16::from(*byte)).unwrap();
            let code = u64::from(TABLES.codes[length].0) + u64::try_from(at - TABLES.begin[length]).unwrap();
            bits = bits << length | code;
            count += length;
            while count >= 8 {
                count -= 8;
                out.push(u8::try_from(bits >> count & 0xff).unwrap());
            }
        }
        if count > 0 {
            out.push(u8::try_from((bits << (8 - count) | (0xff >> count)) & 0xff).unwrap());
        }
        out
    }

    #[test]
    fn examples_of_the_rfc() {
        for (code, text) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            let mut out = Vec::new();
            assert_eq!(decode(code, &mut out), Ok(()), "{text}");
            assert_eq!(String::from_utf8(out).unwrap(), text);
            assert_eq!(encode(text.as_bytes()), code);
        }
    }

    #[test]
    fn every_byte_comes_back_and_bad_padding_does_not() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        for cut in 0..all.len() {
            let mut out = Vec::new();
            assert_eq!(decode(&encode(&all[cut..]), &mut out), Ok(()), "{cut}");
            assert_eq!(out, all[cut..]);
        }
        for bad in [
            &[0xff][..],               // a whole byte of padding
            &[0x00],                   // `0` and zeros
            &[0x64, 0x02, 0xff],       // the same behind a text
            &[0xff, 0xff, 0xff, 0xff], // the symbol that ends
            &[0xff, 0xff, 0xff, 0xfc], // the same, padded
            &[0xfe],                   // the beginning of a longer code
        ] {
            assert_eq!(decode(bad, &mut Vec::new()), Err(BadCode), "{bad:?}");
        }
    }
}
