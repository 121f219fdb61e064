//! What has been done since the first process began: each process goes on with the numbers of the one before.

use std::fmt;
use std::ops::{AddAssign, Sub};

/// How often something has happened since the first process of a line began, as far as this process has been told:
/// one that is killed takes with it what it has not said. As text they are a part of [`Status`](crate::Status).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// A connection was accepted.
    pub accepted: u64,
    /// A request came.
    pub requests: u64,
    /// A connection was taken over from another process.
    pub moved: u64,
    /// An idle connection was closed to make room for another one.
    pub evicted: u64,
    /// There was no capacity for another connection, so that new ones had to wait in the kernel's queue; once for
    /// each time that the log says `at capacity`.
    pub at_capacity: u64,
    /// A request was refused with 408 before its time, because it was slow to come and another connection waited.
    /// No other client is turned away at the limit: one waits, and an idle one is `evicted`.
    pub refused: u64,
    /// A request was cut, because it was still in flight at the drain deadline or when a second stop came.
    pub lost: u64,
    /// A successor began to serve.
    pub handovers: u64,
    /// A successor was not started, did not become ready, or died, so that its predecessor served on or again. If
    /// it had begun to serve, it has been counted among the `handovers`, too.
    pub handovers_failed: u64,
}

impl Counters {
    const NAMES: [&'static str; 9] = [
        "accepted",
        "requests",
        "moved",
        "evicted",
        "at-capacity",
        "refused",
        "lost",
        "handovers",
        "handovers-failed",
    ];

    fn each(&mut self) -> [&mut u64; 9] {
        let Counters {
            accepted,
            requests,
            moved,
            evicted,
            at_capacity,
            refused,
            lost,
            handovers,
            handovers_failed,
        } = self;
        [accepted, requests, moved, evicted, at_capacity, refused, lost, handovers, handovers_failed]
    }

    /// What their [`Display`](fmt::Display) says. What it does not mention is 0, and what is unknown, because
    /// another version has counted it, is passed over.
    pub(crate) fn from_words(words: &str) -> Counters {
        let mut counts = Counters::default();
        for (name, value) in words.split(' ').filter_map(|word| word.split_once('=')) {
            let index = Counters::NAMES.iter().position(|known| *known == name);
            if let (Some(index), Ok(value)) = (index, value.parse()) {
                *counts.each()[index] = value;
            }
        }
        counts
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = *self;
        let words = Counters::NAMES.iter().zip(counts.each()).map(|(name, value)| format!("{name}={value}"));
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, mut other: Counters) {
        for (value, more) in self.each().into_iter().zip(other.each()) {
            *value = value.saturating_add(*more);
        }
    }
}

impl Sub for Counters {
    type Output = Counters;

    fn sub(mut self, mut other: Counters) -> Counters {
        for (value, less) in self.each().into_iter().zip(other.each()) {
            *value = value.saturating_sub(*less);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn counts_survive_their_way_through_words() {
        let counts = Counters { accepted: 1, requests: 2, handovers_failed: u64::MAX, ..Counters::default() };
        let words = "accepted=1 requests=2 moved=0 evicted=0 at-capacity=0 refused=0 lost=0 handovers=0";
        assert_eq!(counts.to_string(), format!("{words} handovers-failed={}", u64::MAX));
        assert_eq!(Counters::from_words(&counts.to_string()), counts);
        let mut sum = Counters::from_words("requests=5 unknown=7 moved=x lost=-1 accepted");
        sum += counts;
        assert_eq!(sum - counts, Counters { requests: 5, ..Counters::default() });
    }
}
