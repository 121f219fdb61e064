//! Writing a response (RFC 9112 sections 4, 6 and 7).
//!
//! `tiny_http::Response::raw_print` would do this, but it cannot say `Connection: close`, which a drain
//! depends on; it ends a body that has failed half way with the chunk that says it is complete; it trusts
//! the length it was told; and it holds the whole of a body without a length in memory for HTTP/1.0.

use std::fmt;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use httpdate::HttpDate;
use tiny_http::{Header, Method, ResponseBox, StatusCode};

use super::head::{Head, Refusal};
use crate::server::connection::Connection;

/// How much of a response is collected before it is written: a small one goes out in one piece.
const PIECE: usize = 16 * 1024;

/// How a request wants to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// The client asked for the header fields only.
    without_body: bool,
    /// The client does not know chunks, nor that connections persist unless it is told.
    http_1_0: bool,
    /// The connection ends with this response.
    last: bool,
    /// How long the client may take nothing of it.
    patience: Duration,
}

/// A response that has been written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) status: u16,
    /// The length of the body as it went over the connection.
    pub(crate) bytes: u64,
    /// Whether the connection can go on: not if the end of the response is that of the connection, nor if
    /// the body has failed half way, which the client can only see by that.
    pub(crate) complete: bool,
}

/// How the end of a response's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// There is none, whatever the header fields say.
    NoBody,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Answer {
    pub(crate) fn to(head: &Head, patience: Duration) -> Answer {
        let without_body = head.method == Method::Head;
        Answer { without_body, http_1_0: head.version.1 == 0, last: false, patience }
    }

    /// The answer to something that was not understood as a request.
    pub(crate) fn to_nothing(patience: Duration) -> Answer {
        Answer { without_body: false, http_1_0: false, last: true, patience }
    }

    /// The same, as the last one on its connection.
    pub(crate) fn last(self) -> Answer {
        Answer { last: true, ..self }
    }

    /// Writes the response.
    ///
    /// # Errors
    ///
    /// The client cannot be written to.
    pub(crate) fn write(self, connection: &Connection, response: ResponseBox) -> io::Result<Written> {
        let framing = self.framing(&response);
        let answer = if framing == Framing::UntilClose { self.last() } else { self };
        let status = response.status_code().0;
        let mut out =
            Out { connection, patience: self.patience, collected: Vec::with_capacity(512), sent: 0 };
        if let Err(fault) = answer.write_head(&mut out.collected, &response, framing) {
            log::error!("the handler returned an impossible response: {fault}");
            return self.write_error(connection);
        }
        let head = out.collected.len();
        match out.write_body(&mut response.into_reader(), framing) {
            Ok(()) => out.flush()?,
            Err(Failure::Client(error)) => return Err(error),
            Err(Failure::Body(error)) => {
                log::error!("the body of a response failed: {error}");
                if out.sent == 0 {
                    return self.write_error(connection);
                }
                return Ok(Written { status, bytes: (out.sent - head) as u64, complete: false });
            }
        }
        let complete = framing != Framing::UntilClose;
        Ok(Written { status, bytes: (out.sent - head) as u64, complete })
    }

    fn write_error(self, connection: &Connection) -> io::Result<Written> {
        let written = self.last().write(connection, Refusal::internal_error().response())?;
        Ok(Written { complete: false, ..written })
    }

    fn framing(self, response: &ResponseBox) -> Framing {
        match (response.status_code().0, response.data_length()) {
            (204 | 304, _) => Framing::NoBody,
            _ if self.without_body => Framing::NoBody,
            (_, Some(length)) => Framing::Length(length as u64),
            (_, None) if self.http_1_0 => Framing::UntilClose,
            (_, None) => Framing::Chunked,
        }
    }

    /// # Errors
    ///
    /// What the handler must not send: it could split the response in two, or none would be final.
    fn write_head(self, out: &mut Vec<u8>, response: &ResponseBox, framing: Framing) -> Result<(), String> {
        let StatusCode(status) = response.status_code();
        if !(200..1000).contains(&status) {
            return Err(format!("the status {status} is not that of a final response"));
        }
        let reason = response.status_code().default_reason_phrase();
        line(out, format_args!("HTTP/1.1 {status} {reason}"));
        for header in response.headers() {
            check(header)?;
            field(out, header.field.as_str().as_str(), header.value.as_str());
        }
        if !response.headers().iter().any(|header| header.field.equiv("Date")) {
            line(out, format_args!("Date: {}", HttpDate::from(SystemTime::now())));
        }
        match (framing, response.data_length()) {
            (Framing::Chunked, _) => field(out, "Transfer-Encoding", "chunked"),
            (Framing::Length(length), _) => line(out, format_args!("Content-Length: {length}")),
            // What the same request with GET would have been answered with (RFC 9110 section 9.3.2).
            (Framing::NoBody, Some(length)) if !matches!(status, 204 | 304) => {
                line(out, format_args!("Content-Length: {length}"));
            }
            _ => {}
        }
        if self.last {
            field(out, "Connection", "close");
        } else if self.http_1_0 {
            field(out, "Connection", "keep-alive");
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn line(out: &mut Vec<u8>, content: fmt::Arguments<'_>) {
    // A vector takes everything.
    let _ = out.write_fmt(content);
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 sections 5.1 and 5.5: a name is a token, a value has no control characters but tabs.
fn check(header: &Header) -> Result<(), String> {
    let name = header.field.as_str().as_str();
    let value = header.value.as_str();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is not the name of a header field"));
    }
    if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        return Err(format!("the value of the header field {name} has control characters: {value:?}"));
    }
    Ok(())
}

/// A response on its way out.
struct Out<'a> {
    connection: &'a Connection,
    patience: Duration,
    collected: Vec<u8>,
    /// How many bytes have been written: once there are any, the status cannot be changed any more.
    sent: usize,
}

/// Who is to blame when a body cannot be written.
enum Failure {
    Client(io::Error),
    Body(io::Error),
}

impl Out<'_> {
    fn flush(&mut self) -> io::Result<()> {
        let written = self.connection.write_all(&self.collected, self.patience);
        self.sent += self.collected.len();
        self.collected.clear();
        written
    }

    fn write_body(&mut self, body: &mut dyn Read, framing: Framing) -> Result<(), Failure> {
        match framing {
            Framing::NoBody => Ok(()),
            Framing::Length(length) => self.write_exactly(body, length),
            Framing::Chunked => self.write_chunks(body),
            Framing::UntilClose => self.write_all(body),
        }
    }

    /// A body that is shorter than its length fails; of a longer one the client gets what was announced.
    fn write_exactly(&mut self, body: &mut dyn Read, length: u64) -> Result<(), Failure> {
        let mut left = length;
        while left > 0 {
            if self.collected.len() >= PIECE {
                self.flush().map_err(Failure::Client)?;
            }
            let room = PIECE - self.collected.len();
            let most = room.min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.collect(body, most)?;
            if read == 0 {
                let error = format!("it ended {left} bytes before its length of {length}");
                return Err(Failure::Body(io::Error::other(error)));
            }
            left -= read as u64;
        }
        Ok(())
    }

    /// Each piece is written as soon as it is there: the rest may be a long time coming.
    fn write_chunks(&mut self, body: &mut dyn Read) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        loop {
            let read = read(body, &mut piece)?;
            if read == 0 {
                self.collected.extend_from_slice(b"0\r\n\r\n");
                return Ok(());
            }
            line(&mut self.collected, format_args!("{read:x}"));
            self.collected.extend_from_slice(&piece[..read]);
            self.collected.extend_from_slice(b"\r\n");
            self.flush().map_err(Failure::Client)?;
        }
    }

    fn write_all(&mut self, body: &mut dyn Read) -> Result<(), Failure> {
        while self.collect(body, PIECE)? > 0 {
            self.flush().map_err(Failure::Client)?;
        }
        Ok(())
    }

    /// Reads at most so many bytes of the body to the end of what is collected.
    fn collect(&mut self, body: &mut dyn Read, most: usize) -> Result<usize, Failure> {
        let before = self.collected.len();
        self.collected.resize(before + most, 0);
        let result = read(body, &mut self.collected[before..]);
        self.collected.truncate(before + result.as_ref().map_or(0, |&read| read));
        result
    }
}

/// Reads from a body that the handler made: it may fail, and it may panic.
fn read(body: &mut dyn Read, target: &mut [u8]) -> Result<usize, Failure> {
    loop {
        match catch_unwind(AssertUnwindSafe(|| body.read(target))) {
            Ok(Ok(read)) => return Ok(read),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(Failure::Body(error)),
            Err(_) => return Err(Failure::Body(io::Error::other("reading it panicked"))),
        }
    }
}
