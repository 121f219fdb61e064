//! Whoever asks a process for something, by a signal or through the control socket.

use std::fmt;
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
}

/// Who asks, and is told what has become of it. Only who asks through the control socket hears that; the
/// log tells it to everybody.
#[derive(Debug)]
pub(crate) struct Asker {
    signal: Option<Signal>,
    answer: Option<Sender<String>>,
}

impl Asker {
    /// Somebody who has sent a signal.
    pub(crate) fn by_signal(signal: Signal) -> Asker {
        Asker { signal: Some(signal), answer: None }
    }

    /// Somebody who waits for an answer.
    pub(crate) fn waiting(answer: Sender<String>) -> Asker {
        Asker { signal: None, answer: Some(answer) }
    }

    /// The signal, or the one that would have asked for the same.
    pub(crate) fn signal(&self, request: Request) -> Signal {
        self.signal.unwrap_or(match request {
            Request::Restart => Signal::SIGUSR2,
            Request::Stop => Signal::SIGTERM,
            Request::Reload | Request::Status => Signal::SIGUSR1,
        })
    }

    /// It is done.
    pub(crate) fn tell(self, answer: impl fmt::Display) {
        if let Some(waiting) = self.answer {
            // He may not wait any more.
            let _ = waiting.send(answer.to_string());
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
