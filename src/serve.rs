//! How a process begins: it takes or binds the listening sockets, prepares all that can fail, says that it is
//! ready, and accepts connections when it may. What happens then is told in `process.rs`.

use std::env;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::process;
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::events::{Event, Events};
use crate::handover::descriptors;
use crate::handover::link::{Ancestry, Mode, Word};
use crate::handover::moving::Mover;
use crate::handover::predecessor::Predecessor;
use crate::handover::program::{GRACEFUL, Program};
use crate::http::{self, Handler};
use crate::operations::asker;
use crate::operations::configuration::Configuration;
use crate::operations::keeper::Keeper;
use crate::operations::places::Places;
use crate::operations::ready_fd::ReadyFd;
use crate::operations::requester::Requester;
use crate::operations::signals::{Meaning, Signals};
use crate::operations::status::Identity;
use crate::operations::systemd;
use crate::operations::waiting::Waiting;
use crate::options::Options;
use crate::outcome::Outcome;
use crate::process::Process;
use crate::server::Connections;
use crate::server::listener::{self, Listener, NewFiles, Origin, Sorted};

/// Serves HTTP until the process has been stopped or has handed over, and its connections are finished.
///
/// The process handles SIGUSR2 and SIGHUP (hand over), SIGINT, SIGTERM and SIGQUIT (stop; a second one, from
/// half a second later on, cuts what is in flight) and SIGUSR1 (reload) until this returns; half a second later
/// they have their old meaning again. A SIGHUP that is ignored when it is called stays ignored. It is to be
/// called from `main`, before the working directory changes, and `main` is to return when it does: requests
/// that were cut may still be running on their threads.
///
/// # Errors
///
/// The process cannot start to serve: an address cannot be bound, a descriptor is not what it should be,
/// the PID file cannot be written. If there is a predecessor, it gets the reason and goes on serving.
pub fn serve(options: Options, handler: impl Handler) -> Result<Outcome, Error> {
    let mut predecessor = None;
    let started = start(options, handler, &mut predecessor);
    if let (Err(error), Some(predecessor)) = (&started, &predecessor) {
        predecessor.say(&Word::Failed(error.to_string()));
    }
    let mut process = started?;
    process.predecessor = predecessor;
    Ok(process.run())
}

/// Reports to the predecessor, if one has started this process, why it will not call [`serve`], such as
/// settings that are wrong. The predecessor logs the reason, and answers `restart` with it.
///
/// To be called once, and instead of [`serve`], which reports its own errors: it closes the sockets.
pub fn report_failure(reason: impl Display) {
    let mut predecessor = None;
    let is_successor = env::args_os().any(|argument| argument == GRACEFUL);
    if is_successor
        && inherit(None, &mut predecessor).is_ok()
        && let Some(predecessor) = predecessor
    {
        predecessor.say(&Word::Failed(reason.to_string()));
    }
}

/// Does everything until connections are accepted. The predecessor is reported as soon as it is known.
fn start(
    options: Options,
    handler: impl Handler,
    predecessor: &mut Option<Predecessor>,
) -> Result<Process, Error> {
    let program =
        Program::of_successor().map_err(|error| Error::new("find out which program this is", error))?;
    if options.listen.is_empty() {
        return Err(Error::new("listen", "there is no address to listen on"));
    }
    let mut new_files = NewFiles::default();
    let (listeners, unwanted) = open(&options, predecessor, &mut new_files)?;
    let mut keeper = Keeper::default();
    let mut ready_fd = None;
    // Not if it is a successor that its predecessor has started.
    if !predecessor.as_ref().is_some_and(Predecessor::is_parent) {
        ready_fd = options.ready_fd.map(ReadyFd::open).transpose()?;
        if options.stay || process::id() == 1 || systemd::is_there() {
            let stayed = keeper.stay(&listeners[0], &program.arguments);
            stayed.map_err(|error| Error::new("become the parent of orphans", error))?;
        }
    }
    let before = predecessor.as_ref().map(Predecessor::pid);
    let mut process = prepare(options, handler, program, listeners, before, keeper)?;
    go(&mut process, predecessor, unwanted)?;
    new_files.keep();
    ready_fd.into_iter().for_each(ReadyFd::report);
    let Identity { version, executable, .. } = &process.identity;
    log::info!("process {} is ready, version {version}, {}", process::id(), executable.display());
    Ok(process)
}

/// The listening sockets: inherited, or taken over, or bound; and those that a predecessor has handed over and
/// that are not asked for any more.
fn open(
    options: &Options,
    predecessor: &mut Option<Predecessor>,
    new_files: &mut NewFiles,
) -> Result<Sorted, Error> {
    let activated = systemd::sockets();
    let is_given = options.graceful || activated.is_some();
    let given = if is_given {
        let sockets = inherit(activated, predecessor)?;
        given(sockets, predecessor, |index| format!("descriptor {}", descriptors::number(index)))?
    } else if let Some(path) = options.control.as_ref().filter(|_| options.takeover) {
        let error = |error| Error::new(format!("take over from the process at {}", path.display()), error);
        let (found, sockets) = asker::take_over(path).map_err(error)?.unzip();
        *predecessor = found;
        let sockets = sockets.unwrap_or_default();
        given(sockets, predecessor, |index| format!("number {} of another process", index + 1))?
    } else {
        Vec::new()
    };
    // Without a predecessor nothing tells a mistake from a wish: the configuration of a service manager would
    // silently have no effect.
    let may_differ = predecessor.is_some() || !is_given;
    let (listeners, unwanted) = Listener::open_all(&options.listen, given, |address| match may_differ {
        true => Listener::bind(address, options.socket_mode, new_files),
        false => {
            Err(io::Error::new(ErrorKind::AddrNotAvailable, "no such socket was handed to this process"))
        }
    })?;
    if let Some((_, listener)) = unwanted.first().filter(|_| !may_differ) {
        return Err(listener.not_asked_for());
    }
    for listener in &listeners {
        match listener.origin() {
            Origin::New => log::info!("listening on a new file descriptor, {}", listener.address()),
            Origin::Given(name) => {
                log::info!("listening on the existing file {name}, {}", listener.address());
            }
        }
    }
    Ok((listeners, unwanted))
}

