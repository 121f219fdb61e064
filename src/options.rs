//! The options of a server, and which of them can change while it runs.

use std::ffi::OsString;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::server::address::Address;

/// How to serve. Every field has a default, so that with `..Default::default()` a new field breaks no caller: those
/// that come with a new version of this library are no breaking change, and naming all of them is not supported.
///
/// [`Handler::reload`](crate::Handler::reload) may change the timeouts, `probation`, `limits` and
/// `version`; the other fields keep their values until the next handover. `stay` and `ready_fd` are those of
/// the first process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The addresses to listen on: `HOST:PORT`, where port 0 lets the system choose, and a name with
    /// several addresses stands for all of them; `unix:PATH` for a Unix socket; `unix:@NAME` for one in
    /// Linux's abstract namespace. It may be empty if there is a socket of
    /// [`Server::listen_on`](crate::Server::listen_on). Default: `127.0.0.1:3000`.
    pub listen: Vec<String>,
    /// The permissions of the file of a Unix socket, which a handover sets anew. Default: 0660.
    pub socket_mode: u32,
    /// The file that a successor executes, if it is not the program of this process, and the name that it is called
    /// by. It is not searched in PATH. Default: this process as it was invoked, so that a new file, or a symbolic
    /// link that leads to one, is followed.
    ///
    /// If it is a script that executes the program in the end, what it runs before that must not inherit the
    /// descriptors from 3 on, or it keeps the addresses in use if it outlives the script; handover(1) shows how.
    pub program: Option<PathBuf>,
    /// The arguments of a successor, without its name, if they are not those of this process. Default: those of this
    /// process.
    ///
    /// A successor needs none to be recognised: a variable in its environment, `HANDOVER`, says what it is. One
    /// that is started by hand with sockets from descriptor 3 on and without `LISTEN_PID` is, by the argument
    /// `--graceful`, in whichever place before `--`.
    pub arguments: Option<Vec<OsString>>,
    /// Where to write the process ID. Default: nowhere.
    pub pid_file: Option<PathBuf>,
    /// How long a drain may take; what is in flight then is cut. Default: 20 s.
    pub drain_timeout: Duration,
    /// How long a successor may take until it is ready; then it is killed. Default: 10 s.
    pub ready_timeout: Duration,
    /// How long the process stays after it has handed over, not accepting connections, even when it has
    /// drained: if the successor dies in this time, it takes back the sockets. Default: 0.
    pub probation: Duration,
    /// After a handover to this process its predecessor accepts connections, too, until an operator decides:
    /// a stop signal to the predecessor completes the handover, one to the successor undoes it. Default:
    /// `false`.
    pub overlap: bool,
    /// A handover moves open connections to the process that goes on: their next requests are answered there.
    /// Otherwise each ends with its next response, which says so. To be switched off by a program that keeps
    /// something about a connection between two requests. Default: `true`.
    pub move_connections: bool,
    /// A short name for what [`serve_connections`](crate::serve_connections) speaks and for the form of its state:
    /// a connection is moved only to a process that has the same name for it. Default: none, which is a name
    /// like any other.
    pub protocol: String,
    /// A process that no predecessor has started does not exit when it has handed over and drained: it passes
    /// signals on to its successors, and exits with the last of them, so that a supervisor sees one process.
    /// Process 1 always does, and so does a process that a service manager has started which waits for
    /// notifications (`NOTIFY_SOCKET`). Default: `false`.
    pub stay: bool,
    /// A descriptor to which a process that no predecessor has started writes a newline when it is ready, as s6
    /// expects it.
    /// Default: none.
    pub ready_fd: Option<i32>,
    /// The Unix socket on which to listen for requests of operators; see [`ask`](crate::ask). Default: none.
    pub control: Option<PathBuf>,
    /// Take the listening sockets over from the process that listens on [`control`](Self::control), and
    /// succeed it. Those that are missing are bound, and if there is no process, all of them. Default: `false`.
    pub takeover: bool,
    /// The size of the stack of each connection's thread, on which [`Handler::handle`](crate::Handler::handle)
    /// runs, in bytes. The server itself needs less than 32 KiB of it; a handler that needs more than there is
    /// ends the process. It matters where the address space is limited (`RLIMIT_AS`). Default: 2 MiB, as for
    /// any thread.
    pub stack_size: usize,
    /// What one client may use.
    pub limits: Limits,
    /// The version of the program, for the log and the [`Status`](crate::Status). Default: empty, and not mentioned.
    pub version: String,
}

