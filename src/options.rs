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
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: "127.0.0.1:3000".to_owned(),
            graceful: false,
            pid_file: None,
            drain_timeout: Duration::from_secs(20),
            ready_timeout: Duration::from_secs(10),
        }
    }
}
