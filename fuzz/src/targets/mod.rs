//! All targets, by what they read.

mod access;
mod cni;
mod config;
mod detect;
mod dns;
mod http1;
mod http2;
mod http_parts;
mod identity;
mod mesh;
mod shadow;
mod webhook;
mod xds;

use crate::Target;

/// Every target.
pub const ALL: &[Target] = &[
    http1::REQUEST,
    http1::RESPONSE,
    http1::CHUNKS,
    http2::HTTP2_SERVER,
    http2::HTTP2_CLIENT,
    http2::HTTP2_HEAD,
    http_parts::PATH,
    http_parts::AUTHORITY,
    http_parts::HEADER_EDITS,
    detect::FIRST_BYTES,
    detect::CLIENT_HELLO,
    xds::WIRE,
    xds::RESOURCES,
    mesh::RESOURCE_NAMES,
    config::MANIFESTS,
    config::OBJECTS,
    config::TRANSLATION,
    access::ACCESS,
    shadow::SHADOWS,
    mesh::IDENTITY,
    identity::CSR,
    identity::TOKEN,
    mesh::ANNOTATIONS,
    mesh::CAPTURE,
    mesh::NETLINK_RULE,
    cni::STDIN,
    cni::CONFLIST,
    cni::NOTE,
    webhook::REVIEW,
    webhook::INJECTION,
    dns::DNS,
];

/// Words of every text in JSON.
const JSON: &[&[u8]] = &[b"{", b"}", b"[", b"]", b",", b":", b"\"", b"null", b"true"];

/// Several ways to cut the same bytes: whole, one by one where they are few, and three cuts that depend on the bytes.
fn cuts(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut all = vec![vec![bytes]];
    if bytes.len() <= 512 {
        all.push(bytes.chunks(1).collect());
    }
    let sum = bytes.iter().fold(7_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    for at in [sum, sum / 7, sum / 49].map(|at| at % (bytes.len() + 1)) {
        let (front, back) = bytes.split_at(at);
        all.push(vec![front, back]);
    }
    all
}

/// Lossy text of an input: what decoders of text get.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
