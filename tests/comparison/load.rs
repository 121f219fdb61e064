//! The load: one thread for many connections, each with one request at a time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What every server answers with.
pub const BODY: &str = "Hello World\n";

/// How long the last requests may take to be answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has been measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub requests: u64,
    pub elapsed: Duration,
    /// Sorted.
    pub latencies: Vec<Duration>,
    /// Requests that were written and not answered.
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

/// When the clients ask, beside the first time on a connection that they had to make anew.
#[derive(Clone, Copy, PartialEq)]
pub enum Pace {
    /// As soon as they have an answer.
    Busy,
    /// In turn, one of them after each such pause.
    InTurn(Duration),
}

struct Connection {
    stream: TcpStream,
    /// Since when it has been waiting for an answer.
    sent: Option<Instant>,
    received: Vec<u8>,
}

/// Clients with a connection each. They connect again when it is closed.
pub struct Load {
    address: SocketAddr,
    /// Each connection is used for one request.
    close: bool,
    epoll: Epoll,
    connections: Vec<Connection>,
    /// How often they have connected.
    pub connects: usize,
}

/// Keeps so many connections busy for so long; with `close`, each is used for one request.
pub fn run(address: SocketAddr, connections: usize, close: bool, duration: Duration) -> Measured {
    let begin = Instant::now();
    Load::new(address, connections, close).run(Pace::Busy, || begin.elapsed() >= duration)
}

impl Load {
    pub fn new(address: SocketAddr, connections: usize, close: bool) -> Load {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut load = Load { address, close, epoll, connections: Vec::new(), connects: 0 };
        (0..connections).for_each(|index| {
            let connection = load.connect(index);
            load.connections.push(connection);
        });
        load
    }

    /// Asks until it is over and each request has been answered.
    pub fn run(&mut self, pace: Pace, is_over: impl Fn() -> bool) -> Measured {
        let mut measured = Measured::default();
        let mut events = vec![EpollEvent::empty(); 256];
        let begin = Instant::now();
        let (mut last, mut turns) = (begin, (0..self.connections.len()).cycle());
        if pace == Pace::Busy {
            (0..self.connections.len()).for_each(|index| self.ask(index));
        }
        let mut end = None;
        while end.is_none_or(|end: Instant| self.awaits_answers() && end.elapsed() < PATIENCE) {
            let count = self.epoll.wait(&mut events, EpollTimeout::from(10u8)).unwrap();
            end = end.or_else(|| is_over().then(Instant::now));
            for event in &events[..count] {
                let index = event.data() as usize;
                let is_new = self.receive(index, event.events(), &mut measured);
                let has_time = pace == Pace::Busy && self.connections[index].sent.is_none();
                if end.is_none() && (is_new || has_time) {
                    self.ask(index);
                }
            }
            if let Pace::InTurn(pause) = pace
                && end.is_none()
                && last.elapsed() >= pause
            {
                last = Instant::now();
                let mut one = turns.by_ref().take(self.connections.len());
                if let Some(index) = one.find(|&index| self.connections[index].sent.is_none()) {
                    self.ask(index);
                }
            }
        }
        measured.lost +=
            self.connections.iter().filter(|connection| connection.sent.is_some()).count() as u64;
        measured.elapsed = begin.elapsed();
        measured.latencies.sort_unstable();
        measured
    }

    fn awaits_answers(&self) -> bool {
        self.connections.iter().any(|connection| connection.sent.is_some())
    }

    fn connect(&mut self, index: usize) -> Connection {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.epoll.add(stream.as_fd(), EpollEvent::new(events, index as u64)).unwrap();
        self.connects += 1;
        Connection { stream, sent: None, received: Vec::with_capacity(512) }
    }

    fn ask(&mut self, index: usize) {
        let request: &[u8] = match self.close {
            true => b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n",
            false => b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n",
        };
        self.connections[index].sent = Some(Instant::now());
        if self.connections[index].stream.write_all(request).is_err() {
            // It was closed before, so nothing is lost.
            self.connections[index] = self.connect(index);
            self.connections[index].sent = Some(Instant::now());
            self.connections[index].stream.write_all(request).unwrap();
        }
    }

    /// Returns whether the connection is a new one, because the last one has ended.
    fn receive(&mut self, index: usize, events: EpollFlags, measured: &mut Measured) -> bool {
        let connection = &mut self.connections[index];
        let mut buffer = [0; 4096];
        let mut is_closed = match connection.stream.read(&mut buffer) {
            Ok(read) => {
                connection.received.extend_from_slice(&buffer[..read]);
                read == 0
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if is_complete(&connection.received) {
            measured.requests += 1;
            measured.latencies.extend(connection.sent.take().map(|sent| sent.elapsed()));
            let is_last = connection.received.windows(17).any(|part| part == b"Connection: close");
            // The end may have come together with the answer.
            is_closed |= self.close || is_last || events.contains(EpollFlags::EPOLLRDHUP);
            connection.received.clear();
        } else if is_closed && connection.sent.is_some() {
            measured.lost += 1;
        }
        if is_closed {
            self.connections[index] = self.connect(index);
        }
        is_closed
    }
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
