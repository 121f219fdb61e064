//! Whoever asks a process for something, by a signal or through the control socket.

use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use nix::sys::signal::Signal;

/// What a process can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To hand over to a successor.
    Restart,
    /// To answer what is in flight and end.
    Stop,
    /// To read the configuration again.
    Reload,
    /// To tell how it is.
    Status,
    /// To hand over to the process that asks.
    TakeOver,
}

/// Who asks, and is told what has become of it. Only who asks through the control socket hears that; the
/// log tells it to everybody.
#[derive(Debug)]
pub(crate) struct Asker {
    signal: Option<Signal>,
    answer: Answer,
}

/// Where an answer goes.
#[derive(Debug)]
enum Answer {
    /// Nobody waits for one.
    Nowhere,
    /// To a thread that passes it on.
    Waiting(Sender<String>),
    /// To a process that may become the successor.
    Connection(UnixStream),
}

impl Asker {
    /// Somebody who has sent a signal.
    pub(crate) fn by_signal(signal: Signal) -> Asker {
        Asker { signal: Some(signal), answer: Answer::Nowhere }
    }

    /// Somebody who waits for an answer.
    pub(crate) fn waiting(answer: Sender<String>) -> Asker {
        Asker { signal: None, answer: Answer::Waiting(answer) }
    }

    /// Somebody who wants to take over.
    pub(crate) fn taking_over(connection: UnixStream) -> Asker {
        Asker { signal: None, answer: Answer::Connection(connection) }
    }

    /// The connection of somebody who wants to take over, and who then asks no more.
    pub(crate) fn take_connection(&mut self) -> Option<UnixStream> {
        match std::mem::replace(&mut self.answer, Answer::Nowhere) {
            Answer::Connection(connection) => Some(connection),
            answer => {
                self.answer = answer;
                None
            }
        }
    }

    /// The signal, or the one that would have asked for the same.
    pub(crate) fn signal(&self, request: Request) -> Signal {
        self.signal.unwrap_or(match request {
            Request::Restart | Request::TakeOver => Signal::SIGUSR2,
            Request::Stop => Signal::SIGTERM,
            Request::Reload | Request::Status => Signal::SIGUSR1,
        })
    }

    /// It is done.
    pub(crate) fn tell(self, answer: impl fmt::Display) {
        // He may not wait any more.
        match self.answer {
            Answer::Nowhere => {}
            Answer::Waiting(waiting) => drop(waiting.send(answer.to_string())),
            Answer::Connection(mut connection) => {
                drop(connection.write_all(format!("{answer}\n").as_bytes()))
            }
        }
    }

    /// It will not be done, for this reason.
    pub(crate) fn refuse(self, reason: impl fmt::Display) {
        log::warn!("{self}: refused, {reason}");
        self.tell(format_args!("error: refused, {reason}"));
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal {
            Some(signal) => signal.fmt(f),
            None => f.write_str("control"),
        }
    }
}
