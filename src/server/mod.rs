//! The server: accepts connections, and gives each a thread of its own.
//!
//! What happens on a connection is not its business: it is given a function for that. Its business is
//! exactness. After [`Server::drain`] no connection is taken any more; every connection that was taken is
//! in the register before its thread starts, and leaves it when the thread is done, however that ends.

pub(crate) mod address;
pub(crate) mod connection;
pub(crate) mod listener;
mod registry;
mod workers;

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::deadline;
use crate::options::Limits;
use crate::server::connection::{Common, Connection};
use crate::server::listener::Listener;
use crate::server::registry::Register;
use crate::server::workers::Workers;

/// The function that is run on each connection, on a thread of its own.
type Serve = dyn Fn(&Arc<Connection>) + Send + Sync;

/// The most connections accepted from a queue that is to be closed, which clients may keep filling.
const LONGEST_QUEUE: usize = 1 << 16;

/// How long the accept loop waits for room, or for whatever else only time can bring, before it looks.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts, or pauses, or has closed its listening socket; and has a number of connections open.
pub(crate) struct Server {
    register: Arc<Register>,
    accepting: Option<Accepting>,
    /// Closed to tell idle connections to close.
    close_idle: Option<PipeWriter>,
}

/// The accept thread, and the means to give it orders.
struct Accepting {
    acceptor: Arc<Acceptor>,
    thread: JoinHandle<()>,
    /// One message starts the accepting; hanging up ends the thread.
    go: Sender<()>,
    /// One byte stops the accepting, and one message says that it has stopped.
    halt: PipeWriter,
    halted: Receiver<()>,
    running: bool,
}

impl Server {
    /// A server that does not accept yet. It runs `serve` on each connection, of which at most so many are
    /// open at a time as `limits` says at that time, and calls `on_empty` when, after
    /// [`drain`](Self::drain), no connection is open.
    pub(crate) fn new(
        listeners: Vec<Listener>,
        limits: Arc<RwLock<Limits>>,
        serve: impl Fn(&Arc<Connection>) + Send + Sync + 'static,
        on_empty: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let (idle_closed, close_idle) = io::pipe()?;
        let (room, offer_room) = io::pipe()?;
        let common = Arc::new(Common::new(idle_closed, offer_room));
        let register = Arc::new(Register::new(common, on_empty));
        let acceptor = Arc::new(Acceptor {
            listeners,
            limits,
            register: Arc::clone(&register),
            workers: Workers::default(),
            serve: Arc::new(serve),
        });

        let (go, start) = mpsc::channel();
        let (confirm, halted) = mpsc::channel();
        let (mut stop, halt) = io::pipe()?;
        let thread = thread::Builder::new().name("accept".to_owned()).spawn({
            let acceptor = Arc::clone(&acceptor);
            move || {
                while start.recv().is_ok() {
                    acceptor.accept_until(&stop, &room);
                    let _ = stop.read(&mut [0]);
                    let _ = confirm.send(());
                }
            }
        })?;
        let accepting = Accepting { acceptor, thread, go, halt, halted, running: false };
        Ok(Server { register, accepting: Some(accepting), close_idle: Some(close_idle) })
    }

    /// The listening sockets, until they are closed.
    pub(crate) fn listeners(&self) -> &[Listener] {
        self.accepting.as_ref().map_or(&[], |accepting| &accepting.acceptor.listeners)
    }

    /// Begins to accept, or does so again after a [`drain`](Self::drain).
    pub(crate) fn accept(&mut self) {
        self.register.common().set_draining(false);
        if let Some(accepting) = self.accepting.as_mut().filter(|accepting| !accepting.running) {
            accepting.running = accepting.go.send(()).is_ok();
        }
    }

    /// Stops accepting: when this returns, no further connection is taken.
    fn pause(&mut self) {
        if let Some(accepting) = self.accepting.as_mut().filter(|accepting| accepting.running) {
            let _ = accepting.halt.write_all(&[0]);
            let _ = accepting.halted.recv();
            accepting.running = false;
        }
    }

    /// Stops accepting; each open connection is told that its next response is its last.
    pub(crate) fn drain(&mut self) {
        self.pause();
        self.register.drain();
    }

    /// Accepts what is already in the queues, closes the listening sockets, and drains.
    pub(crate) fn close(&mut self) {
        self.pause();
        if let Some(Accepting { acceptor, .. }) = &self.accepting {
            acceptor.listeners.iter().for_each(|listener| acceptor.accept_queued(listener));
            acceptor.listeners.iter().for_each(Listener::remove_file);
        }
        self.leave_sockets();
        self.drain();
    }

    /// Closes the listening sockets here, and leaves what is in their queues to another process.
    pub(crate) fn leave_sockets(&mut self) {
        self.pause();
        if let Some(Accepting { thread, go, .. }) = self.accepting.take() {
            drop(go);
            let _ = thread.join();
        }
    }

    /// Closes each connection that waits for a request, and from now on closes one that would wait. One
    /// that has a request in its socket is not waiting, and neither is one that was in use a moment ago.
    pub(crate) fn close_idle(&mut self) {
        self.close_idle = None;
    }

    /// The number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.register.len()
    }

    /// The number of open connections on which a request is being read, handled or answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.register.in_flight()
    }

    /// Cuts every open connection short. Their threads end as soon as they use the connection again.
    pub(crate) fn cut(&self) {
        self.register.cut();
    }
}

