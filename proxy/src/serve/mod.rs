//! The way of a connection through the proxy.
//!
//! ```text
//! accept ─> original destination ─> outbound: table of that address ─┬─> HTTP: one exchange after the other (exchange)
//!                                   inbound:  mutual TLS, own port  ─┴─> opaque: bytes both ways (tcp)
//! ```
//! One task carries one connection of a caller from beginning to end; it picks the endpoint, takes an upstream connection of its
//! worker's pool and reads the answer itself.

mod checks;
mod exchange;
mod inbound;
mod opaque;
mod outbound;
mod refuse;
mod worker;

pub use worker::{Shared, Worker, run};

#[cfg(test)]
mod tests {
    use super::{inbound, outbound};

    /// Bytes of the task that carries a connection. Every open connection has one, busy or not.
    fn size<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_costs_little_memory() {
        let (inbound, outbound) = (size(inbound::serve), size(outbound::serve));
        assert!(inbound <= 3 * 1024 && outbound <= 3 * 1024, "inbound {inbound}, outbound {outbound} bytes");
    }
}
