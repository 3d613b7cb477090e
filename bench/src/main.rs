//! Benchmarks against Envoy.
fn main() {}
