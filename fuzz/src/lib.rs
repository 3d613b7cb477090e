//! Properties of every parser, on any bytes.
//!
//! A [`Target`] is a function over bytes that calls the real decoder and panics where a property does not hold. [`engine`] runs it
//! on the saved corpus and on mutations of it, for as long as it is told: for a second in `cargo test`, for long by `make fuzz`.
//!
//! Inputs that a target answers in a way not seen before ([`Shape`]) are kept and mutated further: guidance enough without
//! instrumented builds, which stable Rust does not have.

pub mod corpus;
pub mod engine;
mod mutate;
mod targets;

use std::hash::{DefaultHasher, Hash, Hasher};

pub use targets::ALL;

/// A decoder and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, also of its corpus.
    pub name: &'static str,
    /// What must hold, in one sentence.
    pub holds: &'static str,
    /// Longest input in bytes.
    pub max_len: usize,
    /// What mutations put in: lists of the words of the format, and of those who attack it.
    pub words: &'static [&'static [&'static [u8]]],
    /// Inputs that are made rather than saved.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Panics where a property does not hold.
    pub run: fn(&[u8]) -> Shape,
}

/// What an answer looks like: inputs that give a new one are worth mutating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape(u64);

impl Shape {
    /// The shape of anything that can be hashed. Few values make good shapes: a status, a kind of error, the number of parts up to
    /// its order of magnitude; lengths and texts of the input make every input look new.
    pub fn of(answer: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        answer.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A number's order of magnitude, for shapes.
pub fn magnitude(number: usize) -> u32 {
    usize::BITS - number.leading_zeros()
}

/// No seeds but the saved ones.
pub fn none() -> Vec<Vec<u8>> {
    Vec::new()
}
