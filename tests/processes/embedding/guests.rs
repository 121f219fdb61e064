//! Routes with shared state: the guest book.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::{Client, Reply};
use crate::embedding::programs::start;
use crate::protocol::handed_on::Background;
use crate::server::{exited, wait_for_end};

/// What is answered to a name.
fn post(connection: &mut Client, header: &str, name: &str) -> Reply {
    let length = name.len();
    let head = format!("POST /guests HTTP/1.1\r\nHost: test\r\n{header}\r\nContent-Length: {length}\r\n\r\n");
    connection.send(head + name).unwrap();
    connection.receive().unwrap()
}

/// Signs for one guest after the other, on one connection, and returns for how many.
fn sign(address: SocketAddr, client: usize, stop: &AtomicBool) -> usize {
    let mut connection = Client::connect(address).unwrap();
    let mut count = 0;
    while count == 0 || !stop.load(Ordering::SeqCst) {
        let name = format!("{client} {count}");
        let reply = post(&mut connection, "content-type: text/plain", &name);
        assert_eq!((reply.status, reply.text(), reply.is_last()), (201, format!("Welcome, {name}!"), false));
        count += 1;
    }
    count
}

#[test]
fn each_guest_whom_any_process_has_welcomed_is_in_the_book_once_and_in_order() {
    let server = start("guests", "");
    let address = server.address;
    let clients = 0..4;
    let signing: Vec<_> =
        clients.map(|client| Background::start(move |stop| sign(address, client, stop))).collect();
    let mut visitor = Client::connect(address).unwrap();
    for _ in 0..10 {
        // The count is shared by the connections of a process.
        for visits in [0, 1] {
            let hello = visitor.get("/hello").unwrap();
            assert_eq!(hello.text(), format!("{{\"visits\":{visits}}}"));
            assert_eq!(hello.header("content-type"), Some("application/json"));
            assert_eq!(visitor.get("/nothing").unwrap().status, 404);
        }
        let old = server.serving();
        server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
    }
    let counts: Vec<usize> = signing.into_iter().map(Background::stop).collect();
    let book = visitor.get("/guests").unwrap().text();
    for (client, count) in counts.iter().enumerate() {
        let names = book.lines().filter(|line| line.starts_with(&format!("{client} ")));
        assert!(names.eq((0..*count).map(|number| format!("{client} {number}"))), "{count}: {book}");
    }
    assert_eq!(book.lines().count(), counts.iter().sum());
    assert_eq!((server.status("accepted="), server.status("lost=")), (5, 0));
    assert_eq!(server.stop(), exited(server.serving(), 0));
}

#[test]
fn a_process_that_cannot_open_the_book_leaves_it_to_its_predecessor() {
    let server = start("guests", "");
    let mut visitor = Client::connect(server.address).unwrap();
    assert_eq!(visitor.get("/hello").unwrap().text(), "{\"visits\":0}");
    fs::remove_file(server.directory.join("guests")).unwrap();
    fs::create_dir(server.directory.join("guests")).unwrap();
    let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
    assert!(answer.contains("cannot open guests: Is a directory"), "{answer}");
    assert_eq!(visitor.get("/hello").unwrap().text(), "{\"visits\":1}");
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_name_that_is_no_text_or_too_long_is_not_in_the_book() {
    let server = start("guests", "");
    let mut visitor = Client::connect(server.address).unwrap();
    assert_eq!(post(&mut visitor, "Content-Type: application/json", "Ada").status, 415);
    assert_eq!(post(&mut visitor, "Content-Type: text/plain", &"a".repeat(1000)).status, 201);
    assert_eq!(post(&mut visitor, "Content-Type: text/plain", &"b".repeat(1001)).status, 413);
    let mut visitor = Client::connect(server.address).unwrap();
    assert_eq!(visitor.get("/guests").unwrap().text(), "a".repeat(1000));
}
