//! The pages of the command.

use std::fs;

use crate::client::Client;
use crate::server::{BINARY, Server};

#[test]
fn what_is_serving_is_told() {
    let server = Server::start(&[]);
    let (version, pid) = (env!("CARGO_PKG_VERSION"), server.first());
    let executable = fs::canonicalize(BINARY).unwrap();
    let executable = executable.display();
    assert_eq!(server.get("/healthz"), format!("ok\nhandover {version}"));
    let log = server.log();
    assert!(log.contains(&format!("process {pid} is ready, version {version}, {executable}")), "{log}");
}

#[test]
fn an_echo_is_not_taken_for_a_page() {
    let server = Server::start(&[]);
    let mut client = Client::connect(server.address).unwrap();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\n<script>").unwrap();
    let reply = client.receive().unwrap();
    assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.text(), "<script>");
}

#[test]
fn options_and_absolute_targets_are_answered() {
    let server = Server::start(&[]);
    let mut client = Client::connect(server.address).unwrap();
    for (target, allowed) in [("*", "GET, HEAD, POST, PUT, OPTIONS"), ("/hello", "GET, HEAD, OPTIONS")] {
        client.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: test\r\n\r\n")).unwrap();
        let reply = client.receive().unwrap();
        assert_eq!((reply.status, reply.header("allow")), (204, Some(allowed)));
    }
    assert_eq!(client.get(&format!("http://{}/", server.address)).unwrap().text(), "Hello World");
}
