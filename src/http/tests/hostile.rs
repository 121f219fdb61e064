//! Malformed, oversized and slow requests: each has its status, none has a second answer.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{CHUNKED, describe, end, get, ok, ok_last, plain, post, rest, send, serve, talk};
use crate::options::Limits;

const SHORT: Duration = Duration::from_millis(50);

/// The status of the one response there is; the connection has ended after it.
fn only_status(output: &str) -> u16 {
    assert_eq!(output.matches("HTTP/1.1 ").count(), 1, "{output}");
    assert!(output.contains("\r\nConnection: close\r\n"), "{output}");
    output["HTTP/1.1 ".len()..][..3].parse().unwrap()
}

/// A server, and a test that it refuses each of these texts, with what comes before and behind it.
fn refuser() -> impl Fn(u16, &str, &[&str], &str) {
    let (server, address) = serve(Limits::default(), |request| {
        // Only one reaches a handler, because its first chunk is right.
        if request.url() != "/next" {
            request.as_reader().read_exact(&mut [0; 3]).unwrap();
            request.as_reader().read(&mut [0]).unwrap_err();
        }
        plain("ok")
    });
    move |status, before, texts, behind| {
        let _serving = &server;
        for text in texts {
            let output = talk(address, format!("{before}{text}{behind}{}", get("/smuggled")));
            assert_eq!(only_status(&output), status, "{before:?} {text:.100?} {behind:?}: {output}");
            // A refusal of HEAD has no body.
            assert_eq!(output.ends_with("\r\n\r\n"), before.starts_with("HEAD "), "{output}");
            assert_eq!(talk(address, get("/next")), ok("ok"), "after {before:?} {text:.100?} {behind:?}");
        }
    }
}

#[test]
fn a_malformed_head_is_refused() {
    let refused = refuser();
    let blanks = [" GET / ", "\rGET / ", "GET\t/\t", "GET  / ", "GET / HTTP/1.1\r"];
    refused(400, "", &blanks, "HTTP/1.1\r\nHost: t\r\n\r\n");
    let missing = ["/ HTTP/1.1", "GET /", "GET / HTTP/one", "GET / ICY/1.1", "\x16\x03\x01\x02\n"];
    refused(400, "", &missing, "\r\nHost: t\r\n\r\n");
    let targets = ["a", "*", "ftp://t/", "http:///a", "http://:80/a", "http://u@t/a"];
    refused(400, "GET ", &targets, " HTTP/1.1\r\nHost: t\r\n\r\n");
    refused(400, "CONNECT ", &["/a"], " HTTP/1.1\r\nHost: t\r\n\r\n");
    refused(505, "GET / HTTP/", &["0.9", "2.0"], "\r\nHost: t\r\n\r\n");
    refused(505, "PRI * ", &["HTTP/2.0"], "\r\n\r\nSM\r\n\r\n");
    refused(505, "HEAD / ", &["HTTP/2.0"], "\r\n");
    refused(400, "HEAD / HTTP/1.1", &["", "\r\nHost: a b"], "\r\n\r\n");
    refused(400, "GET ", &["/", "http://t/a"], " HTTP/1.1\r\n\r\n");
    let fields = ["X : y", "X: y\r\n z", "nonsense", "Host: t"];
    refused(400, &post("/", ""), &fields, "\r\n\r\n");
    refused(400, "GET / HTTP/1.1\r\n", &[" X: y"], "\r\nHost: t\r\n\r\n");
    let hosts = ["t\r\nHost: t", "a@b/c?d", "a, b", "t:8x", "t:8:0", "[::1", "::1", "a%2"];
    refused(400, "GET / HTTP/1.0\r\nHost: ", &hosts, "\r\n\r\n");
    refused(400, "GET / HTTP/1.1\r\nHost: ", &hosts, "\r\n\r\n");
    refused(400, "", &["\r\n\n\r\n\n\r\n", "\n\n\n\n\n", "\r\r\n", "\r\n\r"], &get("/"));
}

