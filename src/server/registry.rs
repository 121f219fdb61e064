//! The open connections, and what they share. A drain is complete when there are none, and none
//! will be moved here.

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::iter;
use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::counters::Counters;
use crate::handover::moving::{Mover, Offer};
use crate::lock::lock;
use crate::server::connection::{Activity, Connection};

/// By the numbers of their descriptors, which stay taken for at least as long as they are in here.
type Open = HashMap<RawFd, Arc<Connection>>;

pub(crate) struct Registry {
    /// What is spoken on the connections, as the line about one that is moved begins; HTTP is not named.
    pub(super) protocol: String,
    open: Mutex<Open>,
    /// A process that is about to end may move its connections here, so that a drain is not complete.
    pub(super) expects_arrivals: AtomicBool,
    on_empty: Box<dyn Fn() + Send + Sync>,
    /// No further connection is accepted, and each response is the last of its connection, unless that can be
    /// moved.
    pub(super) draining: AtomicBool,
    /// Readable while that is so.
    pub(super) drain_begun: EventFd,
    /// The end of the drain, if there is one.
    pub(super) deadline: Mutex<Option<Instant>>,
    mover: Mutex<Option<Arc<Mover>>>,
    /// Readable when the threads of idle connections are to look what has become of these. It is another one
    /// after each drain, because a thread may take its time.
    moving: Mutex<Arc<EventFd>>,
    /// How many connections have been moved to another process in the last drain.
    pub(super) moved: AtomicU64,
    /// Without the requests on the open connections.
    counts: Mutex<Counters>,
    /// At its end of file when idle connections are to close.
    pub(super) idle_closed: PipeReader,
    /// The accept loop waits for a connection to end or become idle. Until one has, each response is the
    /// last of its connection.
    capacity_wanted: AtomicBool,
    /// No idle connection can make room, so that the next one on which a request is slow to come is to.
    evicts_slow: AtomicBool,
    /// Wakes the accept loop.
    pub(super) acceptor: EventFd,
}

impl Registry {
    /// A registry that calls `on_empty` when its last connection ends during a drain.
    pub(crate) fn new(
        protocol: String,
        idle_closed: PipeReader,
        on_empty: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Registry> {
        Ok(Registry {
            protocol,
            open: Mutex::default(),
            expects_arrivals: AtomicBool::new(false),
            on_empty: Box::new(on_empty),
            draining: AtomicBool::new(false),
            drain_begun: event()?,
            deadline: Mutex::default(),
            mover: Mutex::default(),
            moving: Mutex::new(Arc::new(event()?)),
            moved: AtomicU64::new(0),
            counts: Mutex::default(),
            idle_closed,
            capacity_wanted: AtomicBool::new(false),
            evicts_slow: AtomicBool::new(false),
            acceptor: event()?,
        })
    }

    /// Whether no connection is open, and none will be moved here.
    pub(super) fn is_empty(&self) -> bool {
        !self.expects_arrivals.load(Ordering::SeqCst) && self.open().is_empty()
    }

    pub(super) fn report_if_empty(&self) {
        if self.draining.load(Ordering::SeqCst) && self.is_empty() {
            (self.on_empty)();
        }
    }

    /// The process that might have moved connections here will move none any more.
    pub(super) fn end_arrivals(&self) {
        self.expects_arrivals.store(false, Ordering::SeqCst);
        // Whether this one drains or not: a predecessor is there no longer.
        (self.on_empty)();
    }

    /// What moves connections to the other process of a handover.
    pub(super) fn mover(&self) -> MutexGuard<'_, Option<Arc<Mover>>> {
        lock(&self.mover)
    }

    /// Counts something.
    pub(super) fn count(&self, counts: Counters) {
        *lock(&self.counts) += counts;
    }

    pub(super) fn counts(&self) -> Counters {
        // Locked meanwhile, so that no connection ends and is counted twice.
        let open = self.open();
        let mut counts = *lock(&self.counts);
        counts.requests += open.values().map(|connection| connection.requests()).sum::<u64>();
        counts
    }

    pub(super) fn in_flight(&self) -> usize {
        let is_in_flight = |each: &&Arc<Connection>| matches!(*each.activity(), Activity::InFlight { .. });
        self.open().values().filter(is_in_flight).count()
    }

    pub(super) fn is_moving(&self) -> bool {
        self.draining.load(Ordering::SeqCst) && self.mover().is_some()
    }

    /// What moves connections during the next drain.
    pub(super) fn set_mover(&self, mover: Option<Mover>) {
        let before = mem::replace(&mut *self.mover(), mover.map(Arc::new));
        if let Some(mover) = before {
            mover.report(self.counts());
            self.moved.fetch_add(mover.finish(), Ordering::Relaxed);
        }
    }

    /// From now on each response is the last of its connection, unless that can be moved; each connection is
    /// as soon as no request is in flight.
    pub(super) fn drain(self: &Arc<Self>) {
        self.draining.store(true, Ordering::SeqCst);
        // It fails only if that has been said more often than can be counted.
        let _ = self.drain_begun.write(1);
        if let Some(mover) = self.mover().clone() {
            let connections = self.open().values().map(Arc::downgrade).collect();
            mover.send_idle(Idle { connections, registry: Arc::clone(self) });
        }
        self.report_if_empty();
    }

