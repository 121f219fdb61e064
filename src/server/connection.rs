//! One connection, and what it is doing.

mod activity;
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
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

pub(super) use self::activity::Activity;
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

/// How long a connection is not idle yet, because its next request is likely to come soon.
const MOMENT: Duration = Duration::from_millis(20);

/// How long a connection that was refused waits before it is offered again.
const SECOND_OFFER: Duration = Duration::from_secs(1);

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
        // What it has inherited from the listening socket is as old as its place in the queue.
        let moment = TimeVal::microseconds(MOMENT.as_micros() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &moment)?;
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
        // One that has been moved here while it was idle still is, unless it has been moved on before its thread began.
        let is_idle = match *self.settled() {
            Activity::Moved => return Ok(0),
            ref activity => matches!(activity, Activity::Waiting { idle_since: Some(_), .. }),
        };
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

    /// Whether each connection ends that would have to wait for a request.
    pub(crate) fn is_idle_closed(&self) -> bool {
        self.is_draining() && poll_until(&mut [readable(&self.registry.idle_closed)], Some(Instant::now()))
    }

    /// What goes with a stream when it is moved, and what has come with it.
    pub(crate) fn state(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        lock(&self.state)
    }
}
