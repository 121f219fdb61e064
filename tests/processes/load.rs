//! Clients of every kind, all the time, each of whose requests has to be answered.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::client::{self, Client, Reply, Target};

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A connection for each request.
    Close,
    /// One connection until the server says that it ends, without a pause.
    KeepAlive,
    /// The same, with 0 to 50 ms of thought between requests; it never looks whether the server has closed
    /// the connection before it writes into it.
    Naive,
    /// Connects, waits 30 ms, and sends then.
    IdleHead,
    /// Sends the head in three pieces 20 ms apart, and then 100 kB in chunks to `/echo`.
    Slow,
    /// One request every 200 ms on one connection.
    Poll,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Close, Kind::KeepAlive, Kind::Naive, Kind::IdleHead, Kind::Slow, Kind::Poll];
}

/// A load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(Kind, JoinHandle<Result<u64, String>>)>,
}

impl Load {
    /// Starts so many clients of each kind.
    pub fn start(target: impl Into<Target>, kinds: &[Kind], clients: u64) -> Load {
        Load::start_all(&[target.into()], kinds, clients)
    }

    /// Starts so many clients of each kind for each target.
    pub fn start_all(targets: &[Target], kinds: &[Kind], clients: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |kind: Kind, seed: u64, target: &Target| {
            let stop = Arc::clone(&stop);
            let session = Session { kind, target: target.clone(), client: None, random: seed };
            (kind, thread::spawn(move || session.run(&stop)))
        };
        let mut started = Vec::new();
        for target in targets {
            for &kind in kinds {
                started.extend((1..=clients).map(|seed| spawn(kind, seed, target)));
            }
        }
        Load { clients: started, stop }
    }

    /// Stops the clients; every request of every one of them must have been answered. Returns how many
    /// there were of each kind.
    pub fn stop(self) -> Vec<(Kind, u64)> {
        self.stop.store(true, Ordering::SeqCst);
        let mut counts: Vec<(Kind, u64)> = Vec::new();
        let mut lost = Vec::new();
        for (kind, client) in self.clients {
            match client.join().unwrap() {
                Ok(count) => counts.push((kind, count)),
                Err(error) => lost.push(format!("{kind:?}: {error}")),
            }
        }
        assert!(lost.is_empty(), "lost requests: {lost:#?}");
        counts
    }
}

/// What one client does.
struct Session {
    kind: Kind,
    target: Target,
    client: Option<Client>,
    random: u64,
}

impl Session {
    /// Makes requests until it is told to stop; the number of requests, or how one was lost.
    fn run(mut self, stop: &AtomicBool) -> Result<u64, String> {
        let mut count = 0;
        // Once at least, however soon it is stopped.
        while count == 0 || !stop.load(Ordering::SeqCst) {
            count += 1;
            let reply = self.request().map_err(|error| format!("request {count}: {error}"))?;
            if reply.status != 200 {
                return Err(format!("request {count}: status {}", reply.status));
            }
            match self.kind {
                Kind::Naive => self.think(50),
                Kind::Poll => thread::sleep(Duration::from_millis(200)),
                _ => {}
            }
        }
        Ok(count)
    }

    fn request(&mut self) -> io::Result<Reply> {
        match self.kind {
            Kind::Close => client::get(self.target.clone(), "/hello"),
            Kind::KeepAlive | Kind::Naive | Kind::Poll => {
                let mut client = match self.client.take() {
                    Some(client) => client,
                    None => Client::connect(self.target.clone())?,
                };
                let reply = client.get("/hello")?;
                self.client = Some(client).filter(|_| !reply.is_last());
                Ok(reply)
            }
            Kind::IdleHead => {
                let mut client = Client::connect(self.target.clone())?;
                thread::sleep(Duration::from_millis(30));
                client.get("/hello")
            }
            Kind::Slow => self.echo(),
        }
    }

    fn echo(&mut self) -> io::Result<Reply> {
        let mut client = Client::connect(self.target.clone())?;
        for piece in ["POST /echo HTTP/1.1\r\nHo", "st: test\r\nTransfer-Enc", "oding: chunked\r\n\r\n"] {
            client.send(piece)?;
            thread::sleep(Duration::from_millis(20));
        }
        let chunk: Vec<u8> = (0..10_000).map(|_| self.next_random() as u8).collect();
        for _ in 0..10 {
            client.send(format!("{:x}\r\n", chunk.len()))?;
            client.send(&chunk)?;
            client.send("\r\n")?;
        }
        client.send("0\r\n\r\n")?;
        let reply = client.receive()?;
        if reply.body != chunk.repeat(10) {
            return Err(io::Error::other("the echo is not what was sent"));
        }
        Ok(reply)
    }

    fn think(&mut self, most: u64) {
        let milliseconds = self.next_random() % (most + 1);
        thread::sleep(Duration::from_millis(milliseconds));
    }

    /// Xorshift, so that a client needs no more than a seed.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
