//! A request, and what is looked at.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use weir_tests::{
    at,
    http2::{H2Client, grpc, run},
};

use crate::mesh::{GRPC, HTTP, Mesh};

/// Longer than any answer that a row waits for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests after which it is known who answers.
const MANY: usize = 12;

/// Looks at a Service.
type See = dyn Fn(&Mesh, Ipv4Addr) -> String;

/// What a row does, in words, and what it sees, as a short text.
pub(crate) struct Probe {
    pub(crate) text: String,
    see: Box<See>,
}

impl Probe {
    pub(crate) fn new(text: impl Into<String>, see: impl Fn(&Mesh, Ipv4Addr) -> String + 'static) -> Self {
        Self { text: text.into(), see: Box::new(see) }
    }

    pub(crate) fn see(&self, mesh: &Mesh, service: Ipv4Addr) -> String {
        (self.see)(mesh, service)
    }
}

/// A request to the row's Service.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: usize,
    port: u16,
}

/// A GET.
pub(crate) fn get(path: &str) -> Ask {
    Ask { method: "GET", path: path.into(), headers: Vec::new(), body: 0, port: HTTP }
}

/// A call of gRPC.
pub(crate) fn call(path: &str) -> Ask {
    Ask { port: GRPC, ..get(path) }
}

/// What came of a request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The status, of gRPC where it is one; or that there was no answer.
    pub(crate) status: String,
    pub(crate) is_good: bool,
    headers: Vec<(String, String)>,
    got: Vec<(String, String)>,
    /// Path as it came to the server.
    path: String,
}

impl Answer {
    fn none() -> Self {
        Self { status: "no answer".into(), ..Self::default() }
    }

    /// All values of a header.
    pub(crate) fn header(&self, name: &str) -> String {
        values(&self.headers, name)
    }

    /// Who answered, or the status.
    pub(crate) fn pod(&self) -> String {
        if self.is_good { self.header("x-pod") } else { self.status.clone() }
    }
}

fn values(list: &[(String, String)], name: &str) -> String {
    let values: Vec<&str> =
        list.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect();
    if values.is_empty() { "none".into() } else { values.join(", ") }
}

/// Lines of a head.
fn lines(head: &str) -> Vec<(String, String)> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

impl Ask {
    pub(crate) fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    /// With a header.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With so many bytes.
    pub(crate) fn body(self, body: usize) -> Self {
        Self { method: "POST", body, ..self }
    }

    /// Sends it.
    pub(crate) fn send(&self, mesh: &Mesh, service: Ipv4Addr) -> Answer {
        if self.port == GRPC { self.call(mesh, service) } else { self.http(mesh, service) }.unwrap_or_else(Answer::none)
    }

    fn http(&self, mesh: &Mesh, service: Ipv4Addr) -> Option<Answer> {
        let mut client = mesh.client.try_connect(at(service, self.port)).ok()?;
        client.patience(PATIENCE);
        let host = if self.headers.iter().any(|(name, _)| name == "host") { "" } else { "host: catalog\r\n" };
        let mut request = format!("{} {} HTTP/1.1\r\n{host}", self.method, self.path);
        for (name, value) in &self.headers {
            let _ = write!(request, "{name}: {value}\r\n");
        }
        let _ = write!(request, "content-length: {}\r\n\r\n{}", self.body, "x".repeat(self.body));
        client.send(request.as_bytes()).ok()?;
        let answer = client.response_to(["HEAD", "CONNECT"].contains(&self.method)).ok()?;
        let text = answer.text();
        Some(Answer {
            status: answer.status.to_string(),
            is_good: answer.status == 200,
            headers: lines(&answer.head),
            path: text.split(' ').nth(1).unwrap_or_default().to_owned(),
            got: lines(&text),
        })
    }

    fn call(&self, mesh: &Mesh, service: Ipv4Addr) -> Option<Answer> {
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let request: Request<()> = grpc(&self.path, &headers);
        let reply = run(async {
            let ask = async {
                let mut client = H2Client::connect(&mesh.client.netns, at(service, self.port)).await.ok()?;
                client.ask(request, Bytes::from_static(b"\0\0\0\0\x01x")).await.ok()
            };
            tokio::time::timeout(PATIENCE, ask).await.ok()?
        })?;
        let named = |name: &http::HeaderName, value: &http::HeaderValue| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers: Vec<(String, String)> = reply.headers.iter().map(|(name, value)| named(name, value)).collect();
        let got =
            headers.iter().filter_map(|(name, value)| Some((name.strip_prefix("got-")?.to_owned(), value.clone())));
        let status = match reply.grpc() {
            Some(status) => format!("grpc-status {status}"),
            None => reply.status.to_string(),
        };
        Some(Answer {
            status,
            is_good: reply.grpc() == Some(0),
            path: values(&headers, "x-path"),
            got: got.collect(),
            headers,
        })
    }

    /// The request in words.
    pub(crate) fn text(&self) -> String {
        let mut text = match self.port {
            GRPC => format!("call of `{}`", self.path),
            _ => format!("`{} {}`", self.method, self.path),
        };
        if self.body > 0 {
            let _ = write!(text, " of {} bytes", self.body);
        }
        for (name, value) in &self.headers {
            let _ = write!(text, " with `{name}: {value}`");
        }
        text
    }

    fn probe(self, looks_at: &str, look: impl Fn(&Answer) -> String + 'static) -> Probe {
        Probe::new(format!("{}: {looks_at}", self.text()), move |mesh, service| look(&self.send(mesh, service)))
    }

    /// Who answers.
    pub(crate) fn pod(self) -> Probe {
        self.probe("who answers", Answer::pod)
    }

    pub(crate) fn status(self) -> Probe {
        self.probe("status", |answer| answer.status.clone())
    }

    /// A header of the answer.
    pub(crate) fn header(self, name: &'static str) -> Probe {
        self.probe(&format!("`{name}` of the answer"), move |answer| answer.header(name))
    }

    /// A header as the server got it.
    pub(crate) fn got(self, name: &'static str) -> Probe {
        self.probe(&format!("`{name}` at the server"), move |answer| values(&answer.got, name))
    }

    /// The path as the server got it.
    pub(crate) fn got_path(self) -> Probe {
        self.probe("path at the server", |answer| answer.path.clone())
    }

    /// Everybody who answers some of many requests.
    pub(crate) fn pods(self) -> Probe {
        Probe::new(format!("{}, {MANY} times: who answers", self.text()), move |mesh, service| {
            let shares = shares((0..MANY).map(|_| self.send(mesh, service).pod()));
            shares.into_keys().collect::<Vec<_>>().join(" and ")
        })
    }

    /// Who answers how many of so many requests.
    pub(crate) fn shares(self, of: usize) -> Probe {
        Probe::new(format!("{}, {of} times: who answers", self.text()), move |mesh, service| {
            let shares = shares((0..of).map(|_| self.send(mesh, service).pod()));
            shares.into_iter().map(|(who, count)| format!("{who} {count}")).collect::<Vec<_>>().join(", ")
        })
    }

    /// Whether the answer takes as long as this.
    pub(crate) fn takes(self, limit: u64) -> Probe {
        Probe::new(format!("{}: time", self.text()), move |mesh, service| {
            let start = Instant::now();
            let answer = self.send(mesh, service);
            let word = if start.elapsed() < Duration::from_millis(limit) { "less" } else { "more" };
            format!("{} after {word} than {limit} ms", answer.status)
        })
    }
}

/// How often each comes.
pub(crate) fn shares(all: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for one in all {
        *shares.entry(one).or_default() += 1;
    }
    shares
}
