//! What an embedding program meets: a request, and the handler that answers it.

use std::io::Read;
use std::net::SocketAddr;

use tiny_http::{HTTPVersion, Header, Method, ResponseBox};

use super::body::Body;
use super::head::Head;
use super::input::Input;
use super::recipient::Recipient;
use crate::options::Options;
use crate::server::address::Address;
use crate::server::connection::Peer;

/// Answers requests.
///
/// A function or closure `Fn(&mut Request) -> ResponseBox` is a handler. A closure has to name the type of its
/// argument, `|request: &mut Request| …`: otherwise the compiler says "type annotations needed", or that an
/// "implementation of `FnOnce` is not general enough". A type that has a configuration to reload implements this
/// trait itself.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. It runs on the thread of the connection, so on many at the same time, and may
    /// block. If it panics, the client gets a 500.
    fn handle(&self, request: &mut Request) -> ResponseBox;

    /// Reads the configuration again, on SIGUSR1 or `reload`, and applies all of it or, if there is an error,
    /// nothing. `options` are the present ones, to be changed; see [`Options`] for those that can change in
    /// place.
    ///
    /// It runs on a thread of its own, one call at a time, and may block. Requests to reload that come during
    /// a call are combined into one more.
    ///
    /// # Errors
    ///
    /// What is wrong, in one line, for the log and for the client of the control socket. `options` are then
    /// discarded, as they are after a panic. Unless a handler says otherwise, there is nothing to reload.
    fn reload(&self, options: &mut Options) -> Result<(), String> {
        let _ = options;
        Err("the program has nothing to reload".to_owned())
    }
}

impl<F: Fn(&mut Request) -> ResponseBox + Send + Sync + 'static> Handler for F {
    fn handle(&self, request: &mut Request) -> ResponseBox {
        self(request)
    }
}

/// A request, given to the handler.
///
/// The accessors are those of [`tiny_http::Request`] under the same names, so that a handler written for
/// tiny_http moves over almost unchanged: instead of calling `request.respond(response)`, it returns
/// `response.boxed()`.
pub struct Request {
    pub(super) head: Head,
    pub(super) body: Body,
    remote_addr: Option<SocketAddr>,
}

impl Request {
    pub(super) fn new(head: Head, input: Input) -> Request {
        let remote_addr = match input.connection.peer() {
            Peer::Network(address) => Some(address),
            Peer::Local => None,
        };
        let body = Body::new(input, head.framing, head.expects_continue);
        Request { head, body, remote_addr }
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// The path and the query, as the client sent them: nothing is decoded or resolved, so `/a/../b`, `/%62` and `//b`
    /// are not `/b`. A handler that makes the name of a file of it has to see to that.
    ///
    /// Of an absolute target, `http://host/path`, this is the part from the path on, and the Host header
    /// field has the host and the port (RFC 9112 section 3.2.2). It is `*` for OPTIONS on the server as a
    /// whole, and the host and the port for CONNECT.
    pub fn url(&self) -> &str {
        &self.head.url
    }

    /// The header fields in the order in which they were sent, names as the client spelled them.
    ///
    /// A [`Header`] holds ASCII only, but clients do send other bytes in values: here these are
    /// percent-encoded, `%C3%A4` for an ä in UTF-8. [`header_bytes`](Self::header_bytes) has them as they
    /// are.
    pub fn headers(&self) -> &[Header] {
        &self.head.headers
    }

    /// The value of the first header field of that name, in bytes as the client sent them.
    pub fn header_bytes(&self, name: &str) -> Option<&[u8]> {
        let has_name = |header: &Header| header.field.as_str().as_str().eq_ignore_ascii_case(name);
        let index = self.head.headers.iter().position(has_name)?;
        let obs_text = self.head.obs_text.iter().find(|(place, _)| *place == index);
        Some(obs_text.map_or(self.head.headers[index].value.as_bytes(), |(_, value)| value))
    }

    /// The version of HTTP of the request: 1.0 or 1.1.
    pub fn http_version(&self) -> &HTTPVersion {
        &self.head.version
    }

    /// The length of the body in bytes, if the request has a `Content-Length`; `None` for a chunked body
    /// and for a request without a body.
    pub fn body_length(&self) -> Option<usize> {
        let length = self.headers().iter().find(|header| header.field.equiv("Content-Length"))?;
        length.value.as_str().parse().ok()
    }

    /// The address of the client, or of the last proxy before this server; `None` on a Unix socket.
    pub fn remote_addr(&self) -> Option<&SocketAddr> {
        self.remote_addr.as_ref()
    }

    /// The address of the listening socket that the connection was accepted on.
    pub fn local_addr(&self) -> &Address {
        self.body.input.connection.local()
    }

    /// The body, decoded. The first read sends `100 Continue` to a client that waits for it.
    ///
    /// Up to 256 KiB that are left unread are discarded; if more is left, the connection is closed after
    /// the response.
    ///
    /// # Errors
    ///
    /// Reading fails with `UnexpectedEof` if the client ends the connection before the body, with
    /// `TimedOut` if it sends nothing for [`body_timeout`](crate::Limits::body_timeout) or less than
    /// [`min_rate`](crate::Limits::min_rate), and with `InvalidData` if the chunks are malformed. The client is
    /// then answered with 400 or 408, whatever the handler returns. It fails with `FileTooLarge` beyond the limit of [`limit_body`](Self::limit_body).
    pub fn as_reader(&mut self) -> &mut dyn Read {
        &mut self.body
    }

    /// Accepts at most `bytes` more of the body: reading it fails with [`FileTooLarge`] as soon as it is
    /// known to be larger, if possible before the client sends it. The usual answer to that is status 413.
    ///
    /// [`FileTooLarge`]: std::io::ErrorKind::FileTooLarge
    pub fn limit_body(&mut self, bytes: u64) {
        self.body.limit = bytes;
    }

    /// The client, which may leave while the handler, or the body of its response, waits for something.
    pub fn recipient(&self) -> Recipient {
        Recipient::new(&self.body.input.connection)
    }

    /// Whether the process is draining: it no longer accepts connections, because it has handed over or is
    /// stopping. A health check may report it.
    pub fn is_draining(&self) -> bool {
        self.body.input.connection.is_draining()
    }
}
