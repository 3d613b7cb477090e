//! Finds the end of a head that arrives in pieces, reading every byte once.

use crate::http::Refused;

/// Where the search for a head's empty line stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lines {
    /// Bytes that hold no further line end.
    scanned: usize,
    /// Where the line begins that has not ended yet.
    line_start: usize,
}

impl Lines {
    pub(super) fn has_begun(&self) -> bool {
        self.scanned > 0
    }

    /// Whether `head`, which begins where it began at the last call, has its empty line. The verdict depends on the bytes only,
    /// not on how they were cut: a fault is found at its place in the stream, and nothing is said of what follows an open end.
    pub(super) fn complete(&mut self, head: &[u8], max_head: usize, max_first_line: usize) -> Result<bool, Refused> {
        let window = head.get(..max_head).unwrap_or(head);
        let fresh = window.get(self.scanned..).unwrap_or_default();
        for end in memchr::memchr_iter(b'\n', fresh).map(|at| at.saturating_add(self.scanned)) {
            let line = window.get(self.line_start..end).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else {
                return Err(Refused::bad_request("a line ends with LF instead of CR LF"));
            };
            if self.line_start == 0 && line.len() > max_first_line {
                return Err(Refused { status: 414, reason: "the request target is too long" });
            }
            if line.is_empty() {
                return Ok(true);
            }
            self.line_start = end.saturating_add(1);
        }
        self.scanned = window.len();
        if self.line_start == 0 && window.len() > max_first_line.saturating_add(1) {
            Err(Refused { status: 414, reason: "the request target is too long" })
        } else if window.len() >= max_head {
            Err(Refused { status: 431, reason: "the head is too long" })
        } else {
            Ok(false)
        }
    }
}
