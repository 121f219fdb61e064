//! What a process reports of itself.

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::process;
use std::time::Instant;

use crate::counts::Counts;

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Running,
    HandingOver,
    Overlapping,
    Draining,
    Stopping,
    Keeping,
}

impl Doing {
    /// Whether it accepts connections.
    pub(crate) fn serves(self) -> bool {
        matches!(self, Doing::Running | Doing::HandingOver | Doing::Overlapping)
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doing::Running => "running",
            Doing::HandingOver => "handing-over",
            Doing::Overlapping => "overlapping",
            Doing::Draining => "draining",
            Doing::Stopping => "stopping",
            Doing::Keeping => "keeping",
        })
    }
}

/// What does not change about a process.
pub(crate) struct Identity {
    /// The file that it runs. Without /proc, or once that file is gone, this is empty.
    pub(crate) executable: PathBuf,
    pub(crate) version: String,
    /// How many processes there have been, with this one.
    pub(crate) generation: u64,
    started: Instant,
}

impl Identity {
    pub(crate) fn new(version: &str) -> Identity {
        let executable = env::current_exe().unwrap_or_default();
        Identity { executable, version: version.to_owned(), generation: 1, started: Instant::now() }
    }

    /// The answer to a request for the status.
    pub(crate) fn status(
        &self,
        doing: Doing,
        connections: usize,
        in_flight: usize,
        predecessors: usize,
        counts: Counts,
    ) -> String {
        format!(
            "pid={} state={doing} version={} uptime={}s connections={connections} in-flight={in_flight} \
             generation={} predecessors={predecessors} {counts} executable={}",
            process::id(),
            self.version,
            self.started.elapsed().as_secs(),
            self.generation,
            self.executable.display(),
        )
    }
}
