//! The one error type of the library: what was attempted, on what, and why it failed.

use std::path::PathBuf;
use std::{fmt, io};

/// Why a process could not start serving.
///
/// Once [`serve`](crate::serve) has begun to serve it does not fail: a handover that fails, a client
/// that misbehaves or a descriptor that is not to be had is logged, and the process goes on.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be resolved or bound.
    Listen {
        /// The address as it was asked for.
        address: String,
        /// What the resolver, socket(2), bind(2) or listen(2) said.
        source: io::Error,
    },
    /// Under `graceful`, a descriptor is not the listening socket that was asked for in its place.
    TakeOver {
        /// The descriptor: 3, or one of those that follow.
        number: i32,
        /// What is wrong with it, for example `it is not a socket`.
        reason: String,
    },
    /// A process that was asked for its listening sockets has other ones.
    Mismatch {
        /// What is wrong with them.
        reason: String,
    },
    /// A process could not be asked for its listening sockets, or serves on.
    Ask {
        /// Its control socket.
        path: PathBuf,
        /// What it has said, or what has gone wrong.
        source: io::Error,
    },
    /// The descriptor that is to be told of the readiness is not there.
    ReadyFd {
        /// Its number.
        number: i32,
    },
    /// The control socket cannot be opened.
    Control {
        /// Its path.
        path: PathBuf,
        /// What socket(2) or bind(2) said.
        source: io::Error,
    },
    /// The PID file cannot be written.
    PidFile {
        /// The path as it was asked for.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The system refused something that every process of this kind needs.
    System {
        /// What was attempted, for example `start the accept thread`.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Listen { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Error::TakeOver { number, reason } => {
                write!(f, "cannot take over the listening socket at descriptor {number}: {reason}")
            }
            Error::Mismatch { reason } => write!(f, "cannot take over the listening sockets: {reason}"),
            Error::Ask { path, source } => {
                write!(f, "cannot take over from the process at {}: {source}", path.display())
            }
            Error::ReadyFd { number } => {
                write!(
                    f,
                    "cannot tell descriptor {number} of the readiness: it was not handed to this process"
                )
            }
            Error::Control { path, source } => {
                write!(f, "cannot listen for requests on {}: {source}", path.display())
            }
            Error::PidFile { path, source } => {
                write!(f, "cannot write the PID file {}: {source}", path.display())
            }
            Error::System { attempt, source } => write!(f, "cannot {attempt}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Listen { source, .. }
            | Error::Ask { source, .. }
            | Error::Control { source, .. }
            | Error::PidFile { source, .. }
            | Error::System { source, .. } => Some(source),
            Error::TakeOver { .. } | Error::Mismatch { .. } | Error::ReadyFd { .. } => None,
        }
    }
}
