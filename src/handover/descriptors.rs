//! Descriptors that are agreed on by number.
//!
//! A successor finds the listening sockets at descriptor 3 and those that follow (where systemd puts them,
//! too), and the pipe to its predecessor behind them. Whoever relies on numbers has to know what is behind
//! them, and has to keep the numbers from being taken by something else.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::unistd::dup3;

/// The first listening socket, in a process that was handed any. The others follow, and then, in a process
/// that has a predecessor, the write end of the pipe to it.
pub(crate) const FIRST: RawFd = 3;

/// How many descriptors a process may have (RLIMIT_NOFILE), as it was when the process was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    soft: rlim_t,
    hard: rlim_t,
}

impl Limit {
    /// Raises the soft limit to the hard one, and returns what it was. The soft limit is low for the sake
    /// of programs that use select(2); a server wants what it can have.
    pub(crate) fn raise() -> Option<Limit> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
        Some(Limit { soft, hard })
    }

    /// Makes the limit what it was. One system call, without allocating or locking.
    pub(crate) fn restore(self) -> io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)?)
    }
}

/// Whether a descriptor is open, and was handed to this process when it was executed: what has come through
/// execve(2) cannot be close-on-exec, and what Rust opens always is.
#[allow(unsafe_code)]
pub(crate) fn is_inherited(number: RawFd) -> bool {
    // SAFETY: fcntl F_GETFD has no effect on whatever the number refers to, and the borrow ends here.
    let flags = unsafe { fcntl(BorrowedFd::borrow_raw(number), FcntlArg::F_GETFD) };
    flags.is_ok_and(|flags| !FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC))
}

/// Takes ownership of a descriptor that was handed to this process when it was executed, and makes it
/// close-on-exec; `None` if it was not.
#[allow(unsafe_code)]
pub(crate) fn inherited(number: RawFd) -> Option<OwnedFd> {
    if !is_inherited(number) {
        return None;
    }
    // SAFETY: it is open, and came with the process image. By the protocol between predecessor and
    // successor (and of sd_listen_fds(3)) it is then meant for `serve`, which is the only caller and takes
    // each number once, because afterwards it is close-on-exec: nobody else owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(descriptor)
}

/// Takes ownership of a descriptor that has just come through a Unix socket.
#[allow(unsafe_code)]
pub(crate) fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the only caller has it from recvmsg(2), which has opened it for this process a moment ago, and
    // has told nobody else the number.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Low numbers, kept for what a successor is started with: then the beginning of the table of descriptors
/// is all that it needs of it, however many connections there are.
pub(crate) struct Reserve {
    /// What is behind the numbers when they are not lent.
    null: OwnedFd,
    kept: Vec<OwnedFd>,
}

impl Reserve {
    /// For so many sockets and the pipe behind them, out of the way of the agreed numbers; to be made before
    /// there are connections.
    pub(crate) fn new(sockets: usize) -> io::Result<Reserve> {
        let null = File::open("/dev/null")?.into();
        let kept = (0..=sockets).map(|_| duplicate(sockets, &null)).collect::<io::Result<_>>()?;
        Ok(Reserve { null, kept })
    }

    /// Calls `start` with close-on-exec duplicates under the numbers that are kept.
    pub(crate) fn lend<T>(
        &mut self,
        descriptors: &[BorrowedFd<'_>],
        start: impl FnOnce(&[OwnedFd]) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut pairs = self.kept.iter_mut().zip(descriptors);
        let lent = pairs.try_for_each(|(kept, lent)| dup3(lent, kept, OFlag::O_CLOEXEC));
        let started = lent.map_err(io::Error::from).and_then(|()| start(&self.kept));
        for kept in &mut self.kept {
            // It cannot fail, because both are open. See dup(2), "Errors".
            let _ = dup3(&self.null, kept, OFlag::O_CLOEXEC);
        }
        started
    }
}

/// A close-on-exec duplicate that is out of the way of the agreed numbers for so many sockets.
fn duplicate(sockets: usize, descriptor: &OwnedFd) -> io::Result<OwnedFd> {
    let mut below = Vec::new();
    loop {
        // The system hands out the lowest free number, so what comes before occupies the agreed ones.
        let duplicate = descriptor.try_clone()?;
        if duplicate.as_raw_fd() >= first_free(sockets) {
            return Ok(duplicate);
        }
        below.push(duplicate);
    }
}

/// The first number behind so many sockets and the pipe.
pub(crate) fn first_free(sockets: usize) -> RawFd {
    FIRST + sockets as RawFd + 1
}