#[test]
fn what_could_be_understood_as_bodies_of_two_lengths_is_refused() {
    let refused = refuser();
    let (length, coding) = ("Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n");
    refused(400, "POST / HTTP/1.0\r\n", &[coding], "\r\n0\r\n\r\n");
    refused(400, &post("/", length), &[coding], "\r\n0\r\n\r\n");
    refused(400, &post("/", coding), &[length], "\r\n0\r\n\r\n");
    // The last of these is one more than fits.
    let lengths = ["3\r\nContent-Length: 4", "5, 6", "5,6", "+5", "-5", "0x5", "", "18446744073709551616"];
    refused(400, &post("/", "Content-Length: "), &lengths, "\r\n\r\nabcdef");
    let two = "chunked\r\nTransfer-Encoding: chunked";
    let codings = [two, "gzip", "gzip, chunked", "chunked;q=1", ",chunked", "", "chunked\u{e4}"];
    refused(501, &post("/", "Transfer-Encoding: "), &codings, "\r\n\r\n0\r\n\r\n");
    refused(417, &post("/", "Expect: "), &["more", "100-continue, more"], "\r\nContent-Length: 1\r\n\r\nx");
    let sizes = ["x", "+3", "0x3", "", ";x", " 3", "10000000000000003"];
    refused(400, &post("/", CHUNKED), &sizes, "\r\nabc\r\n0\r\n\r\n");
    refused(400, &post("/", CHUNKED).replace("POST", "HEAD"), &["x"], "\r\n");
    // LF alone, a malformed trailer, and more than the size.
    let chunks = ["3\nabc\r\n0\r\n", "0\r\n\n", "0\r\nX: y\n", "0\r\nX : y\r\n", "3\r\nabcd\r\n0\r\n"];
    refused(400, &post("/", CHUNKED), &chunks, "\r\n");
}

#[test]
fn what_is_too_large_is_refused_whether_it_has_an_end_or_not() {
    let refused = refuser();
    let (long, many) = ("x".repeat(20_000), "X: y\r\n".repeat(5000));
    let (value, name) = (format!("X: {long}"), format!("{long}: x"));
    let (extension, trailer) = (format!("3;{long}"), format!("0\r\nX: {long}"));
    refused(414, "GET /", &[&long], " HTTP/1.1\r\nHost: t\r\n\r\n");
    refused(414, "GET /", &[&long], "");
    for end in ["\r\n\r\n", ""] {
        refused(431, &post("/", ""), &[&value, &name, &many, &many[..6 * 100]], end);
        refused(400, &post("/", CHUNKED), &[&extension, &trailer, &format!("0\r\n{many}")], end);
    }
}

#[test]
fn each_byte_is_accepted_where_the_grammar_has_it_and_else_refused() {
    let (_server, address) = serve(Limits::default(), |_| plain("ok"));
    let only = |before: &str, behind: &str, is_accepted: &dyn Fn(u8) -> bool| {
        for byte in 0..=u8::MAX {
            let output = talk(address, [before.as_bytes(), &[byte], behind.as_bytes()].concat());
            let is_right = if is_accepted(byte) { output == ok("ok") } else { only_status(&output) == 400 };
            assert!(is_right, "{before:?} {byte:#x} {behind:?}: {output}");
        }
    };
    let is_one_of = |byte: u8, others: &[u8]| byte.is_ascii_alphanumeric() || others.contains(&byte);
    let is_text = |byte| matches!(byte, b'\t' | b' '..=b'~');
    only("G", "T / HTTP/1.1\r\nHost: t\r\n\r\n", &|byte| is_one_of(byte, b"!#$%&'*+-.^_`|~"));
    only("GET /", "z HTTP/1.1\r\nHost: t\r\n\r\n", &|byte| byte.is_ascii_graphic());
    only("GET / HTTP/1.1\r\nHost: a", "z\r\n\r\n", &|byte| is_one_of(byte, b"-._~!$&'()*+,;="));
    only(&post("/", "X"), "Y: z\r\n\r\n", &|byte| is_one_of(byte, b":!#$%&'*+-.^_`|~"));
    only(&post("/", "X: a"), "b\r\n\r\n", &|byte| is_text(byte) || byte >= 0x80);
    only(&(post("/", CHUNKED) + "3;"), "\r\nabc\r\n0\r\n\r\n", &is_text);
}

#[test]
fn what_cannot_become_a_request_is_refused_at_once() {
    let (_server, address) = serve(Limits::default(), describe);
    // They do not end, and the time for a head is not over.
    for input in
        ["\x16\x03\x01\x02\0\x01", "SSH-2.0-OpenSSH_9.2\r\n", "EHLO mail\r\n", "GET /\r\nHost: t\r\n"]
    {
        assert_eq!(only_status(&rest(&send(address, input))), 400, "{input:?}");
    }
    assert_eq!(only_status(&rest(&send(address, "GET / HTTP/3.0\r\n"))), 505);
}

