//! What a process reports of itself: the answer to `status`, and what a program learns through its
//! [`Handle`](crate::Handle).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::counters::Counters;

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It has its listening sockets, and accepts no connections yet: [`serve`](crate::Server::serve) has not been
    /// called, or its predecessor has not let it go.
    Starting,
    /// It accepts connections.
    Running,
    /// It accepts connections, and a candidate for its place gets ready.
    HandingOver,
    /// It and its successor accept connections.
    Overlapping,
    /// Its successor accepts connections, and it finishes its own. If the successor dies meanwhile, the next
    /// state is [`Running`](Self::Running) again.
    Draining,
    /// It has been told to stop, and finishes its connections.
    Stopping,
    /// It stands for its successors; see [`Options::stay`](crate::Options::stay).
    Keeping,
    /// It has ended, and nothing will follow.
    Ended,
}

impl State {
    /// Whether the server accepts connections. It does neither [at first](Self::Starting) nor at the end: a program
    /// that waits for the end waits for the beginning first.
    pub fn serves(self) -> bool {
        matches!(self, State::Running | State::HandingOver | State::Overlapping)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Running => "running",
            State::HandingOver => "handing-over",
            State::Overlapping => "overlapping",
            State::Draining => "draining",
            State::Stopping => "stopping",
            State::Keeping => "keeping",
            State::Ended => "ended",
        })
    }
}

/// How a server is. As text it is the answer to `handover -s status`: one line of `NAME=VALUE`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The ID of the process.
    pub pid: u32,
    /// What it is doing.
    pub state: State,
    /// The version of the program, if that has [one](crate::Options::version).
    pub version: String,
    /// The time since the server was bound.
    pub uptime: Duration,
    /// How many connections are open.
    pub connections: usize,
    /// On how many of them a request is being read, handled or answered.
    pub in_flight: usize,
    /// How many processes there have been in this line, with this one.
    pub generation: u64,
    /// How many processes before this one are still there, draining or serving: 0 or 1.
    pub predecessors: usize,
    /// What has been done in this line of processes.
    pub counters: Counters,
    /// The time since the last handover that this process has taken part in: since it was told to go, or since
    /// its successor began to serve. `None` if there has been none.
    pub since_handover: Option<Duration>,
    /// The file that the process runs. Without /proc, or once that file is gone, this is empty.
    pub executable: PathBuf,
}

impl Status {
    /// Whether the server accepts connections and no predecessor is there any more, so that of all processes of
    /// its line this is the one to do what must be done once. That can change back only in a handover: a
    /// predecessor that is gone does not return.
    pub fn serves_alone(&self) -> bool {
        self.state.serves() && self.predecessors == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid={} state={} ", self.pid, self.state)?;
        if !self.version.is_empty() {
            write!(f, "version={} ", self.version)?;
        }
        write!(
            f,
            "uptime={}s connections={} in-flight={} generation={} predecessors={} {} ",
            self.uptime.as_secs(),
            self.connections,
            self.in_flight,
            self.generation,
            self.predecessors,
            self.counters,
        )?;
        if let Some(since) = self.since_handover {
            write!(f, "since-handover={}s ", since.as_secs())?;
        }
        write!(f, "executable={}", self.executable.display())
    }
}
