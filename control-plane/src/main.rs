//! Discovery, translation and certificates.
fn main() {}
