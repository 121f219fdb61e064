//! The connections of a server: it accepts them, and runs a function on each, on a thread of its own. A
//! connection is in the registry before its thread starts, and leaves it when the thread is done with it, even
//! by a panic.

mod acceptor;
pub(crate) mod address;
pub(crate) mod capacity;
pub(crate) mod connection;
pub(crate) mod listener;
pub(crate) mod pace;
pub(crate) mod registry;
mod workers;

use std::fmt;
use std::io::{self, PipeWriter};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::counters::Counters;
use crate::handover::moving::{Host, Mover};
use crate::lock::lock;
use crate::options::Limits;
pub(crate) use crate::server::acceptor::Serve;
use crate::server::acceptor::{Acceptor, Arrivals, Entrance, Gate};
use crate::server::capacity::Capacity;
use crate::server::connection::Connection;
use crate::server::listener::Listener;
use crate::server::registry::Registry;
use crate::server::workers::Workers;
use crate::watch::Usage;

pub(crate) struct Connections {
    registry: Arc<Registry>,
    entrance: Arc<Entrance>,
    /// Has the listening sockets, and its thread; `None` once they are closed.
    acceptor: Option<(Arc<Acceptor>, JoinHandle<()>)>,
    /// Closing it closes idle connections.
    close_idle: Option<PipeWriter>,
}

