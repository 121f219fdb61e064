//! Well-formed requests, and what handlers make of them.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use tiny_http::{Header, Method, Response, ResponseBox, StatusCode};

use super::{CHUNKED, describe, end, get, ok, ok_last, plain, post, rest, send, serve, talk};
use crate::http::{Request, SKIP_LIMIT};
use crate::options::Limits;

const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=UTF-8\r\n\
    Content-Length: 67\r\nConnection: close\r\n\r\n\
    500 Internal Server Error: the server failed to handle the request\n";

const KEEP_ALIVE: &str = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
const STREAMED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Answers as the path asks for.
fn answer(request: &mut Request) -> ResponseBox {
    match request.url() {
        "/unread" => plain("unread"),
        "/large" => plain("0123456789".repeat(100_000)),
        "/101" => Response::empty(101).boxed(),
        "/204" => Response::empty(204).boxed(),
        "/304" => Response::empty(304).boxed(),
        "/streamed" => response(None, Cursor::new("hello")),
        "/short" => response(Some(50_000), Cursor::new([b'x'; 40_000])),
        "/long" => response(Some(3), Cursor::new("abcdef")),
        "/panic" => panic!("as the test wants it"),
        "/panic/first" => response(None, Panicking),
        "/panic/later" => response(None, Cursor::new("x").chain(Panicking)),
        "/limited" => {
            request.limit_body(4);
            describe(request)
        }
        _ => describe(request),
    }
}

/// A response that announces this length.
fn response(length: Option<usize>, body: impl Read + Send + 'static) -> ResponseBox {
    Response::new(StatusCode(200), Vec::new(), body, length, None).boxed()
}

/// A body that cannot be read.
struct Panicking;

impl Read for Panicking {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("as the test wants it")
    }
}

