//! The load: one thread that keeps many connections busy, each with one request at a time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What every server answers with.
pub const BODY: &str = "Hello World\n";

/// What has been measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub requests: u64,
    pub elapsed: Duration,
    /// Sorted.
    pub latencies: Vec<Duration>,
    pub lost: u64,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that so many of a thousand requests do not exceed, in microseconds.
    pub fn per_mille(&self, share: usize) -> f64 {
        let index = (self.latencies.len() * share / 1000).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    received: Vec<u8>,
}

/// Keeps so many connections busy for so long; with `close`, each is used for one request.
pub fn run(address: SocketAddr, connections: usize, close: bool, duration: Duration) -> Measured {
    let request = match close {
        true => "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n",
        false => "GET / HTTP/1.1\r\nHost: bench\r\n\r\n",
    };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let connect = |index: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let sent = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).unwrap();
        Connection { stream, sent, received: Vec::with_capacity(512) }
    };
    let mut measured = Measured::default();
    let mut open: Vec<Connection> = (0..connections).map(connect).collect();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = [0; 4096];
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let count = epoll.wait(&mut events, EpollTimeout::from(100u8)).unwrap();
        for event in &events[..count] {
            let index = event.data() as usize;
            let connection = &mut open[index];
            let ended = match connection.stream.read(&mut buffer) {
                Ok(0) => true,
                Ok(read) => {
                    connection.received.extend_from_slice(&buffer[..read]);
                    false
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => true,
            };
            let complete = is_complete(&connection.received);
            if complete {
                measured.requests += 1;
                measured.latencies.push(connection.sent.elapsed());
            } else if ended {
                measured.lost += 1;
            }
            let last = close || connection.received.windows(17).any(|part| part == b"Connection: close");
            if ended || (complete && last) {
                open[index] = connect(index);
            } else if complete {
                connection.received.clear();
                connection.sent = Instant::now();
                if connection.stream.write_all(request.as_bytes()).is_err() {
                    measured.lost += 1;
                    open[index] = connect(index);
                }
            }
        }
    }
    measured.elapsed = begin.elapsed();
    measured.latencies.sort_unstable();
    measured
}

fn is_complete(received: &[u8]) -> bool {
    received.ends_with(BODY.as_bytes()) && received.windows(4).any(|part| part == b"\r\n\r\n")
}

/// One request on a connection of its own; the body, or nothing if nobody answers.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}
