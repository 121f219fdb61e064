//! Who is open. A drain counts this register and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::server::connection::{Common, Connection};

/// The open connections.
pub(crate) struct Register {
    open: Mutex<Open>,
    common: Arc<Common>,
    on_empty: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    next: u64,
}

impl Register {
    /// A register that calls `on_empty` when its last connection ends while the process is draining.
    pub(crate) fn new(common: Arc<Common>, on_empty: impl Fn() + Send + Sync + 'static) -> Register {
        Register { open: Mutex::default(), common, on_empty: Box::new(on_empty) }
    }

    /// What every connection is told.
    pub(crate) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// Enters a connection, which stays in the register for as long as the result lives.
    pub(crate) fn enter(self: &Arc<Self>, connection: Arc<Connection>) -> Registered {
        let mut open = self.lock();
        let id = open.next;
        open.next += 1;
        open.connections.insert(id, connection);
        Registered { id, register: Arc::clone(self) }
    }

    /// The number of open connections.
    pub(crate) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    /// The number of open connections on which a request is being read, handled or answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().connections.values().filter(|connection| connection.is_in_flight()).count()
    }

    /// Ends the connection that can best be spared, if one is idle, and none is on its way out already.
    pub(crate) fn evict_one(&self) {
        let open = self.lock();
        if open.connections.values().any(|connection| connection.is_leaving()) {
            return;
        }
        let idle =
            open.connections.values().filter_map(|connection| Some((connection.idleness()?, connection)));
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable_by_key(|&(idleness, _)| idleness);
        idle.into_iter().find(|(idleness, connection)| connection.evict(*idleness));
    }

    /// Ends every connection at once.
    pub(crate) fn cut(&self) {
        self.lock().connections.values().for_each(|connection| connection.cut());
    }

    /// Makes every response from now on the last of its connection.
    pub(crate) fn drain(&self) {
        self.common.set_draining(true);
        if self.len() == 0 {
            (self.on_empty)();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry in the register.
pub(crate) struct Registered {
    id: u64,
    register: Arc<Register>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = self.register.lock();
        let connection = open.connections.remove(&self.id);
        let empty = open.connections.is_empty();
        drop(open);
        // The descriptor is to be closed before anybody hears that there is room.
        drop(connection);
        self.register.common.offer_room();
        if empty && self.register.common.is_draining() {
            (self.register.on_empty)();
        }
    }
}
