//! The head of a request: the request line and the header fields (RFC 9112 sections 2 to 6).
//!
//! What two implementations could understand in two ways is refused, because the other one may be a proxy
//! in front of this server that enforces a policy.

use std::mem::MaybeUninit;
use std::time::Instant;
use std::{fmt, io};

use httparse::{Error, Status};
use tiny_http::{HTTPVersion, Header, Method};

use super::input::{Input, LARGEST_PIECE};
use super::refusal::Refusal;
use super::target::{Target, is_host};
use crate::percent;
use crate::server::connection::Connection;

/// The most header fields of a request.
const MOST_HEADERS: usize = 100;

/// The head of a request.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) version: HTTPVersion,
    pub(crate) headers: Vec<Header>,
    pub(crate) obs_text: ObsText,
    pub(crate) framing: Framing,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// Whether the client lets the connection persist after the response.
    pub(crate) keep_alive: bool,
}

/// The values that are not ASCII, as they were sent, and the indices of their fields.
type ObsText = Vec<(usize, Vec<u8>)>;

/// How the end of a request's body is found (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// By its length in bytes, which is 0 if there is no body.
    Length(u64),
    /// By the last of its chunks, which is empty.
    Chunked,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)
    }
}

impl Head {
    /// Reads a head, which began at that time, and of which the input has at least the first byte. It fails with
    /// a [`Refusal`] of the request, which is then still in the input, or because the connection has failed or
    /// ended.
    pub(crate) fn read(input: &mut Input, begin: Instant) -> io::Result<Head> {
        const TOO_SLOW: Refusal = Refusal::new(408, "the request head did not come in time");
        let patience = input.limits.head_timeout;
        let read = |connection: &Connection, buffer: &mut [u8]| connection.read_head(buffer, begin, patience);
        input.parse(read, Head::parse).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => io::Error::other(TOO_SLOW),
            _ => error,
        })
    }

    /// Returns the length of a head and what it says; `None` if it is not complete. Each time more has come,
    /// it is parsed from its beginning, so that what cannot become a request is refused at once.
    // Not inlined, or its buffer lies on the stack of every idle connection.
    #[inline(never)]
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(usize, Head)>, Refusal> {
        // httparse would pass over any number of them.
        if let [b'\n', ..] | [b'\r', b'\n', ..] = bytes {
            return Err(Refusal::new(400, "more than 4 empty lines before the request"));
        }
        let mut fields = [const { MaybeUninit::uninit() }; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut fields);
        let line = request_line(&request)?;
        let (length, (method, Target { url, authority }, minor)) = match (parsed, line) {
            (Ok(Status::Complete(length)), Some(line)) if length <= LARGEST_PIECE => (length, line),
            (Ok(Status::Partial), _) if bytes.len() < LARGEST_PIECE => return Ok(None),
            // Which version it is can be seen at the end of the line.
            (Err(Error::Version), _) if bytes.len() < LARGEST_PIECE && !bytes.contains(&b'\n') => {
                return Ok(None);
            }
            (parsed, _) => return Err(unusable(parsed, bytes)),
        };
        let fields = Fields(request.headers);
        fields.check_host(minor)?;
        let (headers, obs_text) =
            fields.headers(authority).ok_or(Refusal::new(400, "malformed header field"))?;
        let head = Head {
            method,
            url,
            framing: fields.framing(minor)?,
            expects_continue: fields.expects_continue(minor)?,
            keep_alive: fields.keep_alive(minor),
            version: HTTPVersion(1, minor),
            headers,
            obs_text,
        };
        Ok(Some((length, head)))
    }
}

/// What a request line means that httparse has taken apart; `None` if it is not complete.
fn request_line<'a>(
    request: &httparse::Request<'_, 'a>,
) -> Result<Option<(Method, Target<'a>, u8)>, Refusal> {
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Ok(None);
    };
    let target = Target::parse(method, target).ok_or(Refusal::new(400, "malformed request target"))?;
    let method = method.parse().map_err(|()| Refusal::new(400, "malformed method"))?;
    Ok(Some((method, target, minor)))
}

