//! The comparison with Envoy: the same requests, through the same redirect rules and mutual TLS, in alternating rounds.
//!
//! ```text
//! main ──> candidates   direct, relay, Weir (mesh), Envoy (envoy): each in two network namespaces of its own (lab)
//!      ──> rounds       what is done to each of them (scenario), and when; memory
//!            ├─> load ───> [client's proxy] ──> [server's proxy] ──> origin    HTTP/1.1
//!            ├─> grpc                                            ──> its own   HTTP/2, calls, streams
//!            ├─> stream                                          ──> sink      bytes of one TCP connection
//!            ├─> fresh                                           ──> greeter   connections that end at once
//!            └─> usage   CPU time and memory of the proxies, steal of the machine
//!      ──> report       ratios, tables, JSON
//! ```
//! Load generator and origin are threads of this program inside the namespaces. Proxies are processes (`process`), and their
//! cost is what the kernel accounts to them, so the cost of the generator never counts.

pub mod candidate;
pub mod envoy;
pub mod fresh;
pub mod grpc;
pub mod histogram;
pub mod lab;
pub mod load;
pub mod memory;
pub mod mesh;
pub mod origin;
pub mod process;
pub mod relay;
pub mod report;
pub mod rounds;
pub mod scenario;
pub mod serve;
pub mod stream;
pub mod usage;
