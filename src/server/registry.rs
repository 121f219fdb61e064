//! The open connections, and what they share. A drain is complete when there are none.

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::server::connection::{Activity, Connection};

/// By the numbers of their descriptors, which stay taken for as long as they are in here.
type Connections = HashMap<RawFd, Arc<Connection>>;

pub(crate) struct Registry {
    open: Mutex<Connections>,
    pub(super) on_empty: Box<dyn Fn() + Send + Sync>,
    /// No further connection is accepted, and each response is the last of its connection.
    pub(super) draining: AtomicBool,
    /// At its end of file when idle connections are to close.
    pub(super) idle_closed: PipeReader,
    /// The accept loop waits for a connection to end or become idle. Until one has, each response is the
    /// last of its connection.
    pub(super) capacity_wanted: AtomicBool,
    /// Wakes the accept loop.
    pub(super) acceptor: EventFd,
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
            acceptor: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// The open connections, locked.
    pub(super) fn open(&self) -> MutexGuard<'_, Connections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection. It is to be dropped before the entry, with which it leaves the registry.
    pub(super) fn enter(self: &Arc<Self>, connection: Connection) -> (Entry, Arc<Connection>) {
        let (descriptor, connection) = (connection.descriptor(), Arc::new(connection));
        self.open().insert(descriptor, Arc::clone(&connection));
        (Entry { descriptor, registry: Arc::clone(self) }, connection)
    }

    /// Has the accept loop woken when a connection ends or becomes idle. For that the idle one that can best
    /// be spared is evicted, unless an evicted one is about to end.
    pub(super) fn want_capacity(&self) {
        self.capacity_wanted.store(true, Ordering::SeqCst);
        let open = self.open();
        let mut idle = Vec::new();
        let mut may_evict_used = true;
        for connection in open.values() {
            match &*connection.activity() {
                Activity::Evicted => return,
                // It is spared for a moment only, and goes before one that has been of use.
                Activity::Waiting { used: false, idle_since: None } => may_evict_used = false,
                activity => idle.extend(activity.idleness().map(|idleness| (idleness, connection))),
            }
        }
        idle.sort_unstable_by_key(|&(idleness, _)| idleness);
        let mut idle = idle.into_iter().filter(|((used, _), _)| may_evict_used || !used);
        idle.find(|(_, connection)| connection.evict());
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

/// Keeps a connection in the registry.
pub(super) struct Entry {
    descriptor: RawFd,
    registry: Arc<Registry>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.registry.open();
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
