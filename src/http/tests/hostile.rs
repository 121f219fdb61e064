//! Malformed, oversized and slow requests: each has its status, none has a second answer.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use super::{CHUNKED, describe, get, ok, plain, post, rest, send, serve, serve_within, talk};
use crate::options::Limits;

const SHORT: Duration = Duration::from_millis(50);

/// Why something is refused, with which status, and what it is.
type Refused = (&'static str, u16, &'static str);

/// Heads.
const HEADS: &[Refused] = &[
    ("chunked in HTTP/1.0", 400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a space before the colon", 400, "GET / HTTP/1.1\r\nHost : t\r\n\r\n"),
    ("a line that begins with a space", 400, "GET / HTTP/1.1\r\n Host: t\r\n\r\n"),
    ("CR alone at the end of a line", 400, "GET / HTTP/1.1\rHost: t\r\n\r\n"),
    ("CR alone before the request", 400, "\rGET / HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("a tab in the request line", 400, "GET\t/\tHTTP/1.1\r\nHost: t\r\n\r\n"),
    ("two spaces in the request line", 400, "GET  / HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("a space first", 400, " GET / HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("a target that is no path", 400, "GET a HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("an asterisk for GET", 400, "GET * HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("another scheme", 400, "GET ftp://t/ HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("a target without a host", 400, "GET http:///a HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("a target with a port only", 400, "GET http://:80/a HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("a target with a user", 400, "GET http://u@t/a HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("an absolute target without Host", 400, "GET http://t/a HTTP/1.1\r\n\r\n"),
    ("a path for CONNECT", 400, "CONNECT /a HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("no version", 400, "GET /\r\nHost: t\r\n\r\n"),
    ("a malformed version", 400, "GET / HTTP/one\r\nHost: t\r\n\r\n"),
    ("another protocol", 400, "GET / ICY/1.1\r\nHost: t\r\n\r\n"),
    ("an empty method", 400, "/ HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("something else", 400, "\x16\x03\x01\x02\n\n"),
    ("no Host", 400, "GET / HTTP/1.1\r\n\r\n"),
    ("two Hosts in HTTP/1.0", 400, "GET / HTTP/1.0\r\nHost: t\r\nHost: t\r\n\r\n"),
    ("a user and a path in Host", 400, "GET / HTTP/1.1\r\nHost: a@b/c?d\r\n\r\n"),
    ("a list in Host", 400, "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    ("a malformed port", 400, "GET / HTTP/1.1\r\nHost: t:8x\r\n\r\n"),
    ("two ports", 400, "GET / HTTP/1.1\r\nHost: t:8:0\r\n\r\n"),
    ("a malformed address", 400, "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    ("an address without brackets", 400, "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n"),
    ("a malformed escape in Host", 400, "GET / HTTP/1.0\r\nHost: a%2\r\n\r\n"),
    ("the preface of HTTP/2", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("HTTP/2", 505, "GET / HTTP/2.0\r\nHost: t\r\n\r\n"),
    ("HTTP/0.9", 505, "GET / HTTP/0.9\r\nHost: t\r\n\r\n"),
    ("HEAD without Host", 400, "HEAD / HTTP/1.1\r\n\r\n"),
    ("HEAD with chunks", 400, "HEAD / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
    ("HEAD in HTTP/2", 505, "HEAD / HTTP/2.0\r\n"),
];

/// Header fields, with bodies.
const FIELDS: &[Refused] = &[
    // Two lengths, which two implementations could choose between.
    ("both lengths", 400, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("both, reversed", 400, "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    ("two lengths", 400, "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    ("a list of lengths", 400, "Content-Length: 5, 6\r\n\r\nabcdef"),
    ("a list without a space", 400, "Content-Length: 5,6\r\n\r\nabcdef"),
    ("a signed length", 400, "Content-Length: +5\r\n\r\nabcde"),
    ("a negative length", 400, "Content-Length: -5\r\n\r\nabcde"),
    ("a hexadecimal length", 400, "Content-Length: 0x5\r\n\r\nabcde"),
    ("an empty length", 400, "Content-Length:\r\n\r\n"),
    ("a length that overflows", 400, "Content-Length: 18446744073709551616\r\n\r\n"),
    ("another coding", 501, "Transfer-Encoding: gzip\r\n\r\n"),
    ("another coding first", 501, "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("two codings", 501, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a parameter", 501, "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    ("an empty element", 501, "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n"),
    ("an empty coding", 501, "Transfer-Encoding:\r\n\r\n"),
    ("another expectation", 417, "Content-Length: 1\r\nExpect: more\r\n\r\nx"),
    ("two Hosts", 400, "Host: t\r\n\r\n"),
    // Syntax.
    ("a folded line", 400, "X: a\r\n b\r\n\r\n"),
    ("no colon", 400, "nonsense\r\n\r\n"),
    ("a coding that is not ASCII", 501, "Transfer-Encoding: chunked\u{e4}\r\n\r\n0\r\n\r\n"),
];

/// Chunked bodies.
const CHUNKS: &[Refused] = &[
    ("a size that is no number", 400, "x\r\n"),
    ("a signed size", 400, "+3\r\nabc\r\n0\r\n\r\n"),
    ("a prefixed size", 400, "0x3\r\nabc\r\n0\r\n\r\n"),
    ("an empty size", 400, "\r\nabc\r\n0\r\n\r\n"),
    ("no size", 400, ";x\r\nabc\r\n0\r\n\r\n"),
    ("a space before the size", 400, " 3\r\nabc\r\n0\r\n\r\n"),
    ("a size that overflows", 400, "10000000000000003\r\nabc\r\n0\r\n\r\n"),
    ("a size with LF alone", 400, "3\nabc\r\n0\r\n\r\n"),
    ("an empty line with LF alone", 400, "0\r\n\n"),
    ("a trailer with LF alone", 400, "0\r\nX: y\n\r\n"),
    ("a malformed trailer", 400, "0\r\nX : y\r\n\r\n"),
    ("more than its size", 400, "3\r\nabcd\r\n0\r\n\r\n"),
];

/// Each reason, status and whole request.
fn refused() -> impl Iterator<Item = (&'static str, u16, String)> {
    let long = "x".repeat(20_000);
    let large = [
        ("a long target", 414, format!("GET /{long} HTTP/1.1\r\nHost: t\r\n\r\n")),
        ("an endless target", 414, format!("GET /{long}")),
        ("a long field", 431, post("/", &format!("X: {long}\r\n\r\n"))),
        ("an endless field", 431, post("/", &format!("X: {long}"))),
        ("a long name", 431, post("/", &format!("{long}: x\r\n\r\n"))),
        ("many fields", 431, post("/", &("X: y\r\n".repeat(100) + "\r\n"))),
        ("a large head of many fields", 431, post("/", &("X: y\r\n".repeat(5000) + "\r\n"))),
        ("an endless chunk extension", 400, post("/", &format!("{CHUNKED}3;{long}"))),
        ("a long chunk extension", 400, post("/", &format!("{CHUNKED}3;{long}\r\nabc\r\n0\r\n\r\n"))),
        ("endless trailers", 400, post("/", &format!("{CHUNKED}0\r\n{}", "X: y\r\n".repeat(5000)))),
        ("an endless trailer", 400, post("/", &format!("{CHUNKED}0\r\nX: {long}"))),
    ];
    let heads = HEADS.iter().map(|&(what, status, head)| (what, status, head.to_owned()));
    let fields = FIELDS.iter().map(|&(what, status, fields)| (what, status, post("/", fields)));
    let chunks = CHUNKS.iter().map(|&(what, status, body)| (what, status, post("/", CHUNKED) + body));
    heads.chain(fields).chain(chunks).chain(large)
}

/// The status of the one response there is; the connection has ended after it.
fn only_status(output: &str) -> u16 {
    assert_eq!(output.matches("HTTP/1.1 ").count(), 1, "{output}");
    assert!(output.contains("\r\nConnection: close\r\n"), "{output}");
    output["HTTP/1.1 ".len()..][..3].parse().unwrap()
}

#[test]
fn what_is_too_large_or_could_be_understood_in_two_ways_is_refused() {
    let (_server, address) = serve(|request| {
        // Only one reaches a handler, because its first chunk is right.
        if request.url() != "/next" {
            request.as_reader().read_exact(&mut [0; 3]).unwrap();
            request.as_reader().read(&mut [0]).unwrap_err();
        }
        plain("ok")
    });
    for (what, status, input) in refused() {
        let is_head = input.starts_with("HEAD ");
        let output = talk(address, input + &get("/smuggled"));
        assert_eq!(only_status(&output), status, "{what}: {output}");
        // A refusal of HEAD has no body.
        assert_eq!(output.ends_with("\r\n\r\n"), is_head, "{what}: {output}");
        assert_eq!(talk(address, get("/next")), ok("ok"), "after {what}");
    }
}

/// What comes before and behind a byte, and which bytes may be there.
type Place = (String, &'static str, fn(u8) -> bool);

#[test]
fn each_byte_is_accepted_where_the_grammar_has_it_and_else_refused() {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte);
    let places: [Place; 6] = [
        ("G".to_owned(), "T / HTTP/1.1\r\nHost: t\r\n\r\n", is_name),
        ("GET /".to_owned(), "z HTTP/1.1\r\nHost: t\r\n\r\n", |byte| byte.is_ascii_graphic()),
        ("GET / HTTP/1.1\r\nHost: a".to_owned(), "z\r\n\r\n", is_host),
        (post("/", "X"), "Y: z\r\n\r\n", |byte| {
            b":!#$%&'*+-.^_`|~".contains(&byte) || byte.is_ascii_alphanumeric()
        }),
        (post("/", "X: a"), "b\r\n\r\n", |byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)),
        (post("/", CHUNKED) + "3;", "\r\nabc\r\n0\r\n\r\n", |byte| matches!(byte, b'\t' | b' '..=b'~')),
    ];
    let (_server, address) = serve(|_| plain("ok"));
    for (before, behind, is_accepted) in places {
        for byte in 0..=u8::MAX {
            let output = talk(address, [before.as_bytes(), &[byte], behind.as_bytes()].concat());
            if is_accepted(byte) {
                assert_eq!(output, ok("ok"), "{before:?} {byte:#x} {behind:?}");
            } else {
                assert_eq!(only_status(&output), 400, "{before:?} {byte:#x} {behind:?}");
            }
        }
    }
}

#[test]
fn what_cannot_become_a_request_is_refused_at_once() {
    let (_server, address) = serve(describe);
    for (status, input) in [
        (400, "\x16\x03\x01\x02\0\x01"),
        (400, "SSH-2.0-OpenSSH_9.2\r\n"),
        (400, "EHLO mail\r\n"),
        (400, "GET /\r\nHost: t\r\n"),
        (505, "GET / HTTP/3.0\r\n"),
    ] {
        // It does not end, and the time for a head is not over.
        assert_eq!(only_status(&rest(&send(address, input))), status, "{input:?}");
    }
}

#[test]
fn what_rfc_9112_lets_pass_is_understood() {
    let (_server, address) = serve(describe);
    let host = |host: &str| format!("GET / HTTP/1.1\r\nHost:{host}\r\n\r\n");
    let old = "POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: x\r\nConnection: keep-alive\r\n\r\nhi";
    for (what, input, expected) in [
        ("LF alone", "GET / HTTP/1.1\nHost: t\n\n".to_owned(), "GET / []"),
        ("empty lines first", "\r\n\n\r\n".to_owned() + &get("/"), "GET / []"),
        ("no space behind the colon", host("t"), "GET / []"),
        ("an empty Host", host(""), "GET / []"),
        ("a port", host(" t:80"), "GET / []"),
        ("an empty port", host(" a-b_c.d:"), "GET / []"),
        ("an escape in Host", host(" a%2F!*"), "GET / []"),
        ("an address", host(" 127.0.0.1:80"), "GET / []"),
        ("an IPv6 address", host(" [::1]:80"), "GET / []"),
        ("an empty value", post("/", "X:\r\n\r\n"), "POST / []"),
        ("many fields", post("/", &("X: y\r\n".repeat(99) + "\r\n")), "POST / []"),
        ("twice one length", post("/", "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"), "POST / [hi]"),
        ("an unusual method", get("/").replace("GET", "BREW"), "BREW / []"),
        ("an asterisk", get("*").replace("GET", "OPTIONS"), "OPTIONS * []"),
        ("an absolute target", get("http://t/"), "GET / []"),
        ("leading zeros", post("/", CHUNKED) + "0002\r\nhi\r\n00\r\n\r\n", "POST / [hi]"),
        ("another case", post("/", &CHUNKED.to_uppercase()) + "2\r\nhi\r\n0\r\n\r\n", "POST / [hi]"),
        ("an expectation in HTTP/1.0", old.to_owned(), "POST / [hi]"),
    ] {
        let output = talk(address, input);
        assert!(output.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {output}");
        assert!(output.ends_with(&format!("\r\n\r\n{expected}")), "{what}: {output}");
    }
}

#[test]
fn a_head_that_trickles_in_is_answered_with_408() {
    let limits = Limits { head_timeout: 6 * SHORT, ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    let stream = send(address, "GET / HTTP/1.1\r\nX: ");
    thread::scope(|scope| {
        scope.spawn(|| {
            while (&stream).write_all(b"x").is_ok() {
                thread::sleep(SHORT / 3);
            }
        });
        assert_eq!(only_status(&rest(&stream)), 408);
        let _ = stream.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_body_that_ends_early_or_does_not_come_is_refused() {
    let limits = Limits { body_timeout: SHORT, ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    let chunks = ["", "10\r\nhi", "2\r\nhi\r\n", "2\r\nhi\r\n0\r\n"].map(|body| format!("{CHUNKED}{body}"));
    for body in chunks.into_iter().chain(["Content-Length: 10\r\n\r\nhi".to_owned()]) {
        let input = post("/", &body);
        assert_eq!(only_status(&talk(address, &input)), 400, "{input}");
        assert_eq!(only_status(&rest(&send(address, &input))), 408, "{input}");
    }
}

#[test]
fn a_connection_without_a_request_is_closed() {
    // There is no request to answer.
    let limits = Limits { head_timeout: SHORT, ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    assert_eq!(rest(&send(address, "")), "");
    assert_eq!(talk(address, "GET / HTTP/1.1\r\nHost: t\r\n"), "");

    let limits = Limits { idle_timeout: SHORT, ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    assert_eq!(rest(&send(address, get("/"))), ok("GET / []"));
}

#[test]
fn a_client_that_takes_nothing_of_its_response_is_given_up() {
    let limits = Limits { write_timeout: SHORT, ..Limits::default() };
    let (server, address) = serve_within(limits, |_| plain("x".repeat(50_000_000)));
    let mut stream = send(address, get("/"));
    // The response is on its way when its first byte has come; it ends when the server has given up.
    stream.read_exact(&mut [0]).unwrap();
    while server.open() > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.len() < 50_000_000);
}
