//! The descriptor on which a supervisor such as s6 waits for the readiness of the first process.

use std::fs::File;
use std::io::Write;
use std::os::fd::RawFd;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::error::Error;
use crate::handover::descriptors;

pub(crate) struct ReadyFd(File);

impl ReadyFd {
    pub(crate) fn open(number: RawFd) -> Result<ReadyFd, Error> {
        let file = descriptors::inherited(number, |_| true).map(|file| ReadyFd(file.into()));
        let attempt = format!("report readiness to descriptor {number}");
        file.ok_or_else(|| Error::new(attempt, "it was not handed to this process"))
    }

    /// Reports the readiness to the supervisor, which may not wait for it any more. The SIGPIPE that this raises
    /// then goes with a thread that holds it back, or it would kill an embedding program in which it has its
    /// default.
    pub(crate) fn report(mut self) {
        let write = move || {
            if SigSet::from(Signal::SIGPIPE).thread_block().is_ok() {
                let _ = self.0.write_all(b"\n");
            }
        };
        match thread::Builder::new().name("ready".to_owned()).spawn(write) {
            Ok(thread) => drop(thread.join()),
            Err(error) => log::error!("cannot report the readiness: {error}"),
        }
    }
}
