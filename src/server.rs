//! The server: accepts connections, gives each a thread of its own, and knows which are open.
//!
//! What happens on a connection is not its business: it is given a function for that. Its business is
//! exactness. After [`Server::pause`] no connection is taken any more; every connection that was taken is
//! in the register before its thread starts, and leaves it when the thread ends, however it ends.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use crate::listener::Listener;

/// The function that is run on each connection, on a thread of its own.
type Serve = dyn Fn(&Arc<Connection>) + Send + Sync;

/// How long the accept loop waits after an error that only time can mend.
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
    /// A server that does not accept yet. It runs `serve` on each connection, and calls `on_empty` when,
    /// after [`drain`](Self::drain), no connection is open.
    pub(crate) fn new(
        listener: Listener,
        serve: impl Fn(&Arc<Connection>) + Send + Sync + 'static,
        on_empty: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let (idle_closed, close_idle) = io::pipe()?;
        let register = Arc::new(Register {
            open: Mutex::default(),
            draining: AtomicBool::new(false),
            idle_closed,
            on_empty: Box::new(on_empty),
        });
        let acceptor = Arc::new(Acceptor {
            listener,
            register: Arc::clone(&register),
            serve: Arc::new(serve),
            next: AtomicU64::new(0),
        });

        let (go, start) = mpsc::channel();
        let (confirm, halted) = mpsc::channel();
        let (mut stop, halt) = io::pipe()?;
        let thread = thread::Builder::new().name("accept".to_owned()).spawn({
            let acceptor = Arc::clone(&acceptor);
            move || {
                while start.recv().is_ok() {
                    acceptor.accept_until(&stop);
                    let _ = stop.read(&mut [0]);
                    let _ = confirm.send(());
                }
            }
        })?;
        let accepting = Accepting {
            acceptor,
            thread,
            go,
            halt,
            halted,
            running: false,
        };
        Ok(Server {
            register,
            accepting: Some(accepting),
            close_idle: Some(close_idle),
        })
    }

    /// The listening socket, unless it is closed.
    pub(crate) fn listener(&self) -> Option<&Listener> {
        self.accepting
            .as_ref()
            .map(|accepting| &accepting.acceptor.listener)
    }

    /// Begins to accept, or does so again after a [`drain`](Self::drain).
    pub(crate) fn accept(&mut self) {
        self.register.draining.store(false, Ordering::SeqCst);
        if let Some(accepting) = self
            .accepting
            .as_mut()
            .filter(|accepting| !accepting.running)
        {
            accepting.running = accepting.go.send(()).is_ok();
        }
    }

    /// Stops accepting: when this returns, no further connection is taken.
    fn pause(&mut self) {
        if let Some(accepting) = self
            .accepting
            .as_mut()
            .filter(|accepting| accepting.running)
        {
            let _ = accepting.halt.write_all(&[0]);
            let _ = accepting.halted.recv();
            accepting.running = false;
        }
    }

    /// Stops accepting; each open connection is told that its next response is its last.
    pub(crate) fn drain(&mut self) {
        self.pause();
        self.register.draining.store(true, Ordering::SeqCst);
        if self.open() == 0 {
            (self.register.on_empty)();
        }
    }

    /// Accepts what is already in the queue, closes the listening socket, and drains.
    pub(crate) fn close(&mut self) {
        self.pause();
        if let Some(Accepting {
            acceptor,
            thread,
            go,
            ..
        }) = self.accepting.take()
        {
            acceptor.accept_queued();
            drop(go);
            let _ = thread.join();
        }
        self.drain();
    }

    /// Closes each connection that waits for a request, and from now on closes one that would wait. One
    /// that has a request in its socket is not waiting.
    pub(crate) fn close_idle(&mut self) {
        self.close_idle = None;
    }

    /// The number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.register.open().len()
    }

    /// The number of open connections on which a request is being read, handled or answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.register
            .open()
            .values()
            .filter(|connection| connection.in_flight.load(Ordering::SeqCst))
            .count()
    }

    /// Cuts every open connection short. Their threads end as soon as they use the connection again.
    pub(crate) fn cut(&self) {
        for connection in self.register.open().values() {
            connection.cut();
        }
    }
}

/// The side of the server that takes connections.
struct Acceptor {
    listener: Listener,
    register: Arc<Register>,
    serve: Arc<Serve>,
    next: AtomicU64,
}

impl Acceptor {
    /// Accepts until `stop` is readable. Nothing else ends this loop: whatever accept(2) fails with, the
    /// connections that are open are served, and a later attempt may succeed.
    fn accept_until(&self, stop: &PipeReader) {
        let mut failing = false;
        loop {
            let mut events = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            // While accepting fails the listening socket stays readable: then only `stop` is waited for.
            let polled = if failing {
                poll(&mut events[..1], timeout(BACK_OFF))
            } else {
                poll(&mut events, PollTimeout::NONE)
            };
            if polled.is_ok() && events[0].any() == Some(true) {
                return;
            }
            let accepted = self.accept();
            match &accepted {
                Ok(_) if failing => log::info!("accepting connections again"),
                Err(error) if !failing => log::error!("cannot accept connections for now: {error}"),
                _ => {}
            }
            failing = accepted.is_err();
        }
    }

