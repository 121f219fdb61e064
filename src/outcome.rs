//! How a process has ended, and what exit status that is.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many requests were cut, because they were still in flight at the end of the drain or when a
    /// second stop signal came.
    pub cut: usize,
    /// How the last successor ended, if this process has stayed to see it; see
    /// [`Options::stay`](crate::Options::stay).
    pub last: Option<ExitStatus>,
}

impl From<Outcome> for ExitCode {
    /// Success if no request was lost; that of the last successor, if there is one: its status, or 128 and
    /// the number of the signal that has killed it, as a shell puts it.
    fn from(outcome: Outcome) -> ExitCode {
        let status = match outcome.last {
            Some(last) => last.code().or(last.signal().map(|signal| 128 + signal)).unwrap_or(1),
            None => i32::from(outcome.cut > 0),
        };
        ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
    }
}
