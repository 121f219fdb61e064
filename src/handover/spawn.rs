//! A program as a child of this process, started without a copy of the process.
//!
//! fork(2) copies the page tables of every thread's stack, and while it does, no other thread gets memory:
//! 60 ms with 5,000 idle connections. `std::process::Command` avoids it only for a child that is started just
//! as it is, with no descriptors to place. So clone(2) is used here in the way of posix_spawn(3): the
//! child runs in the memory of this process, on a stack of its own, and the thread that has made it waits
//! until the child has called execve(2).

use std::ffi::{CString, OsString, c_char, c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use std::{env, ptr, thread};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::handover::descriptors::{self, Limit};
use crate::handover::program::Program;
use crate::operations::signals;

/// More than the system calls of the child need.
const STACK_SIZE: usize = 64 * 1024;

/// A child, which becomes a zombie when it ends, until it has been waited for.
pub(crate) struct Child {
    pid: Pid,
    end: Option<ExitStatus>,
}

impl Child {
    /// Starts `program` with these descriptors from 3 on and those of standard input, output and error, and
    /// the limit of descriptors that this process was started with.
    ///
    /// The descriptors must not lie where they are to be placed; see [`descriptors::Reserve`].
    pub(crate) fn start(
        program: &Program,
        descriptors: &[OwnedFd],
        limit: Option<Limit>,
    ) -> io::Result<Child> {
        let path = CString::new(program.path.as_os_str().as_bytes())?;
        let arguments = [&program.name].into_iter().chain(&program.arguments).cloned();
        let arguments = Strings::new(arguments)?;
        let environment = Strings::new(env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        }))?;
        retry_while_busy(|| {
            let blocked = signals::block()?;
            let mask = blocked.with_handled();
            let pid = run_in_child(behind(descriptors), || {
                place(descriptors)?;
                limit.map_or(Ok(()), Limit::restore)?;
                forget_handlers();
                mask.thread_set_mask()?;
                // SAFETY: these are C strings, and vectors of them that end with a null pointer.
                #[allow(unsafe_code)]
                unsafe {
                    libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr())
                };
                Err(io::Error::last_os_error())
            })?;
            Ok(Child { pid, end: None })
        })
    }

    /// Its process ID, which no other process gets before it has been waited for.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        if self.end.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// How it has ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Option<ExitStatus> {
        self.wait_with(WaitPidFlag::WNOHANG)
    }

    /// Waits until it has ended; how it has.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.wait_with(WaitPidFlag::empty()).unwrap_or_default()
    }

    fn wait_with(&mut self, flags: WaitPidFlag) -> Option<ExitStatus> {
        while self.end.is_none() {
            self.end = match waitpid(self.pid, Some(flags)) {
                Ok(WaitStatus::StillAlive) => return None,
                Ok(status) => end(status),
                Err(Errno::EINTR) => None,
                // Somebody else in this process has waited for it, and nobody will ever know more.
                Err(_) => Some(ExitStatus::default()),
            };
        }
        self.end
    }
}

/// The status of a process that has ended, as wait(2) has it: the exit status above the signal.
pub(crate) fn end(status: WaitStatus) -> Option<ExitStatus> {
    match status {
        WaitStatus::Exited(_, status) => Some(ExitStatus::from_raw(status << 8)),
        WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
        _ => None,
    }
}

