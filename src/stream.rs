//! A connection on which an embedding program speaks a protocol of its own.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::buffer::{Buffer, READ_SIZE};
use crate::lock::lock;
use crate::options::Limits;
use crate::server::address::Address;
use crate::server::connection::{Connection, Peer};
use crate::server::pace::Pace;

/// The most state that goes with a connection, in bytes.
const LARGEST_STATE: usize = 4096;

/// How many bytes are read when the connection is to end, and collected before they are written.
const LARGEST_PIECE: usize = 16 * 1024;

/// What [`Stream::wait`] has waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Next {
    /// There is input to be read.
    Input,
    /// The connection is the other process's now, with the state. Here nothing can be read or written any more.
    Moved,
    /// There will be no input: the client has ended its side, or has been silent for
    /// [`idle_timeout`](Limits::idle_timeout), or another client needs the room, or the process stops. What is
    /// still written is sent when the function returns.
    End,
}

/// A connection, given to the function of [`serve_connections`](crate::serve_connections).
///
/// A connection is *at rest* while its function is in [`wait`](Self::wait): there it may be moved to the
/// successor, where the function is called with a stream that has the [`state`](Self::state). Between two calls
/// of `wait` it is *in flight*: a drain and a stop wait for it, until the deadline, at which it is cut: then
/// reading and writing fail. So the function calls `wait` wherever the client may be silent, and returns as
/// soon as that returns anything but [`Next::Input`]. What the client sends at whatever moment is read by
/// the one process or by the other, once and in order.
///
/// Reading fails with `TimedOut` if the client sends nothing for [`body_timeout`](Limits::body_timeout) or,
/// between two calls of `wait`, less than [`min_rate`](Limits::min_rate), and writing if it takes nothing for
/// [`write_timeout`](Limits::write_timeout) or less than that rate. The time that the function itself takes does
/// not count.
///
/// The stream is buffered: what is written is sent before anything is waited for, by [`flush`](Write::flush), and
/// when the function returns. It is to be read from as it is, and not through a [`BufReader`](io::BufReader),
/// in which input could be left behind when the connection is moved.
pub struct Stream {
    connection: Arc<Connection>,
    limits: Arc<Mutex<Limits>>,
    /// How fast the client must send, and how fast it must take what it is sent.
    reading: Pace,
    writing: Pace,
    state: Option<Vec<u8>>,
    /// Input has come on it.
    used: bool,
    /// Since when it has been at rest, if it was moved here and has been ever since.
    idle_since: Option<Instant>,
    /// It ends when what has been read is used.
    ending: bool,
    input: Buffer,
    /// What has been written and not sent.
    output: Vec<u8>,
}

/// Runs the function on a connection, which then ends, unless it has been moved.
pub(crate) fn serve(
    connection: &Arc<Connection>,
    function: &dyn Fn(&mut Stream) -> io::Result<()>,
    limits: &Arc<Mutex<Limits>>,
) {
    let mut stream = Stream::new(Arc::clone(connection), Arc::clone(limits));
    match catch_unwind(AssertUnwindSafe(|| function(&mut stream))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("{}: {error}", connection.peer()),
        Err(_) => return log::error!("{}: the function of its connection panicked", connection.peer()),
    }
    if !connection.is_moved() && stream.flush().is_ok() {
        connection.end_exchange(stream.used, None);
        connection.linger();
    }
}

impl Stream {
    fn new(connection: Arc<Connection>, limits: Arc<Mutex<Limits>>) -> Stream {
        let state = connection.state().clone();
        let used = connection.is_used();
        let idle_since = connection.begin_exchange();
        let (reading, writing) = paces(&limits);
        let (input, output) = (Buffer::default(), Vec::new());
        Stream { connection, limits, reading, writing, state, used, idle_since, ending: false, input, output }
    }

    /// Waits for input, at rest: all that has been read is used, and the connection may be moved, with this
    /// state, of at most 4096 bytes. If something has been read ahead, this returns at once.
    ///
    /// A client may be silent for as long as [`idle_timeout`](Limits::idle_timeout), also on a new connection.
    /// At capacity ([`max_connections`](Limits::max_connections)), connections at rest are evicted, and no others.
    ///
    /// A connection that cannot be moved is served on, until the deadline at the most: the other process may lack
    /// the room for it, or speak another [`protocol`](crate::Options::protocol), or
    /// [no connections](crate::Options::move_connections) are moved.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the state is larger, and otherwise what reading or writing has failed with.
    pub fn wait(&mut self, state: &[u8]) -> io::Result<Next> {
        if state.len() > LARGEST_STATE {
            let reason = format!("the state has {} bytes, more than {LARGEST_STATE}", state.len());
            return Err(io::Error::new(ErrorKind::InvalidInput, reason));
        }
        if self.connection.is_moved() {
            return Ok(Next::Moved);
        }
        self.flush()?;
        self.look_whether_it_ends();
        if self.input.unused().is_empty() {
            match self.rest(state)? {
                Next::Input => {}
                next => return Ok(next),
            }
        }
        self.used = true;
        self.connection.count_request();
        (self.reading, self.writing) = paces(&self.limits);
        Ok(Next::Input)
    }

