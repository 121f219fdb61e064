//! Writing responses (RFC 9112 sections 4, 6 and 7).
//!
//! `tiny_http::Response::raw_print` cannot say `Connection: close`, which a drain depends on; it completes a
//! chunked body that has failed half way; it trusts the length that it was given; and it holds the whole of
//! a body of unknown length in memory for HTTP/1.0.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use httpdate::HttpDate;
use log::Level;
use tiny_http::{Header, ResponseBox, StatusCode};

use super::access;
use super::head::Head;
use super::refusal::{INTERNAL_ERROR, Refusal};
use crate::options::Limits;
use crate::server::connection::Connection;
use crate::server::pace::Pace;

/// How many bytes of a response are collected before they are written: a small one is sent in one piece.
const PIECE: usize = 16 * 1024;

/// The answer to a request, on its way out.
pub(crate) struct Reply<'a> {
    connection: &'a Connection,
    /// When the first bytes of the request had come.
    pub(super) begin: Instant,
    /// How fast the client must take the response.
    pace: Pace,
    /// The method is HEAD: there is no body.
    pub(super) is_head: bool,
    /// The client knows no chunks, and takes a connection for closed unless the response says otherwise.
    pub(super) http_1_0: bool,
    /// The connection ends with this response.
    pub(super) last: bool,
    /// What has been collected and not written.
    out: Vec<u8>,
    /// How many bytes have been written. The status can be changed until there are any.
    sent: usize,
}

/// How the end of a response's body is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delimiter {
    /// By its length in bytes, which is 0 if there is no body.
    Length(u64),
    Chunked,
    Close,
}

/// Why a response cannot be completed.
enum Failure {
    Client(io::Error),
    /// The handler has made one that cannot be sent.
    Response(String),
}

