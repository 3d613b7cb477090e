//! What a connection speaks, by its first bytes.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs::default_provider};
use weir_proxy::detect::{Hello, HelloState, Spoken, client_hello, spoken};

use crate::{Shape, Target, magnitude, none};

pub(super) const FIRST_BYTES: Target = Target {
    name: "first_bytes",
    holds: "what is known of a stream stays true whatever follows",
    max_len: 18 * 1024,
    words: &[&[
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"\x16",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b" HTTP/1.",
        b"\n",
        b"\r\n",
        b" ",
        b"EHLO mail\r\n",
        b"SSH-2.0-x\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"A",
        b"-",
        b"_",
    ]],
    seeds: none,
    run: first_bytes,
};

pub(super) const CLIENT_HELLO: Target = Target {
    name: "client_hello",
    holds: "a ClientHello cut anywhere is incomplete and not wrong, and one that is known stays the same whatever follows",
    max_len: 20 * 1024,
    words: &[&[
        b"\x16\x03\x01",
        b"\x16\x03\x03",
        b"\x01\x00",
        b"\x00\x00",
        b"\x00\x10",
        b"\x02h2",
        b"\x08http/1.1",
        b"\x0distio-http/1.1",
        b"\x05istio",
        b"\x00\x2b",
        b"\x03\x04",
        b"\xff\xff",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x15\x03\x01\x00\x02\x02\x28",
    ]],
    seeds: hellos,
    run: hello,
};

fn first_bytes(bytes: &[u8]) -> Shape {
    let whole = spoken(bytes);
    let step = (bytes.len() / 256).max(1);
    let mut known = Spoken::Unclear;
    for end in (0..=bytes.len()).step_by(step) {
        let now = spoken(bytes.get(..end).unwrap_or_default());
        assert!(known == Spoken::Unclear || now == known, "{known:?} becomes {now:?} at {end}");
        known = now;
    }
    assert!(known == Spoken::Unclear || whole == known);
    if bytes.len() > 17 * 1024 {
        assert_ne!(whole, Spoken::Unclear, "never decided");
    }
    Shape::of((format!("{whole:?}"), magnitude(bytes.len())))
}

/// Hellos of rustls, whole and in records of 100 bytes.
fn hellos() -> Vec<Vec<u8>> {
    static MADE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut all = Vec::new();
        for protocols in [&[][..], &["h2", "http/1.1"], &["istio-peer-exchange", "istio"]] {
            let config =
                ClientConfig::builder_with_provider(default_provider().into()).with_safe_default_protocol_versions();
            let Ok(config) = config else { continue };
            let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            let Ok(name) = "catalog.shop.svc".try_into() else { continue };
            let Ok(mut client) = ClientConnection::new(Arc::new(config), name) else { continue };
            let mut hello = Vec::new();
            if client.write_tls(&mut hello).is_ok() {
                let message = hello.get(5..).unwrap_or_default();
                let record = |part: &[u8]| {
                    let length = u16::try_from(part.len()).unwrap_or_default().to_be_bytes();
                    [&[0x16, 3, 1], &length[..], part].concat()
                };
                all.push(message.chunks(100).flat_map(record).collect());
                all.push(hello);
            }
        }
        all
    })
    .clone()
}

/// What is compared of a state: 0 incomplete, 1 invalid, 2 complete.
fn state(bytes: &[u8]) -> (u8, Option<Hello>) {
    match client_hello(bytes) {
        HelloState::Incomplete => (0, None),
        HelloState::Invalid => (1, None),
        HelloState::Complete(hello, _) => (2, Some(hello)),
    }
}

fn hello(bytes: &[u8]) -> Shape {
    let whole = state(bytes);
    // Cut often where records and messages begin, more rarely behind.
    let step = (bytes.len() / 48).max(1);
    let mut known = (0, None);
    for end in (0..bytes.len().min(16)).chain((16..bytes.len()).step_by(step)).chain([bytes.len()]) {
        let now = state(bytes.get(..end).unwrap_or_default());
        assert!(known.0 == 0 || now == known, "{known:?} becomes {now:?} at {end}");
        known = now;
    }
    if let (2, Some(hello)) = &whole {
        assert!(hello.alpn.iter().all(|name| !name.is_empty() && name.len() < 256));
    }
    let names = whole.1.as_ref().map(|hello| (hello.alpn.len(), hello.server_name.is_some()));
    Shape::of((whole.0, names, magnitude(bytes.len())))
}
