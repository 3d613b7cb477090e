//! Conversion between HTTP/1.1 and HTTP/2, for backends that are to be called in another version than their caller speaks.
//!
//! The exchange goes on as ever, in the caller's version, over a connection inside this process; a task at its other end speaks with
//! the backend. That costs copies and wake-ups that other requests do not pay, and needs no exchange of its own for each pair of
//! versions. HTTP/1.1 is read and written by hyper there: what it gets was judged by this proxy's own reader before.
//!
//! Interim answers do not pass. Trailers of HTTP/1.1 pass as hyper has them: where `Trailer` names them, and the caller asked by `TE`.

mod body;
mod to_http1;
mod to_http2;

use http::{
    HeaderMap,
    header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE},
};

pub(super) use self::{to_http1::to_http1, to_http2::to_http2};

/// Takes out what belongs to one connection of HTTP/1.1.
fn drop_hops(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
}

/// The headers of a message as hyper has them.
fn header_map<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> HeaderMap {
    headers.filter_map(|(name, value)| Some((name.try_into().ok()?, value.try_into().ok()?))).collect()
}
