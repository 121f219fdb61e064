//! Accepting connections, and waiting while there is no capacity for another one.

use std::io::{self, ErrorKind};
use std::iter;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::poll::PollFd;

use crate::counters::Counters;
use crate::deadline::{BACK_OFF, after, has_come, poll_until, readable};
use crate::handover::moving::{Host, Received};
use crate::lock::lock;
use crate::options::Limits;
use crate::server::capacity::Capacity;
use crate::server::connection::Connection;
use crate::server::listener::Listener;
use crate::server::registry::Registry;
use crate::server::workers::{Worker, Workers};

/// How long there must have been capacity for the next lack of it to be logged as another one.
const CALM: Duration = Duration::from_secs(1);

/// The most connections accepted from a queue that is to be closed, which clients may keep filling.
const LONGEST_QUEUE: usize = 1 << 16;

/// The function that is run on each connection.
pub(crate) type Serve = dyn Fn(&Arc<Connection>) + Send + Sync;

pub(super) struct Acceptor {
    pub(super) listeners: Vec<Listener>,
    pub(super) limits: Arc<Mutex<Limits>>,
    pub(super) entrance: Arc<Entrance>,
    /// Locked while a connection is accepted, so that it is the last one when the gate has been shut.
    pub(super) gate: Mutex<Gate>,
}

/// Where connections come in, accepted or moved: each is entered in the registry, and served on a thread.
pub(super) struct Entrance {
    pub(super) registry: Arc<Registry>,
    pub(super) workers: Workers,
    pub(super) serve: Box<Serve>,
    pub(super) capacity: Option<Capacity>,
}

impl Entrance {
    /// Enters a connection in the registry. It is served when the result is called.
    fn enter(self: &Arc<Self>, worker: Worker, connection: Connection) -> Received {
        let (entered, entrance) = (self.registry.enter(connection), Arc::clone(self));
        Box::new(move || {
            let this = Arc::clone(&entrance);
            entered.1.arrive();
            entrance.workers.run(worker, move || {
                // In this order, because the last one is dropped first.
                let (_entry, connection) = entered;
                (this.serve)(&connection);
            });
        })
    }
}

/// What comes from another process.
pub(super) struct Arrivals {
    pub(super) entrance: Arc<Entrance>,
    /// A drain is not complete before the other process has ended.
    pub(super) are_expected: bool,
    pub(super) are_refused: bool,
    pub(super) count: AtomicUsize,
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        let count = *self.count.get_mut();
        if count > 0 {
            log::info!("received connections, moved={count}");
        }
        if self.are_expected {
            self.entrance.registry.end_arrivals();
        }
    }
}

impl Host for Arrivals {
    fn receive(&self, socket: OwnedFd, line: &[u8]) -> Option<Received> {
        if self.are_refused {
            return None;
        }
        let Entrance { workers, registry, capacity, .. } = &*self.entrance;
        if capacity.as_ref().is_some_and(|capacity| registry.open().len() >= capacity.connections) {
            return None;
        }
        let reserved = workers.reserve();
        let worker =
            reserved.inspect_err(|error| log::warn!("cannot take over a connection: {error}")).ok()?;
        let connection = Connection::from_line(socket, line, Arc::clone(registry))?;
        log::debug!("{}: moved here", connection.peer());
        registry.count(Counters { moved: 1, ..Counters::default() });
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(self.entrance.enter(worker, connection))
    }

    fn count(&self, counts: Counters) {
        self.entrance.registry.count(counts);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Shut,
    Open,
    /// Shut for good.
    Removed,
}

impl Acceptor {
    pub(super) fn set_gate(&self, gate: Gate) {
        *self.gate() = gate;
        self.entrance.registry.wake_acceptor();
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        lock(&self.gate)
    }