#[test]
fn a_connection_goes_on_if_the_end_of_the_response_is_known() {
    let (_server, address) = serve(Limits::default(), answer);
    let other = send(address, "");
    let limit = SKIP_LIMIT as usize;
    let sized = |size: usize| format!("Content-Length: {size}\r\n\r\n{}", "x".repeat(size));
    let chunked = |size: usize| format!("{CHUNKED}{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
    let too_large = &ok("failed: file too large");
    for (answers, input, expected) in [
        (1, "GET / HTTP/1.0\r\n\r\n", &ok_last("GET / []")[..]),
        (2, KEEP_ALIVE, &ok_last("GET / []").replace("close", "keep-alive")),
        (2, &get("/unread").replace("GET", "HEAD"), "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"),
        (2, &get("/streamed").replace("GET", "HEAD"), "HTTP/1.1 200 OK\r\n\r\n"),
        (2, &get("/204"), "HTTP/1.1 204 No Content\r\n\r\n"),
        (2, &get("/304"), "HTTP/1.1 304 Not Modified\r\n\r\n"),
        (2, &get("/large"), &ok(&"0123456789".repeat(100_000))),
        (2, &get("/long"), &ok("abc")),
        (2, &get("/streamed"), &format!("{STREAMED}5\r\nhello\r\n0\r\n\r\n")),
        (1, &KEEP_ALIVE.replace("/ ", "/streamed "), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"),
        (2, &post("/unread", &sized(limit)), &ok("unread")),
        (1, &post("/unread", &sized(limit + 1)), &ok_last("unread")),
        (2, &post("/unread", &chunked(limit)), &ok("unread")),
        // It is only known once the response has been sent.
        (1, &post("/unread", &chunked(limit + 1)), &ok("unread")),
        (2, &post("/limited", &sized(4)), &ok("POST /limited [xxxx]")),
        // The rest is small enough to be skipped.
        (2, &post("/limited", &sized(5)), too_large),
        (2, &post("/limited", &chunked(5)), too_large),
        (2, &(post("/limited", CHUNKED) + "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), too_large),
        (1, &get("/101"), FAILED),
        (1, &get("/panic"), FAILED),
        (1, &get("/panic/first"), FAILED),
        // The status is gone: what is left is to end without the chunk that ends a body.
        (1, &get("/panic/later"), &format!("{STREAMED}1\r\nx\r\n")),
    ] {
        assert!(talk(address, input.repeat(2)) == expected.repeat(answers), "{input:.100}");
    }
    // What has failed is of no concern to another connection.
    (&other).write_all(get("/").as_bytes()).unwrap();
    assert_eq!(end(&other), ok("GET / []"));
}

#[test]
fn a_connection_ends_if_the_body_does_not_come_or_is_cut_short() {
    let (_server, address) = serve(Limits::default(), answer);
    let output = talk(address, get("/short").repeat(2));
    assert!(output.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\nxxx"), "{output}");
    assert_eq!(output.matches("HTTP/1.1").count(), 1);

    // The body is not asked for, and whether it will come is not known.
    let waits = "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(talk(address, post("/unread", waits)), ok_last("unread"));
    assert_eq!(talk(address, post("/limited", waits)), ok_last("failed: file too large"));
}

#[test]
fn a_handler_cannot_split_a_response() {
    for (name, value) in
        [("X", "a\r\nSet-Cookie: b"), ("X", "a\nb"), ("X", "a\0b"), ("X\r\nY", "a"), ("X Y", "a"), ("", "a")]
    {
        let bad = Header::from_bytes(name, value).unwrap();
        let (_server, address) = serve(Limits::default(), move |_| plain("ok").with_header(bad.clone()));
        assert_eq!(talk(address, get("/")), FAILED, "{name:?}: {value:?}");
    }
}

#[test]
fn requests_are_answered_in_order_even_if_they_come_byte_by_byte() {
    let (_server, address) = serve(Limits::default(), describe);
    let input = "GET /1 HTTP/1.1\r\nHost: t\r\n\r\n\
                 POST /2 HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc\
                 \r\n\
                 PUT /3 HTTP/1.1\nHost: t\nTransfer-Encoding: chunked\n\n\
                 3\r\nabc\r\nA;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n\
                 GET /4 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    let expected = [ok("GET /1 []"), ok("POST /2 [abc]"), ok("PUT /3 [abc0123456789]"), ok_last("GET /4 []")];
    assert_eq!(talk(address, input.to_owned() + &get("/never")), expected.concat());
    let mut stream = send(address, "");
    stream.set_nodelay(true).unwrap();
    for byte in input.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(end(&stream), expected.concat());
}

#[test]
fn a_client_that_asks_for_the_end_is_waited_for_only_if_it_goes_on() {
    let (_server, address) = serve(Limits::default(), describe);
    for (behind, is_waited_for) in [("", false), ("GET /2 HTTP/1.1\r\nHost: t\r\n\r\n", true)] {
        let first = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let mut stream = send(address, first.to_owned() + behind);
        assert_eq!(rest(&stream), ok_last("GET / []"));
        // The server reads to the end, or it has not only ended its side: what comes now is refused, and the
        // next write fails.
        let _ = stream.write_all(b"x");
        let error = stream.write_all(b"x").err().map(|error| error.kind());
        assert_eq!(error, (!is_waited_for).then_some(ErrorKind::BrokenPipe));
    }
}

#[test]
fn continue_is_sent_when_the_handler_reads() {
    let (_server, address) = serve(Limits::default(), describe);
    let mut stream = send(address, post("/", "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"));
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").unwrap();
    assert_eq!(end(&stream), ok("POST / [hi]"));
}

#[test]
fn a_target_is_split_into_host_and_path() {
    let (_server, address) = serve(Limits::default(), |request| {
        let hosts = request.headers().iter().filter(|header| header.field.equiv("Host"));
        plain(hosts.fold(request.url().to_owned(), |url, host| format!("{url} {}", host.value)))
    });
    for (line, expected) in [
        ("GET /a?b=http://c HTTP/1.1", "/a?b=http://c t"),
        ("GET http://other:80/a?b HTTP/1.1", "/a?b other:80"),
        ("GET HTTPS://[::1] HTTP/1.1", "/ [::1]"),
        ("GET http://other?b HTTP/1.1", "/?b other"),
        ("OPTIONS http://o/ HTTP/1.1", "/ o"),
        ("OPTIONS http://o HTTP/1.1", "* o"),
        ("CONNECT o:443 HTTP/1.1", "o:443 t"),
    ] {
        assert_eq!(talk(address, format!("{line}\r\nHost: t\r\n\r\n")), ok(expected));
    }
    assert_eq!(talk(address, "GET http://o/a HTTP/1.0\r\n\r\n"), ok_last("/a o"));
}

#[test]
fn a_handler_sees_the_request_as_it_was_sent() {
    let (_server, address) = serve(Limits::default(), |request| {
        assert_eq!((request.method(), request.url()), (&Method::Patch, "/a?b=c"));
        assert_eq!(*request.http_version(), (1, 1));
        assert_eq!(request.body_length(), Some(2));
        assert!(request.remote_addr().unwrap().ip().is_loopback());
        assert!(!request.is_draining());
        // Values may have bytes above ASCII.
        let agent = request.headers().iter().find(|header| header.field.equiv("User-Agent")).unwrap();
        assert_eq!(agent.value.as_str(), "a%C3%A4%FF%");
        assert_eq!(request.header_bytes("user-agent"), Some(&b"a\xc3\xa4\xff%"[..]));
        assert_eq!(request.header_bytes("Host"), Some(&b"t"[..]));
        assert_eq!(request.header_bytes("X"), None);
        plain("ok")
    });
    let fields = b"Host: t\r\nUser-Agent: a\xc3\xa4\xff%\r\nContent-Length: 2\r\n";
    assert_eq!(talk(address, [b"PATCH /a?b=c HTTP/1.1\r\n", &fields[..], b"\r\nhi"].concat()), ok("ok"));
}

#[test]
fn a_handler_notices_that_the_client_hangs_up() {
    let (looked, look) = mpsc::channel();
    let (_server, address) = serve(Limits::default(), move |request| {
        let client = request.recipient();
        looked.send(client.wait_for_hangup(Duration::ZERO)).unwrap();
        looked.send(client.wait_for_hangup(Duration::MAX)).unwrap();
        plain("ok")
    });
    // What has not been read is no obstacle, and a client that has only ended its input gets its answer.
    let stream = send(address, get("/") + "GET");
    assert!(!look.recv().unwrap());
    assert_eq!(end(&stream), ok("ok"));
    assert!(look.recv().unwrap());
    let stream = send(address, get("/"));
    assert!(!look.recv().unwrap());
    drop(stream);
    assert!(look.recv().unwrap());
}

#[test]
fn the_last_response_is_that_to_the_last_whole_request() {
    let (mut server, address) = serve(Limits::default(), answer);
    let chunks = CHUNKED.to_owned() + "3;x\r\nabc\r\n1\r\nd\r\n0\r\nT: t\r\n\r\n";
    let (sized, chunked) = (post("/", "Content-Length: 3\r\n\r\nabc"), post("/", &chunks));
    let (get, got) = (get("/"), ok("GET / []"));
    let unread = |request: &str| request.replacen("/", "/unread", 1);
    let long = post("/", "Content-Length: 9000\r\n\r\n") + &"x".repeat(9000);
    for (whole, answers) in [
        (get.clone(), got.clone()),
        (get.repeat(5), got.repeat(5)),
        (sized.repeat(2), ok("POST / [abc]").repeat(2)),
        (chunked.repeat(2), ok("POST / [abcd]").repeat(2)),
        (unread(&sized).repeat(2), ok("unread").repeat(2)),
        (unread(&chunked).repeat(2), ok("unread").repeat(2)),
        (get.clone() + "\r\n\n" + &get, got.repeat(2)),
        (get.clone() + &long, got.clone() + &ok(&format!("POST / [{}]", "x".repeat(9000)))),
    ] {
        let (before, last) = answers.rsplit_once("\r\n\r\n").unwrap();
        let expected = format!("{before}\r\nConnection: close\r\n\r\n{last}");
        // What is behind them is no request, or not all of one.
        for behind in
            ["", "\r\n", &get[..20], &sized[..sized.len() - 1], &chunked[..chunked.len() - 1], "x\r\n"]
        {
            let mut stream = send(address, &get);
            let mut received = String::new();
            while !received.ends_with("GET / []") {
                let mut piece = [0; 200];
                let count = stream.read(&mut piece).unwrap();
                received += str::from_utf8(&piece[..count]).unwrap();
            }
            server.drain(None);
            stream.write_all((whole.clone() + behind).as_bytes()).unwrap();
            assert_eq!(rest(&stream), expected, "{whole:?} {behind:?}");
            server.accept();
        }
    }
}
