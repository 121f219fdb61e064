//! What comes in on a connection: read in large pieces, used up in small ones.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::connection::{Connection, Waited};
use crate::options::Limits;

/// The largest head of a request, and the largest piece that is looked at as a whole.
pub(crate) const LARGEST_PIECE: usize = 16 * 1024;

/// How much is asked for at a time. Most requests are smaller, and this is what an idle connection keeps.
const READ_SIZE: usize = 2048;

/// The input of a connection, with what has been read and not used yet.
pub(crate) struct Input {
    connection: Arc<Connection>,
    limits: Limits,
    buffer: Vec<u8>,
    used: usize,
}

impl Input {
    pub(crate) fn new(connection: Arc<Connection>, limits: Limits) -> Input {
        Input { connection, limits, buffer: Vec::new(), used: 0 }
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
        &self.buffer[self.used..]
    }

    /// Uses up the first `count` bytes of [`unused`](Self::unused).
    pub(crate) fn advance(&mut self, count: usize) {
        self.used += count;
        if self.used == self.buffer.len() {
            self.buffer.clear();
            self.used = 0;
        }
    }

    /// Waits for the first byte of a request; `false` if there will not be one.
    ///
    /// Empty lines before a request line are passed over (RFC 9112 section 2.2), and are no request yet.
    pub(crate) fn wait_for_request(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            match self.unused() {
                [b'\n', ..] => self.advance(1),
                [b'\r', b'\n', ..] => self.advance(2),
                [] | [b'\r'] => {
                    // A large request has made it larger.
                    self.buffer.shrink_to(READ_SIZE);
                    if self.connection.wait(deadline)? != Waited::Readable || self.fill(deadline)? == 0 {
                        return Ok(false);
                    }
                }
                _ => return Ok(true),
            }
        }
    }

    /// Reads more, behind what is there; 0 is the end of the input.
    pub(crate) fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_SIZE, 0);
        let read = self.connection.read(&mut self.buffer[filled..], deadline);
        self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        read
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
