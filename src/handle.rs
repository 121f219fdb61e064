//! A server in the hands of the program that embeds it: what its other threads ask it for, and learn of it.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::deadline::after;
use crate::error::Error;
use crate::events::Event;
use crate::handover::state;
use crate::operations::requester::{Action, Requester};
use crate::status::Status;
use crate::watch::Watch;

/// A server, for any thread, before, while and after it serves; from [`Server::handle`](crate::Server::handle).
///
/// What is asked for means the same as from a signal or through the control socket, and is done in turn: before the
/// server serves, [`restart`](Self::restart) and [`reload`](Self::reload) wait until it does.
#[derive(Clone, Debug)]
pub struct Handle(pub(crate) Arc<Watch>);

impl Handle {
    /// Stops the server, as SIGTERM does, and returns at once. A second stop, from half a second later on, cuts
    /// what is in flight.
    pub fn stop(&self) {
        self.ask(Action::Stop);
    }

    /// Hands over to a new process, as SIGUSR2 does, and waits until it is decided which of the two serves. A
    /// request handler may call it; it is answered by the process that it has come to.
    ///
    /// The new process runs the program of this one, unless [`Options::program`](crate::Options::program) says
    /// otherwise. In a test that is the test itself, which would start itself again and again: there the options name
    /// another program, and its arguments.
    ///
    /// # Errors
    ///
    /// Why this process serves on, or that it does not serve.
    pub fn restart(&self) -> Result<(), Error> {
        self.done("hand over", Action::Restart)
    }

    /// Reads the configuration again with [`Handler::reload`](crate::Handler::reload), as SIGUSR1 does, and waits
    /// until that is done.
    ///
    /// # Errors
    ///
    /// What the handler said, that it is the handler itself which asks, or that this process does not serve.
    pub fn reload(&self) -> Result<(), Error> {
        self.done("reload", Action::Reload)
    }

    /// How the server is. It waits for nothing.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Hands these bytes on to each successor that is started from now on, in the place of those before; it gets them
    /// with [`Server::state`](crate::Server::state). They are copied, and nothing is waited for, so that a program
    /// can do this whenever something has changed.
    ///
    /// What goes along is what has been stored when the successor is started. What changes from then on, while both
    /// processes run, is not told to it. A successor that stores nothing itself hands nothing on.
    ///
    /// # Errors
    ///
    /// They are more than 64 KiB. What has been stored before stays.
    pub fn hand_on_state(&self, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        let bytes = bytes.into();
        if bytes.len() > state::MOST {
            let reason = format!("it has at most {} bytes", state::MOST);
            return Err(Error::new(format!("hand on a state of {} bytes", bytes.len()), reason));
        }
        self.0.hand_on_state(bytes);
        Ok(())
    }

    /// Waits until the condition holds, at most for `timeout` ([`Duration::MAX`] is for ever); `None` if it has not
    /// until then, or cannot any more because the server has [ended](crate::State::Ended).
    ///
    /// The condition is looked at now, and whenever the [`state`](Status::state), the
    /// [`predecessors`](Status::predecessors) or the [`version`](Status::version) changes, and when the last of the
    /// [`connections`](Status::connections) has ended in a process that accepts no more; not whenever one comes or
    /// goes. A state that lasts for less than a moment may be missed.
    pub fn wait_until(&self, timeout: Duration, condition: impl Fn(&Status) -> bool) -> Option<Status> {
        self.0.wait_until(timeout, condition)
    }

    /// Work that is no connection: until the result is dropped, a drain is not complete, unless its
    /// [deadline](crate::Options::drain_timeout) passes.
    ///
    /// Meanwhile a program can write what comes after its last response, for instance: it waits until the state no
    /// longer [serves](crate::State::serves), no [connection](Status::connections) is open, and no
    /// [predecessor](Status::predecessors) is there that may move some here. Until it lets go, a successor does not
    /// [serve alone](Status::serves_alone).
    pub fn hold(&self) -> Hold {
        self.0.hold();
        Hold(Arc::clone(&self.0))
    }

    /// Waits until the condition holds, as [`wait_until`](Self::wait_until) does, and [holds](Self::hold) the process
    /// from a moment on at which it did.
    ///
    /// With [`Status::serves_alone`] a job runs in exactly one process at a time, over handovers, and goes on where
    /// it was if a successor dies:
    ///
    /// ```no_run
    /// # use std::{fs::File, io::{self, Write}, process, thread, time::Duration};
    /// # use handover::{Handle, Status};
    /// fn job(handle: &Handle, mut journal: File) -> io::Result<()> {
    ///     let pid = process::id();
    ///     while let Some(_hold) = handle.hold_when(Duration::MAX, Status::serves_alone) {
    ///         writeln!(journal, "start {pid}")?;
    ///         handle.wait_until(Duration::MAX, |status| !status.state.serves());
    ///         // The successor does not begin, and this process does not end, before this is done.
    ///         thread::sleep(Duration::from_millis(50));
    ///         writeln!(journal, "stop {pid}")?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn hold_when(&self, timeout: Duration, condition: impl Fn(&Status) -> bool) -> Option<Hold> {
        let deadline = after(timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.wait_until(left, &condition)?;
            let hold = self.hold();
            // A drain may have begun, and have been completed, before this.
            if condition(&self.status()) {
                return Some(hold);
            }
        }
    }

    fn ask(&self, action: Action) -> mpsc::Receiver<Result<String, String>> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.0.post(Event::Asked(Requester::Program(answer, thread::current().id()), action));
        answered
    }

    fn done(&self, attempt: &str, action: Action) -> Result<(), Error> {
        // What is not answered has been dropped with the loop of the process.
        let answer = self.ask(action).recv().unwrap_or_else(|_| Err("the server has ended".to_owned()));
        answer.map(drop).map_err(|reason| Error::new(attempt, reason))
    }
}

/// Keeps a drain from being complete; see [`Handle::hold`].
#[derive(Debug)]
#[must_use = "it holds the process only until it is dropped"]
pub struct Hold(Arc<Watch>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.release();
    }
}
