//! Headers of HTTP that two parts must agree on.

/// Names that belong to a connection and its framing: only a codec writes them. No rule may change one, or a request could be read in two
/// ways.
pub const OF_THE_CONNECTION: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
