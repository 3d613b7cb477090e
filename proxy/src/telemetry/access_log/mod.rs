//! The access log: one JSON object a line, with the key names of Istio's JSON format and Weir's own beside them.
//!
//! A worker formats each line into a buffer of its own; one writer thread takes the full buffers and writes many lines at once.
//! No request ever waits for the output: where the writer can not keep up, lines are dropped and counted.

mod json;
mod line;
mod writer;

pub(crate) use json::Rfc3339;
pub use line::AccessEntry;
pub use writer::{AccessLog, AccessLogHandle};

/// Which requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Off,
    /// All.
    On,
    /// One of so many, and every failure.
    Sample(u32),
}

impl Mode {
    pub(super) const fn to_bits(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::On => 1,
            Self::Sample(n) => {
                if n < 2 {
                    1
                } else {
                    n
                }
            }
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    /// `off`, `on`, or a number: one request of so many.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            number => match number.parse() {
                Ok(0) | Err(_) => Err("expected off, on, or a number N for one request of N".into()),
                Ok(n) => Ok(Self::Sample(n)),
            },
        }
    }
}
