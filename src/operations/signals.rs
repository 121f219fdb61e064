//! Signals become events: one thread waits for them, so that no other code has to know about them.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals as Incoming};

use super::requester::Action;
use crate::lock::lock;

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

/// How long signals are still ignored at the end: a stop often comes twice, from a supervisor and from a
/// process that stays, and the second one must not kill a process that is about to exit.
const GRACE: Duration = Duration::from_millis(500);

/// Whether the handlers do what would be done without them, because nothing waits for signals any more.
static ARE_DEFAULT: AtomicBool = AtomicBool::new(false);

/// How many wait for signals: one for each server of this process.
static COUNT: Mutex<u32> = Mutex::new(0);

/// Signals are waited for, until this is dropped. Soon after that they have their old meaning again.
pub(crate) struct Signals(Handle);

impl Signals {
    /// Installs the handlers, lets in what has been held back (see [`handled`]), and from then on calls
    /// `report` with each signal.
    ///
    /// A SIGHUP that is ignored now stays ignored: that is how nohup(1) asks to survive the terminal.
    pub(crate) fn listen(report: impl Fn(Signal, Meaning) + Send + 'static) -> io::Result<Signals> {
        let wait = Wait::begin();
        let hangup_ignored = is_among("SigIgn:", Signal::SIGHUP);
        let wanted = HANDLED.iter().map(|(signal, _)| *signal);
        let wanted = wanted.filter(|signal| !(hangup_ignored && *signal == Signal::SIGHUP));
        // One that the embedding program handles, too, is its own again at the end.
        for signal in wanted.clone().filter(|signal| !is_among("SigCgt:", *signal)) {
            flag::register_conditional_default(signal as i32, &ARE_DEFAULT)?;
        }
        let mut incoming = Incoming::new(wanted.map(|signal| signal as i32))?;
        let handle = incoming.handle();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in incoming.forever() {
                if let Some(&(signal, meaning)) = HANDLED.iter().find(|(signal, _)| *signal as i32 == number)
                {
                    report(signal, meaning);
                }
            }
            thread::sleep(GRACE);
            drop(wait);
        })?;
        handled().thread_unblock()?;
        Ok(Signals(handle))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// While there is one, signals do not mean what they meant before.
struct Wait;

impl Wait {
    fn begin() -> Wait {
        let mut count = lock(&COUNT);
        *count += 1;
        ARE_DEFAULT.store(false, Ordering::SeqCst);
        Wait
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut count = lock(&COUNT);
        *count -= 1;
        ARE_DEFAULT.store(*count == 0, Ordering::SeqCst);
    }
}

/// The signals that are handled: held back in a successor until its handlers are in place, because the mask
/// passes through execve(2).
pub(crate) fn handled() -> SigSet {
    HANDLED.iter().map(|(signal, _)| *signal).collect()
}

/// Whether a signal is among those that this process ignores, `SigIgn:`, or catches, `SigCgt:`, read from
/// proc(5), because sigaction(2) cannot be asked without `unsafe`. Without /proc none is.
fn is_among(set: &str, signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(set))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal as u32 - 1)) != 0)
}
