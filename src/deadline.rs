//! Deadlines, and waiting for descriptors until one has passed.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long to wait before something is tried again that only time can help.
pub(crate) const BACK_OFF: Duration = Duration::from_millis(100);

pub(crate) fn after(duration: Duration) -> Instant {
    later(Instant::now(), duration)
}

/// The instant that lies this much later. Beyond a century it makes no difference, and could overflow.
pub(crate) fn later(instant: Instant, duration: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    instant + duration.min(CENTURY)
}

/// Makes a system call until no signal has interrupted it.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// For [`poll_until`]: there is something to read from a descriptor, or something to accept, or it has ended.
pub(crate) fn readable<Fd: AsFd>(descriptor: &Fd) -> PollFd<'_> {
    PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)
}

/// For [`poll_until`]: the other end of a socket has been closed. What is there to read does not matter.
pub(crate) fn hangup<Fd: AsFd>(descriptor: &Fd) -> PollFd<'_> {
    PollFd::new(descriptor.as_fd(), PollFlags::empty())
}

/// Whether the last [`poll_until`] has found this event.
pub(crate) fn has_come(event: &PollFd<'_>) -> bool {
    event.any() == Some(true)
}

/// Waits for one of the events, at most until the deadline, and returns whether one has come. Neither a
/// signal nor a lack of memory ends the wait.
pub(crate) fn poll_until(events: &mut [PollFd<'_>], deadline: Option<Instant>) -> bool {
    // In milliseconds, rounded up, so that a wait does not end just before the deadline and then spin.
    let timeout = |deadline: Instant| {
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
    };
    loop {
        match poll(events, deadline.map_or(PollTimeout::NONE, timeout)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            // Time may bring what poll(2) lacks.
            Err(_) => thread::sleep(BACK_OFF),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return false;
        }
    }
}
