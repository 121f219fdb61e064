//! What a client can hold, and for how long: a connection, a stop, and the place of another client.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::server::{PATIENCE, Server, exited, wait_for_end};

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A client that sends the same bytes again and again, for as long as the server takes them.
struct Trickle {
    stream: TcpStream,
    sender: Option<JoinHandle<()>>,
}

impl Trickle {
    /// Sends `first`, and then `again` after each pause.
    fn start(server: &Server, first: &str, again: impl Into<String>, pause: Duration) -> Trickle {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        let (mut sending, again) = (stream.try_clone().unwrap(), again.into());
        let sender = thread::spawn(move || {
            while sending.write_all(again.as_bytes()).is_ok() {
                thread::sleep(pause);
            }
        });
        Trickle { stream, sender: Some(sender) }
    }

    /// Everything that comes back until the server ends the connection.
    fn rest(&self) -> String {
        let mut received = Vec::new();
        // The end can be a reset, because the client goes on sending.
        let _ = (&self.stream).read_to_end(&mut received);
        String::from_utf8(received).unwrap()
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.sender.take().unwrap().join();
    }
}

/// More often than the moment for which a connection counts as in use.
const OFTEN: Duration = Duration::from_millis(5);

#[test]
fn a_client_that_sends_only_empty_lines_holds_no_place() {
    let server = Server::start(&["--max-connections", "1", "--head-timeout", "1h"]);
    let trickle = Trickle::start(&server, GET, "\r\n", OFTEN);
    assert_eq!(server.get("/"), "Hello World");
    drop(trickle);
}

#[test]
fn a_client_that_sends_only_empty_lines_does_not_hold_up_a_stop() {
    let server = Server::start(&["--drain-timeout", "1h", "--head-timeout", "1h"]);
    let _trickle = Trickle::start(&server, GET, "\r\n", OFTEN);
    server.expect("GET /");
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_connection_with_only_empty_lines_is_idle() {
    let server = Server::start(&["--max-connections", "1", "--head-timeout", "1h"]);
    let begin = || {
        let mut client = Client::connect(server.address).unwrap();
        client.send(GET.to_owned() + "\r\n").unwrap();
        client.receive().unwrap();
        server.expect_idle();
        client
    };
    let mut evicted = begin();
    assert_eq!(server.get("/"), "Hello World");
    assert!(evicted.rest().unwrap().is_empty());
    let mut closed = begin();
    server.signal(Signal::SIGTERM);
    server.expect("stopping, connections=1 in-flight=0");
    assert!(closed.rest().unwrap().is_empty());
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn the_time_for_a_head_begins_with_an_empty_line_before_it() {
    let server = Server::start(&["--head-timeout", "1s", "--idle-timeout", "1h"]);
    // No request has begun, so none is answered.
    let mut client = server.idle_client();
    client.send("\r\n").unwrap();
    assert!(client.rest().unwrap().is_empty());
    // Here one has.
    let trickle = Trickle::start(&server, "\r\n", "G", OFTEN);
    assert!(trickle.rest().starts_with("HTTP/1.1 408 "));
}

#[test]
fn a_client_that_sleeps_is_let_go_when_it_leaves() {
    let server = Server::start(&["--max-connections", "1"]);
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /sleep?duration=1h HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("GET /sleep");
    drop(client);
    assert_eq!(server.get("/"), "Hello World");

    let reply = client::get(server.address, "/sleep?duration=3601s").unwrap();
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("an hour"), "{}", reply.text());
}

#[test]
fn a_client_that_sleeps_and_has_only_ended_its_input_is_answered_at_once() {
    let server = Server::start(&[]);
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(b"GET /sleep?duration=1h HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    (&stream).read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("Hello World\n"), "{response}");
}

#[test]
fn a_body_that_trickles_in_is_refused() {
    let server = Server::start(&["--body-timeout", "500ms"]);
    let head = |framing| format!("POST /echo HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n");
    let (sized, chunked) = (head("Content-Length: 100000"), head("Transfer-Encoding: chunked"));
    let trickles = [
        (sized, "x"),
        (chunked.clone(), "1\r\nx\r\n"),
        (format!("{chunked}1;"), "x"),
        (format!("{chunked}0\r\nX: "), "x"),
    ]
    .map(|(begin, again)| Trickle::start(&server, &begin, again, Duration::from_millis(100)));
    for trickle in trickles {
        let response = trickle.rest();
        assert!(response.starts_with("HTTP/1.1 408 "), "{response:?}");
    }
}

#[test]
fn a_body_that_no_handler_reads_is_given_up_if_it_trickles_in() {
    let server = Server::start(&["--body-timeout", "500ms", "--min-rate", "0"]);
    let head = "POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n";
    let trickle = Trickle::start(&server, head, "x", Duration::from_millis(100));
    assert!(trickle.rest().starts_with("HTTP/1.1 405 "));
}

/// A client that always has its next request there, and reads what comes back.
struct Pipeliner {
    trickle: Trickle,
    reader: JoinHandle<String>,
}

impl Pipeliner {
    fn start(server: &Server) -> Pipeliner {
        let trickle = Trickle::start(server, GET, GET.repeat(100), Duration::ZERO);
        let stream = trickle.stream.try_clone().unwrap();
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            let _ = (&stream).read_to_end(&mut received);
            String::from_utf8(received).unwrap()
        });
        Pipeliner { trickle, reader }
    }

    /// Waits for the end of the connection. Every response is whole, and the last one says that it is.
    fn expect_end(self) {
        let received = self.reader.join().unwrap();
        assert!(received.ends_with("\r\n\r\nHello World\n"), "{:?}", received.lines().last());
        let (before, last) = received.rsplit_once("HTTP/1.1 200 OK").unwrap();
        assert!(last.contains("\r\nConnection: close\r\n"), "{last:?}");
        assert!(!before.contains("Connection: close"));
        drop(self.trickle);
    }
}

