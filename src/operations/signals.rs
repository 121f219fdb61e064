//! Signals become events: one thread waits for them, so that no other code has to know about them.

use std::io;
use std::thread::{self, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use signal_hook::iterator::{Handle, Signals as Incoming};

use crate::operations::requester::Request;

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Somebody asks for something.
    Asked(Request),
    /// A child has changed its state; which one, the signal does not tell.
    Child,
}

/// The signals that are handled, and what each means.
const HANDLED: [(Signal, Meaning); 7] = [
    (Signal::SIGUSR2, Meaning::Asked(Request::Restart)),
    (Signal::SIGHUP, Meaning::Asked(Request::Restart)),
    (Signal::SIGINT, Meaning::Asked(Request::Stop)),
    (Signal::SIGTERM, Meaning::Asked(Request::Stop)),
    (Signal::SIGQUIT, Meaning::Asked(Request::Stop)),
    (Signal::SIGUSR1, Meaning::Asked(Request::Reload)),
    (Signal::SIGCHLD, Meaning::Child),
];

/// The thread that waits for signals; dropping this ends it.
pub(crate) struct Signals {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Installs the handlers, lets in what has been held back (see [`block`]), and from then on calls
    /// `report` with each signal.
    ///
    /// A SIGHUP that is ignored now stays ignored: that is how nohup(1) asks to survive the terminal.
    pub(crate) fn listen(report: impl Fn(Signal, Meaning) + Send + 'static) -> io::Result<Signals> {
        let hangup_ignored = is_ignored(Signal::SIGHUP);
        let handled = HANDLED.iter().filter(|(signal, _)| !(hangup_ignored && *signal == Signal::SIGHUP));
        let mut incoming = Incoming::new(handled.map(|(signal, _)| *signal as i32))?;
        let handle = incoming.handle();
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in incoming.forever() {
                if let Some(&(signal, meaning)) = HANDLED.iter().find(|(signal, _)| *signal as i32 == number)
                {
                    report(signal, meaning);
                }
            }
        })?;
        handled_set().thread_unblock()?;
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

/// Holds every signal back from this thread, and from a child that it starts, until the result is dropped.
pub(crate) fn block() -> io::Result<Blocked> {
    Ok(Blocked { before: SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)? })
}

/// See [`block`].
pub(crate) struct Blocked {
    before: SigSet,
}

impl Blocked {
    /// What a child is to hold back: what this thread did before, and the handled signals. The mask passes
    /// through execve(2): a signal that comes before the child has its handlers waits for them instead of
    /// killing it.
    pub(crate) fn with_handled(&self) -> SigSet {
        let mut mask = self.before;
        HANDLED.iter().for_each(|(signal, _)| mask.add(*signal));
        mask
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // pthread_sigmask(3) fails for a wrong `how` only.
        let _ = self.before.thread_set_mask();
    }
}

fn handled_set() -> SigSet {
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
