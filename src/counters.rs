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
    /// A request was cut, because it was still in flight at the drain deadline or when a second stop came.
    pub lost: u64,
}

impl Counters {
    pub(crate) const NONE: Counters = Counters { accepted: 0, requests: 0, moved: 0, evicted: 0, lost: 0 };

    const NAMES: [&'static str; 5] = ["accepted", "requests", "moved", "evicted", "lost"];

    fn each(&mut self) -> [&mut u64; 5] {
        let Counters { accepted, requests, moved, evicted, lost } = self;
        [accepted, requests, moved, evicted, lost]
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
        let counts = Counters { accepted: 1, requests: 2, moved: 3, evicted: 4, lost: u64::MAX };
        assert_eq!(counts.to_string(), format!("accepted=1 requests=2 moved=3 evicted=4 lost={}", u64::MAX));
        assert_eq!(Counters::from_words(&counts.to_string()), counts);
        let mut sum = Counters::from_words("requests=5 unknown=7 moved=x lost=-1 accepted");
        sum += counts;
        assert_eq!(sum - counts, Counters { requests: 5, ..Counters::default() });
    }
}
