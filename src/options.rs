//! What whoever starts a server decides.

use std::path::PathBuf;
use std::time::Duration;

/// How to serve. Every field has a default, so that a new one breaks nobody:
///
/// ```
/// use std::time::Duration;
///
/// let options = handover::Options { drain_timeout: Duration::from_secs(60), ..Default::default() };
/// assert_eq!(options.listen, "127.0.0.1:3000");
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on, `HOST:PORT`; port 0 lets the system choose. Default: `127.0.0.1:3000`.
    pub listen: String,
    /// Take over the listening socket at descriptor 3 instead of binding one. It has to listen on
    /// [`listen`](Self::listen). Default: `false`.
    ///
    /// A successor is started with the argument `--graceful`, so a program has to set this when it finds
    /// that among its own. A program that is started by systemd with a socket sets it, too.
    pub graceful: bool,
    /// Where to write the process ID. Default: nowhere.
    pub pid_file: Option<PathBuf>,
    /// How long a drain may take; what is in flight then is cut. Default: 20 s.
    pub drain_timeout: Duration,
    /// How long a successor may take until it is ready; then it is killed. Default: 10 s.
    pub ready_timeout: Duration,
    /// How long the process stays after it has handed over, not accepting connections, even with nothing
    /// left to finish: if the successor dies in this time, it accepts connections again. Default: 0.
    pub probation: Duration,
    /// What a client may take up.
    pub limits: Limits,
}

/// What a client may take up, so that a slow, broken or hostile one leaves enough for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many connections may be open at a time. Beyond that, the one that has been idle for longest
    /// makes room; if none is idle, new ones wait in the kernel's queue. Default: 1024.
    pub max_connections: usize,
    /// The time for a whole request head, however slowly it trickles in, and for the first byte of a new
    /// connection. A part of a head is answered with 408 then. Default: 10 s.
    pub head_timeout: Duration,
    /// How long a connection may be idle between two requests; it is closed then. Default: 75 s.
    pub idle_timeout: Duration,
    /// How long a client may send nothing of a request body. Default: 30 s.
    pub body_timeout: Duration,
    /// How long a client may take nothing of a response. Default: 30 s.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_connections: 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: "127.0.0.1:3000".to_owned(),
            graceful: false,
            pid_file: None,
            drain_timeout: Duration::from_secs(20),
            ready_timeout: Duration::from_secs(10),
            probation: Duration::ZERO,
            limits: Limits::default(),
        }
    }
}
