//! One connection, and what it is doing.

mod moving;
mod pair;
mod transfer;

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::deadline::{after, has_come, later, poll_until, readable};
use crate::lock::lock;
use crate::server::address::Address;
use crate::server::registry::Registry;

/// The client at the other end of a connection; a local one has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Network(SocketAddr),
    Local,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Network(address) => address.fmt(f),
            Peer::Local => f.write_str("local"),
        }
    }
}

pub(crate) struct Connection {
    socket: OwnedFd,
    peer: Peer,
    local: Address,
    registry: Arc<Registry>,
    activity: Mutex<Activity>,
    /// It has been moved or refused.
    decided: Condvar,
    /// What goes with a stream when it is moved, and what has come with it.
    state: Mutex<Option<Vec<u8>>>,
    /// The successor has refused it, so it ends with its next response.
    kept: AtomicBool,
    requests: AtomicU64,
}

/// What a connection is doing.
#[derive(PartialEq)]
pub(super) enum Activity {
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

/// How long a connection is not idle yet, because its next request is likely to come soon.
const MOMENT: Duration = Duration::from_millis(20);

/// How long a connection does not count as idle after its last response, which could still be on its way.
const SPARED: Duration = Duration::from_millis(100);

/// How long a connection that was refused waits before it is offered again.
const SECOND_OFFER: Duration = Duration::from_secs(1);

/// The receive timeout (socket(7), SO_RCVTIMEO) of a connection.
pub(super) fn moment() -> TimeVal {
    TimeVal::microseconds(MOMENT.as_micros() as i64)
}

impl Connection {
    /// One that has just been accepted.
    pub(crate) fn new(
        socket: OwnedFd,
        peer: Peer,
        local: Address,
        registry: Arc<Registry>,
    ) -> io::Result<Connection> {
        Connection::waiting(socket, peer, local, registry, Activity::NEW)
    }

    fn waiting(
        socket: OwnedFd,
        peer: Peer,
        local: Address,
        registry: Arc<Registry>,
        activity: Activity,
    ) -> io::Result<Connection> {
        // One from the network has inherited it, if it was accepted here.
        if peer == Peer::Local || activity != Activity::NEW {
            setsockopt(&socket, sockopt::ReceiveTimeout, &moment())?;
        }
        let (activity, decided, state) = (Mutex::new(activity), Condvar::new(), Mutex::default());
        let (kept, requests) = (false.into(), 0.into());
        Ok(Connection { socket, peer, local, registry, activity, decided, state, kept, requests })
    }

    /// How many requests have come on it in this process.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// The address of the listening socket.
    pub(crate) fn local(&self) -> &Address {
        &self.local
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.registry.draining.load(Ordering::SeqCst)
    }

    /// The end of the drain, if there is one.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        *lock(&self.registry.deadline)
    }

    /// Whether requests have been answered on it.
    pub(crate) fn is_used(&self) -> bool {
        matches!(*self.settled(), Activity::Waiting { used: true, .. })
    }

    /// Whether this connection ends with the next response.
    pub(crate) fn is_ending(&self) -> bool {
        (self.is_draining() && !self.is_moving()) || self.registry.wants_capacity() || self.is_evicted()
    }

    fn is_evicted(&self) -> bool {
        matches!(*self.activity(), Activity::InFlight { evicted: true })
    }

    /// Whether it is to be moved to the other process of a handover when no request is in flight.
    pub(crate) fn is_moving(&self) -> bool {
        self.registry.is_moving() && !self.kept.load(Ordering::Relaxed)
    }

