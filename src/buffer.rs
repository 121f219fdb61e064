//! What has been read from a connection and not used.

use std::io;
use std::mem;

/// How many bytes are read ahead. Most requests are smaller, and an idle connection keeps this much.
pub(crate) const READ_SIZE: usize = 2048;

#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// How many of them have been used.
    used: usize,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer { bytes, used: 0 }
    }
}

impl Buffer {
    pub(crate) fn unused(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.used = self.bytes.len().min(self.used + count);
    }

    /// Puts a byte in front of what has not been used.
    pub(crate) fn put_back(&mut self, byte: u8) {
        self.bytes.insert(self.used, byte);
    }

    /// Reads more, at most so much, behind what has not been used.
    pub(crate) fn fill(
        &mut self,
        size: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.bytes.drain(..mem::take(&mut self.used));
        if self.bytes.is_empty() {
            // A large request may have made it larger.
            self.bytes.shrink_to(READ_SIZE);
        }
        let before = self.bytes.len();
        self.bytes.resize(before + size, 0);
        let read = read(&mut self.bytes[before..]);
        self.bytes.truncate(before + *read.as_ref().unwrap_or(&0));
        read
    }
}
