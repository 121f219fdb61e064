//! How a process begins: it takes over or opens what it needs, says that it is ready, and accepts
//! connections. What happens then is told in `process.rs`.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use nix::sys::stat::fstat;

use crate::error::Error;
use crate::handover::descriptors::{self, Limit, Reserve};
use crate::handover::link::Word;
use crate::handover::predecessor::Predecessor;
use crate::handover::program::Program;
use crate::handover::takeover;
use crate::http::{self, Handler};
use crate::operations::control::{self, Before, Control};
use crate::operations::pid_file::PidFile;
use crate::operations::requester::Asker;
use crate::operations::signals::{Meaning, Signals};
use crate::operations::systemd;
use crate::options::Options;
use crate::outcome::Outcome;
use crate::process::{Event, Process};
use crate::server::Server;
use crate::server::listener::Listener;

/// Serves HTTP until the process has been stopped or has handed over, and its connections are finished.
///
/// The process handles SIGUSR2 and SIGHUP (hand over), SIGINT, SIGTERM and SIGQUIT (stop; a second one cuts
/// what is in flight) and SIGUSR1 (reload) until this returns; a SIGHUP that is ignored when it is called
/// stays ignored. It is to be called from `main`, before the working directory changes, and `main` is to
/// return when it does: requests that were cut may still be running on their threads.
///
/// # Errors
///
/// The process cannot start to serve: an address cannot be bound, a descriptor is not what it should be,
/// the PID file cannot be written. If there is a predecessor it goes on serving once this process has
/// exited.
pub fn serve(options: Options, handler: impl Handler) -> Result<Outcome, Error> {
    let system = |attempt: &'static str| move |source: io::Error| Error::new(attempt, source);
    // Without /proc, or once the file has gone, it is known by its name only.
    let executable = env::current_exe().unwrap_or_default();
    let started = Instant::now();
    let program = Program::of_successor().map_err(system("find out which program this is"))?;

    if options.listen.is_empty() {
        return Err(Error::new("listen on nothing", "there is no address to listen on"));
    }
    // What was handed over is taken before anything else is opened, so that nothing else has its numbers.
    let activated = systemd::sockets().is_some();
    let mut taken_over = false;
    let (listeners, predecessor) = if options.graceful || activated {
        let name = |index| format!("descriptor {}", descriptors::FIRST + index as i32);
        let listeners = Listener::adopt_all(&options.listen, inherited_sockets(), name)?;
        for (number, listener) in (descriptors::FIRST..).zip(&listeners) {
            log::info!("listening on the existing file descriptor {number}, {}", listener.address());
        }
        let predecessor = if activated { None } else { Predecessor::inherited(listeners.len()) };
        if let (None, false, Some(pid)) = (&predecessor, activated, systemd::meant_for()) {
            let attempt = format!("take over the listening socket at descriptor {}", descriptors::FIRST);
            return Err(Error::new(attempt, format!("LISTEN_PID says that it is meant for process {pid}")));
        }
        (listeners, predecessor)
    } else if let Some((connection, sockets)) = ask_for_sockets(&options)? {
        let name = |index| format!("position {}", index + 1);
        let listeners = Listener::adopt_all(&options.listen, sockets, name)?;
        for listener in &listeners {
            log::info!("listening on a file descriptor of another process, {}", listener.address());
        }
        taken_over = true;
        (listeners, Some(Predecessor::connected(connection)))
    } else {
        let listeners = Listener::bind_all(&options.listen, options.socket_mode)?;
        for listener in &listeners {
            log::info!("listening on a new file descriptor, {}", listener.address());
        }
        (listeners, None)
    };
    let ready_fd = match (options.ready_fd, &predecessor) {
        (Some(number), None) => Some(descriptors::inherited(number).ok_or_else(|| {
            let attempt = format!("tell descriptor {number} of the readiness");
            Error::new(attempt, "it was not handed to this process")
        })?),
        _ => None,
    };
    let stays = predecessor.is_none() && (options.stay || process::id() == 1);
    if stays {
        // Successors of successors come back to this process when those between have ended.
        set_child_subreaper(true)
            .map_err(|errno| errno.into())
            .map_err(system("become the reaper of orphans"))?;
    }
    let descriptors = Limit::raise();
    let reserve = Reserve::new(listeners.len()).map_err(system("open /dev/null"))?;
    let first_socket =
        listeners.first().and_then(|listener| fstat(listener).ok()).map_or(0, |stat| stat.st_ino);

    let (events, inbox) = mpsc::channel();
    let post = |events: &Sender<Event>| {
        let events = events.clone();
        // It fails only once the loop has ended, and then nobody wants to know.
        move |event| drop(events.send(event))
    };
    let post_signal = post(&events);
    let _signals = Signals::listen(move |signal, meaning| {
        post_signal(match meaning {
            Meaning::Asked(request) => Event::Asked(Asker::by_signal(signal), request),
            Meaning::Child => Event::Child,
        });
    })
    .map_err(system("handle signals"))?;

    let limits = Arc::new(RwLock::new(options.limits));
    let handler: Arc<dyn Handler> = Arc::new(handler);
    let serve = {
        let (handler, limits) = (Arc::clone(&handler), Arc::clone(&limits));
        move |connection: &_| http::serve(connection, &*handler, &limits)
    };
    let post_drained = post(&events);
    let server = Server::new(listeners, Arc::clone(&limits), serve, move || post_drained(Event::Drained))
        .map_err(system("start the accept thread"))?;
    let pid_file = match &options.pid_file {
        Some(path) => {
            let error = |source| Error::new(format!("write the PID file {}", path.display()), source);
            Some(PidFile::write(path).map_err(error)?)
        }
        None => None,
    };

    let mut generation = 1;
    let mut control = None;
    if let Some(path) = &options.control {
        if predecessor.is_some() {
            generation += control::generation(path);
        }
        // Who takes over leaves the socket to the process that serves until that has let it go on.
        if !taken_over {
            let post_asked = post(&events);
            let ask = move |asker, request| post_asked(Event::Asked(asker, request));
            let before = match &predecessor {
                None => Before::Nobody,
                Some(_) if options.overlap => Before::Stays,
                Some(_) => Before::Goes,
            };
            let started = Control::start(path, before, ask);
            let error = |source| Error::new(format!("listen for requests on {}", path.display()), source);
            control = Some(started.map_err(error)?);
        }
    }

    let mut process = Process {
        options,
        program,
        descriptors,
        reserve,
        handler,
        limits,
        server,
        aside: None,
        pid_file,
        predecessor,
        stays,
        first_socket,
        control,
        executable,
        started,
        generation,
        retired: Vec::new(),
        events,
        cut: 0,
    };
    systemd::ready();
    if let Some(descriptor) = ready_fd {
        // Whoever waited for it may have lost interest.
        let _ = File::from(descriptor).write_all(b"\n");
    }
    // A process that is not ready is killed without a second thought, so it must not have a connection:
    // first it says that it is ready, then it accepts. Until then connections wait in the sockets' queues.
    process.tell_predecessor(if process.options.overlap { Word::ReadyToOverlap } else { Word::Ready });
    if let Err(source) = process.wait_for_go() {
        let path = process.options.control.take().unwrap_or_default();
        return Err(cannot_take_over_from(&path, source));
    }
    process.server.accept();
    let (version, executable) = (&process.options.version, process.executable.display());
    log::info!("process {} is ready, version {version}, {executable}", process::id());
    Ok(process.run(&inbox))
}

/// The sockets of the process that serves the control socket, and the connection to it, if they are to be
/// taken over and there is such a process.
fn ask_for_sockets(options: &Options) -> Result<Option<(UnixStream, Vec<OwnedFd>)>, Error> {
    match &options.control {
        Some(path) if options.takeover => {
            takeover::ask(path).map_err(|source| cannot_take_over_from(path, source))
        }
        _ => Ok(None),
    }
}

fn cannot_take_over_from(path: &Path, source: io::Error) -> Error {
    Error::new(format!("take over from the process at {}", path.display()), source)
}

/// What was handed over from descriptor 3 on: the first, whatever it is, and those behind it that listen.
fn inherited_sockets() -> Vec<OwnedFd> {
    let listens = |number| {
        descriptors::is_inherited(number)
            && getsockname::<SockaddrStorage>(number).is_ok()
            && getpeername::<SockaddrStorage>(number).is_err()
    };
    let numbers =
        (descriptors::FIRST..).take_while(|&number| number == descriptors::FIRST || listens(number));
    numbers.map_while(descriptors::inherited).collect()
}