    /// Waits for the beginning of a request, as long as `patience` from the last response on, and reads it; 0
    /// if there will be none: at the end of the input, at the deadline, when idle connections are closed, and
    /// when the connection has been moved. All that was read before has been used.
    ///
    /// For the first [`MOMENT`] the connection is not idle. Its thread waits in recv(2) alone then, which
    /// nothing but input ends, instead of in poll(2) before it. With 32 clients that saves an eighth of the
    /// CPU time; a stop or a drain takes at most that moment longer for it.
    pub(crate) fn read_request(self: &Arc<Self>, buffer: &mut [u8], patience: Duration) -> io::Result<usize> {
        self.kept.store(false, Ordering::Relaxed);
        // One that has been moved here while it was idle still is.
        let is_idle = matches!(*self.activity(), Activity::Waiting { idle_since: Some(_), .. });
        if !is_idle && !self.is_moving() {
            match recv(self.descriptor(), buffer, MsgFlags::empty()) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
        let deadline = later(self.become_idle(), patience);
        let is_input = loop {
            if self.registry.is_moving() {
                self.move_away();
            }
            if *self.settled() == Activity::Moved {
                return Ok(0);
            }
            self.registry.offer_capacity();
            let (moving, is_draining) = (self.registry.moving(), self.is_draining());
            let mut events =
                [readable(&self.socket), readable(&self.registry.idle_closed), readable(&*moving)];
            if is_draining {
                // Perhaps it has been refused.
                poll_until(&mut events[..2], Some(deadline.min(after(SECOND_OFFER))));
            } else {
                poll_until(&mut events, Some(deadline));
            }
            if has_come(&events[0]) || has_come(&events[1]) || Instant::now() >= deadline {
                break has_come(&events[0]);
            }
        };
        // From here on it cannot be moved or evicted, so that nothing is lost that is read now. A request that
        // has come is answered, even if idle connections are closed at the same time.
        if self.become_busy() && is_input { self.read(buffer, deadline) } else { Ok(0) }
    }

    /// Returns since when the connection has been waiting for a request.
    fn become_idle(&self) -> Instant {
        let begin = Instant::now() - MOMENT;
        match &mut *self.activity() {
            Activity::Waiting { idle_since, .. } => *idle_since.get_or_insert(begin),
            _ => begin,
        }
    }

    /// The connection is not idle any more; `false` if it has been moved instead.
    pub(crate) fn become_busy(&self) -> bool {
        // The successor that has refused it may be gone, and the next one may not refuse it.
        self.kept.fetch_and(self.registry.is_moving(), Ordering::Relaxed);
        let mut activity = self.settled();
        if let Activity::Waiting { idle_since, .. } = &mut *activity {
            *idle_since = None;
        }
        *activity != Activity::Moved
    }

    /// The connection ends when its client has read the last response, which may still be on its way.
    pub(super) fn become_lingering(&self) {
        let mut activity = self.activity();
        if let Activity::Waiting { .. } = *activity {
            *activity = Activity::Lingering { since: after(SPARED) };
        }
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

    /// Evicts the connection if it is idle and has nothing to read, and returns whether it did.
    pub(super) fn evict(&self) -> bool {
        let mut activity = self.activity();
        if activity.idleness().is_none() || self.has_unread() {
            return false;
        }
        *activity = Activity::Evicted;
        // This wakes its thread. A request that comes in this very moment is answered, unless a part of it
        // comes later.
        let _ = shutdown(self.descriptor(), Shutdown::Read);
        true
    }

    /// Ends the connection, unless it may be another process's already.
    pub(super) fn cut(&self) {
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

    /// Whether each connection ends that would have to wait for a request.
    pub(crate) fn is_idle_closed(&self) -> bool {
        self.is_draining() && poll_until(&mut [readable(&self.registry.idle_closed)], Some(Instant::now()))
    }

    /// What goes with a stream when it is moved, and what has come with it.
    pub(crate) fn state(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        lock(&self.state)
    }

    pub(super) fn activity(&self) -> MutexGuard<'_, Activity> {
        lock(&self.activity)
    }
}

impl Activity {
    const NEW: Activity = Activity::Waiting { used: false, idle_since: None };

    /// If the connection is idle, a key by which the one that can best be spared comes first: one that has
    /// never had a request before one that has been of use, and then the one that has been idle for longest.
    pub(super) fn idleness(&self) -> Option<(bool, Instant)> {
        let idleness = match *self {
            Activity::Waiting { used, idle_since: Some(since) } => (used, since),
            Activity::Lingering { since } => (true, since),
            _ => return None,
        };
        (idleness.1.elapsed() >= MOMENT).then_some(idleness)
    }
}
