//! Well-formed requests, and what handlers make of them.

use std::io::{self, Cursor, Read, Write};
use std::net::{Shutdown, TcpStream};

use tiny_http::{Header, Method, Response, ResponseBox, StatusCode};

use super::{CHUNKED, POST, describe, get, ok, ok_last, plain, rest, serve, talk};
use crate::http::SKIP_LIMIT;

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let (_server, address) = serve(describe);
    let input = "GET /1 HTTP/1.1\r\nHost: t\r\n\r\n\
                 POST /2 HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc\
                 \r\n\
                 PUT /3 HTTP/1.1\nHost: t\nTransfer-Encoding: chunked\n\n\
                 3\r\nabc\r\nA;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n\
                 GET /4 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n\
                 GET /never HTTP/1.1\r\nHost: t\r\n\r\n";
    let expected = [ok("GET /1 []"), ok("POST /2 [abc]"), ok("PUT /3 [abc0123456789]"), ok_last("GET /4 []")];
    assert_eq!(talk(address, input), expected.concat());
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let (_server, address) = serve(describe);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in format!("{POST}{CHUNKED}4\r\nbody\r\n0\r\n\r\n").bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), ok("POST / [body]"));
}

#[test]
fn http_1_0_closes_unless_asked_not_to() {
    let (_server, address) = serve(describe);
    assert_eq!(talk(address, "GET / HTTP/1.0\r\n\r\nGET /never HTTP/1.0\r\n\r\n"), ok_last("GET / []"));
    let keep_alive = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: keep-alive\r\n\r\nGET / []";
    assert_eq!(talk(address, keep_alive.repeat(2)), answer.repeat(2));
}

