//! The input of a connection: read in large pieces, used in small ones.

use std::io::{self, ErrorKind::InvalidData};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::refusal::Refusal;
use crate::buffer::{Buffer, READ_SIZE};
use crate::options::Limits;
use crate::server::connection::Connection;
use crate::server::pace::Pace;

/// The largest head of a request in bytes, and the largest piece that is parsed as a whole.
pub(crate) const LARGEST_PIECE: usize = 16 * 1024;

/// The most empty lines before a request.
const MOST_EMPTY_LINES: u8 = 4;

/// A buffered reader of a connection, within the limits.
pub(crate) struct Input {
    pub(super) connection: Arc<Connection>,
    pub(super) limits: Limits,
    /// When the head of the present request began, if that was with an empty line.
    pub(super) begin: Option<Instant>,
    /// The connection ends when the requests that have been read are answered.
    ending: bool,
    pub(super) buffer: Buffer,
}

impl Input {
    pub(crate) fn new(connection: Arc<Connection>, limits: Limits) -> Input {
        Input { connection, limits, begin: None, ending: false, buffer: Buffer::default() }
    }

    /// What has been read and not used.
    pub(crate) fn unused(&self) -> &[u8] {
        self.buffer.unused()
    }

    /// Waits for the first byte of a request; `false` if there will not be one.
    ///
    /// A few empty lines before it are passed over (RFC 9112 section 2.2); the time for the head begins with the
    /// first of them.
    pub(crate) fn wait_for_request(&mut self, mut patience: Duration) -> io::Result<bool> {
        let (mut empty_lines, mut is_after_cr) = (0, false);
        self.begin = None;
        loop {
            match self.unused().first() {
                None => {
                    if let Some(begin) = self.begin {
                        patience = self.limits.head_timeout.saturating_sub(begin.elapsed());
                        self.connection.become_busy();
                    }
                    let connection = Arc::clone(&self.connection);
                    if self.fill(|_, buffer| connection.read_request(buffer, patience))? == 0 {
                        return Ok(false);
                    }
                    continue;
                }
                Some(b'\n') if empty_lines < MOST_EMPTY_LINES => {
                    (empty_lines, is_after_cr) = (empty_lines + 1, false);
                }
                Some(b'\r') if empty_lines < MOST_EMPTY_LINES && !is_after_cr => is_after_cr = true,
                Some(_) => break,
            }
            self.begin.get_or_insert_with(Instant::now);
            self.buffer.consume(1);
        }
        if is_after_cr {
            // It belongs to no empty line, and so to what will be refused.
            self.buffer.put_back(b'\r');
        }
        Ok(true)
    }

    /// Whether the connection is to end. When that turns out, what has come is read, so that it can be answered;
    /// nothing more is, or a client that always has its next request there would keep its connection.
    pub(crate) fn is_ending(&mut self) -> bool {
        if !self.ending && self.connection.is_ending() {
            self.ending = true;
            while self.unused().len() < LARGEST_PIECE
                && self.fill(Connection::read_available).is_ok_and(|read| read > 0)
            {}
        }
        self.ending
    }

    /// Whether there is more, read or not.
    pub(crate) fn goes_on(&self) -> bool {
        !self.unused().is_empty() || self.connection.has_unread()
    }

    /// Parses what is at the beginning of the input, and uses it. While that is not complete, `parse` returns
    /// `None`; then its length and what it says.
    ///
    /// It fails with `UnexpectedEof` at the end of the input, with what `read` fails with, or with what
    /// `parse` does.
    pub(crate) fn parse<T>(
        &mut self,
        mut read: impl FnMut(&Connection, &mut [u8]) -> io::Result<usize>,
        parse: impl Fn(&[u8]) -> Result<Option<(usize, T)>, Refusal>,
    ) -> io::Result<T> {
        loop {
            let parsed = parse(self.unused());
            if let Some((length, value)) = parsed.map_err(|refusal| io::Error::new(InvalidData, refusal))? {
                self.buffer.consume(length);
                return Ok(value);
            }
            self.fill(&mut read).and_then(not_ended)?;
        }
    }

    /// Reads more, behind what has not been used.
    fn fill(&mut self, read: impl FnOnce(&Connection, &mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let is_moving = self.connection.is_moving();
        self.buffer.fill(READ_SIZE, |buffer| {
            // What follows the request, which ends with a line, goes to the successor with the connection.
            let (first, rest) = buffer.split_at_mut(if is_moving { 1 } else { READ_SIZE });
            match read(&self.connection, first)? {
                1 if is_moving && first != b"\n" => Ok(1 + self.connection.read_rest_of_line(rest)?),
                count => Ok(count),
            }
        })
    }

    /// Reads into `target` from the buffer or, if that is empty, from the connection; at the end of the input
    /// it fails with `UnexpectedEof`.
    pub(crate) fn read(&mut self, target: &mut [u8], pace: &mut Pace) -> io::Result<usize> {
        let unused = self.unused();
        if unused.is_empty() {
            return self.connection.read_paced(target, pace).and_then(not_ended);
        }
        let count = unused.len().min(target.len());
        target[..count].copy_from_slice(&unused[..count]);
        self.buffer.consume(count);
        Ok(count)
    }
}

fn not_ended(read: usize) -> io::Result<usize> {
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}
