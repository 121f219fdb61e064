//! The process after this one: starting it, hearing its words, watching it, killing it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::handover::descriptors::{Limit, Reserve};
use crate::handover::ear::{Ear, Heard, Listening};
use crate::handover::link::Word;
use crate::handover::program::Program;
use crate::handover::spawn::Child;
use crate::handover::takeover;

/// A successor. Dropping it stops listening to it and does not touch the process.
pub(crate) struct Successor {
    process: Process,
    ear: Arc<Ear>,
    /// Keeps the thread that listens.
    _listening: Listening,
    /// How the successor has described itself last.
    said: Option<Word>,
}

/// What there is of its process.
enum Process {
    /// This process has started it.
    Child(Child),
    /// Somebody else has started it, and it has come through the control socket. It may be in another
    /// container, so that nothing is known of it but what it says; and it waits for the word to go on before
    /// it accepts connections, because it cannot be killed.
    Stranger { pid: u32 },
}

impl Successor {
    /// Starts `program` with the listening sockets from descriptor 3 on, the pipe behind them, and the limit
    /// of descriptors that this process was started with; and calls `report` whenever [`hear`](Self::hear)
    /// may have something new.
    pub(crate) fn start(
        program: &Program,
        sockets: &[BorrowedFd<'_>],
        reserve: &mut Reserve,
        limit: Option<Limit>,
        report: impl Fn() + Send + 'static,
    ) -> io::Result<Successor> {
        let (pipe, their_end) = io::pipe()?;
        // First, because a process that has been started may have to be listened to at once.
        let (ear, listening) = Ear::open(pipe.into(), report)?;
        let handed_over: Vec<_> = sockets.iter().copied().chain([their_end.as_fd()]).collect();
        // Nothing of the preparations is left when this returns: the child alone holds the write end of the
        // pipe, without which its end of file would never come.
        let child = reserve.lend(&handed_over, |duplicates| Child::start(program, duplicates, limit))?;
        let process = Process::Child(child);
        Ok(Successor { process, ear, _listening: listening, said: None })
    }

    /// Takes whoever is at the other end of a connection for the successor, and hands the sockets to it.
    pub(crate) fn adopt(
        connection: UnixStream,
        sockets: &[BorrowedFd<'_>],
        report: impl Fn() + Send + 'static,
    ) -> io::Result<Successor> {
        let pid = getsockopt(&connection, sockopt::PeerCredentials)?.pid();
        let (ear, listening) = Ear::open(connection.try_clone()?.into(), report)?;
        // Last, because whoever has the sockets serves if this connection ends without a word.
        takeover::send(&connection, sockets)?;
        let process = Process::Stranger { pid: pid.unsigned_abs() };
        Ok(Successor { process, ear, _listening: listening, said: None })
    }

    /// Its process ID, as it is seen from here.
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Child(child) => child.pid().as_raw().unsigned_abs(),
            Process::Stranger { pid } => *pid,
        }
    }

    /// The next thing the successor has said, if there is one.
    pub(crate) fn hear(&mut self) -> Option<Heard> {
        let heard = self.ear.next();
        if let Some(Heard::Word(word)) = heard {
            self.said = Some(word);
        }
        heard
    }

    /// The last word the successor has said.
    pub(crate) fn said(&self) -> Option<Word> {
        self.said
    }

    /// Lets a stranger, who has said that he is ready, accept connections. A child does not ask.
    pub(crate) fn let_go_on(&self) {
        if let Process::Stranger { .. } = self.process {
            self.ear.say(takeover::GO);
        }
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        match &mut self.process {
            Process::Child(child) => child.try_wait().is_some(),
            Process::Stranger { .. } => self.ear.has_ended(),
        }
    }

    /// Closes the connection, from which it knows that this process does not answer for it any more. What is
    /// left may be a child that has to be waited for.
    pub(crate) fn retire(self) -> Option<Child> {
        match self.process {
            Process::Child(child) => Some(child),
            Process::Stranger { .. } => None,
        }
    }

    /// Waits for the end of the process, and tells how it ended.
    pub(crate) fn reap(self) -> End {
        match self.process {
            Process::Child(mut child) => End::ByItself(child.wait()),
            Process::Stranger { .. } => End::Left,
        }
    }

    /// Ends a successor that is not ready: kills and reaps it, and tells how it ended.
    ///
    /// It may become ready in this very moment and accept a connection, which must not be killed. So it
    /// is frozen first. If it has said that it is ready by then, it lives on, and comes back as `Err`. If
    /// it has not, it cannot have accepted anything, because it says so before it accepts, and it will not
    /// run again.
    ///
    /// A stranger is told, and believed.
    pub(crate) fn end_unless_ready(mut self) -> Result<End, Successor> {
        let Process::Child(child) = &mut self.process else {
            self.ear.say(takeover::NO);
            return Ok(End::Left);
        };
        let pid = child.pid();
        if child.try_wait().is_some() {
            return Ok(self.reap());
        }
        // It has not been reaped, so the ID is still its own.
        let _ = kill(pid, Signal::SIGSTOP);
        let frozen_or_ended = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let waited = loop {
            match waitid(Id::Pid(pid), frozen_or_ended) {
                Err(Errno::EINTR) => {}
                waited => break waited,
            }
        };
        if let Some(Heard::Word(word)) = self.ear.next()
            && word.is_ready()
        {
            self.said = Some(word);
            let _ = kill(pid, Signal::SIGCONT);
            return Err(self);
        }
        if !matches!(waited, Ok(WaitStatus::Stopped(..))) {
            return Ok(self.reap());
        }
        child.kill();
        child.wait();
        Ok(End::Killed)
    }
}

/// How a successor has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// Without our doing.
    ByItself(ExitStatus),
    /// By us.
    Killed,
    /// Its connection has ended, and nobody knows more.
    Left,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Killed => write!(f, "was killed"),
            End::Left => write!(f, "has left"),
            End::ByItself(status) => match (status.code(), status.signal().map(Signal::try_from)) {
                (Some(code), _) => write!(f, "exited with status {code}"),
                (None, Some(Ok(signal))) => write!(f, "was killed by {signal}"),
                _ => write!(f, "ended with {status}"),
            },
        }
    }
}
