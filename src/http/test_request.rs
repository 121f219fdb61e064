//! Requests that no client has sent, for the tests of handlers.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tiny_http::{HTTPVersion, Header, Method};

use super::head::Head;
use super::input::Input;
use super::request::Request;
use crate::options::Limits;
use crate::server::address::Address;
use crate::server::connection::{Connection, Peer};

/// Makes a [`Request`] to test a handler with, as `tiny_http::TestRequest` does.
///
/// It is written as a client would, and read as the server reads it: making a request of one that no handler would
/// see panics. Its client stays, but ends its side if the body is not complete. A response can be looked at as it
/// is.
///
/// ```
/// use std::io;
///
/// use handover::{Method, Request, Response, ResponseBox, TestRequest};
///
/// /// Greets by the name in the body.
/// fn greet(request: &mut Request) -> ResponseBox {
///     match io::read_to_string(request.as_reader()) {
///         Ok(name) if *request.method() == Method::Post => {
///             Response::from_string(format!("Hello, {name}!")).boxed()
///         }
///         _ => Response::empty(405).boxed(),
///     }
/// }
///
/// let mut request = TestRequest::new().with_method(Method::Post).with_path("/greet").with_body("Ada").into();
/// let response = greet(&mut request);
/// assert_eq!(response.status_code(), 200);
/// assert!(response.headers().iter().any(|header| header.field.equiv("Content-Type")));
/// assert_eq!(io::read_to_string(response.into_reader())?, "Hello, Ada!");
///
/// assert_eq!(greet(&mut TestRequest::new().into()).status_code(), 405);
/// # io::Result::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct TestRequest {
    method: Method,
    path: String,
    version: HTTPVersion,
    headers: Vec<Header>,
    body: Vec<u8>,
    remote_addr: SocketAddr,
}

impl TestRequest {
    /// `GET /` in HTTP/1.1 without a body, from 127.0.0.1:23456, on a connection that was accepted on
    /// 127.0.0.1:3000.
    pub fn new() -> TestRequest {
        TestRequest::default()
    }

    /// Sets the method.
    pub fn with_method(self, method: Method) -> TestRequest {
        TestRequest { method, ..self }
    }

    /// Sets the path and the query, as a client would send them.
    pub fn with_path(self, path: impl Into<String>) -> TestRequest {
        TestRequest { path: path.into(), ..self }
    }

    /// Sets the version of HTTP: 1.0 or 1.1.
    pub fn with_http_version(self, version: HTTPVersion) -> TestRequest {
        TestRequest { version, ..self }
    }

    /// Adds a header field. `Host: test` is there unless it is added, and so is the length of the body, unless
    /// that is sent in chunks.
    pub fn with_header(mut self, header: Header) -> TestRequest {
        self.headers.push(header);
        self
    }

    /// Sets the body, as it is sent.
    pub fn with_body(self, body: impl Into<Vec<u8>>) -> TestRequest {
        TestRequest { body: body.into(), ..self }
    }

    /// Sets the address of the client.
    pub fn with_remote_addr(self, remote_addr: SocketAddr) -> TestRequest {
        TestRequest { remote_addr, ..self }
    }

    /// What a client would send.
    fn bytes(&self) -> Vec<u8> {
        let TestRequest { method, path, version, headers, body, .. } = self;
        let mut head = format!("{method} {path} HTTP/{version}\r\n");
        let has = |name| headers.iter().any(|header| header.field.equiv(name));
        if !has("Host") {
            head += "Host: test\r\n";
        }
        if !body.is_empty() && !has("Content-Length") && !has("Transfer-Encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        headers.iter().for_each(|header| head += &format!("{header}\r\n"));
        [head.as_bytes(), b"\r\n", body].concat()
    }

    fn request(self) -> io::Result<Request> {
        let local = Address::Network(([127, 0, 0, 1], 3000).into());
        let (connection, client) = Connection::pair(Peer::Network(self.remote_addr), local)?;
        let mut input = Input::new(Arc::new(connection), Limits::default());
        input.buffer = self.bytes().into();
        let head = Head::read(&mut input, Instant::now())?;
        let mut request = Request::new(head, input);
        if !request.body.is_complete() {
            client.shutdown(Shutdown::Write)?;
        }
        request.body.begin().map_err(io::Error::other)?;
        Ok(request)
    }
}

impl Default for TestRequest {
    fn default() -> TestRequest {
        TestRequest {
            method: Method::Get,
            path: "/".to_owned(),
            version: HTTPVersion(1, 1),
            headers: Vec::new(),
            body: Vec::new(),
            remote_addr: ([127, 0, 0, 1], 23456).into(),
        }
    }
}

impl From<TestRequest> for Request {
    /// Panics if the request is one that the server refuses, or if the system lacks descriptors.
    fn from(request: TestRequest) -> Request {
        request.request().unwrap_or_else(|error| panic!("a test request: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn header(line: &str) -> Header {
        line.parse().unwrap()
    }

    #[test]
    fn a_test_request_is_what_a_client_would_have_sent() {
        let mut request: Request = TestRequest::new()
            .with_method(Method::Put)
            .with_path("/a?b=c")
            .with_http_version(HTTPVersion(1, 0))
            .with_header(header("X-Test: 1"))
            .with_remote_addr(([192, 0, 2, 1], 80).into())
            .with_body(vec![b'!'; 1 << 20])
            .into();
        assert_eq!((request.method(), request.url()), (&Method::Put, "/a?b=c"));
        assert_eq!(*request.http_version(), HTTPVersion(1, 0));
        assert_eq!(request.header_bytes("Host"), Some(&b"test"[..]));
        assert_eq!(request.header_bytes("x-test"), Some(&b"1"[..]));
        assert_eq!(request.remote_addr(), Some(&([192, 0, 2, 1], 80).into()));
        assert_eq!(request.body_length(), Some(1 << 20));
        assert_eq!(io::copy(request.as_reader(), &mut io::sink()).unwrap(), 1 << 20);
        assert!(!request.is_draining() && !request.recipient().wait_for_hangup(Duration::ZERO));
    }

    #[test]
    fn a_test_request_may_have_a_body_that_is_chunked_or_ends_early() {
        let chunked = TestRequest::new().with_header(header("Transfer-Encoding: chunked"));
        let mut request: Request = chunked.clone().with_body("3\r\nabc\r\n0\r\n\r\n").into();
        assert_eq!(io::read_to_string(request.as_reader()).unwrap(), "abc");
        let long = TestRequest::new().with_header(header("Content-Length: 4")).with_body("abc");
        for incomplete in [chunked.with_body("4\r\nabc"), long] {
            let mut request = Request::from(incomplete);
            let error = io::read_to_string(request.as_reader()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    #[should_panic = "a test request: 400 Bad Request: malformed request line"]
    fn a_test_request_that_no_handler_would_see_panics() {
        let _: Request = TestRequest::new().with_path("no path").into();
    }
}