fn given(
    sockets: Vec<OwnedFd>,
    predecessor: &Option<Predecessor>,
    name: impl Fn(usize) -> String,
) -> Result<Vec<Listener>, Error> {
    let given = sockets.into_iter().enumerate().map(|(index, socket)| {
        let file = predecessor.as_ref().and_then(|predecessor| predecessor.file(index));
        Listener::given(socket, file, name(index))
    });
    given.collect()
}

/// What was handed to this process when it was executed, by its predecessor or by a service manager. It is
/// taken before anything else is opened, so that nothing else has its numbers.
fn inherit(activated: Option<usize>, predecessor: &mut Option<Predecessor>) -> Result<Vec<OwnedFd>, Error> {
    let mut sockets = Vec::new();
    // The first is taken as it is, so that what is wrong with it can be said.
    while activated.is_none_or(|count| sockets.len() < count)
        && let Some(socket) = descriptors::inherited(descriptors::number(sockets.len()), |socket| {
            sockets.is_empty() || activated.is_some() || listener::is_listening(socket)
        })
    {
        sockets.push(socket);
    }
    if activated.is_none() {
        let error = |error| Error::new("read the link to the predecessor", error);
        *predecessor = Predecessor::inherited(sockets.len()).map_err(error)?;
        if let (None, Some(pid)) = (&predecessor, systemd::meant_for()) {
            let reason = format!("LISTEN_PID says that it is meant for process {pid}");
            return Err(Error::new("take over the listening socket at descriptor 3", reason));
        }
    }
    Ok(sockets)
}

/// Opens everything else that this process needs.
fn prepare(
    options: Options,
    handler: impl Handler,
    program: Program,
    listeners: Vec<Listener>,
    predecessor: Option<i32>,
    keeper: Keeper,
) -> Result<Process, Error> {
    descriptors::raise_limit();
    descriptors::share_arena_if_limited();

    let events = Events::new().map_err(|error| Error::new("make a queue of events", error))?;
    let signals = signals(&events).map_err(|error| Error::new("handle signals", error))?;
    let limits = Arc::new(Mutex::new(options.limits));
    let handler: Arc<dyn Handler> = Arc::new(handler);
    let (serving, current, poster) = (Arc::clone(&handler), Arc::clone(&limits), events.poster());
    let serve = move |connection: &_| http::serve(connection, &*serving, &current);
    let on_empty = move || poster.post(Event::Drained);
    let connections = Connections::new(listeners, Arc::clone(&limits), options.stack_size, serve, on_empty)
        .map_err(|error| Error::new("start the accept thread", error))?;
    let poster = events.poster();
    let ask = move |requester, action| poster.post(Event::Asked(requester, action));
    let places = Places::prepare(&options, predecessor, Arc::new(ask))?;
    let identity = Identity::new(&options.version);
    let poster = events.poster();
    let config = Configuration::new(
        options,
        limits,
        Arc::new(move |options: &mut Options| handler.reload(options)),
        Arc::new(move |reading| poster.post(Event::Reloaded(reading))),
    );
    Ok(Process {
        config,
        program,
        identity,
        connections,
        places,
        predecessor: None,
        waiting: Waiting::default(),
        mover: None,
        keeper,
        cut: 0,
        events,
        _signals: signals,
    })
}

fn signals(events: &Events) -> io::Result<Signals> {
    let poster = events.poster();
    Signals::listen(move |signal, meaning| {
        poster.post(match meaning {
            Meaning::Asked(action) => Event::Asked(Requester::Signal(signal), action),
            Meaning::Child => Event::Child,
        });
    })
}

/// Waits until connections may be accepted, and accepts them. A candidate is killed without a second thought,
/// so it must not have one: until then they wait in the queues of the sockets.
fn go(
    process: &mut Process,
    predecessor: &mut Option<Predecessor>,
    unwanted: Vec<(usize, Listener)>,
) -> Result<(), Error> {
    if let Some(predecessor) = predecessor {
        let mode = if process.config.options.overlap { Mode::Overlap } else { Mode::Alone };
        let ancestry = predecessor.wait_for_go(mode, unwanted.iter().map(|&(index, _)| index));
        let ancestry = ancestry.map_err(|reason| Error::new("succeed the predecessor", reason))?;
        process.connections.set_socket_mode(process.config.options.socket_mode);
        if ancestry.is_none() {
            // Nobody else is there any more to do it.
            unwanted.iter().for_each(|(_, listener)| listener.remove_file());
        }
        let Ancestry { generation, counts } = ancestry.unwrap_or(Ancestry::UNKNOWN);
        process.identity.generation = generation;
        process.connections.count(counts);
        // Without a thread for it, the predecessor keeps its connections.
        let start = |socket| Mover::start(socket, process.connections.arrivals(true)).ok();
        let moving = predecessor.moving().filter(|_| process.config.options.move_connections);
        process.mover = moving.and_then(start);
        process.mover.iter().for_each(|mover| mover.is_known(counts));
    }
    process.connections.accept();
    for (_, listener) in &unwanted {
        log::info!("no longer listening on {}", listener.address());
    }
    process.places.take();
    systemd::ready();
    if let Some(predecessor) = predecessor {
        predecessor.say(&Word::Serving);
    }
    Ok(())
}
