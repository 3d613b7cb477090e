//! The application's own metrics, appended to the proxy's.
//!
//! Whatever the application answers, the scrape succeeds: what does not fit is left out and counted. The text passes through line
//! by line, so that a large answer is never held in memory and a broken line never spoils the rest.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request,
    body::Incoming,
    header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderName, USER_AGENT},
};
use tokio::time::Instant;
use weir_mesh::ports::RESERVED;

use super::{
    App,
    client::{self, Driver, Stream as Connection},
};
use crate::telemetry::Registry;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Longest line, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// Longest scrape, where Prometheus does not say what it grants.
const LIMIT: Duration = Duration::from_secs(8);
/// Kept of what Prometheus grants, for the way back.
const RESERVE: Duration = Duration::from_millis(500);
const GRANTED: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
/// The plain text format only: what we append to is of that kind.
const ACCEPTED: &str = "text/plain;version=0.0.4;q=1,*/*;q=0.1";

/// Where the application's metrics are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMetrics {
    port: u16,
    path: String,
}

impl std::str::FromStr for AppMetrics {
    type Err = String;

    /// Reads `PORT/PATH`, such as `9090/metrics`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not PORT/PATH such as 9090/metrics");
        let (port, path) = text.split_once('/').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        if port == 0 || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad());
        }
        if RESERVED.contains(&port) {
            return Err(format!("port {port} belongs to the proxy: it can not be the application's metrics"));
        }
        Ok(Self { port, path: format!("/{path}") })
    }
}

/// Asks the application; `None` where it did not answer with metrics, which is counted.
pub(super) async fn scrape(
    app: &App,
    target: &AppMetrics,
    asked: &HeaderMap,
    registry: Arc<Registry>,
) -> Option<impl Stream<Item = Bytes> + Send + 'static> {
    let granted = asked.get(GRANTED).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let limit = granted
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map_or(LIMIT, |granted| granted.saturating_sub(RESERVE).clamp(RESERVE, LIMIT));
    let deadline = Instant::now() + limit;
    match tokio::time::timeout_at(deadline, ask(app, target)).await {
        Ok(Ok((body, driver, open_metrics))) => {
            let state = Answer {
                body,
                _driver: driver,
                deadline,
                filter: Filter { open_metrics, ..Filter::default() },
                left: MAX_ANSWER,
                registry,
                done: false,
            };
            Some(stream::unfold(state, Answer::next))
        }
        Ok(Err(Failure(reason, why))) => {
            tracing::debug!(reason, why, "the application's metrics are left out");
            registry.proxy.app_scrape_failures.inc([reason]);
            None
        }
        Err(_) => {
            registry.proxy.app_scrape_failures.inc(["timeout"]);
            None
        }
    }
}

struct Failure(&'static str, String);

async fn ask(app: &App, target: &AppMetrics) -> Result<(Incoming, Driver, bool), Failure> {
    let unreachable = |error: std::io::Error| Failure("connect", error.to_string());
    let address = client::resolve(&app.addresses, None, target.port).await.map_err(unreachable)?;
    let request = Request::get(target.path.as_str())
        .header(HOST, address.to_string())
        .header(USER_AGENT, "weir-proxy")
        .header(ACCEPT, ACCEPTED)
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failure("request", error.to_string()))?;
    let stream = client::connect(&app.addresses, address).await.map_err(unreachable)?;
    let (response, driver) = client::send(Connection::Plain(stream), request)
        .await
        .map_err(|error| Failure("protocol", error.to_string()))?;
    if response.status() != hyper::StatusCode::OK {
        return Err(Failure("status", response.status().to_string()));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("text/plain");
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "text/plain" => Ok((response.into_body(), driver, false)),
        "application/openmetrics-text" => Ok((response.into_body(), driver, true)),
        _ => Err(Failure("content_type", kind)),
    }
}

/// An answer that is still coming in.
struct Answer {
    body: Incoming,
    _driver: Driver,
    deadline: Instant,
    filter: Filter,
    left: usize,
    registry: Arc<Registry>,
    done: bool,
}

impl Answer {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        while !self.done {
            let mut out = BytesMut::new();
            match tokio::time::timeout_at(self.deadline, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    match self.left.checked_sub(data.len()) {
                        Some(left) => {
                            self.left = left;
                            self.filter.feed(&data, &mut out);
                        }
                        None => self.fail("too_large"),
                    }
                }
                Ok(Some(Err(_))) => self.fail("broken_off"),
                Ok(None) => {
                    self.done = true;
                    self.filter.end(&mut out);
                }
                Err(_) => self.fail("timeout"),
            }
            self.registry.proxy.app_scrape_lines_dropped.add(std::mem::take(&mut self.filter.dropped));
            if !out.is_empty() {
                return Some((out.freeze(), self));
            }
        }
        None
    }

    fn fail(&mut self, reason: &'static str) {
        self.registry.proxy.app_scrape_failures.inc([reason]);
        self.done = true;
    }
}

/// Lets lines through that are of the text format 0.0.4, whole lines only.
#[derive(Debug, Default)]
struct Filter {
    /// Exemplars and timestamps in seconds are cut off.
    open_metrics: bool,
    /// The beginning of a line whose end has not come.
    begun: BytesMut,
    /// The rest of a line that is too long is passed over.
    skipping: bool,
    dropped: u64,
}

