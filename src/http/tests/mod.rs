//! HTTP as it is seen on the wire: what is sent, and what comes back.

mod exchange;
mod hostile;
mod random;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, RwLock};

use tiny_http::{Response, ResponseBox};

use super::Request;
use crate::options::Limits;
use crate::server::Server;
use crate::server::address::Address;
use crate::server::listener::Listener;

/// The beginning of a request with a body, and that of a chunked body.
const POST: &str = "POST / HTTP/1.1\r\nHost: t\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n")
}

/// Serves a handler on a free port for as long as the result lives.
fn serve(handler: impl Fn(&mut Request) -> ResponseBox + Send + Sync + 'static) -> (Server, SocketAddr) {
    serve_within(Limits::default(), handler)
}

/// The same with other limits.
fn serve_within(
    limits: Limits,
    handler: impl Fn(&mut Request) -> ResponseBox + Send + Sync + 'static,
) -> (Server, SocketAddr) {
    let listeners = Listener::bind_all(&["127.0.0.1:0".to_owned()], 0).unwrap();
    let Address::Network(address) = *listeners[0].address() else { panic!("{}", listeners[0].address()) };
    let limits = Arc::new(RwLock::new(limits));
    let shared = Arc::clone(&limits);
    let serve = move |connection: &_| super::serve(connection, &handler, &shared);
    let mut server = Server::new(listeners, limits, serve, || ()).unwrap();
    server.accept();
    (server, address)
}

/// Sends the input and then the end of input; returns what comes back, without the dates.
fn talk(address: SocketAddr, input: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(input.as_ref()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    rest(&mut stream)
}

fn rest(stream: &mut TcpStream) -> String {
    let mut output = String::new();
    stream.read_to_string(&mut output).unwrap();
    let lines = output.split_inclusive('\n');
    lines.filter(|line| !line.starts_with("Date: ")).collect()
}

/// Answers with what it has understood of the request.
fn describe(request: &mut Request) -> ResponseBox {
    let mut body = String::new();
    match request.as_reader().read_to_string(&mut body) {
        Ok(_) => plain(format!("{} {} [{body}]", request.method(), request.url())),
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
