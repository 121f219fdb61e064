//! The body of a request: decoded while it is read, and skipped as far as it is not.

use std::io::{self, Read};

use httparse::Status;

use super::head::{Framing, Head};
use super::input::{Input, LARGEST_PIECE};
use super::refusal::Refusal;
use crate::options::Limits;
use crate::server::connection::Connection;
use crate::server::pace::Pace;

/// The longest line with the size of a chunk, in bytes. The rest of it can only be extensions, which are
/// ignored.
const LONGEST_CHUNK_LINE: usize = 256;

const MALFORMED: Refusal = Refusal::new(400, "malformed chunked body");

/// A request's body, and the input that it comes from.
pub(crate) struct Body {
    pub(super) input: Input,
    progress: Progress,
    /// How fast the client must send it.
    pace: Pace,
    /// The client waits for `100 Continue`, which has not been sent.
    continue_owed: bool,
    /// How many more bytes the handler accepts.
    pub(super) limit: u64,
}

/// What comes next in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The rest of the body, in bytes, and then the next request.
    Length(u64),
    /// The rest of a chunk, in bytes, and its end.
    Chunk(u64),
    /// The size of a chunk.
    ChunkSize,
    /// Nothing that could be used: the body will never be complete.
    Broken(io::ErrorKind),
}

impl Progress {
    fn begin(framing: Framing) -> Progress {
        match framing {
            Framing::Length(length) => Progress::Length(length),
            Framing::Chunked => Progress::ChunkSize,
        }
    }

    /// What is behind the body, if these bytes have all of it.
    fn behind(mut self, mut bytes: &[u8]) -> Option<&[u8]> {
        loop {
            (self, bytes) = match self {
                Progress::Length(length) => return bytes.get(usize::try_from(length).ok()?..),
                Progress::Chunk(left) => {
                    let end = bytes.get(usize::try_from(left).ok()?..)?;
                    (Progress::ChunkSize, end.strip_prefix(b"\r\n")?)
                }
                Progress::ChunkSize => match chunk_line(bytes)? {
                    Status::Complete((length, 0)) => {
                        let Status::Complete((end, ())) = trailers(&bytes[length..])? else { return None };
                        (Progress::Length(0), &bytes[length + end..])
                    }
                    Status::Complete((length, size)) => (Progress::Chunk(size), &bytes[length..]),
                    Status::Partial => return None,
                },
                Progress::Broken(_) => return None,
            }
        }
    }
}

impl Body {
    pub(crate) fn new(input: Input, framing: Framing, expects_continue: bool) -> Body {
        let progress = Progress::begin(framing);
        let continue_owed = expects_continue && progress != Progress::Length(0) && input.unused().is_empty();
        let pace = Pace::new(input.limits.body_timeout, input.limits.min_rate);
        Body { input, progress, pace, continue_owed, limit: u64::MAX }
    }

    /// Reads the size of the first chunk, unless the client waits for `100 Continue`, so that a request that
    /// is malformed from the beginning reaches no handler.
    pub(crate) fn begin(&mut self) -> Result<(), Refusal> {
        if self.progress == Progress::ChunkSize
            && !self.continue_owed
            && let Err(error) = self.begin_chunk()
        {
            self.progress = Progress::Broken(error.kind());
        }
        self.check()
    }