impl<'a> Reply<'a> {
    /// The reply to a request that begins now, and of which nothing is known yet.
    pub(crate) fn new(connection: &'a Connection, limits: &Limits) -> Reply<'a> {
        let pace = Pace::new(limits.write_timeout, limits.min_rate);
        let (begin, out) = (Instant::now(), Vec::with_capacity(512));
        Reply { connection, begin, pace, is_head: false, http_1_0: false, last: false, out, sent: 0 }
    }

    /// Answers in place of the handler, as the last response on its connection.
    pub(crate) fn refuse(self, head: Option<&Head>, refusal: Refusal) -> io::Result<bool> {
        log::debug!("{}: {refusal}", self.connection.peer());
        Reply { last: true, out: Vec::new(), ..self }.send(head, refusal.response())
    }

    /// Writes the response, and a line to the access log. A response that cannot be sent is logged, and the
    /// client gets a 500.
    ///
    /// Returns whether the connection can go on: not if its end is that of the response, nor if the body has
    /// failed half way, of which nothing else can inform the client. It fails if the client cannot be written
    /// to, with `TimedOut` if it is too slow.
    pub(crate) fn send(mut self, head: Option<&Head>, response: ResponseBox) -> io::Result<bool> {
        let status = response.status_code().0;
        let delimiter = self.delimiter(&response);
        self.last |= delimiter == Delimiter::Close;
        let mut head_length = 0;
        let written = self.write_head(&response, delimiter).and_then(|()| {
            head_length = self.out.len();
            self.write_body(&mut response.into_reader(), delimiter)
        });
        let complete = match written {
            Ok(()) => true,
            Err(Failure::Client(error)) => return Err(error),
            Err(Failure::Response(fault)) => {
                let request = head.map(Head::to_string).unwrap_or_default();
                log::error!("the handler's response to {request} is faulty: {fault}");
                if self.sent == 0 {
                    return self.refuse(head, INTERNAL_ERROR);
                }
                false
            }
        };
        // The clock is read only if the line is wanted.
        if log::log_enabled!(target: access::TARGET, Level::Info) {
            let (peer, bytes, begin) = (self.connection.peer(), self.sent - head_length, self.begin);
            log::info!(target: access::TARGET, "{}", access::Line { peer, head, status, bytes, begin });
        }
        Ok(complete && !self.last)
    }

    fn delimiter(&self, response: &ResponseBox) -> Delimiter {
        match response.data_length() {
            _ if self.is_head || has_no_body(response) => Delimiter::Length(0),
            Some(length) => Delimiter::Length(length as u64),
            None if self.http_1_0 => Delimiter::Close,
            None => Delimiter::Chunked,
        }
    }

    /// Fails if it must not be sent: it could split the response in two, or the client would wait for
    /// another.
    fn write_head(&mut self, response: &ResponseBox, delimiter: Delimiter) -> Result<(), Failure> {
        let StatusCode(status) = response.status_code();
        if !(200..1000).contains(&status) {
            return Err(Failure::Response(format!("{status} is not the status of a final response")));
        }
        let reason = response.status_code().default_reason_phrase();
        let _ = write!(self.out, "HTTP/1.1 {status} {reason}\r\n");
        for header in response.headers() {
            if !is_valid(header) {
                return Err(Failure::Response(format!("malformed header field {header:?}")));
            }
            self.line(&[header.field.as_str().as_str(), ": ", header.value.as_str()]);
        }
        if !response.headers().iter().any(|header| header.field.equiv("Date")) {
            let _ = write!(self.out, "Date: {}\r\n", HttpDate::from(SystemTime::now()));
        }
        match response.data_length() {
            _ if has_no_body(response) => {}
            // For HEAD, that of the response to the same request with GET (RFC 9110 section 9.3.2).
            Some(length) => drop(write!(self.out, "Content-Length: {length}\r\n")),
            None if delimiter == Delimiter::Chunked => self.line(&["Transfer-Encoding: chunked"]),
            None => {}
        }
        if self.last {
            self.line(&["Connection: close"]);
        } else if self.http_1_0 {
            self.line(&["Connection: keep-alive"]);
        }
        self.line(&[]);
        Ok(())
    }

    fn line(&mut self, parts: &[&str]) {
        for part in parts.iter().chain(&["\r\n"]) {
            self.out.extend_from_slice(part.as_bytes());
        }
    }

    /// Writes the body and what is still collected. A body that is shorter than its length fails; of a longer
    /// one the client gets what was announced.
    fn write_body(&mut self, body: &mut dyn Read, delimiter: Delimiter) -> Result<(), Failure> {
        let Delimiter::Length(length) = delimiter else { return self.write_stream(body, delimiter) };
        let mut left = length;
        while left > 0 {
            if self.out.len() >= PIECE {
                self.flush()?;
            }
            let begin = self.out.len();
            let most = (PIECE - begin).min(usize::try_from(left).unwrap_or(PIECE));
            self.out.resize(begin + most, 0);
            let read = read(body, &mut self.out[begin..]);
            self.out.truncate(begin + read.as_ref().map_or(0, |&read| read));
            left -= match read.map_err(Failure::Response)? {
                0 => {
                    let fault = format!("its body ended after {} of {length} bytes", length - left);
                    return Err(Failure::Response(fault));
                }
                read => read as u64,
            };
        }
        self.flush()
    }

    /// Writes a body of unknown length, each piece as soon as it is there: the rest may be a long time
    /// coming.
    fn write_stream(&mut self, body: &mut dyn Read, delimiter: Delimiter) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        loop {
            let read = read(body, &mut piece).map_err(Failure::Response)?;
            if delimiter == Delimiter::Chunked {
                let _ = write!(self.out, "{read:x}\r\n");
                self.out.extend_from_slice(&piece[..read]);
                self.line(&[]);
            } else {
                self.out.extend_from_slice(&piece[..read]);
            }
            self.flush()?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.connection.write_all(&self.out, &mut self.pace).map_err(Failure::Client)?;
        self.sent += self.out.len();
        self.out.clear();
        Ok(())
    }
}

/// Whatever its header fields say (RFC 9112 section 6.3).
fn has_no_body(response: &ResponseBox) -> bool {
    matches!(response.status_code().0, 204 | 304)
}

/// RFC 9110 sections 5.1 and 5.5: a name is a token, a value has no control characters but tabs.
fn is_valid(header: &Header) -> bool {
    let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty()
        && name.bytes().all(is_token)
        && value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
}

/// Reads from a body that the handler has made: it may fail, and it may panic.
fn read(body: &mut dyn Read, target: &mut [u8]) -> Result<usize, String> {
    loop {
        match catch_unwind(AssertUnwindSafe(|| body.read(target))) {
            Ok(Ok(read)) => return Ok(read),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(format!("reading its body: {error}")),
            Err(_) => return Err("reading its body panicked".to_owned()),
        }
    }
}
