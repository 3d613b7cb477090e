//! What the proxy tells: metrics, access log, its own log.