impl Connections {
    /// None is accepted yet. A handover passes on this number of descriptors, `serve`, which speaks this protocol, will
    /// be run on each connection, on a stack of this size, at most [`max_connections`](Limits::max_connections) will be
    /// open, or as many as the system allows, and `on_empty` is called when, after [`drain`](Self::drain), none is.
    pub(crate) fn new(
        listeners: Vec<Listener>,
        handed: usize,
        limits: Arc<Mutex<Limits>>,
        stack_size: usize,
        protocol: String,
        serve: impl Fn(&Arc<Connection>) + Send + Sync + 'static,
        on_empty: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Connections> {
        let (idle_closed, close_idle) = io::pipe()?;
        let registry = Arc::new(Registry::new(protocol, idle_closed, on_empty)?);
        let (workers, serve) = (Workers::new(stack_size), Box::new(serve));
        let capacity = Capacity::measure(handed, stack_size);
        let entrance = Arc::new(Entrance { registry: Arc::clone(&registry), workers, serve, capacity });
        let acceptor = Arc::new(Acceptor {
            listeners,
            limits,
            entrance: Arc::clone(&entrance),
            gate: Mutex::new(Gate::Shut),
        });
        acceptor.report_capacity();
        let accept = Arc::clone(&acceptor);
        let thread = thread::Builder::new().name("accept".to_owned()).spawn(move || accept.run())?;
        Ok(Connections {
            registry,
            entrance,
            acceptor: Some((acceptor, thread)),
            close_idle: Some(close_idle),
        })
    }

    /// The listening sockets, until they are closed.
    pub(crate) fn listeners(&self) -> &[Listener] {
        self.acceptor.as_ref().map_or(&[], |(acceptor, _)| &*acceptor.listeners)
    }

    /// Logs it if the system allows fewer connections than are asked for.
    pub(crate) fn report_capacity(&self) {
        self.acceptor.iter().for_each(|(acceptor, _)| acceptor.report_capacity());
    }

    /// Starts accepting, or starts again after a [`drain`](Self::drain).
    pub(crate) fn accept(&mut self) {
        self.registry.resume();
        self.set_deadline(None);
        self.set_gate(Gate::Open);
    }

    /// What takes in the connections that another process moves to this one, or refuses them. If they are expected,
    /// a drain is not complete before that process has drained.
    pub(crate) fn arrivals(&self, are_expected: bool, are_refused: bool) -> impl Host {
        self.registry.expects_arrivals.fetch_or(are_expected, Ordering::SeqCst);
        Arrivals { entrance: Arc::clone(&self.entrance), are_expected, are_refused, count: 0.into() }
    }

    /// Whether another process drains that may move connections here.
    pub(crate) fn expects_arrivals(&self) -> bool {
        self.registry.expects_arrivals.load(Ordering::SeqCst)
    }

    /// A drain waits for no other process.
    pub(crate) fn expect_no_arrivals(&self) {
        self.registry.expects_arrivals.store(false, Ordering::SeqCst);
    }

    /// When this returns, no further connection is accepted. Each open one is moved, or ends with its next
    /// response.
    pub(crate) fn drain(&mut self, mover: Option<Mover>) {
        self.set_gate(Gate::Shut);
        self.registry.moved.store(0, Ordering::Relaxed);
        // In this order, so that no response promises the end of a connection that can be moved.
        self.registry.set_mover(mover);
        self.registry.drain();
    }

    /// When the drain ends, for those that can hurry.
    pub(crate) fn set_deadline(&self, deadline: Option<Instant>) {
        *lock(&self.registry.deadline) = deadline;
    }

    /// Moves no more connections to another process.
    pub(crate) fn keep_connections(&self) {
        self.registry.set_mover(None);
    }

    /// Accepts the connections that are in the queues, closes the listening sockets, and drains.
    pub(crate) fn close(&mut self) {
        self.close_listeners(|_, _| true);
        self.drain(None);
    }

    /// Sets the permissions of the files of Unix sockets.
    pub(crate) fn set_socket_mode(&self, mode: u32) {
        self.listeners().iter().for_each(|listener| listener.set_mode(mode));
    }

    /// Stops accepting and closes the listening sockets in this process. The connections in their queues
    /// are left to the process that shares them. If none does, because this process `is_last` there, they are
    /// accepted; returns how many have been.
    pub(crate) fn close_listeners(&mut self, is_last: impl Fn(usize, &Listener) -> bool) -> usize {
        self.set_gate(Gate::Removed);
        let Some((acceptor, thread)) = self.acceptor.take() else { return 0 };
        let _ = thread.join();
        let listeners = acceptor.listeners.iter().enumerate();
        let last = listeners.filter(|&(index, listener)| is_last(index, listener));
        last.map(|(_, listener)| {
            // It goes first, or clients keep coming in until the end.
            listener.remove_file();
            acceptor.accept_queued(listener)
        })
        .sum()
    }

    fn set_gate(&self, gate: Gate) {
        self.acceptor.iter().for_each(|(acceptor, _)| acceptor.set_gate(gate));
    }

    /// Closes each connection that is waiting for a request, and from now on each that would have to. A
    /// connection that was used a moment ago waits for that moment first.
    pub(crate) fn close_idle(&mut self) {
        self.close_idle = None;
    }

    pub(crate) fn open(&self) -> usize {
        self.registry.open().len()
    }

    /// Whether no connection is open, and none will be moved here.
    pub(crate) fn is_empty(&self) -> bool {
        self.registry.is_empty()
    }

    /// The number of open connections on which a request is being read, handled or answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.registry.in_flight()
    }

    /// What tells at any time how many connections there are, and what has been done on them.
    pub(crate) fn usage(&self) -> impl Fn() -> Usage + use<> {
        let registry = Arc::clone(&self.registry);
        move || {
            let open = registry.open().len();
            Usage { open, in_flight: registry.in_flight(), counters: registry.counts() }
        }
    }

    /// The number of connections that have been moved to another process in the last drain.
    pub(crate) fn moved(&self) -> u64 {
        self.registry.moved.load(Ordering::Relaxed)
    }

    /// Ends every open connection at once, and returns how many requests were in flight. The threads end as
    /// soon as they use their connections again.
    pub(crate) fn cut(&self) -> usize {
        let cut = self.in_flight();
        self.registry.open().values().for_each(|connection| connection.cut());
        self.registry.count(Counters { lost: cut as u64, ..Counters::default() });
        cut
    }

    /// Adds what has been done in the processes before this one.
    pub(crate) fn count(&self, counts: Counters) {
        self.registry.count(counts);
    }

