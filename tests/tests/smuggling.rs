//! Request smuggling through the two proxies: what reaches the application, byte for byte, is what the proxies logged, whoever reads
//! it.
//!
//! Each case is sent raw on a connection of its own. The application records the bytes of each of its connections, and several readers
//! go through them afterwards: one that believes `Content-Length` first, one that believes `Transfer-Encoding` first, one that ends
//! lines at a bare LF, one that takes any coding for chunked. Where two of them see different requests, one could be smuggled past
//! the other. All must see what the access log of the server's proxy says was forwarded, and what the case says may arrive.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use weir_tests::{App, Client, Pod, PodSpec, World, at, is_root, until};

/// What is sent, and what may become of it. In texts `@` stands for the case's own path, `LEN` for the length of what follows the head,
/// `HEX` for that of a request to be smuggled.
struct Case {
    what: &'static str,
    send: &'static str,
    /// Statuses of the answers, in order; after one of 400 and above the connection is closed, unless more answers follow.
    answers: &'static [u16],
    /// `METHOD PATH BODY` of each request that reaches the application whole.
    reach: &'static [&'static str],
}

const fn case(what: &'static str, send: &'static str, answers: &'static [u16], reach: &'static [&'static str]) -> Case {
    Case { what, send, answers, reach }
}

const REFUSED: &[u16] = &[400];
const NOTHING: &[&str] = &[];

/// Behind each case that is refused stands a request of its own, which must not be served.
const CASES: &[Case] = &[
    // Content-Length and Transfer-Encoding
    case(
        "CL.TE",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE.CL",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2e\r\nGET @/smuggled HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE.TE, two of them",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE.TE, chunked twice",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE.TE, a list of chunked",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, identity behind chunked",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, identity before chunked",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        &[501],
        NOTHING,
    ),
    case(
        "TE, gzip before chunked",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        &[501],
        NOTHING,
    ),
    case(
        "TE, xchunked",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, with a parameter",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, quoted",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, empty",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, a leading comma",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, a vertical tab",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, a NUL inside",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chun\0ked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, a space before the colon",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, a tab before the colon",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, behind a bare CR",
        "POST @ HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, behind a bare LF",
        "POST @ HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, folded",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, as a continuation",
        "POST @ HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, before the first header",
        "POST @ HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, in HTTP/1.0",
        "POST @ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "TE, with an underscore",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        &[200],
        &["POST @ 0\r\n\r\n"],
    ),
    case(
        "TE, upper case",
        "POST @ HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        &[200],
        &["POST @ hello"],
    ),
    case(
        "TE nominated by Connection",
        "POST @ HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        &[200],
        &["POST @ hello"],
    ),
    case(
        "CL nominated by Connection",
        "POST @ HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
        &[200],
        &["POST @ hello"],
    ),
    // Content-Length
    case(
        "CL.CL, different",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    case(
        "CL.CL, equal",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    case("CL, a list", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, a sign", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, negative", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, hexadecimal", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, a fraction", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, digits apart", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 5 0\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, empty", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello", REFUSED, NOTHING),
    case(
        "CL, 2^64",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    case(
        "CL, 2^64 + 5",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    case(
        "CL, a space before the colon",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    case("CL, a NUL behind", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\0\r\n\r\nhello", REFUSED, NOTHING),
    case("CL, other digits", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: \u{665}\r\n\r\nhello", REFUSED, NOTHING),
    case(
        "CL, leading zeros",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 0005\r\n\r\nhello",
        &[200],
        &["POST @ hello"],
    ),
    case(
        "CL, with an underscore",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent_Length: 30\r\nContent-Length: 5\r\n\r\nhello",
        &[200],
        &["POST @ hello"],
    ),
    case(
        "0.CL: a GET with a length",
        "GET @ HTTP/1.1\r\nHost: a\r\nContent-Length: LEN\r\n\r\nGET @/smuggled HTTP/1.1\r\nHost: a\r\n\r\n.........",
        &[200],
        &["GET @ GET @/smuggled HTTP/1.1\r\nHost: a\r\n\r\n........."],
    ),
    case(
        "CL.0: a body that looks like a request",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: LEN\r\n\r\nGET @/smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200],
        &["POST @ GET @/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"],
    ),
    case(
        "a body without a length is the next request",
        "POST @ HTTP/1.1\r\nHost: a\r\n\r\nGET @/next HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 200],
        &["POST @ ", "GET @/next "],
    ),
    // Lines and names
    case("bare LF everywhere", "GET @ HTTP/1.1\nHost: a\n\n", REFUSED, NOTHING),
    case("bare LF at the end", "GET @ HTTP/1.1\r\nHost: a\r\n\n", REFUSED, NOTHING),
    case("a bare CR in a value", "GET @ HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", REFUSED, NOTHING),
    case("CR CR LF", "GET @ HTTP/1.1\r\nHost: a\r\r\n\r\n", REFUSED, NOTHING),
    case(
        "a request behind an injected line end",
        "GET @ HTTP/1.1\r\nHost: a\r\nX: y\n\nGET @/smuggled HTTP/1.1\nHost: a\n\n\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case("obs-fold", "GET @ HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", REFUSED, NOTHING),
    case("a header without a name", "GET @ HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", REFUSED, NOTHING),
    case("a header without a colon", "GET @ HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", REFUSED, NOTHING),
    case("a NUL in a name", "GET @ HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", REFUSED, NOTHING),
    case("a NUL in a value", "GET @ HTTP/1.1\r\nHost: a\r\nX: y\0\r\n\r\n", REFUSED, NOTHING),
    case("a NUL in the path", "GET @\0 HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("a NUL that is encoded", "GET @%00 HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    // The request line
    case("two spaces", "GET  @ HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("a tab for a space", "GET\t@\tHTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("a space in the target", "GET @ /b HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("a space behind the version", "GET @ HTTP/1.1 \r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("no version", "GET @\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("HTTP/1.2", "GET @ HTTP/1.2\r\nHost: a\r\n\r\n", &[505], NOTHING),
    case("HTTP/2.0 in a request line", "GET @ HTTP/2.0\r\nHost: a\r\n\r\n", &[505], NOTHING),
    case("a fragment", "GET @#b HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("dot segments, encoded", "GET @/x/%2e%2e/y HTTP/1.1\r\nHost: a\r\n\r\n", &[200], &["GET @/y "]),
    case("slashes", "GET @//x///y HTTP/1.1\r\nHost: a\r\n\r\n", &[200], &["GET @/x/y "]),
    // Host
    case("no Host", "GET @ HTTP/1.1\r\n\r\n", REFUSED, NOTHING),
    case("two Hosts", "GET @ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", REFUSED, NOTHING),
    case("a Host with a space", "GET @ HTTP/1.1\r\nHost: a b\r\n\r\n", REFUSED, NOTHING),
    case("a Host with user information", "GET @ HTTP/1.1\r\nHost: a@b\r\n\r\n", REFUSED, NOTHING),
    case("a Host with a path", "GET @ HTTP/1.1\r\nHost: a/b\r\n\r\n", REFUSED, NOTHING),
    case("a Host that is folded", "GET @ HTTP/1.1\r\nHost:\r\n a\r\n\r\n", REFUSED, NOTHING),
    case("an absolute target and another Host", "GET http://b@ HTTP/1.1\r\nHost: a\r\n\r\n", &[200], &["GET @ "]),
    case("an absolute target with user information", "GET http://u@b@ HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("an absolute target of another scheme", "GET ftp://b@ HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED, NOTHING),
    case("Host nominated by Connection", "GET @ HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", &[200], &["GET @ "]),
    // Chunks
    case(
        "a chunk size with 0x",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk size with a sign",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk size with a space",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk size that is empty",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk size of 2^64 + 5",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk size behind a bare LF",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk that ends with LF",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk longer than its size",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk extension",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        &[200],
        &["POST @ hello"],
    ),
    case(
        "a chunk extension with LF",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a chunk extension with CR",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a last chunk that ends with LF",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a request in a chunk",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nHEX\r\nGET @/smuggled HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
        &[200],
        &["POST @ GET @/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"],
    ),
    // Trailers
    case(
        "a trailer Content-Length",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a trailer Transfer-Encoding",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a trailer Host",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a trailer with a bare LF",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: u\nContent-Length: 5\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a trailer that is folded",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: u\r\n v\r\n\r\n",
        REFUSED,
        NOTHING,
    ),
    case(
        "a trailer",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: u\r\n\r\n",
        &[200],
        &["POST @ "],
    ),
    // Expectations and upgrades
    case(
        "Expect of something else",
        "POST @ HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 5\r\n\r\nhello",
        &[417],
        NOTHING,
    ),
    case(
        "two Expects",
        "POST @ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    case(
        "Expect, and the body at once",
        "POST @ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        &[200],
        &["POST @ hello"],
    ),
    case(
        "Expect on a GET, and a request behind",
        "GET @ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\nGET @/next HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 200],
        &["GET @ ", "GET @/next "],
    ),
    case(
        "Expect that is obfuscated",
        "POST @ HTTP/1.1\r\nHost: a\r\nExpect: x 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        &[417],
        NOTHING,
    ),
    case(
        "a wish for h2c",
        "GET @ HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        &[200],
        &["GET @ "],
    ),
    case(
        "CONNECT with a body",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhello",
        REFUSED,
        NOTHING,
    ),
    // Pipelines
    case(
        "three at once",
        "GET @/1 HTTP/1.1\r\nHost: a\r\n\r\nPOST @/2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET @/3 HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 200, 200],
        &["GET @/1 ", "POST @/2 hi", "GET @/3 "],
    ),
    case(
        "a good one before a bad one",
        "GET @/1 HTTP/1.1\r\nHost: a\r\n\r\nGET @/2 HTTP/1.1\nHost: a\n\n",
        &[200, 400],
        &["GET @/1 "],
    ),
    case(
        "one behind Connection: close",
        "GET @/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET @/2 HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200],
        &["GET @/1 "],
    ),
    case(
        "empty lines between",
        "GET @/1 HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\nGET @/2 HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 200],
        &["GET @/1 ", "GET @/2 "],
    ),
];

/// A request as a reader of the application's bytes sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    method: String,
    path: String,
    host: String,
    body: String,
}

/// How a reader reads.
#[derive(Debug, Clone, Copy)]
struct Reader {
    /// A bare LF ends a line, as many servers have it.
    bare_lf: bool,
    /// Content-Length counts, whatever Transfer-Encoding says.
    length_first: bool,
    /// Any Transfer-Encoding is chunked; else only the exact word.
    any_coding: bool,
}

impl Reader {
    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self { bare_lf: bits & 1 > 0, length_first: bits & 2 > 0, any_coding: bits & 4 > 0 })
    }

    /// A line and where the next begins.
    fn line(self, bytes: &[u8], from: usize) -> Option<(String, usize)> {
        let rest = bytes.get(from..)?;
        let end = if self.bare_lf {
            rest.iter().position(|byte| *byte == b'\n')? + 1
        } else {
            rest.windows(2).position(|pair| pair == b"\r\n")? + 2
        };
        let line = String::from_utf8_lossy(&rest[..end]);
        Some((line.trim_end_matches(['\r', '\n']).to_owned(), from + end))
    }

    /// The next whole request, and where it ends.
    fn request(self, bytes: &[u8], from: usize) -> Option<(Seen, usize)> {
        let (first, mut at) = self.line(bytes, from)?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next().unwrap_or_default().to_owned());
        let (mut host, mut length, mut chunked) = (String::new(), None, false);
        loop {
            let (line, next) = self.line(bytes, at)?;
            at = next;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.trim().to_owned();
            match name.trim().to_ascii_lowercase().replace('_', "-").as_str() {
                // Readers that take an underscore for a hyphen are asked where the real header is not there.
                "host" => host = value,
                "content-length" if !name.contains('_') => length = length.or(value.parse::<usize>().ok()),
                "transfer-encoding" if !name.contains('_') => {
                    chunked |= self.any_coding || value.eq_ignore_ascii_case("chunked");
                }
                _ => {}
            }
        }
        let mut body = Vec::new();
        if chunked && !(self.length_first && length.is_some()) {
            loop {
                let (size, next) = self.line(bytes, at)?;
                let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
                at = next;
                if size == 0 {
                    break;
                }
                body.extend_from_slice(bytes.get(at..at + size)?);
                at = self.line(bytes, at + size)?.1;
            }
            loop {
                let (line, next) = self.line(bytes, at)?;
                at = next;
                if line.is_empty() {
                    break;
                }
            }
        } else if let Some(length) = length {
            body.extend_from_slice(bytes.get(at..at + length)?);
            at += length;
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        Some((Seen { method, path, host, body }, at))
    }

    fn requests(self, bytes: &[u8]) -> Vec<Seen> {
        let (mut all, mut at) = (Vec::new(), 0);
        while let Some((seen, next)) = self.request(bytes, at) {
            all.push(seen);
            at = next;
        }
        all
    }
}

const PLAIN: Reader = Reader { bare_lf: false, length_first: false, any_coding: false };

/// Bytes of each of an application's connections.
type Connections = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

/// Answers every whole request with 200, and keeps all bytes.
fn application(server: &Pod) -> (App, Connections) {
    let connections = Connections::default();
    let kept = connections.clone();
    let app = App::raw(&server.netns, 8080, move |mut stream: TcpStream| {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        kept.lock().unwrap().push(bytes.clone());
        let (mut chunk, mut answered, mut continued) = ([0; 4096], 0, 0);
        while let Ok(n) = stream.read(&mut chunk) {
            if n == 0 {
                return;
            }
            let (requests, waits) = {
                let mut bytes = bytes.lock().unwrap();
                bytes.extend_from_slice(&chunk[..n]);
                let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
                (PLAIN.requests(&bytes).len(), text.matches("expect: 100-continue").count())
            };
            for _ in continued..waits {
                let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            for _ in answered..requests {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
            (answered, continued) = (requests, waits);
        }
    });
    (app, connections)
}

/// Requests that a proxy's access log says were answered by the application, by number of case.
fn logged(pod: &Pod, prefix: &str) -> BTreeMap<usize, Vec<(String, String, String)>> {
    let mut all: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for line in pod.access_log().into_iter().filter(|line| line["response_code"] == 200) {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        if let Some(number) = number(&text("path"), prefix) {
            all.entry(number).or_default().push((text("method"), text("path"), text("authority")));
        }
    }
    all
}

/// The case that a path belongs to.
fn number(path: &str, prefix: &str) -> Option<usize> {
    path.strip_prefix(prefix)?.split('/').next()?.parse().ok()
}

fn sort<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

#[test]
fn no_reader_of_what_arrives_sees_other_requests_than_the_proxies() {
    if !is_root() {
        return;
    }
    assert!(CASES.len() >= 60, "{} cases", CASES.len());
    let world = World::new("smuggling");
    let server = world.pod(PodSpec::new("server").port("http", 8080));
    let (_app, connections) = application(&server);
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    until("the server knows its port", || server.admin("/config_dump").contains("\"http\"").then_some(()));
    let ways = [("/both", &client, service), ("/outside", &stranger, at(server.ip, 8080))];
    let mut faults = Vec::new();
    for (prefix, from, to) in ways {
        for (number, case) in CASES.iter().enumerate() {
            let path = format!("{prefix}{number}");
            let mut connection = from.connect(to);
            let mut send = case.send.replace('@', &path);
            // User information keeps its own.
            send = send.replace(&format!("a{path}b"), "a@b").replace(&format!("http://u{path}b"), "http://u@b");
            let body = send.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
            let inner = format!("GET {path}/smuggled HTTP/1.1\r\nHost: a\r\n\r\n").len();
            send = send.replace("LEN", &body.to_string()).replace("HEX", &format!("{inner:x}"));
            let refused = case.answers.last().is_some_and(|status| *status >= 400);
            if refused {
                send.push_str(&format!("\r\nGET {path}/behind HTTP/1.1\r\nHost: a\r\n\r\n"));
            }
            connection.patience(Duration::from_secs(20));
            let _ = connection.send(send.as_bytes());
            let mut answers = Vec::new();
            for _ in case.answers {
                match connection.response() {
                    Ok(response) => answers.push(response.status),
                    Err(error) => faults.push(format!("{}, {prefix}: {error}", case.what)),
                }
            }
            if answers != case.answers {
                faults.push(format!("{}, {prefix}: answered {answers:?}, expected {:?}", case.what, case.answers));
            } else if refused && !connection.is_closed() {
                faults.push(format!("{}, {prefix}: not closed", case.what));
            }
        }
    }
    // What arrived, as each reader sees it.
    let recorded: Vec<Vec<u8>> =
        connections.lock().unwrap().iter().map(|bytes| bytes.lock().unwrap().clone()).collect();
    let plain: Vec<Vec<Seen>> = recorded.iter().map(|bytes| PLAIN.requests(bytes)).collect();
    for reader in Reader::all() {
        for (bytes, plain) in recorded.iter().zip(&plain) {
            let seen = reader.requests(bytes);
            if seen != *plain {
                faults.push(format!("{reader:?} sees {seen:?}\n  and not {plain:?}\n  in {}", bytes.escape_ascii()));
            }
        }
    }
    let arrived: Vec<&Seen> = plain.iter().flatten().collect();
    for (prefix, _, _) in ways {
        let expected: usize = CASES.iter().map(|case| case.reach.len()).sum();
        let count = |pod: &Pod| logged(pod, prefix).values().map(Vec::len).sum::<usize>();
        let loggers = if prefix == "/both" { vec![&server, &client] } else { vec![&server] };
        until("all is logged", || loggers.iter().all(|pod| count(pod) >= expected).then_some(()));
        let server_log = logged(&server, prefix);
        let client_log = logged(&client, prefix);
        for (at, case) in CASES.iter().enumerate() {
            let path = format!("{prefix}{at}");
            let own = || arrived.iter().filter(|seen| number(&seen.path, prefix) == Some(at));
            let seen = sort(own().map(|seen| format!("{} {} {}", seen.method, seen.path, seen.body)).collect());
            let want = sort(case.reach.iter().map(|want| want.replace('@', &path)).collect());
            if seen != want {
                faults.push(format!("{}, {prefix}: {seen:?} arrived, expected {want:?}", case.what));
            }
            let heads = sort(own().map(|seen| (seen.method.clone(), seen.path.clone(), seen.host.clone())).collect());
            let mut logs = vec![("server", &server_log)];
            if prefix == "/both" {
                logs.push(("client", &client_log));
            }
            for (whose, log) in logs {
                let said = sort(log.get(&at).cloned().unwrap_or_default());
                if said != heads {
                    faults.push(format!(
                        "{}, {prefix}: the {whose}'s proxy logged {said:?}, and {heads:?} arrived",
                        case.what
                    ));
                }
            }
        }
    }
    let strays: Vec<&&Seen> =
        arrived.iter().filter(|seen| !["/both", "/outside"].iter().any(|p| number(&seen.path, p).is_some())).collect();
    assert!(strays.is_empty(), "nobody sent {strays:?}");
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    // The proxies are in order.
    let mut connection: Client = client.connect(service);
    assert_eq!(connection.get("/after").status, 200);
    let line: Value = client.logged("the last request", |line| line["path"] == "/after");
    assert_eq!(line["response_code"], 200);
}
