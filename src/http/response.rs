//! Writing responses (RFC 9112 sections 4, 6 and 7).
//!
//! `tiny_http::Response::raw_print` cannot say `Connection: close`, which a drain depends on; it completes a
//! chunked body that has failed half way; it trusts the length that it was given; and it holds the whole of
//! a body of unknown length in memory for HTTP/1.0.

use std::fmt;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use httpdate::HttpDate;
use tiny_http::{Header, Method, ResponseBox, StatusCode};

use super::head::Head;
use super::refusal::Refusal;
use crate::server::connection::Connection;

/// How many bytes of a response are collected before they are written: a small one is sent in one piece.
const PIECE: usize = 16 * 1024;

/// How the response to a request is written.
#[derive(Clone, Copy)]
pub(crate) struct Reply {
    /// The request was HEAD.
    without_body: bool,
    /// The client knows no chunks, and takes a connection for closed unless the response says otherwise.
    http_1_0: bool,
    /// The connection ends with this response.
    last: bool,
    /// For how long the client may take nothing of the response.
    patience: Duration,
}

/// A response that has been written.
pub(crate) struct Written {
    pub(crate) status: u16,
    /// The length of the body as it was sent, with the framing of its chunks.
    pub(crate) bytes: u64,
    /// Whether the connection can go on: not if its end is that of the response, nor if the body has failed
    /// half way, of which nothing else can inform the client.
    pub(crate) complete: bool,
}

/// How the end of a response's body is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delimiter {
    /// There is no body, whatever the header fields say.
    NoBody,
    Length(u64),
    Chunked,
    Close,
}

/// Which side has failed when a response cannot be completed.
enum Failure {
    Client(io::Error),
    Body(io::Error),
}

impl Reply {
    pub(crate) fn to(head: &Head, patience: Duration) -> Reply {
        let without_body = head.method == Method::Head;
        Reply { without_body, http_1_0: head.version.1 == 0, last: false, patience }
    }

    /// The reply to input that was not understood as a request.
    pub(crate) fn to_malformed(input: &[u8], patience: Duration) -> Reply {
        Reply { without_body: input.starts_with(b"HEAD "), http_1_0: false, last: true, patience }
    }

    /// The same, as the last one on its connection.
    pub(crate) fn last(self) -> Reply {
        Reply { last: true, ..self }
    }

    /// Writes the response. If the handler has made one that cannot be sent, it is logged, and the client
    /// gets a 500.
    ///
    /// # Errors
    ///
    /// The client cannot be written to; `TimedOut` if it has taken nothing for too long.
    pub(crate) fn write(self, connection: &Connection, response: ResponseBox) -> io::Result<Written> {
        let delimiter = self.delimiter(&response);
        let reply = if delimiter == Delimiter::Close { self.last() } else { self };
        let status = response.status_code().0;
        let mut out =
            Out { connection, patience: self.patience, collected: Vec::with_capacity(512), sent: 0 };
        if let Err(fault) = reply.write_head(&mut out.collected, &response, delimiter) {
            log::error!("the handler returned an impossible response: {fault}");
            return self.write_error(connection);
        }
        let head = out.collected.len();
        let complete = match out.write_body(&mut response.into_reader(), delimiter) {
            Ok(()) => delimiter != Delimiter::Close,
            Err(Failure::Client(error)) => return Err(error),
            Err(Failure::Body(error)) => {
                log::error!("the body of a response failed: {error}");
                if out.sent == 0 {
                    return self.write_error(connection);
                }
                false
            }
        };
        Ok(Written { status, bytes: (out.sent - head) as u64, complete })
    }

    fn write_error(self, connection: &Connection) -> io::Result<Written> {
        let written = self.last().write(connection, Refusal::internal_error().response())?;
        Ok(Written { complete: false, ..written })
    }

    fn delimiter(self, response: &ResponseBox) -> Delimiter {
        match (response.status_code().0, response.data_length()) {
            (204 | 304, _) => Delimiter::NoBody,
            _ if self.without_body => Delimiter::NoBody,
            (_, Some(length)) => Delimiter::Length(length as u64),
            (_, None) if self.http_1_0 => Delimiter::Close,
            (_, None) => Delimiter::Chunked,
        }
    }

    /// # Errors
    ///
    /// What must not be sent: it could split the response in two, or the client would wait for another.
    fn write_head(self, out: &mut Vec<u8>, response: &ResponseBox, end: Delimiter) -> Result<(), String> {
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
            field(out, "Date", &HttpDate::from(SystemTime::now()).to_string());
        }
        match (end, response.data_length()) {
            (Delimiter::Chunked, _) => field(out, "Transfer-Encoding", "chunked"),
            (Delimiter::Length(length), _) => field(out, "Content-Length", &length.to_string()),
            // That of the response to the same request with GET (RFC 9110 section 9.3.2).
            (Delimiter::NoBody, Some(length)) if !matches!(status, 204 | 304) => {
                field(out, "Content-Length", &length.to_string());
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
    // Writing to a vector does not fail.
    let _ = write!(out, "{content}\r\n");
}

/// RFC 9110 sections 5.1 and 5.5: a name is a token, a value has no control characters but tabs.
fn check(header: &Header) -> Result<(), String> {
    let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
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
    /// How many bytes have been written. The status can be changed until there are any.
    sent: usize,
}

impl Out<'_> {
    fn flush(&mut self) -> Result<(), Failure> {
        self.connection.write_all(&self.collected, self.patience).map_err(Failure::Client)?;
        self.sent += self.collected.len();
        self.collected.clear();
        Ok(())
    }

    /// Writes the body and what is still collected. A body that is shorter than its length fails; of a longer
    /// one the client gets what was announced.
    fn write_body(&mut self, body: &mut dyn Read, delimiter: Delimiter) -> Result<(), Failure> {
        let mut left = match delimiter {
            Delimiter::NoBody => 0,
            Delimiter::Length(length) => length,
            Delimiter::Chunked | Delimiter::Close => u64::MAX,
        };
        let most = |left: u64| left.min(PIECE as u64) as usize;
        let mut piece = vec![0; most(left)];
        while left > 0 {
            let read = read(body, &mut piece[..most(left)])?;
            match (delimiter, read) {
                (Delimiter::Length(length), 0) => {
                    let error = format!("it ended {left} bytes before its length of {length}");
                    return Err(Failure::Body(io::Error::other(error)));
                }
                (Delimiter::Chunked, _) => {
                    line(&mut self.collected, format_args!("{read:x}"));
                    self.collected.extend_from_slice(&piece[..read]);
                    self.collected.extend_from_slice(b"\r\n");
                }
                _ => self.collected.extend_from_slice(&piece[..read]),
            }
            left = if read == 0 { 0 } else { left - read as u64 };
            // Where the length is not known, the rest may be a long time coming.
            if self.collected.len() >= PIECE || !matches!(delimiter, Delimiter::Length(_)) {
                self.flush()?;
            }
        }
        self.flush()
    }
}

/// Reads from a body that the handler has made: it may fail, and it may panic.
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
