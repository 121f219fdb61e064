//! A program as a child of this process, with the descriptors placed.
//!
//! `std::process::Command` can place them only by forking, which copies the page tables of every thread's stack:
//! 63 ms with 5,000 idle connections, in which no thread gets memory. posix_spawn(3) does not copy the process.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::descriptors;
use super::program::{Program, VARIABLE};

/// What a service manager, sd_listen_fds(3), or a predecessor has meant for this process, and not for its successors.
const OWN_VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", VARIABLE];

/// A child. When it ends it is a zombie until it has been waited for.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    end: Option<ExitStatus>,
}

/// Starts `program` with `descriptors` from 3 on, with standard input, output and error, and with no other
/// descriptor. The child is born with the signals `blocked`, until its handlers are in place.
///
/// # Errors
///
/// What execve(2) or the preparations said. There is no child then.
pub(crate) fn spawn(
    program: &Program,
    descriptors: &[BorrowedFd<'_>],
    blocked: &SigSet,
) -> io::Result<Child> {
    let arguments = [&program.name].into_iter().chain(&program.arguments).cloned();
    let arguments = arguments.map(c_string).collect::<io::Result<Vec<_>>>()?;
    let own = |name: &OsStr| OWN_VARIABLES.iter().any(|own| name == *own);
    let environment = env::vars_os().filter(|(name, _)| !own(name)).map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        c_string(variable)
    });
    let graceful = c_string(format!("{VARIABLE}=1").into());
    let environment = environment.chain([graceful]).collect::<io::Result<Vec<_>>>()?;

    // dup2(2) onto its own number would leave close-on-exec set, and onto another source would overwrite it.
    let duplicate =
        |descriptor| descriptors::duplicate_above(descriptor, descriptors::number(descriptors.len()));
    let sources = descriptors.iter().map(duplicate).collect::<io::Result<Vec<_>>>()?;
    let mut actions = PosixSpawnFileActions::init()?;
    // The setters drop an error (ENOMEM), and the child would lack a descriptor; but errno keeps it.
    Errno::clear();
    for (index, source) in sources.iter().enumerate() {
        actions.add_dup2(source.as_raw_fd(), descriptors::number(index))?;
    }
    let close = |number: &&RawFd| !descriptors::is_among(**number, descriptors.len());
    for &number in program.keep_back.iter().filter(close) {
        actions.add_close(number)?;
    }
    if Errno::last() == Errno::ENOMEM {
        return Err(Errno::ENOMEM.into());
    }

    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
    attributes.set_sigmask(&SigSet::thread_get_mask()?.into_iter().chain(blocked).collect())?;
    // Rust ignores it without having been asked.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    let pid = posix_spawn(program.path.as_path(), &actions, &attributes, &arguments, &environment)?;
    Ok(Child { pid, end: None })
}

fn c_string(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

impl Child {
    /// Its process ID, which no other process gets before it has been waited for.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub(crate) fn kill(&self) {
        if self.end.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// How it has ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Option<ExitStatus> {
        while self.end.is_none() {
            self.end = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return None,
                Ok(status) => exit_status(status),
                Err(Errno::EINTR) => None,
                // The embedding program has waited for it, and nobody will ever know more.
                Err(_) => Some(ExitStatus::default()),
            };
        }
        self.end
    }
}

/// The status of a process that has ended, as wait(2) has it: the exit status above the signal.
pub(crate) fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    match status {
        WaitStatus::Exited(_, status) => Some(ExitStatus::from_raw(status << 8)),
        WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
        _ => None,
    }
}
