//! Malformed, oversized and slow requests: each has its status, none has a second answer.

use std::io::{self, Read, Write};
use std::iter;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use tiny_http::Response;

use super::{CHUNKED, POST, describe, get, ok, plain, rest, serve, serve_within, talk};
use crate::options::Limits;

/// Heads that are refused, and with which status.
const HEADS: &[(&str, u16, &str)] = &[
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
];

/// Header fields, with bodies.
const FIELDS: &[(&str, u16, &str)] = &[
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
const CHUNKS: &[(&str, u16, &str)] = &[
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

/// What is refused, the status, and the whole request.
fn refused() -> impl Iterator<Item = (&'static str, u16, String)> {
    let behind = |before: String| move |&(what, status, text): &_| (what, status, format!("{before}{text}"));
    let heads = HEADS.iter().map(behind(String::new()));
    let fields = FIELDS.iter().map(behind(POST.to_owned()));
    heads.chain(fields).chain(CHUNKS.iter().map(behind(format!("{POST}{CHUNKED}"))))
}

/// The status of the one response there is; the connection has ended after it.
fn only_status(output: &str) -> u16 {
    assert_eq!(output.matches("HTTP/1.1 ").count(), 1, "{output}");
    assert!(output.contains("\r\nConnection: close\r\n"), "{output}");
    output["HTTP/1.1 ".len()..][..3].parse().unwrap()
}

#[test]
fn what_could_be_understood_in_two_ways_is_refused() {
    let (_server, address) = serve(|request| {
        // Only the last one reaches a handler, because its first chunk is right.
        if request.url() != "/next" {
            request.as_reader().read_exact(&mut [0; 3]).unwrap();
            request.as_reader().read(&mut [0]).unwrap_err();
        }
        plain("ok")
    });
    for (what, status, input) in refused() {
        let output = talk(address, input + &get("/smuggled"));
        assert_eq!(only_status(&output), status, "{what}: {output}");
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
        (format!("{POST}X"), "Y: z\r\n\r\n", |byte| {
            b":!#$%&'*+-.^_`|~".contains(&byte) || byte.is_ascii_alphanumeric()
        }),
        (format!("{POST}X: a"), "b\r\n\r\n", |byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)),
        (format!("{POST}{CHUNKED}3;"), "\r\nabc\r\n0\r\n\r\n", |byte| matches!(byte, b'\t' | b' '..=b'~')),
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
    for input in
        ["\x16\x03\x01\x02\0\x01", "SSH-2.0-OpenSSH_9.2\r\n", "EHLO mail\r\n", "GET /\r\nHost: t\r\n"]
    {
        // It does not end, and the time for a head is not over.
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(input.as_bytes()).unwrap();
        assert_eq!(only_status(&rest(&mut stream)), 400, "{input:?}");
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/3.0\r\n").unwrap();
    assert_eq!(only_status(&rest(&mut stream)), 505);
}

#[test]
fn what_is_too_large_is_refused() {
    let (_server, address) = serve(describe);
    let long = "x".repeat(20_000);
    let many = |count: usize| "X: y\r\n".repeat(count);
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: t\r\n{fields}\r\n");
    let chunks = |text: &str| format!("{POST}{CHUNKED}{text}");
    for (what, status, input) in [
        ("a long target", 414, format!("GET /{long} HTTP/1.1\r\nHost: t\r\n\r\n")),
        ("an endless target", 414, format!("GET /{long}")),
        ("a long field", 431, head(&format!("X: {long}\r\n"))),
        ("an endless field", 431, format!("GET / HTTP/1.1\r\nX: {long}")),
        ("a long name", 431, head(&format!("{long}: x\r\n"))),
        ("many fields", 431, head(&many(100))),
        ("a large head of many fields", 431, head(&many(5000))),
        ("an endless chunk extension", 400, chunks(&format!("3;{long}"))),
        ("a long chunk extension", 400, chunks(&format!("3;{long}\r\nabc\r\n0\r\n\r\n"))),
        ("endless trailers", 400, chunks(&format!("0\r\n{}", many(5000)))),
        ("an endless trailer", 400, chunks(&format!("0\r\nX: {long}"))),
    ] {
        assert_eq!(only_status(&talk(address, input)), status, "{what}");
    }
    assert_eq!(talk(address, head(&many(99))), ok("GET / []"));
}

#[test]
fn what_rfc_9112_lets_pass_is_understood() {
    let (_server, address) = serve(describe);
    for (what, input, expected) in [
        ("LF alone", "GET /1 HTTP/1.1\nHost: t\n\n", "GET /1 []"),
        ("empty lines first", "\r\n\n\r\nGET /2 HTTP/1.1\r\nHost: t\r\n\r\n", "GET /2 []"),
        ("no space behind the colon", "GET /3 HTTP/1.1\r\nHost:t\r\n\r\n", "GET /3 []"),
        ("an empty Host", "GET /4 HTTP/1.1\r\nHost:\r\n\r\n", "GET /4 []"),
        ("a port", "GET /4 HTTP/1.1\r\nHost: t:80\r\n\r\n", "GET /4 []"),
        ("an empty port", "GET /4 HTTP/1.1\r\nHost: a-b_c.d:\r\n\r\n", "GET /4 []"),
        ("an escape in Host", "GET /4 HTTP/1.1\r\nHost: a%2F!*\r\n\r\n", "GET /4 []"),
        ("an address", "GET /4 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", "GET /4 []"),
        ("an IPv6 address", "GET /4 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET /4 []"),
        ("an empty value", "GET /5 HTTP/1.1\r\nHost: t\r\nX:\r\n\r\n", "GET /5 []"),
        (
            "the same length twice",
            "PUT /6 HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
            "PUT /6 [hi]",
        ),
        ("an unusual method", "BREW /7 HTTP/1.1\r\nHost: t\r\n\r\n", "BREW /7 []"),
        ("an asterisk", "OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n", "OPTIONS * []"),
        ("an absolute target", "GET http://t/8 HTTP/1.1\r\nHost: t\r\n\r\n", "GET /8 []"),
        (
            "leading zeros",
            "PUT /9 HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: Chunked\r\n\r\n0002\r\nhi\r\n00\r\n\r\n",
            "PUT /9 [hi]",
        ),
        (
            "an expectation in HTTP/1.0",
            "PUT /10 HTTP/1.0\r\nContent-Length: 2\r\nExpect: x\r\nConnection: keep-alive\r\n\r\nhi",
            "PUT /10 [hi]",
        ),
    ] {
        let output = talk(address, input);
        assert!(output.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {output}");
        assert!(output.ends_with(&format!("\r\n\r\n{expected}")), "{what}: {output}");
    }
}

#[test]
fn a_body_that_ends_early_is_refused() {
    let (_server, address) = serve(describe);
    assert_eq!(only_status(&talk(address, format!("{POST}Content-Length: 10\r\n\r\nhi"))), 400);
    for chunks in ["10\r\nhi", "2\r\nhi\r\n", "2\r\nhi\r\n0\r\n"] {
        assert_eq!(only_status(&talk(address, format!("{POST}{CHUNKED}{chunks}"))), 400);
    }
    // There is no request to answer.
    assert_eq!(talk(address, "GET / HTTP/1.1\r\nHost: t\r\n"), "");
}

#[test]
fn a_body_limit_can_be_turned_into_413() {
    let (_server, address) = serve(|request| {
        request.limit_body(4);
        let mut body = String::new();
        match request.as_reader().read_to_string(&mut body) {
            Ok(_) => plain(body),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Response::empty(413).boxed(),
            Err(error) => panic!("{error}"),
        }
    });
    let input = |fields: &str| format!("{POST}{fields}");
    assert_eq!(talk(address, input("Content-Length: 4\r\n\r\nfour")), ok("four"));
    let too_large = "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n";
    for fields in [
        "Content-Length: 5\r\n\r\nfive!",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nfive!\r\n0\r\n\r\n",
    ] {
        // The rest is small enough to be skipped.
        let output = talk(address, input(fields) + &input("Content-Length: 4\r\n\r\nnext"));
        assert_eq!(output, format!("{too_large}\r\n{}", ok("next")), "{fields}");
    }
    // What will not be taken is not asked for.
    assert_eq!(
        talk(address, input("Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")),
        format!("{too_large}Connection: close\r\n\r\n")
    );
}

#[test]
fn a_head_that_trickles_in_is_answered_with_408() {
    let limits = Limits { head_timeout: Duration::from_millis(300), ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    let mut stream = TcpStream::connect(address).unwrap();
    let mut trickling = stream.try_clone().unwrap();
    let trickle = thread::spawn(move || {
        for byte in b"GET / HTTP/1.1\r\nX: ".iter().chain(iter::repeat(&b'x')) {
            if trickling.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut output = String::new();
    stream.read_to_string(&mut output).unwrap();
    assert_eq!(only_status(&output), 408);
    drop(stream.shutdown(Shutdown::Both));
    trickle.join().unwrap();
}

#[test]
fn a_connection_that_never_sends_a_byte_is_closed() {
    let limits = Limits { head_timeout: Duration::from_millis(50), ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    assert_eq!(rest(&mut TcpStream::connect(address).unwrap()), "");
}

#[test]
fn an_idle_connection_is_closed() {
    let limits = Limits { idle_timeout: Duration::from_millis(50), ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(get("/").as_bytes()).unwrap();
    assert_eq!(rest(&mut stream), ok("GET / []"));
}

#[test]
fn a_body_that_does_not_come_is_answered_with_408() {
    let limits = Limits { body_timeout: Duration::from_millis(50), ..Limits::default() };
    let (_server, address) = serve_within(limits, describe);
    for fields in [
        "Content-Length: 5\r\n\r\nhi",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhi",
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("{POST}{fields}").as_bytes()).unwrap();
        assert_eq!(only_status(&rest(&mut stream)), 408);
    }
}

#[test]
fn a_client_that_takes_nothing_of_its_response_is_given_up() {
    let limits = Limits { write_timeout: Duration::from_millis(50), ..Limits::default() };
    let (server, address) = serve_within(limits, |_| plain("x".repeat(50_000_000)));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(get("/").as_bytes()).unwrap();
    // The response is on its way when its first byte has come; it ends when the server has given up.
    stream.read_exact(&mut [0]).unwrap();
    while server.open() > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.len() < 50_000_000);
}
