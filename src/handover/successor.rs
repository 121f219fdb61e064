//! The process after this one: a [`Candidate`] until it is told to go, and a [`Successor`] from then on.
//!
//! A candidate has accepted nothing, so it can be killed at any time. A successor may have accepted
//! connections, so it is never killed: the type has no such method.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use std::{fmt, io, iter};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{getsockopt, sockopt};

use super::handed::Handed;
use super::link::{Ancestry, Link, Mode, Word, send_all};
use super::moving::Mover;
use super::program::Program;
use super::spawn::{Child, spawn};
use super::takeover;

/// How long a candidate that has been killed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A process that has been told to go. Dropping it ends the link, by which the process knows that this one
/// does not answer for it any more.
#[derive(Debug)]
pub(crate) struct Successor {
    /// As it is seen from here.
    pid: u32,
    link: Link,
    mover: Option<Mover>,
    /// If this process has started it. Otherwise it has come through the control socket, perhaps from another
    /// container: it cannot be killed, and its end is that of the link.
    child: Option<Child>,
    /// The sockets that it does not listen on.
    without: Vec<usize>,
}

/// What has become of a successor.
#[derive(Debug)]
pub(crate) enum News {
    /// It accepts connections, and is found where clients look.
    Serving,
    /// It has handed over in turn, or has been told to stop: its place will not have to be taken.
    Leaving(Word),
    /// It has ended, with neither of these words before.
    Died(End),
}

/// How a process has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Exited(ExitStatus),
    /// Its link has ended, and nothing more is known.
    Left,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let End::Exited(status) = self else { return f.write_str("has left") };
        match (status.code(), status.signal().map(Signal::try_from)) {
            (Some(code), _) => write!(f, "exited with status {code}"),
            (None, Some(Ok(signal))) => write!(f, "was killed by {signal}"),
            _ => write!(f, "ended with {status}"),
        }
    }
}

impl Successor {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// What has become of it since the last call. Its end is looked for before its words are read, so that
    /// its last words count.
    pub(crate) fn news(&mut self) -> Option<News> {
        let exited = self.child.as_mut().and_then(Child::try_wait).map(End::Exited);
        if exited.is_some() {
            // Until now its candidate, which has its end of the link, could say there that it serves.
            self.link.close_for_words();
        }
        self.word().or_else(|| {
            let end = exited.or_else(|| self.has_left())?;
            self.link.say(&Word::No("the predecessor of the predecessor takes back".to_owned()));
            Some(News::Died(end))
        })
    }

    /// The last look at it before this process leaves. A word that it says from now on fails there, so that
    /// the two never rely on each other.
    pub(crate) fn last_news(&mut self) -> Option<News> {
        // Whether it serves is no news any more, but what it has said behind that is.
        let is_last = |news: &News| !matches!(news, News::Serving);
        let news = iter::from_fn(|| self.news()).find(is_last);
        let has_died = news.is_none() && !self.link.is_open();
        self.link.close_for_words();
        let last_word = || iter::from_fn(|| self.word()).find(is_last);
        news.or(has_died.then_some(News::Died(End::Left))).or_else(last_word)
    }

    /// What moves connections to it.
    pub(crate) fn mover(&mut self) -> Option<Mover> {
        self.mover.take()
    }

    /// The sockets that it does not listen on, by their indices.
    pub(crate) fn without(&self) -> &[usize] {
        &self.without
    }

    /// Returns what is left to wait for when this process does not answer for it any more.
    pub(crate) fn retire(self) -> Option<Child> {
        self.child
    }

    fn word(&mut self) -> Option<News> {
        loop {
            match self.link.hear()? {
                Word::Serving => return Some(News::Serving),
                word @ (Word::HandedOver | Word::Stopping) => return Some(News::Leaving(word)),
                Word::End => return None,
                _ => {}
            }
        }
    }

    /// Whether a process that is no child has ended. A child is waited for, because its status says more.
    fn has_left(&self) -> Option<End> {
        (self.child.is_none() && !self.link.is_open()).then_some(End::Left)
    }
}

/// A process that has the listening sockets and has not been told to go.
#[derive(Debug)]
pub(crate) struct Candidate {
    process: Successor,
    timeout: Duration,
    /// By then it is ready, or has ended if it was killed.
    deadline: Instant,
    /// Why it was killed.
    given_up: Option<String>,
    /// What it has said itself about its failure.
    reason: Option<String>,
}

/// How far a candidate has come.
#[derive(Debug)]
pub(crate) enum Progress {
    Starting,
    /// It waits for `go`.
    Ready(Mode),
    /// It is no more, for this reason. A child that was killed and has not ended is left to be waited for.
    Failed(String, Option<Child>),
}

