//! One connection: reading and writing with a time limit, and waiting for the next request.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::deadline::{after, timeout_until};
use crate::server::address::Address;

/// What every connection of a process is told, and what it tells in return.
pub(crate) struct Common {
    /// The process takes no further connections.
    draining: AtomicBool,
    /// At its end of file, by which idle connections are told to close.
    idle_closed: PipeReader,
    /// Somebody waits at the other end of `room` for a connection that ends or becomes idle.
    room_wanted: AtomicBool,
    room: PipeWriter,
    /// From when on times are counted.
    epoch: Instant,
}

impl Common {
    pub(crate) fn new(idle_closed: PipeReader, room: PipeWriter) -> Common {
        Common {
            draining: AtomicBool::new(false),
            idle_closed,
            room_wanted: AtomicBool::new(false),
            room,
            epoch: Instant::now(),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }

    /// From now on, until it has happened, connections end with their next response, and `room` tells when
    /// one has ended or become idle.
    pub(crate) fn want_room(&self) {
        self.room_wanted.store(true, Ordering::SeqCst);
    }

    /// Nanoseconds since the epoch: enough for five centuries.
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// A connection has ended or become idle.
    pub(crate) fn offer_room(&self) {
        if self.room_wanted.swap(false, Ordering::SeqCst) {
            let _ = (&self.room).write_all(&[0]);
        }
    }
}

/// The other side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// On the network.
    Network(SocketAddr),
    /// On this machine, and without an address.
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

/// An open connection.
pub(crate) struct Connection {
    socket: OwnedFd,
    peer: Peer,
    local: Address,
    common: Arc<Common>,
    /// [`BUSY`], [`EVICTED`], or else since when it has been idle: the nanoseconds since the epoch.
    occupation: AtomicU64,
    /// A blocking recv(2) gives up after a [`MOMENT`].
    waits_a_moment: AtomicBool,
    /// A request is being read, handled or answered.
    in_flight: AtomicBool,
    /// A request has come on it.
    used: AtomicBool,
    /// It is to end, though the process is not draining.
    evicted: AtomicBool,
}

const BUSY: u64 = u64::MAX;
const EVICTED: u64 = u64::MAX - 1;

/// How long a connection counts as in use after a response: its next request is likely to come soon.
const MOMENT: Duration = Duration::from_millis(100);

impl Connection {
    pub(crate) fn new(socket: OwnedFd, peer: Peer, local: Address, common: Arc<Common>) -> Connection {
        Connection {
            socket,
            peer,
            local,
            occupation: AtomicU64::new(BUSY),
            common,
            waits_a_moment: AtomicBool::new(false),
            in_flight: AtomicBool::new(false),
            used: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
        }
    }

    /// The other side.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// The address that the other side has connected to.
    pub(crate) fn local(&self) -> &Address {
        &self.local
    }

    /// Whether this process takes no further connections.
    pub(crate) fn is_draining(&self) -> bool {
        self.common.is_draining()
    }

    /// Whether this connection ends with the next response.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_draining()
            || self.evicted.load(Ordering::Relaxed)
            || self.common.room_wanted.load(Ordering::Relaxed)
    }

    /// Reads the beginning of a request; 0 if there will be none: at the end of the input, at the deadline,
    /// and when the process stops and nothing has come.
    ///
    /// Between two requests the connection is idle, but for the first moment. Until that is over, its thread
    /// waits in recv(2) alone, which nothing but input ends, instead of in poll(2) before it. With 32 clients
    /// that saves an eighth of the processor's time, and it makes a stop at most that moment longer.
    pub(crate) fn read_request(
        &self,
        buffer: &mut [u8],
        deadline: impl FnOnce() -> Instant,
    ) -> io::Result<usize> {
        let (flags, waited) = self.wait_a_moment();
        match recv(self.socket.as_raw_fd(), buffer, flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return Ok(result?),
        }
        self.become_idle(waited);
        let deadline = deadline();
        let readable = self.wait_idle(deadline);
        self.occupation.store(BUSY, Ordering::SeqCst);
        if readable? { self.read(buffer, deadline) } else { Ok(0) }
    }

    /// How to read the beginning of a request first, and how long that may take.
    fn wait_a_moment(&self) -> (MsgFlags, Duration) {
        let at_once = (MsgFlags::MSG_DONTWAIT, Duration::ZERO);
        if !self.used.load(Ordering::Relaxed) {
            return at_once;
        }
        if !self.waits_a_moment.load(Ordering::Relaxed) {
            let moment = TimeVal::microseconds(MOMENT.as_micros() as i64);
            if setsockopt(&self.socket, sockopt::ReceiveTimeout, &moment).is_err() {
                return at_once;
            }
            self.waits_a_moment.store(true, Ordering::Relaxed);
        }
        (MsgFlags::empty(), MOMENT)
    }

