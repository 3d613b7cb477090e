//! Character classes of RFC 9110 and 3986, as tables.

const fn table(extra: &[u8]) -> [bool; 256] {
    let mut set = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        set[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut next = 0;
    while next < extra.len() {
        set[extra[next] as usize] = true;
        next += 1;
    }
    set
}

static TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
static UNRESERVED: [bool; 256] = table(b"-._~");
static REG_NAME: [bool; 256] = table(b"-._~!$&'()*+,;=%");

/// `tchar` of RFC 9110, 5.6.2: methods and field names.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// A byte of a field value: visible, obs-text, space or tab; no other control character.
pub(super) fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// `unreserved` of RFC 3986, 2.3: its percent-encoded form means the same as itself.
pub(super) fn is_unreserved(byte: u8) -> bool {
    UNRESERVED[usize::from(byte)]
}

/// A byte of a registered name of RFC 3986, 3.2.2 (the digits behind a percent sign are checked apart).
pub(super) fn is_reg_name(byte: u8) -> bool {
    REG_NAME[usize::from(byte)]
}

/// Without leading and trailing spaces and tabs (`OWS`).
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Elements of a comma-separated list, trimmed; empty ones are passed over (RFC 9110, 5.6.1.2).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|element| !element.is_empty())
}
