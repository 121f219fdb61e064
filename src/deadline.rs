//! Until when something may take.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// The instant so much later than now.
pub(crate) fn after(duration: Duration) -> Instant {
    later(Instant::now(), duration)
}

/// The instant so much later. A century is as good as any time beyond it, and no overflow.
pub(crate) fn later(instant: Instant, duration: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    instant + duration.min(CENTURY)
}

/// How long poll(2) may take until then.
pub(crate) fn timeout_until(deadline: Instant) -> PollTimeout {
    timeout(deadline.saturating_duration_since(Instant::now()))
}

/// In milliseconds, rounded up, so that a wait never ends before its time and then spins through the rest.
pub(crate) fn timeout(duration: Duration) -> PollTimeout {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}
