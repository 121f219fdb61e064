//! What other threads see of a process: its loop publishes it, and they may wait for a change.

use std::env;
use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::deadline::after;
use crate::events::{Event, Poster};
use crate::lock::lock;
use crate::status::{State, Status};

/// The connections of a process, as they are at the moment.
#[derive(Default)]
pub(crate) struct Usage {
    pub(crate) open: usize,
    pub(crate) in_flight: usize,
    pub(crate) counters: Counters,
}

pub(crate) struct Watch {
    executable: PathBuf,
    begin: Instant,
    published: Mutex<Published>,
    changed: Condvar,
    /// `None` until there can be connections.
    usage: OnceLock<Box<dyn Fn() -> Usage + Send + Sync>>,
    /// What keeps a drain from being complete beside connections.
    holds: AtomicUsize,
    /// The state of the program for a successor.
    handed_on_state: Mutex<Option<Vec<u8>>>,
    poster: Poster,
}

#[derive(Clone, PartialEq)]
pub(crate) struct Published {
    pub(crate) state: State,
    pub(crate) predecessors: usize,
    pub(crate) version: String,
    pub(crate) generation: u64,
    pub(crate) handover: Option<Instant>,
    /// It accepts no connections any more, none is open, and none will be moved here.
    pub(crate) is_done: bool,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status().fmt(f)
    }
}

impl Watch {
    pub(crate) fn status(&self) -> Status {
        let Published { state, predecessors, version, generation, handover, .. } = self.published().clone();
        let Usage { open, in_flight, counters } =
            self.usage.get().map_or_else(Usage::default, |usage| usage());
        Status {
            pid: process::id(),
            state,
            version,
            uptime: self.begin.elapsed(),
            connections: open,
            in_flight,
            generation,
            predecessors,
            counters,
            since_handover: handover.map(|handover| handover.elapsed()),
            executable: self.executable.clone(),
        }
    }

    /// Waits until the condition holds, at most for `timeout`, and no longer than something can change.
    pub(crate) fn wait_until(
        &self,
        timeout: Duration,
        condition: impl Fn(&Status) -> bool,
    ) -> Option<Status> {
        let deadline = after(timeout);
        loop {
            let before = self.published().clone();
            // Nothing is locked meanwhile, because the condition may use the handle.
            let status = self.status();
            if condition(&status) {
                return Some(status);
            }
            let mut published = self.published();
            while *published == before {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || before.state == State::Ended {
                    return None;
                }
                let waited = self.changed.wait_timeout(published, left);
                published = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    pub(crate) fn post(&self, event: Event) {
        self.poster.post(event);
    }

    pub(crate) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        if self.holds.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.post(Event::Drained);
        }
    }

    pub(crate) fn holds(&self) -> usize {
        self.holds.load(Ordering::SeqCst)
    }

    pub(crate) fn hand_on_state(&self, state: Vec<u8>) {
        *lock(&self.handed_on_state) = Some(state);
    }

    pub(crate) fn handed_on_state(&self) -> Option<Vec<u8>> {
        lock(&self.handed_on_state).clone()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.published().generation
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        lock(&self.published)
    }
}

/// What publishes. When it is dropped, the process has ended.
pub(crate) struct Publisher(Arc<Watch>);

impl Publisher {
    pub(crate) fn new(version: &str, poster: Poster) -> Publisher {
        let published = Published {
            state: State::Starting,
            predecessors: 0,
            version: version.to_owned(),
            generation: 1,
            handover: None,
            is_done: false,
        };
        Publisher(Arc::new(Watch {
            executable: env::current_exe().unwrap_or_default(),
            begin: Instant::now(),
            published: Mutex::new(published),
            changed: Condvar::new(),
            usage: OnceLock::new(),
            holds: AtomicUsize::new(0),
            handed_on_state: Mutex::default(),
            poster,
        }))
    }

    pub(crate) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.0)
    }

    /// Changes what is published, and wakes those that wait for a change.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut Published)) {
        let mut published = self.published();
        let before = published.clone();
        change(&mut published);
        if *published != before {
            self.changed.notify_all();
        }
    }

    /// From now on there can be connections.
    pub(crate) fn set_usage(&self, usage: impl Fn() -> Usage + Send + Sync + 'static) {
        let _ = self.usage.set(Box::new(usage));
    }
}

impl Deref for Publisher {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.0
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.publish(|published| published.state = State::Ended);
    }
}