    /// How to refuse a request whose body has turned out to be faulty.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let Progress::Broken(kind) = self.progress else { return Ok(()) };
        Err(match kind {
            io::ErrorKind::InvalidData => MALFORMED,
            io::ErrorKind::TimedOut => Refusal::new(408, "the request body did not come in time"),
            _ => Refusal::new(400, "the request body ended early"),
        })
    }

    /// Whether the rest can be discarded. A client that waits for `100 Continue` may send the body or not
    /// once it has the response, so where the next request begins cannot be known.
    pub(crate) fn can_be_skipped(&self, limit: u64) -> bool {
        match self.progress {
            Progress::Length(left) => !self.continue_owed && left <= limit,
            Progress::Chunk(_) | Progress::ChunkSize => !self.continue_owed,
            Progress::Broken(_) => false,
        }
    }

    /// Whether all of the body has been read.
    pub(super) fn is_complete(&self) -> bool {
        self.progress.behind(self.input.unused()).is_some()
    }

    /// Whether all of the body, and behind it another whole request, have been read.
    pub(crate) fn is_followed(&self) -> bool {
        let Some(rest) = self.progress.behind(self.input.unused()) else { return false };
        let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        match Head::parse(&rest[blank..]) {
            Ok(Some((length, head))) => {
                Progress::begin(head.framing).behind(&rest[blank + length..]).is_some()
            }
            _ => false,
        }
    }

    /// Discards the rest: within `limit` bytes, and waiting for the client no longer than a step may take.
    // Not inlined, or its buffer lies on the stack of every idle connection.
    #[inline(never)]
    pub(crate) fn skip(&mut self, limit: u64) -> io::Result<()> {
        // Most often nothing is left, and then no buffer is needed.
        if self.progress == Progress::Length(0) {
            return Ok(());
        }
        self.limit = limit;
        self.pace = Pace::new(self.input.limits.body_timeout, u64::MAX);
        let mut piece = [0; 4096];
        while self.read(&mut piece)? > 0 {}
        Ok(())
    }

    fn send_continue(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.continue_owed) {
            return Ok(());
        }
        let Limits { write_timeout, min_rate, .. } = self.input.limits;
        let mut pace = Pace::new(write_timeout, min_rate);
        self.input.connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n", &mut pace)
    }

    /// Reads some of the body; 0 bytes at its end.
    fn decode(&mut self, target: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.progress {
                Progress::Length(0) => return Ok(0),
                Progress::Broken(kind) => return Err((*kind).into()),
                Progress::ChunkSize => self.begin_chunk()?,
                Progress::Chunk(0) => {
                    // CRLF alone, which is an empty trailer section.
                    self.parse(2, trailers)?;
                    self.progress = Progress::ChunkSize;
                }
                Progress::Length(left) | Progress::Chunk(left) => {
                    let most = target.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    self.pace.begin_step();
                    let read = self.input.read(&mut target[..most], &mut self.pace)?;
                    *left -= read as u64;
                    return Ok(read);
                }
            }
        }
    }

    /// Reads the size of a chunk and, behind the last one, the trailer section, which is discarded (RFC 9112
    /// section 7.1).
    fn begin_chunk(&mut self) -> io::Result<()> {
        let size = self.parse(LONGEST_CHUNK_LINE, chunk_line)?;
        self.progress = Progress::Chunk(size);
        if size == 0 {
            self.parse(LARGEST_PIECE, trailers)?;
            self.progress = Progress::Length(0);
        }
        Ok(())
    }

    fn parse<T>(&mut self, longest: usize, parse: fn(&[u8]) -> Option<Parsed<T>>) -> io::Result<T> {
        self.pace.begin_step();
        let read = |connection: &Connection, buffer: &mut [u8]| connection.read_paced(buffer, &mut self.pace);
        self.input.parse(read, |bytes| match parse(bytes) {
            Some(Status::Complete((length, value))) if length <= longest => Ok(Some((length, value))),
            Some(Status::Partial) if bytes.len() <= longest => Ok(None),
            _ => Err(MALFORMED),
        })
    }
}

impl Read for Body {
    /// Fails as [`Request::as_reader`](super::Request::as_reader) says. All but `FileTooLarge` is final.
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if target.is_empty() {
            return Ok(0);
        }
        // Before the client is asked to send what will not be taken.
        if let Progress::Length(left) | Progress::Chunk(left) = self.progress
            && left > self.limit
        {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.send_continue().and_then(|()| self.decode(target));
        let read = read.inspect_err(|error| self.progress = Progress::Broken(error.kind()))?;
        self.limit = self.limit.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

/// The length of what has been parsed, and what it says; `None` in its place is malformed.
type Parsed<T> = Status<(usize, T)>;

/// `chunk-size [ chunk-ext ] CRLF`. httparse takes no digits for 0, and any byte for one of an extension,
/// where another implementation could see the end of the line.
fn chunk_line(bytes: &[u8]) -> Option<Parsed<u64>> {
    let parsed = httparse::parse_chunk_size(bytes).ok()?;
    let line = match parsed {
        Status::Complete((length, _)) => &bytes[..length - 2],
        Status::Partial => bytes.strip_suffix(b"\r").unwrap_or(bytes),
    };
    let is_text = line.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    (is_text && line.first().is_none_or(u8::is_ascii_hexdigit)).then_some(parsed)
}

/// The trailer section and the empty line behind it. As for chunks, each line ends in CRLF.
fn trailers(bytes: &[u8]) -> Option<Parsed<()>> {
    let Status::Complete((length, _)) =
        httparse::parse_headers(bytes, &mut [httparse::EMPTY_HEADER; 16]).ok()?
    else {
        return Some(Status::Partial);
    };
    let mut lines = bytes[..length].split_inclusive(|&byte| byte == b'\n');
    lines.all(|line| line.ends_with(b"\r\n")).then_some(Status::Complete((length, ())))
}
