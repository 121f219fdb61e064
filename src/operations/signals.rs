//! Signals become events: one thread waits for them, so that no other code has to know about them.

use std::io;
use std::thread::{self, JoinHandle};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::{Handle, Signals as Incoming};

use super::requester::Action;

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A request.
    Asked(Action),
    /// A child has changed its state; which one, the signal does not tell.
    Child,
}

/// The signals that are handled, and what each means.
const HANDLED: [(Signal, Meaning); 7] = [
    (Signal::SIGUSR2, Meaning::Asked(Action::Restart)),
    (Signal::SIGHUP, Meaning::Asked(Action::Restart)),
    (Signal::SIGINT, Meaning::Asked(Action::Stop)),
    (Signal::SIGTERM, Meaning::Asked(Action::Stop)),
    (Signal::SIGQUIT, Meaning::Asked(Action::Stop)),
    (Signal::SIGUSR1, Meaning::Asked(Action::Reload)),
    (Signal::SIGCHLD, Meaning::Child),
];

/// The thread that waits for signals; dropping this ends it.
pub(crate) struct Signals {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Installs the handlers, lets in what has been held back (see [`handled`]), and from then on calls
    /// `report` with each signal.
    ///
    /// A SIGHUP that is ignored now stays ignored: that is how nohup(1) asks to survive the terminal.
    pub(crate) fn listen(report: impl Fn(Signal, Meaning) + Send + 'static) -> io::Result<Signals> {
        let hangup_ignored = is_ignored(Signal::SIGHUP);
        let wanted = HANDLED.iter().filter(|(signal, _)| !(hangup_ignored && *signal == Signal::SIGHUP));
        let mut incoming = Incoming::new(wanted.map(|(signal, _)| *signal as i32))?;
        let handle = incoming.handle();
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in incoming.forever() {
                if let Some(&(signal, meaning)) = HANDLED.iter().find(|(signal, _)| *signal as i32 == number)
                {
                    report(signal, meaning);
                }
            }
        })?;
        handled().thread_unblock()?;
        Ok(Signals { handle, thread: Some(thread) })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The signals that are handled: held back in a successor until its handlers are in place, because the mask
/// passes through execve(2).
pub(crate) fn handled() -> SigSet {
    HANDLED.iter().map(|(signal, _)| *signal).collect()
}

/// Whether this process has inherited the decision to ignore `signal`, read from proc(5), because
/// sigaction(2) cannot be asked without `unsafe`. Without /proc nothing counts as ignored.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal as u32 - 1)) != 0)
}
