//! Generated streams read by our codec and by hyper's: what only hyper takes has to be on the list here, with its
//! reason; what only we take does not exist.

mod http_support;

use http_support::{End, forward, hyper_requests, hyper_response, read_requests, read_response, runtime};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use weir_proxy::http::Asked;

/// Why we refuse what hyper takes. Each is a choice against ambiguity, explained in the codec and in the corpus.
const STRICTER_THAN_HYPER: [&str; 33] = [
    // framing: no choosing between two statements
    "both Content-Length and Transfer-Encoding",
    "several Content-Length headers",
    "several Transfer-Encoding headers",
    "Content-Length is not a number", // hyper passes over it beside Transfer-Encoding
    "Transfer-Encoding is not chunked",
    "a transfer coding other than chunked",
    "Transfer-Encoding in HTTP/1.0", // of a response that has no body, too
    "a line ends with LF instead of CR LF",
    "a chunk size is not a hexadecimal number", // hyper takes spaces behind it
    "a chunk size is too large",                // hyper takes any number of leading zeros
    "a chunk extension has a control character",
    "chunk extensions are too long",
    "a trailer is malformed",
    "a trailer that only a head may have",
    "a CONNECT request with a body",
    "too many empty lines before the request",
    "this is not an HTTP request", // a bare LF before it
    // the head's meaning: hyper leaves it to its user
    "no Host header",
    "several Host headers",
    "the host is empty",
    "the host has user information",
    "the host has a character that no host may have",
    "the port of the host is not a number",
    "the port of the host is above 65535",
    "the request target has no valid form",
    "the target of CONNECT has no port",
    "the path has a character that no path may have",
    "the path has a percent sign without two hexadecimal digits",
    "the path has an encoded NUL",
    "the query has a character that no query may have",
    "the Connection header is malformed",
    "an expectation other than 100-continue",
    "several Expect headers",
];

/// A stream that a failure shows as text.
#[derive(Clone)]
struct Stream(Vec<u8>);

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl Stream {
    /// Latin-1: what is above ASCII becomes one raw byte.
    fn new(parts: Vec<String>) -> Self {
        Self(parts.concat().chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect())
    }
}

/// One of `options`, which `|` separates.
fn pick(options: &'static str) -> impl Strategy<Value = String> {
    select(options.split('|').collect::<Vec<_>>()).prop_map(str::to_owned)
}

/// One of `usual` most of the time.
fn mostly(usual: &'static str, odd: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![24 => pick(usual), 1 => pick(odd)]
}

fn line_end() -> impl Strategy<Value = String> {
    mostly("\r\n", "\n|\r|\r\r\n| \r\n")
}

const ODD_FRAMING: &str = "Content-Length: 5|Content-Length: 0|content-length:5|Content-Length: 05|Content-Length: +5\
    |Content-Length: 5, 5|Content-Length : 5|Content-Length: 5\u{b}|Transfer-Encoding: chunked|transfer-encoding:\tChunked \
    |Transfer-Encoding: gzip, chunked|Transfer-Encoding: chunked, chunked|Transfer-Encoding: identity|Transfer-Encoding: xchunked\
    |Transfer-Encoding : chunked| Transfer-Encoding: chunked|Transfer-Encoding: ";
const HEADERS: &str = "X: y|X:|X_Y: z|Connection: close|Connection: keep-alive|Connection: x, Upgrade|Upgrade: websocket|Upgrade: h2c\
    |TE: trailers|Expect: 100-continue|Keep-Alive: 5|Trailer: X|X: \u{e9}|Accept: */*|X:  a b\t";
const ODD_HEADERS: &str = "X Y: z|: x|x|X: \u{1}|Connection: \"x\"|Expect: x|Host: b|Host: u@b|Host:| folded";

