//! Heads as lists of headers, with edits applied.

use bytes::BytesMut;

use super::hpack::{Encoder, Field};
use crate::http::{
    Edit, Edits, RequestHead, ResponseHead, Trailers, edits,
    fields::{self, Fields, Known},
};

/// A list of headers that is being written.
pub(super) struct Block<'a> {
    pub(super) encoder: &'a mut Encoder,
    pub(super) out: &'a mut BytesMut,
}

/// What is sent as a list of headers.
pub trait List {
    /// Calls `line` for each header: pseudo headers first, names in lower case.
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8]));
}

impl Block<'_> {
    pub(super) fn list(&mut self, list: &impl List) {
        self.encoder.begin(self.out);
        list.each(&mut |name, value| self.encoder.field(self.out, name, value, how(name)));
    }
}

/// What is not for the table that all callers of a connection share.
fn how(name: &[u8]) -> Field {
    match name {
        b"authorization" | b"proxy-authorization" | b"cookie" | b"set-cookie" => Field::Secret,
        _ => Field::Plain,
    }
}

/// A request as it goes on: the path as it was matched.
pub struct ForwardRequest<'a> {
    /// Its head.
    pub head: &'a RequestHead,
    /// Changes.
    pub edits: &'a [&'a Edits],
    /// Path and query instead of the normalised ones; checked by the caller.
    pub path_and_query: Option<&'a [u8]>,
    /// Host instead of the received one; checked by the caller.
    pub authority: Option<&'a [u8]>,
}

impl<'a> ForwardRequest<'a> {
    /// As it was received, but for changes to its headers.
    #[must_use]
    pub fn unchanged(head: &'a RequestHead, edits: &'a [&'a Edits]) -> Self {
        Self { head, edits, path_and_query: None, authority: None }
    }
}

impl List for ForwardRequest<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        let head = self.head;
        line(b":method", head.method());
        if !head.is_connect() {
            line(b":scheme", head.scheme());
        }
        line(b":authority", self.authority.unwrap_or(head.authority()));
        if !head.is_connect() {
            match (self.path_and_query, head.query()) {
                (Some(path), _) => line(b":path", path),
                (None, None) => line(b":path", head.path()),
                (None, Some(_)) => line(b":path", &head.path_and_query()),
            }
        }
        each_line(&head.fields, self.edits, line);
        if head.te_trailers {
            line(b"te", b"trailers");
        }
    }
}

/// An answer as it goes on.
pub struct ForwardResponse<'a> {
    /// Its head.
    pub head: &'a ResponseHead,
    /// Changes.
    pub edits: &'a [&'a Edits],
}

impl List for ForwardResponse<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":status", itoa::Buffer::new().format(self.head.status()).as_bytes());
        each_line(&self.head.fields, self.edits, line);
    }
}

/// Trailers as they go on.
pub struct ForwardTrailers<'a> {
    /// What has come.
    pub trailers: &'a Trailers,
    /// A header that goes on to nobody.
    pub without: &'a str,
}

impl List for ForwardTrailers<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        let kept = self.trailers.headers().filter(|(name, _)| *name != self.without.as_bytes());
        kept.for_each(|(name, value)| line(name, value));
    }
}

/// The lines of a head as edits leave them, without those of a connection of HTTP/1.1.
fn each_line(fields: &Fields, lists: &[&Edits], line: &mut dyn FnMut(&[u8], &[u8])) {
    let edited = lists.iter().any(|list| !list.is_empty());
    for (index, field) in fields.list().iter().enumerate() {
        let (name, value) = (field.name.get(&fields.bytes), field.value.get(&fields.bytes));
        if !goes_on(field) {
            continue;
        }
        let change = edited.then(|| edits::change(lists, name)).flatten();
        match change {
            None => line(name, value),
            Some(change) if change.drops => {}
            Some(change) if edits::is_list(name) && fields.is_last(index) => {
                let values = change.values();
                let first = Some(value).filter(|value| !value.is_empty());
                line(name, &join(first.into_iter().chain(values.iter().copied())));
            }
            Some(_) => line(name, value),
        }
    }
    if !edited {
        return;
    }
    let all = || lists.iter().flat_map(|list| list.iter()).map(Edit::name);
    for (index, name) in all().enumerate() {
        if all().take(index).any(|earlier| earlier == name) {
            continue;
        }
        let Some(change) = edits::change(lists, name) else { continue };
        let values = change.values();
        if !edits::is_list(name) {
            values.iter().for_each(|value| line(name, value));
        } else if change.drops || !fields.has(name) {
            match values.as_slice() {
                [] => {}
                [value] => line(name, value),
                several => line(name, &join(several.iter().copied())),
            }
        }
    }
}

fn goes_on(field: &fields::Field) -> bool {
    match field.known {
        Known::Other => !field.nominated,
        Known::ContentLength | Known::Expect => true,
        Known::Host | Known::Te | Known::Connection | Known::HopByHop | Known::TransferEncoding | Known::Upgrade => {
            false
        }
    }
}

fn join<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        if !out.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(value);
    }
    out
}
