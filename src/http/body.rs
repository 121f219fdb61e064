//! The body of a request: decoded while it is read, and skipped when it is not.

use std::io::{self, Read};
use std::time::Instant;

use super::head::{Framing, Refusal};
use super::input::{Input, LARGEST_PIECE};
use crate::deadline::after;

/// The longest line with a chunk's size; the rest of it can only be extensions, which nobody uses.
const LONGEST_CHUNK_LINE: usize = 256;

/// A request's body, and the input that it comes from.
pub(crate) struct Body {
    input: Input,
    state: State,
    /// The client waits for `100 Continue`, and has not been told.
    continue_owed: bool,
    /// How many more bytes the handler takes.
    limit: u64,
}

/// Where the reading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Length(u64),
    /// So many bytes of this chunk are left; its end has not been read.
    Chunk(u64),
    /// A chunk's size comes next.
    ChunkSize,
    /// It is complete, and the next request may follow.
    Complete,
    /// It will never be complete.
    Broken(Broken),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Malformed,
    TimedOut,
    Ended,
}

impl Body {
    pub(crate) fn new(input: Input, framing: Framing, expects_continue: bool) -> Body {
        let state = match framing {
            Framing::Length(0) => State::Complete,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
        };
        let continue_owed = expects_continue && state != State::Complete && input.unused().is_empty();
        Body { input, state, continue_owed, limit: u64::MAX }
    }

    /// Reads the size of the first chunk, unless the client waits to be asked for it: what is malformed
    /// from the beginning is no request.
    pub(crate) fn begin(&mut self) {
        if self.state == State::ChunkSize && !self.continue_owed {
            let begun = self.begin_chunk();
            let _ = self.note(begun);
        }
    }

    /// Lets reading fail with `FileTooLarge` as soon as it is known that there are more than so many bytes.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// How to answer a request whose body has turned out to be faulty, whatever the handler made of it.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.state {
            State::Broken(Broken::Malformed) => Some(Refusal::new(400, "malformed chunked body")),
            State::Broken(Broken::TimedOut) => {
                Some(Refusal::new(408, "the request body did not come in time"))
            }
            State::Broken(Broken::Ended) => Some(Refusal::new(400, "the request body ended early")),
            _ => None,
        }
    }

    /// Whether the rest can be read to no use. A client that waits for `100 Continue` may send the body or
    /// not once it has the response, and nobody can tell which.
    pub(crate) fn can_be_skipped(&self, limit: u64) -> bool {
        match self.state {
            State::Complete => true,
            State::Length(left) => !self.continue_owed && left <= limit,
            State::Chunk(_) | State::ChunkSize => !self.continue_owed,
            State::Broken(_) => false,
        }
    }

    /// Whether the input already holds something behind the body: the beginning of the next request.
    pub(crate) fn has_successor(&self) -> bool {
        self.state == State::Complete
            && (!self.input.unused().is_empty() || self.input.connection().has_unread())
    }

    /// Reads the rest to no use; whether its end was reached. That must not take more bytes than `limit`,
    /// nor longer in all than a client may take to send nothing.
    pub(crate) fn skip(&mut self, limit: u64) -> io::Result<bool> {
        self.limit = u64::MAX;
        let deadline = self.deadline();
        let mut skipped = 0;
        let mut piece = [0; 4096];
        while skipped <= limit && Instant::now() < deadline {
            match self.read(&mut piece)? {
                0 => return Ok(true),
                read => skipped += read as u64,
            }
        }
        Ok(false)
    }

    pub(crate) fn into_input(self) -> Input {
        self.input
    }

    fn send_continue(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.continue_owed) {
            return Ok(());
        }
        let patience = self.input.limits().write_timeout;
        self.input.connection().write_all(b"HTTP/1.1 100 Continue\r\n\r\n", patience)
    }

    /// Reads some of the body, in whatever way its end is found.
    fn decode(&mut self, target: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state {
                State::Complete => return Ok(0),
                State::Broken(_) => return Err(io::Error::other("the body has failed before")),
                State::ChunkSize => self.begin_chunk()?,
                State::Chunk(0) => self.end_chunk()?,
                State::Length(left) | State::Chunk(left) => {
                    let most = target.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let read = self.input.read(&mut target[..most], self.deadline())?;
                    if read == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let left = left - read as u64;
                    self.state = match self.state {
                        State::Chunk(_) => State::Chunk(left),
                        _ if left == 0 => State::Complete,
                        _ => State::Length(left),
                    };
                    return Ok(read);
                }
            }
        }
    }

    /// RFC 9112 section 7.1: `chunk-size [ chunk-ext ] CRLF`.
    fn begin_chunk(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.input.unused();
            if bytes.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            match httparse::parse_chunk_size(bytes) {
                Ok(httparse::Status::Complete((length, size))) if length <= LONGEST_CHUNK_LINE => {
                    self.input.advance(length);
                    if size > 0 {
                        self.state = State::Chunk(size);
                        return Ok(());
                    }
                    return self.end_body();
                }
                Ok(httparse::Status::Partial) if bytes.len() <= LONGEST_CHUNK_LINE => self.fill()?,
                _ => return Err(malformed()),
            }
        }
    }

    /// The CRLF behind a chunk's data.
    fn end_chunk(&mut self) -> io::Result<()> {
        loop {
            match self.input.unused() {
                [b'\r', b'\n', ..] => {
                    self.input.advance(2);
                    self.state = State::ChunkSize;
                    return Ok(());
                }
                [] | [b'\r'] => self.fill()?,
                _ => return Err(malformed()),
            }
        }
    }

    /// The trailer section, which is discarded (RFC 9112 section 7.1.2), and the empty line behind it.
    fn end_body(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.input.unused();
            let mut trailers = [httparse::EMPTY_HEADER; 16];
            match httparse::parse_headers(bytes, &mut trailers) {
                Ok(httparse::Status::Complete((length, _))) => {
                    self.input.advance(length);
                    self.state = State::Complete;
                    return Ok(());
                }
                Ok(httparse::Status::Partial) if bytes.len() < LARGEST_PIECE => self.fill()?,
                _ => return Err(malformed()),
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let deadline = self.deadline();
        match self.input.fill(deadline)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Until when the client may send nothing.
    fn deadline(&self) -> Instant {
        after(self.input.limits().body_timeout)
    }

    /// Remembers the first failure, which is the one to tell the client.
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && !matches!(self.state, State::Broken(_))
        {
            self.state = State::Broken(match error.kind() {
                io::ErrorKind::InvalidData => Broken::Malformed,
                io::ErrorKind::TimedOut => Broken::TimedOut,
                _ => Broken::Ended,
            });
        }
        result
    }
}

impl Read for Body {
    /// # Errors
    ///
    /// `UnexpectedEof`: the client has ended the connection before the body. `TimedOut`: nothing came for
    /// too long. `InvalidData`: the chunks are malformed. These are final. `FileTooLarge`: see
    /// [`Body::set_limit`].
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if target.is_empty() {
            return Ok(0);
        }
        // Before the client is asked to send what will not be taken.
        if let State::Length(left) | State::Chunk(left) = self.state
            && left > self.limit
        {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.send_continue().and_then(|()| self.decode(target));
        let read = self.note(read)?;
        self.limit = self.limit.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed chunked body")
}
