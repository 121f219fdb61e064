//! How a process ended, and the exit status for it.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Termination};

/// How a process ended. `main` may return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The number of requests that were cut, because they were still in flight at the drain deadline or when
    /// a second stop came.
    pub cut: usize,
    /// How the last successor ended, if this process stayed until then; see
    /// [`Options::stay`](crate::Options::stay).
    pub last: Option<ExitStatus>,
}

impl From<Outcome> for ExitCode {
    /// The exit status of the last successor if there is one, or 128 plus the number of the signal that
    /// killed it, as in a shell. Otherwise success if no request was cut.
    fn from(outcome: Outcome) -> ExitCode {
        let status = match outcome.last {
            Some(last) => last.code().or(last.signal().map(|signal| 128 + signal)).unwrap_or(1),
            None => i32::from(outcome.cut > 0),
        };
        ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
    }
}

impl Termination for Outcome {
    fn report(self) -> ExitCode {
        self.into()
    }
}
