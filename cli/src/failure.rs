//! How a command fails: one message, one exit code.

use std::{
    fmt::{self, Display},
    process::ExitCode,
};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// It was tried and failed.
    pub(crate) fn failed(error: impl Display) -> Self {
        Self { message: error.to_string(), code: 1 }
    }

    /// It was asked in a way that can not be.
    pub(crate) fn usage(error: impl Display) -> Self {
        Self { message: error.to_string(), code: 2 }
    }

    /// Someone interrupted it.
    pub(crate) fn interrupted(error: impl Display) -> Self {
        Self { message: error.to_string(), code: 130 }
    }

    /// Says it, and gives the exit code.
    pub(crate) fn print(&self) -> ExitCode {
        complain!("weir: {self}");
        ExitCode::from(self.code)
    }
}