/// Why a head that httparse has seen is refused.
fn unusable(parsed: httparse::Result<usize>, bytes: &[u8]) -> Refusal {
    let line_length = bytes.iter().take_while(|&&byte| byte != b'\n').count();
    let (status, reason) = match parsed {
        Ok(_) if line_length < LARGEST_PIECE => (431, "the request head is larger than 16 KiB"),
        Ok(_) => (414, "the request line is larger than 16 KiB"),
        Err(Error::TooManyHeaders) => (431, "more than 100 header fields"),
        Err(Error::Version) if names_a_version(bytes) => (505, "only versions 1.0 and 1.1 are spoken here"),
        Err(Error::HeaderName) => (400, "malformed header field name"),
        Err(Error::HeaderValue) => (400, "malformed header field value"),
        Err(_) => (400, "malformed request line"),
    };
    Refusal::new(status, reason)
}

/// Whether the request line is one of some version of HTTP, for example of HTTP/2's preface.
fn names_a_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    matches!(words[..], [_, _, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']])
}

/// The header fields, and what they say about the message.
struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    /// The values of every field of that name.
    fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The elements of every field of that name, which holds a comma-separated list.
    fn elements(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let elements = self.values(name).flat_map(|value| value.split(|&byte| byte == b','));
        elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
    }

    /// The fields in their order; but with the authority of an absolute target, if there is one, Host comes
    /// first and is that (RFC 9112 section 3.2.2).
    fn headers(&self, authority: Option<&str>) -> Option<(Vec<Header>, ObsText)> {
        let host = authority.map(|authority| ("Host", authority.as_bytes()));
        let fields = self.0.iter().map(|field| (field.name, field.value));
        let fields = fields.filter(|(name, _)| host.is_none() || !name.eq_ignore_ascii_case("Host"));
        let mut headers = Vec::with_capacity(self.0.len() + 1);
        let mut obs_text = Vec::new();
        for (name, value) in host.into_iter().chain(fields) {
            let header = if value.is_ascii() {
                Header::from_bytes(name, value)
            } else {
                obs_text.push((headers.len(), value.to_owned()));
                // tiny_http's `Header` can hold nothing else.
                Header::from_bytes(name, percent::encoded(value, |byte| byte.is_ascii()))
            };
            headers.push(header.ok()?);
        }
        Some((headers, obs_text))
    }

    /// RFC 9112 section 3.2.
    fn check_host(&self, minor: u8) -> Result<(), Refusal> {
        let mut hosts = self.values("Host");
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if is_host(host) => Ok(()),
            (Some(_), None) => Err(Refusal::new(400, "malformed Host header field")),
            (None, _) if minor == 0 => Ok(()),
            (None, _) => Err(Refusal::new(400, "no Host header field")),
            _ => Err(Refusal::new(400, "more than one Host header field")),
        }
    }

    /// RFC 9112 section 6.3, but without the repairs that it permits.
    fn framing(&self, minor: u8) -> Result<Framing, Refusal> {
        let mut lengths = self.values("Content-Length");
        // Not as a list, in which other implementations may see other elements.
        let mut codings = self.values("Transfer-Encoding");
        match (lengths.next(), codings.next()) {
            (None, None) => Ok(Framing::Length(0)),
            (Some(length), None) if lengths.all(|other| other == length) => {
                decimal(length).map(Framing::Length).ok_or(Refusal::new(400, "malformed Content-Length"))
            }
            (Some(_), None) => Err(Refusal::new(400, "differing Content-Length header fields")),
            (Some(_), Some(_)) => Err(Refusal::new(400, "Content-Length together with Transfer-Encoding")),
            (None, Some(_)) if minor == 0 => Err(Refusal::new(400, "Transfer-Encoding in HTTP/1.0")),
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(Framing::Chunked)
            }
            _ => Err(Refusal::new(501, "a Transfer-Encoding other than chunked")),
        }
    }

    /// RFC 9110 section 10.1.1: an expectation in HTTP/1.0 is ignored.
    fn expects_continue(&self, minor: u8) -> Result<bool, Refusal> {
        let mut expectations = self.elements("Expect").filter(|_| minor > 0).peekable();
        let expects = expectations.peek().is_some();
        let all_known = expectations.all(|expected| expected.eq_ignore_ascii_case(b"100-continue"));
        all_known.then_some(expects).ok_or(Refusal::new(417, "an expectation other than 100-continue"))
    }

    /// RFC 9112 section 9.3.
    fn keep_alive(&self, minor: u8) -> bool {
        let has = |option: &[u8]| self.elements("Connection").any(|found| found.eq_ignore_ascii_case(option));
        !has(b"close") && (minor > 0 || has(b"keep-alive"))
    }
}

/// Digits only: no sign, no list, no white space, and no more than fits.
fn decimal(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?.parse().ok()
}
