//! What a process can be asked for, and by whom.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;
use std::thread::ThreadId;

use nix::sys::signal::Signal;

use super::clients::Client;
use crate::handover::link::send_all;

/// What a process can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// To hand over to a successor.
    Restart,
    /// To answer what is in flight and end.
    Stop,
    /// To read the configuration again.
    Reload,
    /// To report its state.
    Status,
    /// To answer when no handover is under way, and nothing drains.
    Wait,
}

/// The origin of a request, which gets the answer. Everything of importance is logged as well.
#[derive(Debug)]
pub(crate) enum Requester {
    /// A signal, which takes no answer.
    Signal(Signal),
    /// The program itself, through a [`Handle`](crate::Handle), on this thread. It may not wait for the answer.
    Program(SyncSender<Result<String, String>>, ThreadId),
    /// A client of the control socket.
    Client(Client),
    /// A client of the control socket that asks for a restart with itself as the successor.
    Candidate(UnixStream),
    /// A client of the control socket that waits for the end of a handover.
    Waiting(UnixStream),
}

impl Requester {
    /// The signal that asks for the same.
    pub(crate) fn signal(&self, action: Action) -> Signal {
        match (self, action) {
            (Requester::Signal(signal), _) => *signal,
            (_, Action::Restart) => Signal::SIGUSR2,
            (_, Action::Stop) => Signal::SIGTERM,
            (_, Action::Reload | Action::Status | Action::Wait) => Signal::SIGUSR1,
        }
    }

    /// Passes on what has come of the request: the first answer counts. The client may not wait for it any
    /// more.
    pub(crate) fn answer(&self, result: Result<String, String>) {
        if let Requester::Program(answer, _) = self {
            let _ = answer.try_send(result);
            return;
        }
        let is_done = result.is_ok();
        let text = result.unwrap_or_else(|error| format!("error: {error}"));
        match self {
            Requester::Client(client) => client.answer(&text),
            // A candidate that has been adopted is answered on its link.
            Requester::Candidate(_) if is_done => {}
            Requester::Candidate(connection) | Requester::Waiting(connection) => {
                drop(send_all(connection, format!("{text}\n").as_bytes()));
            }
            Requester::Signal(_) | Requester::Program(..) => {}
        }
    }

    /// The request is not fulfilled, for this reason.
    pub(crate) fn refuse(&self, reason: impl fmt::Display) {
        log::warn!("{self}: refused, {reason}");
        self.answer(Err(format!("refused, {reason}")));
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requester::Signal(signal) => signal.fmt(f),
            Requester::Program(..) => f.write_str("program"),
            Requester::Client(_) | Requester::Candidate(_) | Requester::Waiting(_) => f.write_str("control"),
        }
    }
}