    /// Waits until there is input, or the end of it; `false` if there is not.
    fn wait_idle(&self, deadline: Instant) -> io::Result<bool> {
        let mut events = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.common.idle_closed.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut events, timeout_until(deadline)) {
                Err(Errno::EINTR) => {}
                // The last look: what has come goes before the wish to stop.
                result => return Ok(result? > 0 && events[0].any() == Some(true)),
            }
        }
    }

    /// From now on the connection counts as idle, and as if it had been for so long already.
    fn become_idle(&self, already: Duration) {
        let since = self.common.now().saturating_sub(already.as_nanos() as u64);
        self.occupation.store(since, Ordering::SeqCst);
        self.common.offer_room();
    }

    /// Counts the connection as one with a request in flight, for as long as the result lives.
    pub(crate) fn request(self: &Arc<Self>) -> InFlight {
        self.in_flight.store(true, Ordering::SeqCst);
        self.used.store(true, Ordering::Relaxed);
        InFlight { connection: Arc::clone(self) }
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// By what the connection that can best be spared is found, if it is idle: one on which no request has
    /// ever come before one that was of use, and then the one that has been idle for longest. One that was
    /// in use a moment ago is likely to be so again in a moment, and does not count as idle yet.
    pub(crate) fn idleness(&self) -> Option<(bool, u64)> {
        match self.occupation.load(Ordering::SeqCst) {
            BUSY | EVICTED => None,
            since if since + MOMENT.as_nanos() as u64 > self.common.now() => None,
            since => Some((self.used.load(Ordering::Relaxed), since)),
        }
    }

    /// Ends the connection, if it is still idle, and nothing has come on it; whether it does.
    pub(crate) fn evict(&self, (_, since): (bool, u64)) -> bool {
        let order = Ordering::SeqCst;
        if self.has_unread() || self.occupation.compare_exchange(since, EVICTED, order, order).is_err() {
            return false;
        }
        self.evicted.store(true, order);
        // This wakes whoever waits for input. A request that comes in this very moment is answered, unless
        // a part of it comes later.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
        true
    }

    /// Whether it has been evicted, and has not got a request in the last moment.
    pub(crate) fn is_leaving(&self) -> bool {
        self.evicted.load(Ordering::SeqCst) && !self.is_in_flight()
    }

    /// Whether input has come that nobody has read yet.
    pub(crate) fn has_unread(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.socket.as_raw_fd(), &mut [0], flags).is_ok_and(|count| count > 0)
    }

    /// Reads what has come, or waits for it until the deadline; 0 is the end of the input.
    ///
    /// # Errors
    ///
    /// `TimedOut` at the deadline, or what recv(2) said.
    pub(crate) fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Writes everything, waiting at most `patience` for the other side to take some of it.
    ///
    /// # Errors
    ///
    /// `TimedOut` when it took nothing for so long, or what send(2) said.
    pub(crate) fn write_all(&self, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
        // Not SIGPIPE, which an embedding program may have set back to its deadly default.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !bytes.is_empty() {
            match send(self.socket.as_raw_fd(), bytes, flags) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLOUT, after(patience))?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Closes the write side and reads until the other side has closed its own, or until the deadline.
    ///
    /// A plain close with unread input, or with input still to come, makes the kernel send a reset, which
    /// can destroy the response before the other side has read it (RFC 9112 section 9.6).
    pub(crate) fn linger(&self, deadline: Instant) {
        if shutdown(self.socket.as_raw_fd(), Shutdown::Write).is_err() {
            return;
        }
        self.become_idle(Duration::ZERO);
        let mut discarded = [0; 4096];
        while Instant::now() < deadline && self.read(&mut discarded, deadline).is_ok_and(|count| count > 0) {}
    }

    /// Ends the connection at once, whatever it is doing.
    pub(crate) fn cut(&self) {
        // It fails if the other side has cut first.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn wait_for(&self, what: PollFlags, deadline: Instant) -> io::Result<()> {
        match poll(&mut [PollFd::new(self.socket.as_fd(), what)], timeout_until(deadline)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// See [`Connection::request`].
pub(crate) struct InFlight {
    connection: Arc<Connection>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.in_flight.store(false, Ordering::SeqCst);
    }
}