#[test]
fn what_rfc_9112_lets_pass_is_understood() {
    let (_server, address) = serve(Limits::default(), describe);
    for host in ["t", "", " t", " t:80", " a-b_c.d:", " a%2F!*", " 127.0.0.1:80", " [::1]:80", " t\r\nX:"] {
        assert_eq!(talk(address, format!("GET / HTTP/1.1\r\nHost:{host}\r\n\r\n")), ok("GET / []"), "{host}");
    }
    let expectation = "Content-Length: 2\r\nExpect: x\r\nConnection: keep-alive\r\n\r\nhi";
    for (input, expected) in [
        (get("/").replace("\r\n", "\n"), ok("GET / []")),
        ("\r\n\n\r\n\n".to_owned() + &get("/"), ok("GET / []")),
        (get("http://t/"), ok("GET / []")),
        (get("/").replace("GET", "BREW"), ok("BREW / []")),
        (get("*").replace("GET", "OPTIONS"), ok("OPTIONS * []")),
        (post("/", &"X: y\r\n".repeat(99)) + "\r\n", ok("POST / []")),
        (post("/", "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"), ok("POST / [hi]")),
        (post("/", &CHUNKED.to_uppercase()) + "0002\r\nhi\r\n00\r\n\r\n", ok("POST / [hi]")),
        (post("/", expectation).replace("1.1", "1.0"), ok_last("POST / [hi]").replace("close", "keep-alive")),
    ] {
        assert_eq!(talk(address, &input), expected, "{input}");
    }
}

#[test]
fn a_head_that_trickles_in_is_answered_with_408() {
    let (_server, address) = serve(Limits { head_timeout: 6 * SHORT, ..Limits::default() }, describe);
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
    let (_patient, patient) = serve(Limits::default(), describe);
    let (_impatient, impatient) = serve(Limits { body_timeout: SHORT, ..Limits::default() }, describe);
    let chunks = ["", "10\r\nhi", "2\r\nhi\r\n", "2\r\nhi\r\n0\r\n"].map(|body| format!("{CHUNKED}{body}"));
    for body in chunks.into_iter().chain(["Content-Length: 10\r\n\r\nhi".to_owned()]) {
        let input = post("/", &body);
        assert_eq!(only_status(&talk(patient, &input)), 400, "{input}");
        assert_eq!(only_status(&rest(&send(impatient, &input))), 408, "{input}");
    }
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let (_server, address) = serve(Limits { head_timeout: SHORT, ..Limits::default() }, describe);
    assert_eq!(rest(&send(address, "")), "");
    let (_server, address) = serve(Limits { idle_timeout: SHORT, ..Limits::default() }, describe);
    assert_eq!(rest(&send(address, get("/"))), ok("GET / []"));
    // Neither is there one to answer if it ends in its head.
    assert_eq!(talk(address, "GET / HTTP/1.1\r\nHost: t\r\n"), "");
}

#[test]
fn a_client_that_takes_nothing_of_its_response_is_given_up() {
    let limits = Limits { write_timeout: SHORT, ..Limits::default() };
    let (server, address) = serve(limits, |_| plain("x".repeat(50_000_000)));
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

#[test]
fn a_client_that_takes_its_response_too_slowly_is_given_up() {
    let limits = Limits { write_timeout: 20 * SHORT, min_rate: 1_000_000_000, ..Limits::default() };
    let (server, address) = serve(limits, |_| plain("x".repeat(50_000_000)));
    let mut stream = send(address, get("/"));
    let mut received = 0;
    loop {
        // In every step it takes something.
        match stream.read(&mut [0; 65_536]) {
            Ok(0) | Err(_) => break,
            Ok(count) => received += count,
        }
        if server.open() > 0 {
            thread::sleep(SHORT / 10);
        }
    }
    assert!(received < 50_000_000);
}

#[test]
fn the_time_that_a_handler_takes_is_not_that_of_its_client() {
    let limits = Limits { body_timeout: 20 * SHORT, min_rate: u64::MAX, ..Limits::default() };
    let (reading, read) = mpsc::channel();
    let (_server, address) = serve(limits, move |request| {
        for _ in 0..3 {
            thread::sleep(8 * SHORT);
            reading.send(()).unwrap();
            request.as_reader().read_exact(&mut [0]).unwrap();
        }
        plain("ok")
    });
    let mut stream = send(address, post("/", "Content-Length: 3\r\n\r\n"));
    for () in read.iter().take(3) {
        // So that it has to wait for a moment.
        thread::sleep(SHORT);
        stream.write_all(b"x").unwrap();
    }
    assert_eq!(end(&stream), ok("ok"));
}