/// A vector of strings, as execve(2) takes it.
struct Strings {
    /// What the pointers point to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(strings: impl Iterator<Item = OsString>) -> io::Result<Strings> {
        let strings: Vec<CString> =
            strings.map(|string| CString::new(string.into_vec())).collect::<Result<_, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Ok(Strings { _strings: strings, pointers })
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Runs `execute` in a child that has the descriptors below `end`; its process ID, if it has executed a
/// program, and otherwise why it has not.
fn run_in_child(end: c_uint, mut execute: impl FnMut() -> io::Result<()>) -> io::Result<Pid> {
    let mut is_copied = false;
    let result = clone_and_run(CloneFlags::CLONE_FILES, || {
        copy_descriptors(end)?;
        is_copied = true;
        execute()
    });
    match result {
        // Kernels before 5.9 can copy nothing but the whole table.
        Err(_) if !is_copied => clone_and_run(CloneFlags::empty(), execute),
        result => result,
    }
}

fn clone_and_run(flags: CloneFlags, mut run: impl FnMut() -> io::Result<()>) -> io::Result<Pid> {
    let mut failure = None;
    let mut stack = vec![0; STACK_SIZE];
    let flags = flags | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let run = Box::new(|| {
        failure = run().err();
        127
    });
    // SAFETY: the child shares this memory, so whatever it does there must be what this thread could have
    // done. This thread waits in clone(2) until the child executes a program or ends, so nothing of its own
    // changes meanwhile: neither what `run` borrows nor its thread-local variables, of which the child
    // uses errno. Every signal is blocked, so no handler runs in the child. What it does are system calls,
    // which need a small part of the stack.
    #[allow(unsafe_code)]
    let pid = unsafe { clone(run, &mut stack, flags, Some(Signal::SIGCHLD as c_int)) }?;
    match failure {
        None => Ok(pid),
        Some(error) => {
            Child { pid, end: None }.wait();
            Err(error)
        }
    }
}

/// Gives the child, which shares this process's table of descriptors, a table of its own with those below
/// `end` in it. To copy all of them and to close them one by one in execve(2) takes longer than all the rest
/// of a handover when there are 5,000 connections, which would be 3.4 ms instead of 2.
#[allow(unsafe_code)]
fn copy_descriptors(end: c_uint) -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_UNSHARE it does not touch the shared table: either there is a new one, in
    // which what is not copied is closed, or it fails and nothing has happened.
    let result = unsafe { libc::syscall(libc::SYS_close_range, end, c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number behind the last of them.
fn behind(descriptors: &[OwnedFd]) -> c_uint {
    descriptors.iter().map(|descriptor| descriptor.as_raw_fd() as c_uint + 1).max().unwrap_or(0)
}

/// Puts the descriptors where the successor expects them, open across execve(2), and closes the rest.
///
/// The sources lie above the targets, so none overwrites another's source, and none is the no-op on equal
/// numbers that would leave close-on-exec set.
#[allow(unsafe_code)]
fn place(sources: &[OwnedFd]) -> io::Result<()> {
    let mut target = descriptors::FIRST;
    for source in sources {
        // SAFETY: this changes the descriptor table of the child, which is a copy and its own; what the
        // target may have been there, it has no use for.
        if unsafe { libc::dup2(source.as_raw_fd(), target) } == -1 {
            return Err(io::Error::last_os_error());
        }
        target += 1;
    }
    // SAFETY: this closes nothing yet. It marks, to be closed by execve(2), what the embedding program has
    // not marked. Kernels before 5.11 do not know it: there, that is inherited, as by any program.
    unsafe {
        let (first, last) = (target as c_uint, c_uint::MAX);
        libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
}

/// Handles no signal any more, so that none can be handled in the memory of this process once they are let
/// in again. What is ignored stays so, except for SIGPIPE, which Rust ignores without having been asked.
#[allow(unsafe_code)]
fn forget_handlers() {
    const LAST: c_int = 64;
    for signal in 1..=LAST {
        // SAFETY: the default for a signal is not a handler. This changes the table of the child, which is
        // a copy and its own.
        unsafe {
            if libc::signal(signal, libc::SIG_DFL) == libc::SIG_IGN && signal != libc::SIGPIPE {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
}

/// A file that was written a moment ago may be open for writing still, in a child that another process
/// has forked and that has not reached its own execve(2): ETXTBSY, over in a moment.
fn retry_while_busy<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const PAUSE: Duration = Duration::from_millis(5);
    const RETRIES: u32 = 20;
    for _ in 0..RETRIES {
        match start() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(PAUSE),
            result => return result,
        }
    }
    start()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_file_is_tried_again() {
        let mut attempts = 0;
        let result = retry_while_busy(|| {
            attempts += 1;
            if attempts < 3 { Err(io::ErrorKind::ExecutableFileBusy.into()) } else { Ok("started") }
        });
        assert_eq!((result.unwrap(), attempts), ("started", 3));

        let mut attempts = 0;
        let result: io::Result<()> = retry_while_busy(|| {
            attempts += 1;
            Err(io::ErrorKind::NotFound.into())
        });
        assert_eq!((result.unwrap_err().kind(), attempts), (io::ErrorKind::NotFound, 1));
    }
}
