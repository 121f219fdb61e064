//! The one error type of the library: what was attempted, on what, and why it failed.

use std::fmt;

/// Why a process could not start serving. Its text is one line, such as `cannot listen on 127.0.0.1:80:
/// Permission denied (os error 13)`.
///
/// Once [`serve`](crate::serve) has begun to serve it does not fail: a failed handover, a misbehaving
/// client or a lack of descriptors is logged, and the process goes on.
pub struct Error {
    attempt: String,
    source: Reason,
}

/// Why something has failed: an error of the system, or a text.
pub(crate) type Reason = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// The failure of an attempt, which completes the words "cannot …".
    pub(crate) fn new(attempt: impl Into<String>, source: impl Into<Reason>) -> Error {
        Error { attempt: attempt.into(), source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.attempt, self.source)
    }
}

/// The same text, because that is what a `main` shows that returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}