/// The side of the server that takes connections.
struct Acceptor {
    listeners: Vec<Listener>,
    limits: Arc<RwLock<Limits>>,
    register: Arc<Register>,
    workers: Workers,
    serve: Arc<Serve>,
}

/// What keeps the accept loop from accepting a connection that waits.
#[derive(Debug)]
enum Obstacle {
    /// So many connections are open, and no more may be.
    Limit(usize),
    /// Something is missing that only time can bring: descriptors, memory, a thread.
    Shortage(io::Error),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Limit(most) => write!(f, "{most} are open, which is the limit"),
            Obstacle::Shortage(error) => error.fmt(f),
        }
    }
}

impl Acceptor {
    /// Accepts until `stop` is readable. Nothing else ends this loop: whatever accept(2) fails with, the
    /// connections that are open are served, and a later attempt may succeed.
    fn accept_until(&self, stop: &PipeReader, mut room: &PipeReader) {
        let mut trouble = Trouble::default();
        let sockets: Vec<BorrowedFd<'_>> = self.listeners.iter().map(Listener::as_fd).collect();
        loop {
            let readable = wait(stop, &sockets, PollTimeout::NONE);
            if readable.stop {
                return;
            }
            for listener in readable.others.into_iter().map(|index| &self.listeners[index]) {
                let Err(obstacle) = self.accept_one(listener) else {
                    trouble.pass();
                    continue;
                };
                self.register.common().want_room();
                trouble.meet(&obstacle);
                self.register.evict_one();
                // Meanwhile the socket stays readable, and it would be no use to wait for that.
                let readable = wait(stop, &[room.as_fd()], deadline::timeout(BACK_OFF));
                if readable.stop {
                    return;
                }
                if !readable.others.is_empty() {
                    let _ = room.read(&mut [0]);
                }
            }
        }
    }

    /// Accepts what is in the queue, but not for ever, if others keep filling it.
    fn accept_queued(&self, listener: &Listener) {
        for _ in 0..LONGEST_QUEUE {
            if !self.accept_one(listener).is_ok_and(|accepted| accepted) {
                return;
            }
        }
    }

    /// Accepts one connection; whether there was one.
    fn accept_one(&self, listener: &Listener) -> Result<bool, Obstacle> {
        let most = self.limits.read().unwrap_or_else(PoisonError::into_inner).max_connections;
        if self.register.len() >= most {
            return Err(Obstacle::Limit(most));
        }
        let worker = self.workers.reserve().map_err(Obstacle::Shortage)?;
        match listener.accept() {
            Ok((socket, peer)) => {
                log::debug!("{peer}: connected");
                let common = Arc::clone(self.register.common());
                let connection = Connection::new(socket, peer, listener.address().clone(), common);
                let connection = Arc::new(connection);
                let registered = self.register.enter(Arc::clone(&connection));
                let serve = Arc::clone(&self.serve);
                worker.run(move || {
                    let _registered = registered;
                    // The register is left last, when nothing else holds the connection.
                    let connection = connection;
                    serve(&connection);
                });
                Ok(true)
            }
            // The queue is empty: the other process of a handover may have been faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if concerns_one_connection(&error) => Ok(true),
            Err(error) => Err(Obstacle::Shortage(error)),
        }
    }
}

/// What a wait ended with; nothing, if time has passed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Readable {
    stop: bool,
    /// Which of the others.
    others: Vec<usize>,
}

/// Waits until one of them is readable.
fn wait(stop: &PipeReader, others: &[BorrowedFd<'_>], timeout: PollTimeout) -> Readable {
    let all = others.iter().copied().chain([stop.as_fd()]);
    let mut events: Vec<PollFd<'_>> = all.map(|each| PollFd::new(each, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut events, timeout) {
            Err(Errno::EINTR) => {}
            Err(_) => {
                // Without the memory even to wait, time is what is left.
                thread::sleep(BACK_OFF);
                return Readable::default();
            }
            Ok(_) => {
                let readable = |&index: &usize| events[index].any() == Some(true);
                let others = (0..others.len()).filter(readable).collect();
                return Readable { stop: readable(&(events.len() - 1)), others };
            }
        }
    }
}

/// Obstacles that follow each other closely are one trouble, of which the log tells once.
#[derive(Default)]
struct Trouble {
    last: Option<Instant>,
}

impl Trouble {
    /// How long there must have been no obstacle for a trouble to be over.
    const OVER_AFTER: Duration = Duration::from_secs(1);

    fn meet(&mut self, obstacle: &Obstacle) {
        if self.last.is_none() {
            log::warn!("new connections have to wait, or idle ones to make room: {obstacle}");
        }
        self.last = Some(Instant::now());
    }

    fn pass(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > Self::OVER_AFTER) {
            self.last = None;
            log::info!("new connections do not have to wait any more");
        }
    }
}

/// Errors that are about the connection that would have been accepted and not about accepting; see
/// accept(2), "Error handling".
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::EINTR
                | Errno::ECONNABORTED
                | Errno::EPROTO
                | Errno::EPERM
                | Errno::ENETDOWN
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::EOPNOTSUPP
                | Errno::ENETUNREACH
        )
    )
}
