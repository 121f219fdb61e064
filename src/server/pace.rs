//! How fast a client must send or take one body, of a request or of a response.

use std::io;
use std::time::{Duration, Instant};

use crate::deadline::later;

/// A limit on the time for which a client is waited for, while it sends or takes one body; how long the server
/// itself takes does not matter. No step may be waited for longer than `patience`, and all of them together
/// no longer than that or, if that is more, than the bytes so far have earned at `min_rate` bytes a second.
pub(crate) struct Pace {
    patience: Duration,
    min_rate: u64,
    bytes: u64,
    waited: Duration,
    /// When the present step began, in time waited.
    step: Duration,
}

impl Pace {
    pub(crate) fn new(patience: Duration, min_rate: u64) -> Pace {
        Pace { patience, min_rate, bytes: 0, waited: Duration::ZERO, step: Duration::ZERO }
    }

    /// Begins a step: something that may be waited for as long as `patience`.
    pub(crate) fn begin_step(&mut self) {
        self.step = self.waited;
    }

    pub(super) fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Waits for the client, until the deadline that this gives.
    pub(super) fn wait(&mut self, wait: impl FnOnce(Instant) -> io::Result<()>) -> io::Result<()> {
        let begin = Instant::now();
        let result = wait(later(begin, self.left()));
        self.waited += begin.elapsed();
        result
    }

    /// How much longer the client may be waited for.
    fn left(&self) -> Duration {
        let earned = self.bytes.saturating_mul(1000).checked_div(self.min_rate).unwrap_or(u64::MAX);
        let in_all = self.patience.max(Duration::from_millis(earned));
        in_all.min(self.step.saturating_add(self.patience)).saturating_sub(self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_waited_for_as_long_as_its_step_and_its_rate_allow() {
        let seconds = Duration::from_secs;
        for (min_rate, bytes, waited, step, left) in [
            (500, 0, 0, 0, 30),
            (500, 0, 29, 10, 1),
            (500, 15_000, 30, 30, 0),
            (500, 20_000, 30, 30, 10),
            (500, 20_000, 30, 5, 5),
            (500, 1_000_000, 30, 30, 30),
            (u64::MAX, u64::MAX, 20, 20, 10),
            (1, u64::MAX, 30, 30, 30),
            (0, 0, 1000, 1000, 30),
            (0, 0, 1000, 980, 10),
        ] {
            let (waited, step) = (seconds(waited), seconds(step));
            let pace = Pace { patience: seconds(30), min_rate, bytes, waited, step };
            assert_eq!(pace.left(), seconds(left), "{min_rate} {bytes} {waited:?} {step:?}");
        }
        assert_eq!(Pace::new(Duration::MAX, 0).left(), Duration::MAX);
    }
}
