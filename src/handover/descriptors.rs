//! Descriptors that are agreed on by number, and the limits of a process: every `unsafe` of this crate.
//!
//! A successor finds the listening sockets at descriptor 3 and those that follow, where systemd puts them,
//! too, and the link behind them. A number says nothing about what is behind it, so each is looked at before
//! it is owned, and each is owned once.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::lock::lock;

/// The first listening socket. Below it are standard input, output and error.
pub(crate) const FIRST: RawFd = 3;

/// Locked while a descriptor is looked at and taken.
static TAKING: Mutex<()> = Mutex::new(());

/// Lends a descriptor that was handed to this process when it was executed. What comes through execve(2) is
/// not close-on-exec, and what Rust opens always is.
#[allow(unsafe_code)]
fn look_at(number: RawFd) -> Option<BorrowedFd<'static>> {
    if number < FIRST {
        return None;
    }
    // SAFETY: it is not -1. If it is not open, or is another descriptor than the one that was inherited, all
    // that happens to it is fcntl(2) F_GETFD, which has no effect. The callers beside `inherited` are in this
    // module, too, and borrow it for the length of system calls without an effect.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = FdFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFD).ok()?);
    (!flags.contains(FdFlag::FD_CLOEXEC)).then_some(descriptor)
}

/// Whether there is a descriptor under this number that was handed to this process when it was executed, and is
/// what `is_wanted` looks for.
pub(crate) fn is_inherited(number: RawFd, is_wanted: impl Fn(BorrowedFd<'_>) -> bool) -> bool {
    look_at(number).is_some_and(is_wanted)
}

/// Takes ownership of a descriptor that was handed to this process when it was executed, and makes it
/// close-on-exec. `None` if there is none under this number, or if it is not what `is_wanted` looks for.
#[allow(unsafe_code)]
pub(crate) fn inherited(number: RawFd, is_wanted: impl Fn(BorrowedFd<'_>) -> bool) -> Option<OwnedFd> {
    // Two servers may begin at the same time.
    let _taking = lock(&TAKING);
    let descriptor = look_at(number).filter(|descriptor| is_wanted(*descriptor))?;
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is open, and came with the process image. By the protocol between predecessor and successor,
    // and by sd_listen_fds(3), it is then meant for `serve`, which takes each number once, because now it is
    // close-on-exec: nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes ownership of descriptors that have just come through a Unix socket.
#[allow(unsafe_code)]
pub(crate) fn received(numbers: Vec<RawFd>) -> impl Iterator<Item = OwnedFd> {
    // SAFETY: the only caller has them from recvmsg(2), which has opened them for this process a moment ago,
    // and has reported the numbers to nobody else.
    numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) })
}

/// A duplicate whose number is at least `least`, close-on-exec.
#[allow(unsafe_code)]
pub(crate) fn duplicate_above(descriptor: impl AsFd, least: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: fcntl(2) has opened it for this process a moment ago, and nobody else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The numbers of the other descriptors that this process was started with, and that a child would inherit.
/// Without /proc there are none.
pub(crate) fn others_inherited() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&number| look_at(number).is_some()).collect()
}

/// Raises the limit of open descriptors as far as it may be raised: the soft limit is low for the sake of
/// programs that use select(2).
pub(crate) fn raise_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it there are fewer connections, and that is all.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Has malloc(3) use one arena if the address space is limited: glibc reserves 64 MiB of it for each of the
/// first threads, up to eight for each core, and then there is nothing left for connections.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub(crate) fn share_arena_if_limited() {
    if getrlimit(Resource::RLIMIT_AS).is_ok_and(|(soft, _)| soft != RLIM_INFINITY) {
        // SAFETY: it takes two numbers, and stores one, under malloc's own lock, that is read when a thread
        // allocates for the first time.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Other allocators have no arenas.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn share_arena_if_limited() {}

/// The number of the descriptor at `index` among those that are handed over.
pub(crate) fn number(index: usize) -> RawFd {
    FIRST + index as RawFd
}

/// Whether the number lies among those of so many descriptors.
pub(crate) fn is_among(number: RawFd, count: usize) -> bool {
    (FIRST..self::number(count)).contains(&number)
}
