//! What a connection is doing, and how that changes.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use super::{Connection, MOMENT};
use crate::deadline::after;
use crate::lock::lock;

/// What a connection is doing.
#[derive(PartialEq)]
pub(in crate::server) enum Activity {
    /// A request may be on its way, `used` if it is not the first one; `idle_since` if none has come for a
    /// while.
    Waiting { used: bool, idle_since: Option<Instant> },
    /// It is on its way to the other process of a handover, which may read from it already, or from there,
    /// which may not have let it go. It has been waiting since then.
    Moving { used: bool, since: Instant },
    /// It is the other process's.
    Moved,
    /// It ends when its client has read the last response.
    Lingering { since: Instant },
    /// A request is being read, handled or answered. It is the last one if it came in the very moment in
    /// which the connection was `evicted`.
    InFlight { evicted: bool },
    /// It is about to end, to make room for another connection.
    Evicted,
    /// It was ended in the midst of a request.
    Cut,
}

/// How long a connection does not count as idle after its last response, which could still be on its way.
const SPARED: Duration = Duration::from_millis(100);

impl Connection {
    /// Returns since when the connection has been waiting for a request.
    pub(super) fn become_idle(&self) -> Instant {
        let begin = Instant::now() - MOMENT;
        match &mut *self.activity() {
            Activity::Waiting { idle_since, .. } => *idle_since.get_or_insert(begin),
            _ => begin,
        }
    }

    /// The connection is not idle any more; `false` if it has been moved instead.
    pub(crate) fn become_busy(&self) -> bool {
        let mut activity = self.settled();
        if let Activity::Waiting { idle_since, .. } = &mut *activity {
            *idle_since = None;
        }
        let is_here = *activity != Activity::Moved;
        drop(activity);
        // The successor that has refused it may be gone, and the next one may not refuse it.
        self.kept.fetch_and(self.registry.is_moving(), Ordering::Relaxed);
        is_here
    }

    /// The connection ends when its client has read the last response, which may still be on its way.
    pub(in crate::server) fn become_lingering(&self) {
        let mut activity = self.activity();
        if let Activity::Waiting { .. } = *activity {
            *activity = Activity::lingering();
        }
    }

    /// Whether this connection, on which a request is slow to come, has to make room for another one. From now on it
    /// lingers, so that no further one has to meanwhile.
    pub(super) fn makes_room(&self) -> bool {
        let mut activity = self.activity();
        let makes_room = self.registry.evicts_slow();
        if makes_room {
            *activity = Activity::lingering();
        }
        makes_room
    }

    /// Runs an exchange. Until it returns, the connection has a request in flight.
    pub(crate) fn in_flight<T>(&self, exchange: impl FnOnce() -> T) -> T {
        self.begin_exchange();
        self.count_request();
        let result = exchange();
        self.end_exchange(true, None);
        result
    }

    /// Begins an exchange, unless the connection has been moved. Returns since when it had been idle, if it had.
    pub(crate) fn begin_exchange(&self) -> Option<Instant> {
        let mut activity = self.settled();
        let idle_since = match *activity {
            Activity::Moved => return None,
            Activity::Waiting { idle_since, .. } => idle_since,
            _ => None,
        };
        *activity = Activity::InFlight { evicted: matches!(*activity, Activity::Evicted) };
        idle_since
    }

    /// Ends an exchange, if one has begun. The connection is `used` if a request has come on it.
    pub(crate) fn end_exchange(&self, used: bool, idle_since: Option<Instant>) {
        let mut activity = self.activity();
        match *activity {
            Activity::InFlight { evicted: true } => *activity = Activity::Evicted,
            Activity::InFlight { .. } => *activity = Activity::Waiting { used, idle_since },
            _ => {}
        }
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Evicts the connection if it is idle and no request has come, and returns whether it did.
    pub(in crate::server) fn evict(&self) -> bool {
        let mut activity = self.activity();
        // What comes on one that lingers is of no use any more.
        let lingers = matches!(*activity, Activity::Lingering { .. });
        if activity.idleness().is_none() || (!lingers && self.has_unread()) {
            return false;
        }
        *activity = Activity::Evicted;
        // This wakes its thread. A request that comes in this very moment is answered, unless a part of it
        // comes later.
        let _ = shutdown(self.descriptor(), Shutdown::Read);
        true
    }

    /// Ends the connection, unless it may be another process's already.
    pub(in crate::server) fn cut(&self) {
        let mut activity = self.activity();
        match *activity {
            Activity::Moving { .. } | Activity::Moved => return,
            Activity::InFlight { .. } => *activity = Activity::Cut,
            _ => {}
        }
        let _ = shutdown(self.descriptor(), Shutdown::Both);
    }

    pub(crate) fn is_cut(&self) -> bool {
        *self.activity() == Activity::Cut
    }

    /// Whether it is another process's now.
    pub(crate) fn is_moved(&self) -> bool {
        *self.settled() == Activity::Moved
    }

    /// What it is doing, as soon as it is not on its way any more.
    pub(super) fn settled(&self) -> MutexGuard<'_, Activity> {
        let is_moving = |activity: &mut Activity| matches!(activity, Activity::Moving { .. });
        self.decided.wait_while(self.activity(), is_moving).unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::server) fn activity(&self) -> MutexGuard<'_, Activity> {
        lock(&self.activity)
    }
}

impl Activity {
    pub(super) const NEW: Activity = Activity::Waiting { used: false, idle_since: None };

    /// From now on, and not idle before the last response can have been read.
    fn lingering() -> Activity {
        Activity::Lingering { since: after(SPARED) }
    }

    /// If the connection is idle, a key by which the one that can best be spared comes first: one that has
    /// never had a request before one that has been of use, and then the one that has been idle for longest.
    pub(in crate::server) fn idleness(&self) -> Option<(bool, Instant)> {
        let idleness = match *self {
            Activity::Waiting { used, idle_since: Some(since) } => (used, since),
            Activity::Lingering { since } => (true, since),
            _ => return None,
        };
        (idleness.1.elapsed() >= MOMENT).then_some(idleness)
    }
}
