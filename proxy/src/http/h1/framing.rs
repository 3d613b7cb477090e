//! `Content-Length` and `Transfer-Encoding`: the two headers that request smuggling lives on.

use crate::http::{
    Framing, Refused, Version, chars,
    fields::{Known, Located},
};

/// What the framing headers say. `None` if there are none.
pub(in crate::http) struct Said {
    pub(in crate::http) framing: Option<Framing>,
    /// They may be forwarded as they are.
    pub(super) canonical: bool,
}

/// Reads both headers (RFC 9112, 6.1 to 6.3). Stricter than the RFC where it leaves a choice: both at once, and a repeated
/// `Content-Length` even with equal values, are refused.
pub(in crate::http) fn read(fields: &Located, head: &[u8], version: Version) -> Result<Said, Refused> {
    let length = fields.only(Known::ContentLength, "several Content-Length headers")?;
    let coding = fields.only(Known::TransferEncoding, "several Transfer-Encoding headers")?;
    match (length, coding) {
        (None, None) => Ok(Said { framing: None, canonical: true }),
        (Some(_), Some(_)) => Err(Refused::bad_request("both Content-Length and Transfer-Encoding")),
        (Some(length), None) => {
            let digits = length.get(head);
            let canonical = digits.len() == 1 || digits.first() != Some(&b'0');
            Ok(Said { framing: Some(Framing::Length(content_length(digits)?)), canonical })
        }
        (None, Some(_)) if version == Version::Http10 => Err(Refused::bad_request("Transfer-Encoding in HTTP/1.0")),
        (None, Some(coding)) => {
            transfer_encoding(coding.get(head))?;
            Ok(Said { framing: Some(Framing::Chunked), canonical: true })
        }
    }
}

fn content_length(digits: &[u8]) -> Result<u64, Refused> {
    const BAD: Refused = Refused::bad_request("Content-Length is not a number");
    if digits.is_empty() {
        return Err(BAD);
    }
    digits.iter().try_fold(0_u64, |length, digit| {
        if !digit.is_ascii_digit() {
            return Err(BAD);
        }
        let longer = length.checked_mul(10).and_then(|length| length.checked_add(u64::from(digit - b'0')));
        longer.ok_or(Refused::bad_request("Content-Length is too large"))
    })
}

fn transfer_encoding(value: &[u8]) -> Result<(), Refused> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let codings = || value.split(|byte| *byte == b',').map(chars::trim);
    let is_coding = |coding: &[u8]| !coding.is_empty() && coding.iter().all(|byte| chars::is_token(*byte));
    let chunked = codings().filter(is_chunked).count();
    if codings().all(is_coding) && chunked == 1 && codings().next_back().as_ref().is_some_and(is_chunked) {
        return Err(Refused { status: 501, reason: "a transfer coding other than chunked" });
    }
    Err(Refused::bad_request("Transfer-Encoding is not chunked"))
}
