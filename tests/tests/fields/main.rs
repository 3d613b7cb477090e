//! Every field of every kind of rules for traffic: accepted, and then a request is answered otherwise without it, or refused by name.
//!
//! The fields are those of the kinds' own definitions. A row writes the objects with some fields and without them, each time for a Service
//! that is new, and looks at the same request; which fields it is about is what differs between the objects. At the end every field
//! has to have a row. The rows are the tables "Every field" of `docs/traffic.md`; `UPDATE_GOLDEN=1` writes them there.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

mod answers;
mod ask;
mod destination_rule;
mod document;
mod grpc_route;
mod http_route;
mod mesh;
mod objects;
mod outliers;
mod reference_grant;
mod references;
mod requests;
mod streams;
mod table;
mod traffic_policy;