    /// A drain has ended, if there was one.
    pub(super) fn resume(&self) {
        if !self.draining.swap(false, Ordering::SeqCst) {
            return;
        }
        let _ = self.drain_begun.read();
        self.set_mover(None);
        match event() {
            Ok(event) => *lock(&self.moving) = Arc::new(event),
            // Those that have not looked yet will when something comes, or nothing has for long enough.
            Err(_) => drop(self.moving().read()),
        }
    }

    pub(super) fn moving(&self) -> Arc<EventFd> {
        Arc::clone(&lock(&self.moving))
    }

    /// The open connections, locked.
    pub(super) fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Enters a connection. It is to be dropped before the entry, with which it leaves the registry.
    pub(super) fn enter(self: &Arc<Self>, connection: Connection) -> (Entry, Arc<Connection>) {
        let connection = Arc::new(connection);
        self.open().insert(connection.descriptor(), Arc::clone(&connection));
        (Entry { connection: Some(Arc::clone(&connection)), registry: Arc::clone(self) }, connection)
    }

    /// A connection is no longer here, but perhaps its descriptor is.
    pub(super) fn leave(&self, connection: &Arc<Connection>) {
        let mut open = self.open();
        // Otherwise it has left before.
        if open.get(&connection.descriptor()).is_some_and(|entered| Arc::ptr_eq(entered, connection)) {
            open.remove(&connection.descriptor());
            self.count(Counters { requests: connection.requests(), ..Counters::default() });
        }
    }

    /// Has the accept loop woken when a connection ends or becomes idle. For that the idle one that can best
    /// be spared is evicted, unless an evicted one is about to end. If none is idle, or will be in a moment,
    /// one [ends](Self::evicts_slow) on which a request is slow to come.
    pub(super) fn want_capacity(&self) {
        self.evicts_slow.store(false, Ordering::SeqCst);
        self.capacity_wanted.store(true, Ordering::SeqCst);
        let open = self.open();
        let mut idle = Vec::new();
        let (mut may_evict_used, mut may_evict_slow) = (true, true);
        for connection in open.values() {
            match &*connection.activity() {
                Activity::Evicted => return,
                // It is spared for a moment only, and goes before one that has been of use.
                Activity::Waiting { used: false, idle_since: None } => {
                    (may_evict_used, may_evict_slow) = (false, false);
                }
                activity @ (Activity::Waiting { idle_since: Some(_), .. } | Activity::Lingering { .. }) => {
                    match activity.idleness() {
                        Some(idleness) => idle.push((idleness, connection)),
                        // It lingers, and is spared for a moment, too.
                        None => may_evict_slow = false,
                    }
                }
                _ => {}
            }
        }
        idle.sort_unstable_by_key(|&(idleness, _)| idleness);
        let mut idle = idle.into_iter().filter(|((used, _), _)| may_evict_used || !used);
        if idle.any(|(_, connection)| connection.evict()) {
            self.count(Counters { evicted: 1, ..Counters::default() });
        } else {
            self.evicts_slow.store(may_evict_slow, Ordering::SeqCst);
        }
    }

    /// Whether connections have to make room. During a drain none is accepted for which they would.
    pub(super) fn wants_capacity(&self) -> bool {
        self.capacity_wanted.load(Ordering::SeqCst) && !self.draining.load(Ordering::SeqCst)
    }

    /// Whether a connection on which a request is slow to come has to make room; of several, the first to ask.
    pub(super) fn evicts_slow(&self) -> bool {
        self.wants_capacity() && self.evicts_slow.swap(false, Ordering::SeqCst)
    }

    /// A connection has ended or become idle.
    pub(super) fn offer_capacity(&self) {
        if self.capacity_wanted.swap(false, Ordering::SeqCst) {
            self.wake_acceptor();
        }
    }

    pub(super) fn wake_acceptor(&self) {
        // It fails only if it has been woken more often than can be counted.
        let _ = self.acceptor.write(1);
    }
}

fn event() -> nix::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
}

/// Keeps a connection in the registry.
pub(super) struct Entry {
    connection: Option<Arc<Connection>>,
    registry: Arc<Registry>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // The descriptor is closed before its capacity is offered.
        self.connection.take().iter().for_each(|connection| self.registry.leave(connection));
        self.registry.offer_capacity();
        self.registry.report_if_empty();
    }
}

/// The connections that are idle, to be moved without their threads, which are woken when that is done.
struct Idle {
    /// One that ends meanwhile is closed at once, as its client may wait for that.
    connections: Vec<Weak<Connection>>,
    registry: Arc<Registry>,
}

impl Iterator for Idle {
    type Item = Offer;

    fn next(&mut self) -> Option<Offer> {
        iter::from_fn(|| self.connections.pop()).find_map(|connection| connection.upgrade()?.offer_if_idle())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // It fails only if it has been written more often than can be counted.
        let _ = self.registry.moving().write(1);
    }
}
