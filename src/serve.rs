//! How a process begins: it takes or binds the listening sockets (`serve/sockets.rs`), prepares all that can fail,
//! says that it is ready, and accepts connections when it may (`serve/start.rs`). What happens then is told in
//! `process.rs`.

mod handed_on;
mod sockets;
mod start;

use std::fmt::{self, Display};
use std::io;
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::events::Events;
use crate::handle::Handle;
use crate::handover::link::Word;
use crate::handover::named::Named;
use crate::handover::predecessor::Predecessor;
use crate::handover::program::Program;
use crate::http::Handler;
use crate::lock::lock;
use crate::operations::ready_fd::ReadyFd;
use crate::options::{Limits, Options};
use crate::outcome::Outcome;
use crate::process::Process;
use crate::server::address::Address;
use crate::server::listener::{Given, Listener, NewFiles};
use crate::service::Service;
use crate::stream::Stream;
use crate::watch::Publisher;

/// Serves HTTP until the process has been stopped or has handed over, and its connections are finished: what
/// [`Server::bind`] and [`Server::serve`] do, one after the other.
///
/// # Errors
///
/// Those of the two.
pub fn serve(options: Options, handler: impl Handler) -> Result<Outcome, Error> {
    Server::bind(options)?.serve(handler)
}

/// Serves another protocol than HTTP, with the same guarantees: runs a function on each connection, on a
/// thread of its own. Everything else is as with [`serve()`], but that there is nothing to reload.
///
/// When the function returns, what it has written is sent, and the connection ends. If it fails, the error is
/// logged at level `debug`. [`Stream`] says how connections live on through a handover.
///
/// ```no_run
#[doc = include_str!("../examples/lines.rs")]
/// ```
///
/// # Errors
///
/// As [`serve()`].
pub fn serve_connections(
    options: Options,
    function: impl Fn(&mut Stream) -> io::Result<()> + Send + Sync + 'static,
) -> Result<Outcome, Error> {
    Server::bind(options)?.serve_connections(function)
}

/// Reports to the predecessor, if there is one, why this process will not serve: settings that are wrong, before
/// [`Server::bind`], or whatever fails between that and [`Server::serve`]. The predecessor logs the reason, and answers
/// `restart` with it.
///
/// The place for it is where `main` has an error and is about to exit, whatever has failed: what the library has
/// reported itself is not reported again.
///
/// ```no_run
/// # use std::error::Error;
/// # use handover::{Options, Outcome, report_failure};
/// # fn run(options: Options) -> Result<Outcome, Box<dyn Error>> {
/// // The old process logs the reason of a failure, and serves on.
/// serve(options).inspect_err(|error| report_failure(error))
/// # }
/// # fn serve(_: Options) -> Result<Outcome, Box<dyn Error>> { unimplemented!() }
/// ```
pub fn report_failure(reason: impl Display) {
    let mut predecessor = lock(&UNSERVED).take();
    if predecessor.is_none() && sockets::is_successor() {
        let _ = sockets::inherit(None, &mut predecessor);
    }
    fail(predecessor, reason);
}

/// The predecessor, if there is one, need not wait for this process.
fn fail(predecessor: Option<Predecessor>, reason: impl Display) {
    if let Some(predecessor) = predecessor {
        predecessor.say(&Word::Failed(reason.to_string()));
    }
}

/// The predecessor of the server that has been bound and does not serve yet.
static UNSERVED: Mutex<Option<Predecessor>> = Mutex::new(None);

/// A server that has its listening sockets, and does not serve yet.
///
/// Between [`bind`](Self::bind) and [`serve`](Self::serve) a program does its own preparation. Until the latter a
/// failure has no effect: the predecessor, if there is one, goes on serving, and gets the reason from
/// [`report_failure`]. Clients that connect meanwhile are served by the predecessor, or wait.
///
/// If this is dropped, the sockets are given up; the predecessor waits for the reason until this process exits, or for
/// [`ready_timeout`](Options::ready_timeout).
///
/// ```
/// use std::thread;
///
/// use handover::{Options, Request, Response, Server, State};
///
/// // As in a test: on a free port, in a thread, until it is told to stop.
/// let server = Server::bind(Options { listen: vec!["127.0.0.1:0".to_owned()], ..Options::default() })?;
/// println!("listening on {}", server.addresses()[0]);
/// let handle = server.handle();
/// let serving = thread::spawn(|| server.serve(|_: &mut Request| Response::from_string("Hello").boxed()));
///
/// handle.stop();
/// assert_eq!(serving.join().unwrap()?.cut, 0);
/// assert_eq!(handle.status().state, State::Ended);
/// # Ok::<(), handover::Error>(())
/// ```
///
/// Several servers in one process work, for instance in tests, with their own [`Handle`]s each. What belongs to the
/// process is shared: a signal is for all of them, and what a predecessor or a service manager has handed to
/// the process is taken by the first. So a process that is to be replaced has one server.
pub struct Server {
    options: Options,
    program: Program,
    /// It is in [`UNSERVED`], or a failure has been reported to it.
    has_predecessor: bool,
    listeners: Vec<Listener>,
    /// What the predecessor has handed over and is not asked for any more.
    unwanted: Given,
    /// What it has handed on by name and the program has not taken.
    inherited: Named,
    state: Option<Vec<u8>>,
    /// What is handed on by name.
    named: Named,
    new_files: NewFiles,
    ready_fd: Option<ReadyFd>,
    limits: Arc<Mutex<Limits>>,
    events: Events,
    publisher: Publisher,
}

