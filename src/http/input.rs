//! What comes in on a connection: read in large pieces, used up in small ones.

use std::cell::LazyCell;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline::after;
use crate::options::Limits;
use crate::server::connection::Connection;

/// The largest head of a request, and the largest piece that is looked at as a whole.
pub(crate) const LARGEST_PIECE: usize = 16 * 1024;

/// How much is asked for at a time. Most requests are smaller, and this is what an idle connection keeps.
const READ_SIZE: usize = 2048;

/// The input of a connection, with what has been read and not used yet.
pub(crate) struct Input {
    connection: Arc<Connection>,
    limits: Limits,
    buffer: Vec<u8>,
    /// What has been read and not used yet lies here in the buffer.
    unused: Range<usize>,
}

impl Input {
    pub(crate) fn new(connection: Arc<Connection>, limits: Limits) -> Input {
        Input { connection, limits, buffer: Vec::new(), unused: 0..0 }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// What has been read and not used yet.
    pub(crate) fn unused(&self) -> &[u8] {
        &self.buffer[self.unused.clone()]
    }

    /// Uses up the first `count` bytes of [`unused`](Self::unused).
    pub(crate) fn advance(&mut self, count: usize) {
        self.unused.start += count;
    }

    /// Waits for the first byte of a request; `false` if there will not be one.
    ///
    /// Empty lines before a request line are passed over (RFC 9112 section 2.2), and are no request yet.
    pub(crate) fn wait_for_request(&mut self, patience: Duration) -> io::Result<bool> {
        let deadline = LazyCell::new(|| after(patience));
        loop {
            match self.unused() {
                [b'\n', ..] => self.advance(1),
                [b'\r', b'\n', ..] => self.advance(2),
                [] | [b'\r'] => {
                    self.make_room();
                    // A large request has made it larger.
                    self.buffer.truncate(READ_SIZE);
                    self.buffer.shrink_to_fit();
                    if self.fill_with(|connection, buffer| connection.read_request(buffer, || *deadline))?
                        == 0
                    {
                        return Ok(false);
                    }
                }
                _ => return Ok(true),
            }
        }
    }

    /// Reads more, behind what is there; 0 is the end of the input.
    pub(crate) fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        self.fill_with(|connection, buffer| connection.read(buffer, deadline))
    }

    fn fill_with(
        &mut self,
        read: impl FnOnce(&Connection, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.make_room();
        let most = self.unused.end + READ_SIZE;
        if self.buffer.len() < most {
            self.buffer.resize(most, 0);
        }
        let count = read(&self.connection, &mut self.buffer[self.unused.end..most])?;
        self.unused.end += count;
        Ok(count)
    }

    /// Moves what has not been used yet to the beginning of the buffer.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.unused.clone(), 0);
        self.unused = 0..self.unused.len();
    }

    /// Reads into `target`: what is there, or else what comes; 0 is the end of the input.
    pub(crate) fn read(&mut self, target: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let unused = self.unused();
        if unused.is_empty() {
            return self.connection.read(target, deadline);
        }
        let count = unused.len().min(target.len());
        target[..count].copy_from_slice(&unused[..count]);
        self.advance(count);
        Ok(count)
    }
}
