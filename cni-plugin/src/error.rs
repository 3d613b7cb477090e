//! Errors as the CNI specification wants them: a JSON object on standard output, with a code that the runtime acts on.

use serde::Serialize;

/// Codes of the specification (section 5, "Error"), and our own from 100 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the configuration is written for a version that is not known.
    IncompatibleVersion,
    /// 4: an environment variable is missing or useless; the message names it.
    Environment,
    /// 5: standard input can not be read.
    Io,
    /// 6: what was read is no JSON of the expected form.
    Decode,
    /// 7: the configuration asks for what can not be.
    Config,
    /// 11: may work when tried again.
    TryAgain,
    /// 50: the plugin can not serve pods now.
    Unavailable,
    /// 100: the redirect could not be put in force.
    Redirect,
    /// 101: the redirect is not in force as it should be.
    NotInForce,
}

impl Code {
    /// The number.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::Redirect => 100,
            Self::NotInForce => 101,
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}: {details}")]
pub struct CniError {
    /// What the runtime acts on.
    pub code: Code,
    /// What failed, in short.
    pub message: String,
    /// Cause and remedy.
    pub details: String,
}

impl CniError {
    pub(crate) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// The JSON form, in one line.
    pub(crate) fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Form<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            details: &'a str,
        }
        let form = Form { cni_version: version, code: self.code.number(), msg: &self.message, details: &self.details };
        serde_json::to_string(&form).unwrap_or_default() // plain strings: this can not fail
    }
}
