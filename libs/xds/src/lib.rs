//! Envoy's v3 types, Weir's resource names, delta ADS client and server, and the certificate service.

pub mod names;
