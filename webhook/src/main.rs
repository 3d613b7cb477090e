//! The admission webhook that injects the proxy.
fn main() {}