impl Filter {
    fn feed(&mut self, mut data: &[u8], out: &mut BytesMut) {
        while let Some(end) = memchr::memchr(b'\n', data) {
            let (line, rest) = data.split_at(end);
            data = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.begun.is_empty() {
                self.line(line, out);
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(line);
                self.line(&whole, out);
            }
        }
        if self.skipping {
            return;
        }
        if self.begun.len().saturating_add(data.len()) > MAX_LINE {
            self.begun.clear();
            self.skipping = true;
            self.dropped = self.dropped.saturating_add(1);
        } else {
            self.begun.extend_from_slice(data);
        }
    }

    /// A last line without a newline counts where the answer is complete.
    fn end(&mut self, out: &mut BytesMut) {
        let last = std::mem::take(&mut self.begun);
        if !last.is_empty() && !self.skipping {
            self.line(&last, out);
        }
    }

    fn line(&mut self, line: &[u8], out: &mut BytesMut) {
        let text = std::str::from_utf8(line).ok().map(|line| line.trim_end_matches('\r'));
        let kept = match text {
            Some("") => return,
            Some(comment) if comment.starts_with('#') => {
                // The end of an OpenMetrics text would be the end of ours.
                if comment.trim_end() == "# EOF" {
                    return;
                }
                Some(comment)
            }
            Some(sample) => sample_of(sample, self.open_metrics),
            None => None,
        };
        match kept.filter(|kept| kept.len() <= MAX_LINE) {
            Some(kept) => {
                out.extend_from_slice(kept.as_bytes());
                out.extend_from_slice(b"\n");
            }
            None => self.dropped = self.dropped.saturating_add(1),
        }
    }
}

/// The part of a line that is a sample: name, labels, value and, outside OpenMetrics, a timestamp.
fn sample_of(line: &str, open_metrics: bool) -> Option<&str> {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let first = line.bytes().next()?;
    if first.is_ascii_digit() || (name_end == 0 && first != b'{') {
        return None;
    }
    let after_labels = match line.get(name_end..)?.trim_start_matches(' ') {
        rest if rest.starts_with('{') => behind_labels(rest)?,
        rest => rest,
    };
    let rest = after_labels.trim_start_matches([' ', '\t']);
    let value_end = rest.find([' ', '\t']).unwrap_or(rest.len());
    let (value, rest) = rest.split_at(value_end);
    value.parse::<f64>().ok()?;
    let behind_value = rest.trim_matches([' ', '\t']);
    if open_metrics {
        return line.get(..line.len().checked_sub(rest.len())?);
    }
    if behind_value.is_empty() || behind_value.parse::<i64>().is_ok() { Some(line) } else { None }
}

/// What follows a `{...}` with quoted values.
fn behind_labels(text: &str) -> Option<&str> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return text.get(at.saturating_add(1)..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let metrics: AppMetrics = "9090/metrics?x=1".parse().unwrap();
        assert_eq!((metrics.port, metrics.path.as_str()), (9090, "/metrics?x=1"));
        assert_eq!("80/".parse::<AppMetrics>().unwrap().path, "/");
        for bad in ["", "9090", "0/x", "70000/x", "x/metrics", "15020/stats/prometheus", "15000/", "80/a b", "80/\r\n"]
        {
            assert!(bad.parse::<AppMetrics>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn samples() {
        for good in [
            "a 1",
            "a_b:c 1.5e3",
            "a{} 1",
            "a{b=\"c\"} +Inf",
            "a{b=\"}\\\" {\",} NaN",
            "a 1 1700000000000",
            "{\"a.b\",c=\"d\"} 1",
            "a\t1",
        ] {
            assert_eq!(sample_of(good, false), Some(good));
        }
        for bad in
            ["", "1a 1", "a", "a{ 1", "a{b=\"c} 1", "a one", "a 1 x", "a 1 1 1", "-a 1", "a 1 # {x=\"y\"} 2", "<html>"]
        {
            assert_eq!(sample_of(bad, false), None, "{bad}");
        }
        assert_eq!(sample_of("a{b=\" # {\"} 1 1700000000.5 # {x=\"y\"} 2", true), Some("a{b=\" # {\"} 1"));
    }

    fn filtered(pieces: &[&[u8]]) -> (String, u64) {
        let (mut filter, mut out) = (Filter::default(), BytesMut::new());
        for piece in pieces {
            filter.feed(piece, &mut out);
        }
        filter.end(&mut out);
        (String::from_utf8(out.to_vec()).unwrap(), filter.dropped)
    }

    #[test]
    fn lines_are_whole_at_every_split() {
        let text = b"# HELP a b\n# TYPE a counter\na{x=\"y\"} 1\r\nbroken line\n\n\xff\xfe 1\nb 2\n# EOF\nc 3";
        let expected = "# HELP a b\n# TYPE a counter\na{x=\"y\"} 1\nb 2\nc 3\n";
        for at in 0..text.len() {
            let (first, second) = text.split_at(at);
            assert_eq!(filtered(&[first, second]), (expected.to_owned(), 2), "split at {at}");
        }
    }

    #[test]
    fn endless_lines_are_passed_over() {
        let long = vec![b'a'; 40 * 1024];
        let (text, dropped) = filtered(&[b"a 1\n", &long, &long, &long, b" 1\nb 2\n"]);
        assert_eq!((text.as_str(), dropped), ("a 1\nb 2\n", 1));
    }
}