    fn rest(&mut self, state: &[u8]) -> io::Result<Next> {
        if !self.ending {
            let patience = lock(&self.limits).idle_timeout;
            *self.connection.state() = Some(state.to_owned());
            self.connection.end_exchange(self.used, self.idle_since.take());
            let (size, connection) = (self.read_ahead(), &self.connection);
            let read = self.input.fill(size, |buffer| connection.read_request(buffer, patience));
            if self.connection.is_moved() {
                return Ok(Next::Moved);
            }
            self.connection.begin_exchange();
            self.ending = read? == 0;
        }
        Ok(if self.ending { Next::End } else { Next::Input })
    }

    /// At a stop, what has come is read, so that it can be answered; nothing more is, or a client that always has
    /// something there would keep its connection.
    fn look_whether_it_ends(&mut self) {
        if !self.ending && !self.connection.is_moving() && self.connection.is_idle_closed() {
            let read = |buffer: &mut [u8]| self.connection.read_available(buffer);
            while self.input.unused().len() < LARGEST_PIECE
                && self.input.fill(READ_SIZE, read).is_ok_and(|count| count > 0)
            {}
            self.ending = true;
        }
    }

    /// The state with which the connection was moved here; `None` if it was accepted here. One that was moved
    /// comes from a [`wait`](Self::wait), so that is what its function is to begin with.
    pub fn state(&self) -> Option<&[u8]> {
        self.state.as_deref()
    }

    /// Whether the process is draining: it no longer accepts connections, because it has handed over or is
    /// stopping.
    pub fn is_draining(&self) -> bool {
        self.connection.is_draining()
    }

    /// When the connection will be cut if it is still in flight: the end of a drain or of a stop, once that has
    /// begun. If the successor dies, there is none any more.
    pub fn deadline(&self) -> Option<Instant> {
        self.connection.deadline()
    }

    /// The address of the client; `None` on a Unix socket.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        match self.connection.peer() {
            Peer::Network(address) => Some(address),
            Peer::Local => None,
        }
    }

    /// The address of the listening socket that the connection was accepted on.
    pub fn local_addr(&self) -> &Address {
        self.connection.local()
    }

    /// How many bytes may be read ahead. What follows goes to the successor with the connection, or comes too late.
    fn read_ahead(&self) -> usize {
        if self.connection.is_moving() || self.ending { 1 } else { READ_SIZE }
    }

    /// Prepares for reading: the client may be waiting for what has been written.
    fn begin_reading(&mut self) -> io::Result<()> {
        self.flush()?;
        self.reading.begin_step();
        Ok(())
    }

    /// Fails if reading and writing is over. If it was cut while it was being read, that looks like the end.
    fn check(&self) -> io::Result<()> {
        if self.connection.is_moved() {
            return Err(io::Error::new(ErrorKind::NotConnected, "the connection has been moved"));
        }
        if self.connection.is_cut() {
            return Err(io::Error::new(ErrorKind::ConnectionAborted, "the connection has been cut"));
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.input.unused().is_empty() && target.len() >= self.read_ahead() {
            self.begin_reading()?;
            let count = self.connection.read_paced(target, &mut self.reading)?;
            return self.check().map(|()| count);
        }
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.input.unused().is_empty() {
            self.begin_reading()?;
            let (size, pace) = (self.read_ahead(), &mut self.reading);
            self.input.fill(size, |buffer| self.connection.read_paced(buffer, pace))?;
            self.check()?;
        }
        Ok(self.input.unused())
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output.len() + bytes.len() >= LARGEST_PIECE {
            self.flush()?;
            self.connection.write_all(bytes, &mut self.writing)?;
        } else {
            self.output.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check()?;
        self.connection.write_all(&mem::take(&mut self.output), &mut self.writing)
    }
}

/// The paces of reading and writing between two calls of [`Stream::wait`].
fn paces(limits: &Mutex<Limits>) -> (Pace, Pace) {
    let Limits { body_timeout, write_timeout, min_rate, .. } = *lock(limits);
    (Pace::new(body_timeout, min_rate), Pace::new(write_timeout, min_rate))
}

#[cfg(test)]
mod tests;
