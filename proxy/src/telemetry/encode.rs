//! Prometheus' text format 0.0.4, in pieces.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;

use super::{
    own::{head, line},
    process,
    registry::Registry,
    series::{BOUNDS, Histogram, HttpSeries, ROUTE_BOUNDS, RouteSeries, TcpSeries},
};

/// A piece is handed out as soon as it is this long, in bytes.
const PIECE: usize = 64 * 1024;
/// Recorded microseconds in a written millisecond.
const MICROS_IN_MILLI: u64 = 1000;

/// Writes one scrape. All samples of a name stand together, as the format demands; only label sets known at the start appear.
#[derive(Debug)]
pub struct Encoder {
    registry: Arc<Registry>,
    http: Vec<Arc<HttpSeries>>,
    tcp: Vec<Arc<TcpSeries>>,
    routes: Vec<Arc<RouteSeries>>,
    section: usize,
    next: usize,
    process: bool,
}

type HttpSection = (&'static str, &'static str, &'static str, fn(&HttpSeries, &str, &mut String));
type TcpSection = (&'static str, &'static str, fn(&TcpSeries) -> u64);

const HTTP: [HttpSection; 4] = [
    ("istio_requests_total", "counter", "Requests.", |s, name, text| {
        line(text, name, &s.labels, s.requests.load(Relaxed));
    }),
    ("istio_request_duration_milliseconds", "histogram", "Duration of completed requests.", |s, name, text| {
        histogram(text, name, &s.labels, &BOUNDS, &s.duration, MICROS_IN_MILLI);
    }),
    ("istio_request_bytes", "histogram", "Bytes of requests on the caller's wire.", |s, name, text| {
        histogram(text, name, &s.labels, &BOUNDS, &s.request_bytes, 1);
    }),
    ("istio_response_bytes", "histogram", "Bytes of responses on the caller's wire.", |s, name, text| {
        histogram(text, name, &s.labels, &BOUNDS, &s.response_bytes, 1);
    }),
];

const TCP: [TcpSection; 4] = [
    ("istio_tcp_connections_opened_total", "Opaque connections opened.", |s| s.opened.load(Relaxed)),
    ("istio_tcp_connections_closed_total", "Opaque connections closed.", |s| s.closed.load(Relaxed)),
    ("istio_tcp_sent_bytes_total", "Bytes sent to callers of opaque connections.", |s| s.sent.load(Relaxed)),
    ("istio_tcp_received_bytes_total", "Bytes received from callers of opaque connections.", |s| {
        s.received.load(Relaxed)
    }),
];

impl Encoder {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            http: registry.all_http(),
            tcp: registry.all_tcp(),
            routes: registry.all_routes(),
            registry,
            section: 0,
            next: 0,
            process: true,
        }
    }

    /// Without `process_*`: in a merged scrape those names belong to the application.
    #[must_use]
    pub fn without_process(mut self) -> Self {
        self.process = false;
        self
    }

    fn first(&self, text: &mut String) {
        head(text, "istio_build", "gauge", "Version of the component.");
        let mut labels = String::from("component=\"proxy\",");
        super::labels::label(&mut labels, "tag", self.registry.version());
        labels.pop();
        line(text, "istio_build", &labels, 1_u8);
        self.registry.proxy.encode(text);
        if self.process {
            process::encode(text);
        }
    }

    /// Writes series from `self.next` on until the piece is full; true where the section is complete.
    fn series<T>(&mut self, text: &mut String, all: &[Arc<T>], write: impl Fn(&T, &mut String)) -> bool {
        while let Some(series) = all.get(self.next) {
            if text.len() >= PIECE {
                return false;
            }
            write(series, text);
            self.next = self.next.saturating_add(1);
        }
        true
    }

    /// One step; `None` at the end, true where the section is complete.
    fn step(&mut self, text: &mut String) -> Option<bool> {
        let start = self.next == 0;
        let section = self.section;
        if section == 0 {
            self.first(text);
            return Some(true);
        }
        if let Some((name, kind, help, write)) = section.checked_sub(1).and_then(|index| HTTP.get(index)) {
            let all = std::mem::take(&mut self.http);
            if start && !all.is_empty() {
                head(text, name, kind, help);
            }
            let done = self.series(text, &all, |series, text| write(series, name, text));
            self.http = all;
            return Some(done);
        }
        if let Some((name, help, read)) = section.checked_sub(1 + HTTP.len()).and_then(|index| TCP.get(index)) {
            let all = std::mem::take(&mut self.tcp);
            if start && !all.is_empty() {
                head(text, name, "counter", help);
            }
            let done = self.series(text, &all, |series, text| line(text, name, &series.labels, read(series)));
            self.tcp = all;
            return Some(done);
        }
        if section == 1 + HTTP.len() + TCP.len() {
            const NAME: &str = "weir_route_duration_milliseconds";
            let all = std::mem::take(&mut self.routes);
            if start && !all.is_empty() {
                head(text, NAME, "histogram", "Duration of requests by declared route.");
            }
            let done = self.series(text, &all, |series, text| {
                for (class, values) in [("success", &series.success), ("failure", &series.failure)] {
                    let labels = format!("{},classification=\"{class}\"", series.labels);
                    histogram(text, NAME, &labels, &ROUTE_BOUNDS, values, MICROS_IN_MILLI);
                }
            });
            self.routes = all;
            return Some(done);
        }
        None
    }
}

impl Iterator for Encoder {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut text = String::with_capacity(PIECE / 4);
        while text.len() < PIECE {
            match self.step(&mut text) {
                Some(true) => {
                    self.section = self.section.saturating_add(1);
                    self.next = 0;
                }
                Some(false) => break,
                None => break,
            }
        }
        if text.is_empty() { None } else { Some(text.into()) }
    }
}

/// Writes a histogram whose values were recorded in `1/scale` of the written unit.
fn histogram<const N: usize>(
    text: &mut String,
    name: &str,
    labels: &str,
    bounds: &[&str],
    values: &Histogram<N>,
    scale: u64,
) {
    let (counts, sum) = values.read();
    let mut total = 0_u64;
    for (count, bound) in counts.iter().zip(bounds.iter().copied().chain(["+Inf"])) {
        total = total.saturating_add(*count);
        for part in [name, "_bucket{", labels, ",le=\"", bound, "\"} "] {
            text.push_str(part);
        }
        text.push_str(itoa::Buffer::new().format(total));
        text.push('\n');
    }
    let (whole, rest) = (sum.checked_div(scale).unwrap_or(0), sum.checked_rem(scale).unwrap_or(0));
    for part in [name, "_sum{", labels, "} "] {
        text.push_str(part);
    }
    text.push_str(itoa::Buffer::new().format(whole));
    if rest > 0 {
        let _ = write!(text, ".{rest:03}");
    }
    for part in ["\n", name, "_count{", labels, "} "] {
        text.push_str(part);
    }
    text.push_str(itoa::Buffer::new().format(total));
    text.push('\n');
}
