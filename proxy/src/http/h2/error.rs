//! Why a stream, or the connection under it, did not come to its end.

use std::sync::Arc;

use super::Reason;

/// Why.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The stream was reset.
    #[error("{} reset the stream: {reason}{}", who(.remote), because(.why))]
    Reset {
        /// Why.
        reason: Reason,
        /// True where the peer did it.
        remote: bool,
        /// What is wrong with what the peer sent.
        why: &'static str,
    },
    /// The connection ends, and with it this stream.
    #[error("{} ended the connection: {reason}{}", who(.remote), because(.why))]
    GoAway {
        /// Why.
        reason: Reason,
        /// True where the peer did it, and has not looked at the stream.
        remote: bool,
        /// What is wrong with what the peer sent.
        why: &'static str,
    },
    /// The connection is gone.
    #[error("{0}")]
    Io(Arc<str>),
}

fn who(remote: &bool) -> &'static str {
    if *remote { "the peer" } else { "this proxy" }
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

impl Error {
    /// A stream that is ended by us.
    pub(super) fn stream(reason: Reason, why: &'static str) -> Self {
        Self::Reset { reason, remote: false, why }
    }

    /// A connection that is ended by us.
    pub(super) fn connection(reason: Reason, why: &'static str) -> Self {
        Self::GoAway { reason, remote: false, why }
    }

    /// True where the peer has said it.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Reset { remote: true, .. } | Self::GoAway { remote: true, .. })
    }

    /// True of a stream that was reset.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        matches!(self, Self::Reset { .. })
    }

    /// True where the peer says that it has not looked at the stream (RFC 9113, 8.7).
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        matches!(
            self,
            Self::Reset { reason: Reason::REFUSED_STREAM, remote: true, .. } | Self::GoAway { remote: true, .. }
        )
    }

    /// True where the connection is just gone.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Io(_))
    }

    /// The reason that was given.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset { reason, .. } | Self::GoAway { reason, .. } => Some(*reason),
            Self::Io(_) => None,
        }
    }
}
