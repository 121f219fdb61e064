//! Properties that hold whatever comes in, and however it is cut.

use std::env;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tiny_http::ResponseBox;

use super::{Request, describe, ok, rest};
use crate::deadline::after;
use crate::options::Limits;
use crate::server::address::Address;
use crate::server::connection::{Connection, Peer};
use crate::server::registry::Registry;

/// Seeds for one second, other ones each time, and what follows from them. To repeat a failure, set
/// HANDOVER_SEED to the seed that it prints.
fn seeds() -> impl Iterator<Item = (u64, Random)> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let first = env::var("HANDOVER_SEED").map_or(now, |seed| seed.parse().unwrap());
    eprintln!("HANDOVER_SEED={first}");
    let end = after(Duration::from_secs(1));
    let seeds = (first..).take_while(move |&seed| seed == first || Instant::now() < end);
    seeds.map(|seed| (seed, Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
}

/// Xorshift: the same numbers for the same seed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A well-formed request, and its response.
fn request(random: &mut Random, number: usize) -> (String, String) {
    let end = random.choose(&["\r\n", "\n"]);
    let method = random.choose(&["GET", "POST", "PUT", "DELETE", "X-OWN"]);
    let authority = random.choose(&["", "http://t", "HTTPS://[::1]:443"]);
    let host = random.choose(&["t", "t:80", "", "127.0.0.1", "[::]:"]);
    let mut head = format!("{method} {authority}/{number} HTTP/1.1{end}Host: {host}{end}");
    for field in 0..random.below(5) {
        let value = random.choose(&["v", " ", "\u{e4}"]);
        head += &format!("X-{field}: {}{end}", value.repeat(random.below(40)));
    }
    let letters = ['a', 'b', '0', ' ', '\r', '\n', 'z'];
    let body: String = (0..random.below(601)).map(|_| random.choose(&letters)).collect();
    let message = match random.below(3) {
        0 => return (head + end, ok(&format!("{method} /{number} []"))),
        1 => format!("{head}Content-Length: {}{end}{end}{body}", body.len()),
        _ => {
            let mut message = format!("{head}Transfer-Encoding: chunked{end}{end}");
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(1 + random.below(rest.len()));
                let extension = random.choose(&["", ";x", ";x=y", " ; x = \"a\tb\""]);
                message += &format!("{:x}{extension}\r\n{chunk}\r\n", chunk.len());
                rest = after;
            }
            message + "0\r\n" + random.choose(&["", "Trailer: t\r\n"]) + "\r\n"
        }
    };
    (message, ok(&format!("{method} /{number} [{body}]")))
}

/// Panics on what cannot have passed the parser, and answers the rest.
fn examine(request: &mut Request) -> ResponseBox {
    assert!(request.url().starts_with('/') && request.url().bytes().all(|byte| byte.is_ascii_graphic()));
    for header in request.headers() {
        assert!(!header.value.as_str().bytes().any(|byte| byte.is_ascii_control() && byte != b'\t'));
    }
    let host = request.header_bytes("Host").unwrap_or_default();
    assert!(!host.iter().any(|byte| !byte.is_ascii_graphic() || b"@/?#\\\"<>".contains(byte)));
    describe(request)
}

/// Sends the input in pieces, and then its end; what has come back, and how many requests the handler got.
fn talk_in_pieces(random: &mut Random, mut input: &[u8]) -> (String, usize) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (idle_closed, _close_idle) = std::io::pipe().unwrap();
    let registry = Arc::new(Registry::new(String::new(), idle_closed, || ()).unwrap());
    let connection = Connection::new(theirs.into(), Peer::Local, Address::Unix("test".into()), registry);
    let connection = Arc::new(connection.unwrap());
    let (handling, handled) = mpsc::channel();
    let server = thread::spawn(move || {
        let handler = move |request: &mut Request| {
            handling.send(()).unwrap();
            examine(request)
        };
        crate::http::serve(&connection, &handler, &Mutex::new(Limits::default()));
    });
    while !input.is_empty() {
        let (piece, rest) = input.split_at(1 + random.below(input.len().min(200)));
        // The server may have closed the connection, and have had its reason.
        if ours.write_all(piece).is_err() {
            break;
        }
        if random.below(4) == 0 {
            thread::yield_now();
        }
        input = rest;
    }
    let _ = ours.shutdown(Shutdown::Write);
    let output = rest(ours);
    server.join().expect("the connection's thread panicked");
    (output, handled.iter().count())
}

#[test]
fn well_formed_requests_are_answered_however_they_are_cut() {
    for (seed, ref mut random) in seeds() {
        let count = 1 + random.below(8);
        let (inputs, expected): (Vec<String>, Vec<String>) =
            (0..count).map(|number| request(random, number)).unzip();
        let (output, _) = talk_in_pieces(random, inputs.concat().as_bytes());
        assert_eq!(output, expected.concat(), "seed {seed}: {inputs:?}");
    }
}

/// Well-formed requests with a few bytes replaced, inserted, removed or repeated.
fn mutated(random: &mut Random) -> Vec<u8> {
    let count = 1 + random.below(4);
    let mut input: Vec<u8> = (0..count).flat_map(|number| request(random, number).0.into_bytes()).collect();
    for _ in 0..1 + random.below(5) {
        let place = random.below(input.len());
        let byte = random.choose(b"\r\n\0 :;,0+x\x7f\x80\xff\x1b@%[\tG/.");
        match random.below(4) {
            0 => input[place] = byte,
            1 => input.insert(place, byte),
            2 => drop(input.remove(place)),
            _ => {
                let end = (place + random.below(40)).min(input.len());
                input.splice(place..place, input[place..end].to_vec());
            }
        }
    }
    input
}

/// Counters the responses with status 200, each of which must be whole, and returns what comes behind them.
fn skip_right_answers(mut output: &str) -> (usize, &str) {
    let mut right = 0;
    while let Some(rest) = output.strip_prefix("HTTP/1.1 200 OK\r\nContent-Length: ") {
        let (head, body) = rest.split_once("\r\n\r\n").expect("a whole head");
        let length: usize = head.lines().next().unwrap().parse().unwrap();
        output = &body[length..];
        right += 1;
    }
    (right, output)
}

#[test]
fn what_is_not_well_formed_is_answered_or_refused() {
    for (seed, ref mut random) in seeds() {
        let input = match random.below(5) {
            0 => (0..random.below(2000)).map(|_| random.below(256) as u8).collect(),
            1 => (0..random.below(2000)).map(|_| random.choose(b"GET / HTTP/1.\r\n: chunked")).collect(),
            _ => mutated(random),
        };
        let (output, handled) = talk_in_pieces(random, &input);
        // Right answers, then at most one error, and nothing after that.
        let (right, error) = skip_right_answers(&output);
        let is_error = |status: &str| error.starts_with(&format!("HTTP/1.1 {status} "));
        let is_last = error.contains("\r\nConnection: close\r\n") && error.matches("HTTP/1.1 ").count() == 1;
        let is_known = ["400", "408", "414", "417", "431", "501", "505"].into_iter().any(is_error);
        // One that was refused while the handler read its body has been handled, but not answered by it.
        let is_counted = handled == right || handled == right + 1;
        let holds = is_counted && (error.is_empty() || is_known && is_last);
        assert!(holds, "seed {seed}, {handled} handled: {} -> {output:?}", input.escape_ascii());
    }
}
