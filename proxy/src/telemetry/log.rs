//! The proxy's own log: one JSON object a line on standard error, its filter changeable while it runs.

use std::sync::Arc;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Longest filter that is accepted, in bytes.
const MAX_FILTER: usize = 1024;

/// Changes the filter of the running process.
#[derive(Clone)]
pub struct LogControl(Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>);

impl LogControl {
    /// Takes a filter such as `info` or `weir_proxy=debug`.
    ///
    /// # Errors
    /// Why the filter is refused; the one before stays.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        self.0(parse(filter)?)
    }

    /// One that checks the filter and does nothing else, for tests of the endpoints.
    pub fn check_only() -> Self {
        Self(Arc::new(|_| Ok(())))
    }
}

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogControl")
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'=' | b',' | b'-');
    if filter.is_empty() || filter.len() > MAX_FILTER || !filter.bytes().all(word) {
        return Err("not a log filter such as info or weir_proxy=debug".into());
    }
    EnvFilter::builder().parse(filter).map_err(|e| format!("not a log filter such as info or weir_proxy=debug: {e}"))
}

/// Starts the log of the process. Once only.
///
/// # Errors
/// A filter that is none, or a log that was started before.
pub fn init(filter: &str) -> Result<LogControl, String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|e| e.to_string())?;
    Ok(LogControl(Arc::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for good in ["info", "weir_proxy=debug,warn", "weir_proxy::tls=trace", "off"] {
            assert!(parse(good).is_ok(), "{good} was refused");
        }
        for bad in ["", "info\n", "a[b{c=d}]=info", "weir_proxy=loud", &"a".repeat(2000)] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
