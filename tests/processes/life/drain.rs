//! The end of a process: what it still answers, what it cuts, and what it says about that.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::server::{Server, exited, signal_process, wait_for_end};

/// A connection with a request in flight that takes so long.
fn sleeping(server: &Server, duration: &str) -> Client {
    let mut client = Client::connect(server.address).unwrap();
    client.send(format!("GET /sleep?duration={duration} HTTP/1.1\r\nHost: test\r\n\r\n")).unwrap();
    server.expect("GET /sleep");
    client
}

#[test]
fn a_stop_answers_what_is_in_flight() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT] {
        let server = Server::start(&["--message", "done"]);
        let mut client = sleeping(&server, "1s");
        server.signal(signal);
        server.expect("stopping");
        // The listening socket is closed: who comes now is refused at once.
        assert!(client::get(server.address, "/").is_err());
        let reply = client.receive().unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
        assert!(reply.is_last());
        drop(client);
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    }
}

#[test]
fn a_stop_answers_a_request_that_lies_in_a_socket_and_closes_idle_connections() {
    let server = Server::start(&[]);
    let mut idle = server.idle_client();
    let mut silent = Client::connect(server.address).unwrap();
    server.expect("connected");
    server.expect("connected");

    // While the process is stopped, connections and requests only reach its sockets.
    signal_process(server.first(), Signal::SIGSTOP);
    let mut kept = Client::connect(server.address).unwrap();
    kept.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    signal_process(server.first(), Signal::SIGTERM);
    signal_process(server.first(), Signal::SIGCONT);

    let reply = kept.receive().unwrap();
    assert_eq!(reply.text(), format!("Hello from {}!", server.first()));
    assert!(idle.rest().unwrap().is_empty());
    assert!(silent.rest().unwrap().is_empty());
    drop(kept);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn a_second_stop_signal_cuts() {
    let server = Server::start(&[]);
    let mut client = sleeping(&server, "1h");
    server.signal(Signal::SIGINT);
    server.expect("SIGINT: stopping, connections=1 in-flight=1");
    // Within half a second it would count as the same stop.
    thread::sleep(Duration::from_secs(1));
    server.signal(Signal::SIGTERM);
    server.expect("SIGTERM again: cutting what is in flight, connections=1 in-flight=1 lost=1");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 1));
    assert!(client.receive().is_err());
}

#[test]
fn the_drain_deadline_cuts_a_request() {
    let server = Server::start(&["--drain-timeout", "1s"]);
    let mut client = sleeping(&server, "1h");
    let begin = Instant::now();
    server.hand_over();
    server
        .expect("the drain deadline has passed: cutting what is in flight, connections=1 in-flight=1 lost=1");
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 1));
    assert!(client.receive().is_err());
}

#[test]
fn the_stop_deadline_cuts_a_request() {
    let server = Server::start(&["--drain-timeout", "500ms"]);
    let mut client = sleeping(&server, "1h");
    server.signal(Signal::SIGINT);
    server
        .expect("the drain deadline has passed: cutting what is in flight, connections=1 in-flight=1 lost=1");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 1));
    assert!(client.receive().is_err());
}

#[test]
fn a_stop_signal_to_a_draining_predecessor_cuts_nothing() {
    let server = Server::start(&[]);
    let mut client = sleeping(&server, "1s");
    let successor = server.hand_over();
    signal_process(server.first(), Signal::SIGTERM);
    server.expect("SIGTERM: closing idle connections");
    assert_eq!(client.receive().unwrap().status, 200);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(server.hello(), successor);
}

#[test]
fn a_health_check_hears_of_the_drain() {
    let server = Server::start(&[]);
    assert!(server.get("/healthz").starts_with("ok\n"));
    let mut client = Client::connect(server.address).unwrap();
    // The second is read together with the first, so it stays with the predecessor.
    let requests = ["/sleep?duration=500ms", "/healthz"];
    client.send(requests.map(|url| format!("GET {url} HTTP/1.1\r\nHost: test\r\n\r\n")).concat()).unwrap();
    server.expect("GET /sleep");
    server.hand_over();
    assert_eq!(client.receive().unwrap().status, 200);
    let reply = client.receive().unwrap();
    assert_eq!(reply.status, 503);
    assert!(reply.text().starts_with("draining\n"), "{reply:?}");
    assert!(server.get("/healthz").starts_with("ok\n"));
}