/// Header lines of framing, and a body: most of the time they belong together.
fn framed() -> impl Strategy<Value = (String, String)> {
    let chunk = prop_oneof![
        6 => pick("5\r\nhello\r\n|1;a=b\r\n0\r\n|00005\r\nhello\r\n|F\r\n123456789012345\r\n|2\r\n\r\n\r\n"),
        1 => pick("5\nhello\r\n|5\r\nhello\n|5 \r\nhello\r\n|0x5\r\nhello\r\n|5\r\nhell\r\n|5\r\nhelloo\r\n|5;\u{1}\r\nhello\r\n|\r\n|-5\r\nhello\r\n"),
    ];
    let end = prop_oneof![
        8 => pick("0\r\n\r\n|0\r\n\r\n|0;x\r\n\r\n|000\r\n\r\n|0\r\nX: y\r\n\r\n"),
        1 => pick("0\r\nContent-Length: 5\r\n\r\n|0\r\n\n|0\r\nX: y\n\r\n||0\r\nX : y\r\n\r\n"),
    ];
    let chunks = (proptest::collection::vec(chunk, 0..3), end).prop_map(|(chunks, end)| chunks.concat() + &end);
    let right = prop_oneof![
        2 => Just((String::new(), String::new())),
        2 => pick("Content-Length: 5\r\n|content-length:05\r\n").prop_map(|header| (header, "hello".to_owned())),
        3 => (pick("Transfer-Encoding: chunked\r\n|transfer-encoding:\tChunked \r\n"), chunks.clone()),
    ];
    let odd = (
        proptest::collection::vec((pick(ODD_FRAMING), line_end()).prop_map(|(header, end)| header + &end), 0..3),
        prop_oneof![1 => Just(String::new()), 1 => Just("hello".to_owned()), 2 => chunks],
    )
        .prop_map(|(headers, body)| (headers.concat(), body));
    prop_oneof![4 => right, 1 => odd]
}

fn headers() -> impl Strategy<Value = String> {
    let line =
        (prop_oneof![16 => pick(HEADERS), 1 => pick(ODD_HEADERS)], line_end()).prop_map(|(header, end)| header + &end);
    proptest::collection::vec(line, 0..4).prop_map(|lines| lines.concat())
}

/// A stream of up to three requests, most of them nearly right.
fn requests() -> impl Strategy<Value = Stream> {
    let target = prop_oneof![
        6 => pick("/|/|/a/b|/a?b=c|/a/../b|//a|/%61|/%2f|http://b/c|http://b|/a\\b|/a?"),
        1 => pick("/%00|/%zz|/a#b|/\u{e9}|/?\u{e9}|*|http://u@b/|b:80|a||/a b|/?a#b|https://b:99999/|http://b?x"),
    ];
    let line = (
        mostly("GET|POST|HEAD|OPTIONS|PUT", "CONNECT|get|P(T|"),
        mostly(" ", "  |\t"),
        target,
        mostly(" HTTP/1.1| HTTP/1.1| HTTP/1.1| HTTP/1.0", " HTTP/1.2| HTTP/2.0| http/1.1|"),
        line_end(),
    )
        .prop_map(|(method, space, target, version, end)| format!("{method}{space}{target}{version}{end}"));
    let request = (
        mostly("|||\r\n", "\n"),
        line,
        mostly("Host: a\r\n", ""),
        (headers(), framed(), headers()),
        mostly("\r\n", "\n|"),
    )
        .prop_map(|(empty, line, host, (before, (framing, body), after), end)| {
            format!("{empty}{line}{host}{before}{framing}{after}{end}{body}")
        });
    proptest::collection::vec(request, 1..4).prop_map(Stream::new)
}

fn responses() -> impl Strategy<Value = Stream> {
    let line = (
        mostly("HTTP/1.1 |HTTP/1.1 |HTTP/1.1 |HTTP/1.0 ", "HTTP/2.0 |http/1.1 |HTTP/1.1  "),
        mostly(
            "200 OK|200 OK|200 OK|200|200 |204 No|304 No|404 Not\tFound|103 Hints|100 Go|200 \u{e9}|426 Up",
            "99 No|2000 OK|101 Sw",
        ),
        line_end(),
    )
        .prop_map(|(version, status, end)| version + &status + &end);
    let response = (line, headers(), framed(), headers(), mostly("\r\n", "\n|"))
        .prop_map(|(line, before, (framing, body), after, end)| format!("{line}{before}{framing}{after}{end}{body}"));
    proptest::collection::vec(response, 1..3).prop_map(Stream::new)
}

