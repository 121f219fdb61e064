//! HTTP as it is seen on the wire: what is sent, and what comes back.

mod exchange;
mod hostile;
mod random;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use tiny_http::{Response, ResponseBox};

use super::Request;
use crate::options::Limits;
use crate::server::Connections;
use crate::server::address::Address;
use crate::server::listener::Listener;

/// The beginning of a chunked body.
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n")
}

/// A request with these header fields and this body.
fn post(path: &str, message: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: t\r\n{message}")
}

/// Serves a handler on a free port for as long as the result lives.
fn serve(
    limits: Limits,
    handler: impl Fn(&mut Request) -> ResponseBox + Send + Sync + 'static,
) -> (Connections, SocketAddr) {
    let listeners = Listener::bind_all(&["127.0.0.1:0".to_owned()], 0).unwrap();
    let Address::Network(address) = *listeners[0].address() else { panic!("{}", listeners[0].address()) };
    let limits = Arc::new(Mutex::new(limits));
    let shared = Arc::clone(&limits);
    let serve = move |connection: &_| super::serve(connection, &handler, &shared);
    let mut connections =
        Connections::new(listeners, 1, limits, 1 << 20, String::new(), serve, || ()).unwrap();
    connections.accept();
    (connections, address)
}

/// Sends the input on a new connection.
fn send(address: SocketAddr, input: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(input.as_ref()).unwrap();
    stream
}

/// Returns what comes back until the connection ends, without the dates.
fn rest(stream: impl Read) -> String {
    let output = io::read_to_string(stream).unwrap();
    output.split_inclusive('\n').filter(|line| !line.starts_with("Date: ")).collect()
}

/// Ends the input; returns what comes back.
fn end(stream: &TcpStream) -> String {
    stream.shutdown(Shutdown::Write).unwrap();
    rest(stream)
}

fn talk(address: SocketAddr, input: impl AsRef<[u8]>) -> String {
    end(&send(address, input))
}

/// Answers with what it has understood of the request.
fn describe(request: &mut Request) -> ResponseBox {
    match io::read_to_string(request.as_reader()) {
        Ok(body) => plain(format!("{} {} [{body}]", request.method(), request.url())),
        Err(error) => plain(format!("failed: {}", error.kind())),
    }
}

fn plain(text: impl Into<String>) -> ResponseBox {
    Response::from_data(text.into()).boxed()
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn ok_last(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