    /// Accepts while the gate is open, until it is removed. Nothing else ends this: whatever accept(2) fails
    /// with, the open connections are served, and a later attempt may succeed.
    pub(super) fn run(&self) {
        let sockets = self.listeners.iter().map(readable);
        let mut events: Vec<PollFd<'_>> =
            iter::once(readable(&self.entrance.registry.acceptor)).chain(sockets).collect();
        let mut last_obstacle: Option<Instant> = None;
        loop {
            let polled = match *self.gate() {
                Gate::Open => &mut events[..],
                Gate::Shut => &mut events[..1],
                Gate::Removed => return,
            };
            self.wait(polled, None);
            let ready = iter::zip(&self.listeners, &events[1..]).filter(|(_, event)| has_come(event));
            for (listener, _) in ready {
                let gate = self.gate();
                if *gate != Gate::Open {
                    break;
                }
                let accepted = self.accept_one(listener);
                drop(gate);
                if let Err(obstacle) = accepted {
                    self.entrance.registry.want_capacity();
                    if last_obstacle.replace(Instant::now()).is_none() {
                        let counted = Counters { at_capacity: 1, ..Counters::default() };
                        self.entrance.registry.count(counted);
                        log::warn!("at capacity: evicting idle connections, queueing new ones: {obstacle}");
                    }
                    // Meanwhile the listening sockets stay readable, so there is no use in polling them.
                    self.wait(&mut [readable(&self.entrance.registry.acceptor)], Some(after(BACK_OFF)));
                } else if last_obstacle.take_if(|last| last.elapsed() > CALM).is_some() {
                    log::info!("no longer at capacity");
                }
            }
        }
    }

    /// Waits for one of the events, of which the waker's is the first.
    fn wait(&self, events: &mut [PollFd<'_>], deadline: Option<Instant>) {
        poll_until(events, deadline);
        if has_come(&events[0]) {
            let _ = self.entrance.registry.acceptor.read();
        }
    }

    /// Accepts what is in the queue, whatever the gate, and returns how many that were.
    pub(super) fn accept_queued(&self, listener: &Listener) -> usize {
        (0..LONGEST_QUEUE).take_while(|_| matches!(self.accept_one(listener), Ok(true))).count()
    }

    /// How many connections may be open at a time: as many as are asked for, or as the system allows.
    fn most_connections(&self) -> usize {
        let most = lock(&self.limits).max_connections;
        self.entrance.capacity.as_ref().map_or(most, |capacity| most.min(capacity.connections))
    }

    /// Logs it if the system allows less than what is asked for.
    pub(super) fn report_capacity(&self) {
        let asked = lock(&self.limits).max_connections;
        if let Some(capacity) =
            self.entrance.capacity.as_ref().filter(|capacity| capacity.connections < asked)
        {
            let most = capacity.connections;
            log::warn!("max-connections={most} instead of {asked}: {capacity}");
        }
    }

    /// Accepts one connection; `false` if there is none. It is an error if there is no capacity: as many are
    /// open as may be, or descriptors, memory or threads are short.
    fn accept_one(&self, listener: &Listener) -> io::Result<bool> {
        let most = self.most_connections();
        if self.entrance.registry.open().len() >= most {
            return Err(io::Error::other(format!("{most} are open, which is the limit")));
        }
        let worker = self.entrance.workers.reserve()?;
        let accepted = listener.accept().and_then(|(socket, peer)| {
            let (local, registry) = (listener.address().clone(), Arc::clone(&self.entrance.registry));
            Connection::new(socket, peer, local, registry)
        });
        match accepted {
            Ok(connection) => {
                log::debug!("{}: connected", connection.peer());
                self.entrance.registry.count(Counters { accepted: 1, ..Counters::default() });
                self.entrance.enter(worker, connection)();
                Ok(true)
            }
            Err(error) => {
                self.entrance.workers.release(worker);
                match error.kind() {
                    // The other process of a handover may have been faster.
                    ErrorKind::WouldBlock => Ok(false),
                    // Only this connection cannot be accepted; see accept(2), "Error handling".
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => Ok(true),
                    _ => Err(error),
                }
            }
        }
    }
}