fn runner() -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(20_000);
    TestRunner::new(ProptestConfig {
        cases,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

/// Requests are compared one by one until one of the two readers stops.
#[test]
fn requests_are_read_as_hyper_reads_them_or_refused() {
    let runtime = runtime();
    let taken = std::cell::Cell::new(0_u32);
    let result = runner().run(&requests(), |Stream(stream)| {
        let text = stream.escape_ascii().to_string();
        let (ours, hyper) = (read_requests(&[&stream]), runtime.block_on(hyper_requests(&stream)));
        for (one, other) in ours.messages.iter().zip(&hyper.messages) {
            prop_assert_eq!((&one.method, &one.body), (&other.method, &other.body), "{}", text);
            let (mut one, mut other) = (one.headers.clone(), other.headers.clone());
            one.sort();
            other.sort();
            prop_assert_eq!(one, other, "{}", text);
            taken.set(taken.get() + 1);
        }
        match ours.end {
            // hyper went on where we stopped
            End::Refused(_, reason) if hyper.messages.len() > ours.messages.len() => {
                prop_assert!(STRICTER_THAN_HYPER.contains(&reason), "only hyper takes it: {}: {}", reason, text);
            }
            End::Refused(..) => {}
            // we read on where hyper stopped
            _ if ours.messages.len() > hyper.messages.len() => {
                prop_assert!(false, "only we take it: {:?} {:?}: {}", ours, hyper, text);
            }
            _ => prop_assert!(
                hyper.messages.len() == ours.messages.len() || ours.end == End::Clean,
                "{:?} {:?}: {}",
                ours,
                hyper,
                text
            ),
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(taken.get() > 5_000, "the generator makes too few valid requests: {}", taken.get());
}

/// Whatever came in: each thing that goes out is one request for hyper and for us, with the same method and body.
#[test]
fn whatever_is_forwarded_is_one_request() {
    let runtime = runtime();
    let result = runner().run(&requests(), |Stream(stream)| {
        let (received, sent) = forward(&stream);
        for (message, bytes) in received.messages.iter().zip(&sent) {
            let text = bytes.escape_ascii().to_string();
            let hyper = runtime.block_on(hyper_requests(bytes));
            prop_assert_eq!((hyper.messages.len(), hyper.end), (1, End::Clean), "hyper: {}", text);
            prop_assert_eq!(
                (&hyper.messages[0].method, &hyper.messages[0].body),
                (&message.method, &message.body),
                "{}",
                text
            );
            let (again, sent_again) = forward(bytes);
            prop_assert_eq!((again.messages.len(), again.end), (1, End::Clean), "ours: {}", text);
            prop_assert_eq!(&sent_again[0], bytes, "sent on twice");
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn responses_are_read_as_hyper_reads_them_or_refused() {
    let runtime = runtime();
    let taken = std::cell::Cell::new(0_u32);
    let result = runner().run(&(responses(), any::<bool>()), |(Stream(stream), head)| {
        let text = stream.escape_ascii().to_string();
        let (asked, method) =
            if head { (Asked::Head, hyper::Method::HEAD) } else { (Asked::Other, hyper::Method::GET) };
        let (ours, hyper) = (read_response(&[&stream], asked), runtime.block_on(hyper_response(&stream, method)));
        match (ours.messages.first(), hyper.messages.first(), ours.end) {
            (Some(one), Some(other), _) => {
                taken.set(taken.get() + 1);
                prop_assert_eq!((one.status, &one.body), (other.status, &other.body), "{}", text);
            }
            (None, Some(_), End::Refused(_, reason)) => {
                let known = STRICTER_THAN_HYPER.contains(&reason) || reason == "the upstream's answer is not HTTP";
                prop_assert!(known, "only hyper takes it: {}: {}", reason, text);
            }
            (None, None, _) => {}
            _ => prop_assert!(false, "{:?} {:?}: {}", ours, hyper, text),
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(taken.get() > 5_000, "the generator makes too few valid responses: {}", taken.get());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut anywhere, the reading is the same.
    #[test]
    fn cuts_make_no_difference(stream in requests(), answer in responses(), cuts in proptest::collection::vec(0_usize..400, 0..8)) {
        for Stream(stream) in [&stream, &answer] {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(stream.len())).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let single: Vec<&[u8]> = stream.chunks(1).collect();
            let whole = read_requests(&[stream]);
            prop_assert_eq!(&read_requests(&pieces), &whole);
            prop_assert_eq!(&read_requests(&single), &whole);
            for asked in [Asked::Other, Asked::Head, Asked::Connect] {
                let whole = read_response(&[stream], asked);
                prop_assert_eq!(&read_response(&pieces, asked), &whole);
                prop_assert_eq!(&read_response(&single, asked), &whole);
            }
        }
    }

    /// Bytes without any sense never make a panic.
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300), start in select(vec!["", "GET / HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\n", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"])) {
        let stream = [start.as_bytes(), &noise].concat();
        read_requests(&[&stream]);
        read_response(&[&stream], Asked::Other);
    }
}