/// Per-client limits, so that a slow, broken or hostile client cannot starve the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many connections may be open at a time. At capacity, the connection that has been idle for
    /// longest is evicted; if none is idle, one whose request head has been coming for longer than a second
    /// is answered with 408, or than a tenth of `head_timeout` if that is less; if there is none, new ones
    /// wait in the kernel's queue. If the limits of the process or of the system allow fewer, with what a
    /// handover needs, those are the limit, which is logged. Default: 1024.
    pub max_connections: usize,
    /// The time for a whole request head, however slowly it trickles in, and for the first byte on a new
    /// connection. An incomplete head is then answered with 408. Default: 10 s.
    pub head_timeout: Duration,
    /// How long a connection may be idle between two requests before it is closed. Default: 75 s.
    pub idle_timeout: Duration,
    /// How long a client may send nothing of a request body. Default: 30 s.
    pub body_timeout: Duration,
    /// How long a client may take nothing of a response. Default: 30 s.
    pub write_timeout: Duration,
    /// The bytes a second that a client must send of a request body, once it has been waited for as long as
    /// `body_timeout` in all, and take of a response, once it has been waited for as long as `write_timeout`.
    /// Only the time for which it is waited counts. Default: 500.
    pub min_rate: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_connections: 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            min_rate: 500,
        }
    }
}

impl Options {
    /// Checks the addresses without binding them, because the process that serves has them.
    ///
    /// # Errors
    ///
    /// What [`serve`](crate::serve) would say of the first that cannot be resolved, or overlaps with another.
    pub fn check(&self) -> Result<(), Error> {
        Address::resolve_all(&self.listen).map(drop)
    }

    /// Restores from `present` what cannot change while a process runs, and returns the names of what
    /// differed, and what each needs.
    pub(crate) fn keep_what_needs_a_handover(
        &mut self,
        present: &Options,
    ) -> Vec<(&'static str, &'static str)> {
        let differences = [
            ("listen", "handover", self.listen != present.listen),
            ("socket-mode", "handover", self.socket_mode != present.socket_mode),
            ("pid-file", "handover", self.pid_file != present.pid_file),
            ("overlap", "handover", self.overlap != present.overlap),
            ("no-move", "handover", self.move_connections != present.move_connections),
            ("control", "handover", self.control != present.control),
            // These two are between the first process and the supervisor that has started it.
            ("stay", "restart", self.stay != present.stay),
            ("ready-fd", "restart", self.ready_fd != present.ready_fd),
            ("stack-size", "handover", self.stack_size != present.stack_size),
        ];
        let Options { drain_timeout, ready_timeout, probation, limits, .. } = *self;
        let version = mem::take(&mut self.version);
        *self = Options { drain_timeout, ready_timeout, probation, limits, version, ..present.clone() };
        let changed = differences.into_iter().filter(|(_, _, differs)| *differs);
        changed.map(|(name, needed, _)| (name, needed)).collect()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: vec!["127.0.0.1:3000".to_owned()],
            socket_mode: 0o660,
            program: None,
            arguments: None,
            pid_file: None,
            drain_timeout: Duration::from_secs(20),
            ready_timeout: Duration::from_secs(10),
            probation: Duration::ZERO,
            overlap: false,
            move_connections: true,
            protocol: String::new(),
            stay: false,
            ready_fd: None,
            control: None,
            takeover: false,
            stack_size: 2 << 20,
            limits: Limits::default(),
            version: String::new(),
        }
    }
}