#[test]
fn a_client_that_pipelines_makes_room_at_capacity() {
    let server = Server::start_for_load(&["--max-connections", "1"]);
    let pipeliner = Pipeliner::start(&server);
    assert_eq!(server.get("/"), "Hello World");
    pipeliner.expect_end();
}

#[test]
fn a_client_that_pipelines_holds_up_no_drain_and_no_stop() {
    let server = Server::start_for_load(&["--drain-timeout", "1h", "--no-move"]);
    let pipeliner = Pipeliner::start(&server);
    server.hand_over();
    pipeliner.expect_end();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));

    let server = Server::start_for_load(&["--drain-timeout", "1h"]);
    let pipeliner = Pipeliner::start(&server);
    let successor = server.hand_over();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    server.signal(Signal::SIGTERM);
    pipeliner.expect_end();
    assert_eq!(wait_for_end(successor), exited(successor, 0));
}

#[test]
fn at_capacity_slow_heads_make_room() {
    let limits = ["--log-level", "debug", "--max-connections", "4", "--head-timeout", "1h"];
    let server = Server::start_replaceable(&limits);
    let start = || Trickle::start(&server, "GET / HTTP/1.1\r\nX: ", "x", OFTEN);
    let slow: Vec<Trickle> = (0..4).map(|_| start()).collect();
    (0..4).for_each(|_| drop(server.expect("connected")));
    assert_eq!(server.get("/"), "Hello World");
    server.expect("408 Request Timeout");
    // Who waited, and who was refused.
    let status = handover::ask(&server.directory.join("control"), "status").unwrap();
    assert!(status.contains(" at-capacity=1 refused=1 "), "{status}");
    drop(slow);
}

#[test]
fn a_slow_head_is_waited_for_while_an_idle_connection_can_make_room() {
    let server = Server::start(&["--max-connections", "2", "--head-timeout", "1h"]);
    let mut idle = server.idle_client();
    let mut slow = Client::connect(server.address).unwrap();
    slow.send("GET / HTTP/1.1\r\n").unwrap();
    // Longer than a head may take at capacity.
    thread::sleep(Duration::from_millis(1200));
    for _ in 0..3 {
        let mut client = server.idle_client();
        server.expect_idle();
        assert!(idle.rest().unwrap().is_empty());
        std::mem::swap(&mut idle, &mut client);
    }
    slow.send("Host: test\r\n\r\n").unwrap();
    assert_eq!(slow.receive().unwrap().status, 200);
}
