//! The open connections, and the orders to all of them. A drain is complete when there are none.

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::deadline::Waker;
use crate::server::connection::{Activity, Connection};

/// The open connections, and what they share.
pub(crate) struct Registry {
    /// By the numbers of their descriptors, which stay taken for as long as they are in here.
    open: Mutex<HashMap<RawFd, Arc<Connection>>>,
    on_empty: Box<dyn Fn() + Send + Sync>,
    /// No further connection is accepted.
    pub(super) draining: AtomicBool,
    /// At its end of file when idle connections are to close.
    pub(super) idle_closed: PipeReader,
    /// The accept loop waits for a connection to end or become idle. Until one has, each response is the
    /// last of its connection.
    pub(super) capacity_wanted: AtomicBool,
    /// Wakes the accept loop.
    pub(super) acceptor: Waker,
}

impl Registry {
    /// A registry that calls `on_empty` when its last connection ends during a drain.
    pub(crate) fn new(
        idle_closed: PipeReader,
        on_empty: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Registry> {
        Ok(Registry {
            open: Mutex::default(),
            on_empty: Box::new(on_empty),
            draining: AtomicBool::new(false),
            idle_closed,
            capacity_wanted: AtomicBool::new(false),
            acceptor: Waker::new()?,
        })
    }

    /// Enters a connection. It is to be dropped before the entry, with which it leaves the registry.
    pub(super) fn enter(self: &Arc<Self>, connection: Connection) -> (Entry, Arc<Connection>) {
        let (descriptor, connection) = (connection.descriptor(), Arc::new(connection));
        self.lock().insert(descriptor, Arc::clone(&connection));
        (Entry { descriptor, registry: Arc::clone(self) }, connection)
    }

    /// The number of open connections.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The number of open connections with a request in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.lock().values().filter(|each| matches!(each.activity(), Activity::InFlight { .. })).count()
    }

    /// Ends every connection at once.
    pub(super) fn cut(&self) {
        self.lock().values().for_each(|connection| connection.cut());
    }

    /// Makes each response from now on the last of its connection.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        if self.len() == 0 {
            (self.on_empty)();
        }
    }

    /// Wakes the accept loop when a connection ends or becomes idle. For that the idle one that can best be
    /// spared is evicted, unless an evicted one is about to end.
    pub(super) fn want_capacity(&self) {
        self.capacity_wanted.store(true, Ordering::SeqCst);
        let open = self.lock();
        let mut idle = Vec::new();
        for connection in open.values() {
            match connection.activity() {
                Activity::Evicted => return,
                activity => idle.extend(activity.idleness().map(|idleness| (idleness, connection))),
            }
        }
        idle.sort_unstable_by_key(|&(idleness, _)| idleness);
        idle.into_iter().find(|(_, connection)| connection.evict());
    }

    /// A connection has ended or become idle.
    pub(super) fn offer_capacity(&self) {
        if self.capacity_wanted.swap(false, Ordering::SeqCst) {
            self.acceptor.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a connection in the registry.
pub(super) struct Entry {
    descriptor: RawFd,
    registry: Arc<Registry>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.registry.lock();
        let connection = open.remove(&self.descriptor);
        let is_empty = open.is_empty();
        drop(open);
        // The descriptor is closed before its capacity is offered.
        drop(connection);
        self.registry.offer_capacity();
        if is_empty && self.registry.draining.load(Ordering::SeqCst) {
            (self.registry.on_empty)();
        }
    }
}