    /// Accepts what is in the queue.
    fn accept_queued(&self) {
        while self.accept().is_ok_and(|accepted| accepted) {}
    }

    /// Accepts one connection; whether there was one.
    ///
    /// # Errors
    ///
    /// What only time can mend: no descriptors, no memory.
    fn accept(&self) -> io::Result<bool> {
        match self.listener.accept() {
            Ok((socket, peer)) => self.start(socket, peer),
            // The queue is empty: the other process of a handover may have been faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn start(&self, socket: OwnedFd, peer: SocketAddr) {
        log::debug!("{peer}: connected");
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            socket,
            peer,
            in_flight: AtomicBool::new(false),
            register: Arc::clone(&self.register),
        });
        let registered = Registered::new(id, Arc::clone(&connection));
        let serve = Arc::clone(&self.serve);
        let started = thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || {
                let _registered = registered;
                serve(&connection);
            });
        if let Err(error) = started {
            log::error!("closing a connection from {peer}: cannot start a thread for it: {error}");
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

/// Who is open.
struct Register {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    draining: AtomicBool,
    /// Readable, by its end of file, from the moment idle connections are to close.
    idle_closed: PipeReader,
    on_empty: Box<dyn Fn() + Send + Sync>,
}

impl Register {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry in the register, for as long as this lives.
struct Registered {
    id: u64,
    register: Arc<Register>,
}

impl Registered {
    fn new(id: u64, connection: Arc<Connection>) -> Registered {
        let register = Arc::clone(&connection.register);
        register.open().insert(id, connection);
        Registered { id, register }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = self.register.open();
        open.remove(&self.id);
        let empty = open.is_empty();
        drop(open);
        if empty && self.register.draining.load(Ordering::SeqCst) {
            (self.register.on_empty)();
        }
    }
}

/// An open connection, as seen by the function that serves it.
pub(crate) struct Connection {
    socket: OwnedFd,
    peer: SocketAddr,
    in_flight: AtomicBool,
    register: Arc<Register>,
}

/// What the wait for a request ended with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Something can be read: input, or the end of it.
    Readable,
    /// Nothing came in time.
    TimedOut,
    /// The process stops, and nothing has come.
    Stopping,
}

impl Connection {
    /// The address of the other side.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether this process takes no further connections: then a response should be the connection's last.
    pub(crate) fn is_draining(&self) -> bool {
        self.register.draining.load(Ordering::SeqCst)
    }

    /// Waits, idle, for a request.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<Waited> {
        let mut events = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.register.idle_closed.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            let ready = match poll(&mut events, timeout_until(deadline)) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            // The last look: what has come goes before the wish to stop.
            return Ok(if events[0].any() == Some(true) {
                Waited::Readable
            } else if ready > 0 {
                Waited::Stopping
            } else {
                Waited::TimedOut
            });
        }
    }

    /// Counts the connection as one with a request in flight, for as long as the result lives.
    pub(crate) fn request(self: &Arc<Self>) -> InFlight {
        self.in_flight.store(true, Ordering::SeqCst);
        InFlight {
            connection: Arc::clone(self),
        }
    }

    /// Whether input has come that nobody has read yet.
    pub(crate) fn has_unread(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.socket.as_raw_fd(), &mut [0], flags).is_ok_and(|count| count > 0)
    }

    /// Reads what has come, or waits for it until the deadline; 0 is the end of the input.
    ///
    /// # Errors
    ///
    /// `TimedOut` at the deadline, or what recv(2) said.
    pub(crate) fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Writes everything, waiting at most `patience` for the other side to take some of it.
    ///
    /// # Errors
    ///
    /// `TimedOut` when it took nothing for so long, or what send(2) said.
    pub(crate) fn write_all(&self, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
        // Not SIGPIPE, which an embedding program may have set back to its deadly default.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !bytes.is_empty() {
            match send(self.socket.as_raw_fd(), bytes, flags) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => {
                    self.wait_for(PollFlags::POLLOUT, Instant::now() + patience)?
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Closes the write side and reads until the other side has closed its own, or until the deadline.
    ///
    /// A plain close with unread input, or with input still to come, makes the kernel send a reset, which
    /// can destroy the response before the other side has read it (RFC 9112 section 9.6).
    pub(crate) fn linger(&self, deadline: Instant) {
        if shutdown(self.socket.as_raw_fd(), Shutdown::Write).is_err() {
            return;
        }
        let mut discarded = [0; 4096];
        while Instant::now() < deadline
            && self
                .read(&mut discarded, deadline)
                .is_ok_and(|count| count > 0)
        {}
    }

    fn cut(&self) {
        // It fails if the other side has cut first.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn wait_for(&self, what: PollFlags, deadline: Instant) -> io::Result<()> {
        match poll(
            &mut [PollFd::new(self.socket.as_fd(), what)],
            timeout_until(deadline),
        ) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// See [`Connection::request`].
pub(crate) struct InFlight {
    connection: Arc<Connection>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.in_flight.store(false, Ordering::SeqCst);
    }
}

fn timeout_until(deadline: Instant) -> PollTimeout {
    timeout(deadline.saturating_duration_since(Instant::now()))
}

/// In milliseconds, rounded up, so that a wait never ends before its time and then spins through the rest.
fn timeout(duration: Duration) -> PollTimeout {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}