impl Server {
    /// Takes over the listening sockets, or binds them. Nothing is accepted yet.
    ///
    /// It is to be called from `main`, before the working directory changes. A successor starts in the directory, with
    /// the user and in the root directory that the process has at the time of the handover: so a program that changes
    /// its directory gives the options absolute paths, and one that is started as root to bind a port drops its
    /// privileges between this and [`serve`](Self::serve), if it has any.
    ///
    /// # Errors
    ///
    /// An address cannot be bound, or a descriptor is not what it should be. If there is a predecessor, it gets the
    /// reason and goes on serving.
    pub fn bind(options: Options) -> Result<Server, Error> {
        let mut predecessor = None;
        match Server::open(options, &mut predecessor) {
            Ok(server) => {
                if server.has_predecessor {
                    *lock(&UNSERVED) = predecessor;
                }
                Ok(server)
            }
            Err(error) => {
                fail(predecessor, &error);
                Err(error)
            }
        }
    }

    /// Opens what a successor finds under certain numbers, before anything else gets these. The predecessor is
    /// reported as soon as it is known.
    fn open(options: Options, predecessor: &mut Option<Predecessor>) -> Result<Server, Error> {
        let mut new_files = NewFiles::default();
        let (listeners, unwanted) = sockets::open(&options, predecessor, &mut new_files)?;
        let program = Program::of_successor(options.program.as_deref(), options.arguments.as_deref())
            .map_err(|error| Error::new("find out which program this is", error))?;
        let ready_fd =
            options.ready_fd.filter(|_| !is_started_by(predecessor)).map(ReadyFd::open).transpose()?;
        let limits = Arc::new(Mutex::new(options.limits));
        let events = Events::new().map_err(|error| Error::new("make a queue of events", error))?;
        let publisher = Publisher::new(&options.version, events.poster());
        let (inherited, state) = predecessor.as_mut().map(Predecessor::handed_on).unwrap_or_default();
        Ok(Server {
            options,
            program,
            has_predecessor: predecessor.is_some(),
            listeners,
            unwanted,
            inherited,
            state,
            named: Named::default(),
            new_files,
            ready_fd,
            limits,
            events,
            publisher,
        })
    }

    /// The addresses that it listens on, in the order of [`Options::listen`] and then of
    /// [`listen_on`](Self::listen_on), with the port that the system has chosen instead of port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|listener| listener.address().clone()).collect()
    }

    /// A handle for other threads, or for the request handler.
    pub fn handle(&self) -> Handle {
        Handle(self.publisher.watch())
    }

    /// Says that this process is ready, waits until a predecessor lets it go, and serves HTTP until the process has
    /// been stopped or has handed over, and its connections are finished.
    ///
    /// The process handles SIGUSR2 and SIGHUP (hand over), SIGINT, SIGTERM and SIGQUIT (stop; a second one, from
    /// half a second later on, cuts what is in flight) and SIGUSR1 (reload) until this returns; half a second later
    /// they have their old meaning again. Before the call they end the first process; those for a child of a
    /// predecessor wait for it. A SIGHUP that is ignored when it is called stays ignored. `main` is to
    /// return when this does: requests that were cut may still be running on their threads.
    ///
    /// What `main` does before it returns, such as saving something, is done once in each process: after a handover
    /// while the successor serves, which may have come further, and with [`stay`](Options::stay) only when all
    /// successors have done it and ended. What has to be done before the successor goes on is done under a
    /// [`Hold`](crate::Hold) when the drain begins.
    ///
    /// # Errors
    ///
    /// The process cannot start to serve: a thread cannot be started, the PID file cannot be written, another process
    /// serves. If there is a predecessor, it gets the reason and goes on serving.
    pub fn serve(self, handler: impl Handler) -> Result<Outcome, Error> {
        let service = Service::http(&self.limits, handler);
        self.run(service)
    }

    /// The same for another protocol than HTTP; see [`serve_connections()`].
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn serve_connections(
        self,
        function: impl Fn(&mut Stream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Outcome, Error> {
        let service = Service::streams(&self.limits, &self.options.protocol, function);
        self.run(service)
    }

    fn run(self, service: Service) -> Result<Outcome, Error> {
        let mut predecessor = lock(&UNSERVED).take_if(|_| self.has_predecessor);
        if predecessor.is_some() != self.has_predecessor {
            return Err(Error::new("serve", "a failure has been reported to the predecessor"));
        }
        match self.start(&mut predecessor, service) {
            Ok(process) => Ok(Process { predecessor, ..process }.run()),
            Err(error) => {
                fail(predecessor, &error);
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// Whether the predecessor has started this process, so that no supervisor has.
fn is_started_by(predecessor: &Option<Predecessor>) -> bool {
    predecessor.as_ref().is_some_and(Predecessor::is_parent)
}