    /// What has been done here, and in the processes before this one.
    pub(crate) fn counts(&self) -> Counters {
        self.registry.counts()
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connections={} in-flight={}", self.open(), self.in_flight())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::deadline::after;
    use crate::server::pace::Pace;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn connections_are_accepted_when_they_should_be_and_counted_until_they_end() {
        let serve = |connection: &Arc<Connection>| {
            connection.write_all(b"!", &mut Pace::new(PATIENCE, 0)).unwrap();
            let count = connection.in_flight(|| connection.read(&mut [0], after(PATIENCE)));
            assert_eq!(count.unwrap(), 1, "as it should be");
        };
        let listeners = Listener::bind_all(&["127.0.0.1:0".to_owned()], 0).unwrap();
        let address = listeners[0].address().to_string();
        let (empty, emptied) = mpsc::channel();
        let on_empty = move || empty.send(()).unwrap();
        let mut connections =
            Connections::new(listeners, 1, Arc::default(), 1 << 20, String::new(), serve, on_empty).unwrap();

        let mut clients: Vec<TcpStream> = Vec::new();
        for (count, step) in
            [Connections::accept, Connections::accept, Connections::close].into_iter().enumerate()
        {
            clients.push(TcpStream::connect(&address).unwrap());
            assert_eq!(connections.open(), count);
            step(&mut connections);
            clients[count].read_exact(&mut [0]).unwrap();
            connections.drain(None);
        }
        assert_eq!((connections.open(), connections.listeners().len()), (3, 0));
        assert!(TcpStream::connect(&address).is_err());
        // One connection ends as it should, and the others in a panic.
        clients[0].write_all(b"!").unwrap();
        drop(clients);
        emptied.recv().unwrap();
        assert_eq!((connections.open(), connections.in_flight()), (0, 0));
    }

    #[test]
    fn one_slow_head_at_a_time_makes_room() {
        let (ended, end) = mpsc::channel();
        let (go_on, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let serve = move |connection: &Arc<Connection>| {
            let begin = Instant::now();
            let read = connection.in_flight(|| {
                let read = connection.read_head(&mut [0], begin, PATIENCE);
                ended.send(()).unwrap();
                let _ = lock(&held).recv();
                read
            });
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        };
        let listeners = Listener::bind_all(&["127.0.0.1:0".to_owned()], 0).unwrap();
        let address = listeners[0].address().to_string();
        let mut server =
            Connections::new(listeners, 1, Arc::default(), 1 << 20, String::new(), Box::new(serve), || ())
                .unwrap();
        server.accept();
        let mut client = TcpStream::connect(&address).unwrap();
        while server.in_flight() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        server.registry.want_capacity();
        end.recv().unwrap();
        // It has not been answered yet, so there is no room yet.
        server.registry.want_capacity();
        assert!(!server.registry.evicts_slow());
        // What its client still sends does not keep it.
        client.write_all(b"!").unwrap();
        let evict = || server.registry.open().values().any(|connection| connection.evict());
        let deadline = after(PATIENCE);
        while !evict() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        drop(go_on);
    }

    #[test]
    fn only_the_client_hangs_up() {
        let (hung_up, look) = mpsc::channel();
        let serve = move |connection: &Arc<Connection>| {
            assert_eq!(connection.read_request(&mut [0], PATIENCE).unwrap(), 0);
            let has_hung_up = || connection.wait_for_hangup(after(Duration::ZERO));
            hung_up.send(connection.in_flight(has_hung_up)).unwrap();
        };
        let listeners = Listener::bind_all(&["127.0.0.1:0".to_owned()], 0).unwrap();
        let address = listeners[0].address().to_string();
        let mut connections =
            Connections::new(listeners, 1, Arc::default(), 1 << 20, String::new(), serve, || ()).unwrap();
        connections.accept();
        for is_evicted in [true, false] {
            let client = TcpStream::connect(&address).unwrap();
            let evict = || connections.registry.open().values().any(|connection| connection.evict());
            while is_evicted && !evict() {
                thread::sleep(Duration::from_millis(1));
            }
            let client = Some(client).filter(|_| is_evicted);
            assert_eq!(look.recv().unwrap(), !is_evicted);
            drop(client);
        }
    }
}
