//! New inputs from old ones.

use crate::Target;

/// A generator that gives the same numbers for the same seed, everywhere (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 for an `end` of 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let at = self.below(of.len());
        of.get(at)
    }

    /// A piece of `of`, short ones more often.
    fn piece(&mut self, of: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(of.len() + 1);
        let most = if self.below(4) == 0 { of.len() } else { 8 };
        start..(start + self.below(most.min(of.len() - start) + 1))
    }
}

/// Numbers at which arithmetic breaks.
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "7f",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "ffffffffffffffff",
];
const BYTES: [u8; 20] = *b"\0\x01\x7f\x80\xff\r\n\t \\/:;,%.*\"'{";

/// A new input from one of `corpus`, with up to a few changes.
pub(crate) fn mutate(random: &mut Random, corpus: &[Vec<u8>], target: &Target) -> Vec<u8> {
    let mut input = random.pick(corpus).cloned().unwrap_or_default();
    for _ in 0..=random.below(random.clone().below(6) + 1) {
        change(random, &mut input, corpus, target);
    }
    input.truncate(target.max_len);
    input
}

fn change(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>], target: &Target) {
    let at = random.below(input.len() + 1);
    match random.below(14) {
        0 => {
            let bit = 1 << random.below(8);
            if let Some(byte) = input.get_mut(at) {
                *byte ^= bit;
            }
        }
        1 => {
            let new = random.byte();
            if let Some(byte) = input.get_mut(at) {
                *byte = new;
            }
        }
        2 => input.insert(at, *random.pick(&BYTES).unwrap_or(&0)),
        3 => {
            let piece = random.piece(input);
            input.drain(piece);
        }
        4 => {
            let piece = random.piece(input);
            let copy = input.get(piece).unwrap_or_default().to_vec();
            input.splice(at..at, copy);
        }
        5 => {
            // Many times the same: what nests or adds up.
            let piece = random.piece(input);
            let copy = input.get(piece).unwrap_or_default().to_vec();
            let times = 1 << random.below(10);
            if copy.len() * times <= target.max_len {
                input.splice(at..at, copy.repeat(times));
            }
        }
        6..=8 => {
            if let Some(word) = random.pick(target.words).and_then(|list| random.pick(list)) {
                let end =
                    if random.below(2) == 0 { at } else { random.piece(input.get(at..).unwrap_or_default()).end + at };
                input.splice(at..end, word.iter().copied());
            }
        }
        9 => {
            let number = *random.pick(&NUMBERS).unwrap_or(&"0");
            let is_digit = |byte: &u8| byte.is_ascii_digit();
            match input.get(at..).and_then(|rest| rest.iter().position(is_digit)) {
                Some(first) => {
                    let first = at + first;
                    let end = first + input.get(first..).unwrap_or_default().iter().take_while(|b| is_digit(b)).count();
                    input.splice(first..end, number.bytes());
                }
                None => {
                    input.splice(at..at, number.bytes());
                }
            }
        }
        10 | 11 => {
            if let Some(other) = random.pick(corpus) {
                let piece =
                    if random.below(2) == 0 { random.piece(other) } else { random.below(other.len() + 1)..other.len() };
                let end = if random.below(2) == 0 { at } else { input.len() };
                input.splice(at..end, other.get(piece).unwrap_or_default().iter().copied());
            }
        }
        12 => {
            let piece = random.piece(input);
            let other = random.piece(input);
            let copy = input.get(piece).unwrap_or_default().to_vec();
            input.splice(other, copy);
        }
        _ => input.truncate(at),
    }
}