#[test]
fn a_client_that_asks_for_the_end_is_not_waited_for() {
    let (_server, address) = serve(describe);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(rest(&mut stream), ok_last("GET / []"));
    // The server has not only ended its side: what comes now is refused, and the next write fails.
    let _ = stream.write_all(b"x");
    assert_eq!(stream.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_client_that_asks_for_the_end_and_goes_on_gets_the_response_all_the_same() {
    let (_server, address) = serve(describe);
    let mut stream = TcpStream::connect(address).unwrap();
    let first = "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all((first.to_owned() + &get("/2")).as_bytes()).unwrap();
    assert_eq!(rest(&mut stream), ok_last("GET /1 []"));
    // The server reads to the end, so nothing is refused.
    stream.write_all(b"x").unwrap();
    stream.write_all(b"x").unwrap();
}

#[test]
fn head_is_answered_without_a_body() {
    let (_server, address) = serve(|_| plain("hello"));
    let input = "HEAD / HTTP/1.1\r\nHost: t\r\n\r\n";
    assert_eq!(talk(address, input.repeat(2)), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".repeat(2));
}

#[test]
fn a_refusal_of_head_has_no_body() {
    let (_server, address) = serve(describe);
    for (input, status) in [
        ("HEAD / HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("HEAD / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "400 Bad Request"),
        ("HEAD / HTTP/2.0\r\n", "505 HTTP Version Not Supported"),
    ] {
        let output = talk(address, input);
        assert!(output.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{output}");
        assert!(output.ends_with("\r\n\r\n"), "{output}");
    }
}

#[test]
fn a_status_without_a_body_has_none() {
    let (_server, address) = serve(|_| Response::empty(204).boxed());
    assert_eq!(talk(address, get("/")), "HTTP/1.1 204 No Content\r\n\r\n");
    let (_server, address) = serve(|_| Response::empty(304).boxed());
    assert_eq!(talk(address, get("/")), "HTTP/1.1 304 Not Modified\r\n\r\n");
}

/// A response whose length is not known before.
fn streamed(body: impl Read + Send + 'static) -> ResponseBox {
    Response::new(StatusCode(200), Vec::new(), body, None, None).boxed()
}

#[test]
fn a_body_of_unknown_length_is_sent_in_chunks_or_ends_with_the_connection() {
    let (_server, address) = serve(|_| streamed(Cursor::new("hello")));
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(talk(address, get("/")), chunks);
    let input = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(talk(address, input), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
    assert_eq!(talk(address, "HEAD / HTTP/1.1\r\nHost: t\r\n\r\n"), "HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn a_large_body_arrives_whole() {
    let body: String = ('a'..='z').cycle().take(1_000_000).collect();
    let expected = ok(&body);
    let (_server, address) = serve(move |_| plain(body.clone()));
    assert!(talk(address, get("/")) == expected);
}

#[test]
fn continue_is_sent_when_the_handler_reads() {
    let (_server, address) = serve(describe);
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("{POST}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), ok("POST / [hi]"));
}

#[test]
fn continue_is_not_sent_when_the_handler_does_not_read() {
    let (_server, address) = serve(|_| plain("no"));
    // Whether the body will come is not known, so the connection cannot go on.
    let input = format!("{POST}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(talk(address, input), ok_last("no"));
}

#[test]
fn an_unread_body_is_skipped_up_to_a_bound() {
    let (_server, address) = serve(|_| plain("ok"));
    let post = |size: usize| format!("{POST}Content-Length: {size}\r\n\r\n{}", "x".repeat(size));
    let limit = SKIP_LIMIT as usize;
    assert_eq!(talk(address, post(limit).repeat(2)), ok("ok").repeat(2));
    assert_eq!(talk(address, post(limit + 1) + &post(1)), ok_last("ok"));

    let chunked = |size: usize| format!("{POST}{CHUNKED}{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
    assert_eq!(talk(address, chunked(limit).repeat(2)), ok("ok").repeat(2));
    // It is only known once the response has been sent.
    assert_eq!(talk(address, chunked(limit + 1) + &chunked(1)), ok("ok"));
}

#[test]
fn a_panic_costs_its_own_connection_a_500() {
    let (_server, address) = serve(|request| match request.url() {
        "/panic" => panic!("as the test wants it"),
        "/body" => streamed(Panicking { after: 0 }),
        "/half" => streamed(Panicking { after: 1 }),
        _ => plain("ok"),
    });
    let mut other = TcpStream::connect(address).unwrap();
    for path in ["/panic", "/body"] {
        let answer = talk(address, get(path) + &get("/"));
        assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    // The status is gone: what is left is to end without the chunk that ends a body.
    let answer = talk(address, get("/half") + &get("/"));
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");

    other.write_all(get("/").as_bytes()).unwrap();
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut other), ok("ok"));
}

/// A body that panics after so many bytes.
struct Panicking {
    after: usize,
}

impl Read for Panicking {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.after = self.after.checked_sub(1).expect("as the test wants it");
        target[0] = b'x';
        Ok(1)
    }
}

/// A response with another length than it announces.
fn announced(length: usize, body: Vec<u8>) -> ResponseBox {
    Response::new(StatusCode(200), Vec::new(), Cursor::new(body), Some(length), None).boxed()
}

#[test]
fn a_body_that_fails_half_way_ends_visibly() {
    let (_server, address) = serve(|request| match request.url() {
        "/short" => announced(50_000, vec![b'x'; 40_000]),
        _ => announced(3, b"abcdef".to_vec()),
    });
    let answer = talk(address, get("/short") + &get("/long"));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\nxxx"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1);
    assert_eq!(talk(address, get("/long").repeat(2)), ok("abc").repeat(2));
}

#[test]
fn a_handler_cannot_split_a_response() {
    let header = |name: &str, value: &str| Header::from_bytes(name, value).unwrap();
    for bad in [
        header("X", "a\r\nSet-Cookie: b"),
        header("X", "a\nb"),
        header("X", "a\0b"),
        header("X\r\nY", "a"),
        header("X Y", "a"),
        header("", "a"),
    ] {
        let (_server, address) = serve(move |_| Response::from_data("ok").with_header(bad.clone()).boxed());
        let answer = talk(address, get("/"));
        assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{answer}");
        assert!(!answer.contains("Set-Cookie"), "{answer}");
    }
    let (_server, address) = serve(|_| Response::empty(101).boxed());
    let answer = talk(address, get("/"));
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
}

#[test]
fn an_absolute_target_is_split_into_host_and_path() {
    let (_server, address) = serve(|request| {
        let hosts = request.headers().iter().filter(|header| header.field.equiv("Host"));
        let hosts: Vec<&str> = hosts.map(|host| host.value.as_str()).collect();
        plain(format!("{} {hosts:?}", request.url()))
    });
    for (target, expected) in [
        ("/a?b=http://c", "/a?b=http://c [\"t\"]"),
        ("http://other:80/a?b", "/a?b [\"other:80\"]"),
        ("HTTPS://[::1]", "/ [\"[::1]\"]"),
        ("http://other?b", "/?b [\"other\"]"),
    ] {
        assert_eq!(talk(address, get(target)), ok(expected));
    }
    assert_eq!(talk(address, get("http://o/").replace("GET", "OPTIONS")), ok("/ [\"o\"]"));
    assert_eq!(talk(address, get("http://o").replace("GET", "OPTIONS")), ok("* [\"o\"]"));
    assert_eq!(talk(address, get("o:443").replace("GET", "CONNECT")), ok("o:443 [\"t\"]"));
    let input = "GET http://o/a HTTP/1.0\r\n\r\n";
    assert_eq!(talk(address, input), ok_last("/a [\"o\"]"));
}

#[test]
fn a_value_may_have_bytes_above_ascii() {
    let (_server, address) = serve(|request| {
        let agent = request.headers().iter().find(|header| header.field.equiv("User-Agent")).unwrap();
        assert_eq!(agent.value.as_str(), "a%C3%A4%FF%");
        assert_eq!(request.header_bytes("user-agent"), Some(&b"a\xc3\xa4\xff%"[..]));
        assert_eq!(request.header_bytes("Host"), Some(&b"t"[..]));
        assert_eq!(request.header_bytes("X"), None);
        plain("ok")
    });
    let input = b"GET / HTTP/1.1\r\nHost: t\r\nUser-Agent: a\xc3\xa4\xff%\r\n\r\n";
    assert_eq!(talk(address, input), ok("ok"));
}

#[test]
fn the_accessors_are_those_of_tiny_http() {
    let (_server, address) = serve(|request| {
        let accept = request.headers().iter().find(|header| header.field.equiv("accept")).unwrap();
        assert_eq!(accept.value.as_str(), "*/*");
        assert_eq!(*request.method(), Method::Patch);
        assert_eq!(*request.http_version(), (1, 1));
        assert_eq!(request.body_length(), Some(2));
        assert!(request.remote_addr().unwrap().ip().is_loopback());
        assert!(!request.is_draining());
        plain(request.url())
    });
    let input = "PATCH /a?b=c HTTP/1.1\r\nHost: t\r\nAccept: */*\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(talk(address, input), ok("/a?b=c"));
}