impl Candidate {
    /// Starts `program` with what is handed to it from descriptor 3 on. It is born with the signals `blocked`,
    /// and has to be ready within `timeout`.
    pub(crate) fn start(
        program: &Program,
        handed: Handed<'_>,
        blocked: &SigSet,
        timeout: Duration,
    ) -> io::Result<Candidate> {
        let (ours, theirs) = UnixStream::pair()?;
        send_all(&ours, &handed.greeting())?;
        let link = Link::new(ours)?;
        // The other ends are closed here when this returns, or the end of the link would never come.
        let child = spawn(program, &handed.descriptors(Some(theirs.as_fd())), blocked)?;
        let (pid, mover) = (child.pid(), Some(handed.mover));
        let process = Successor { pid, link, mover, child: Some(child), without: Vec::new() };
        Ok(Candidate::new(process, timeout))
    }

    /// Treats the peer of a connection as the candidate, and passes it the same. The connection is the link.
    pub(crate) fn adopt(
        connection: &UnixStream,
        handed: Handed<'_>,
        timeout: Duration,
    ) -> io::Result<Candidate> {
        let pid = getsockopt(connection, sockopt::PeerCredentials)?.pid().unsigned_abs();
        let link = Link::new(connection.try_clone()?)?;
        takeover::grant(connection, &handed.greeting(), &handed.descriptors(None))?;
        let process = Successor { pid, link, mover: Some(handed.mover), child: None, without: Vec::new() };
        Ok(Candidate::new(process, timeout))
    }

    fn new(process: Successor, timeout: Duration) -> Candidate {
        Candidate { process, timeout, deadline: Instant::now() + timeout, given_up: None, reason: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    pub(crate) fn link(&self) -> &Link {
        &self.process.link
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Kills it, or makes it leave if it cannot be killed, for this reason, or else because its deadline has
    /// passed.
    pub(crate) fn kill(&mut self, reason: Option<String>) {
        if self.given_up.is_some() {
            return;
        }
        let reason = reason.unwrap_or_else(|| match self.process.link.is_open() {
            true => format!("was not ready within {:?}", self.timeout),
            false => "closed the link before it was ready".to_owned(),
        });
        match &self.process.child {
            Some(child) => child.kill(),
            None => drop(self.process.link.say(&Word::No(reason.clone()))),
        }
        self.given_up = Some(reason);
        self.deadline = Instant::now() + END_TIMEOUT;
    }

    /// How far it has come. Its end is looked for before its words are read: what it said just before it
    /// ended counts, and `ready` from a process that has ended does not.
    pub(crate) fn progress(&mut self) -> Progress {
        let exited = self.process.child.as_mut().and_then(Child::try_wait).map(End::Exited);
        let mut ready = None;
        while let Some(word) = self.process.link.hear() {
            match word {
                Word::End => break,
                Word::Without(socket) => self.process.without.push(socket),
                Word::Ready(mode) => ready = Some(mode),
                Word::Failed(reason) => self.reason = Some(reason),
                word => {
                    self.kill(Some(format!("said \"{word}\" instead of \"{}\"", Word::Ready(Mode::Alone))))
                }
            }
        }
        // One that cannot be killed is not waited for, and no other longer than until the deadline.
        let is_given_up = self.given_up.is_some();
        let is_late = is_given_up && (self.process.child.is_none() || Instant::now() >= self.deadline);
        let end = exited.or_else(|| self.process.has_left()).or(is_late.then_some(End::Left));
        if !self.process.link.is_open() {
            // It has nothing to become ready with, and a moment to exit.
            self.deadline = self.deadline.min(Instant::now() + END_TIMEOUT);
        }
        match (end, ready) {
            (Some(end @ End::Exited(_)), _) => Progress::Failed(self.failure(end), None),
            (Some(end), _) => Progress::Failed(self.failure(end), self.process.child.take()),
            (None, Some(mode)) if !is_given_up && self.process.link.is_open() => Progress::Ready(mode),
            _ => Progress::Starting,
        }
    }

    fn failure(&self, end: End) -> String {
        let effect = match &self.given_up {
            Some(why) => format!("{why}, and {end}"),
            None => format!("{end} before it was ready"),
        };
        self.reason.iter().fold(effect, |effect, reason| format!("{effect}: {reason}"))
    }

    /// Tells it to go. From then on it accepts connections, unless it has ended, which is returned as `Err`.
    pub(crate) fn go(self, ancestry: Ancestry) -> Result<Successor, Box<Candidate>> {
        self.process.mover.iter().for_each(|mover| mover.is_known(ancestry.counts));
        match self.process.link.say(&Word::Go(ancestry)) {
            true => Ok(self.process),
            false => Err(Box::new(self)),
        }
    }
}
