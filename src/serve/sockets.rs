//! Where the listening sockets of a process come from.

use std::env;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::handover::descriptors;
use crate::handover::link::Link;
use crate::handover::predecessor::Predecessor;
use crate::handover::program;
use crate::operations::asker;
use crate::operations::systemd;
use crate::options::Options;
use crate::server::listener::{self, Given, Listener, NewFiles, Origin};

/// The listening sockets: inherited, or taken over, or bound; and those that a predecessor has handed over and
/// that are not asked for any more.
pub(super) fn open(
    options: &Options,
    predecessor: &mut Option<Predecessor>,
    new_files: &mut NewFiles,
) -> Result<(Vec<Listener>, Given), Error> {
    let activated = systemd::sockets();
    let is_given = activated.is_some() || is_successor();
    let mut given = if is_given {
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
    if let (None, Some(path)) = (&predecessor, &options.control)
        && let Some(pid) = asker::process_at(path)
    {
        let replace = "to replace it, ask it to restart (-s restart), or take over from it (--takeover)";
        let reason = format!("process {pid} serves there; {replace}");
        return Err(Error::new(format!("listen for requests on {}", path.display()), reason));
    }
    // Without a predecessor nothing tells a mistake from a wish: the configuration of a service manager would
    // silently have no effect.
    let may_differ = predecessor.is_some() || !is_given;
    let listeners = Listener::open_all(&options.listen, &mut given, |address| match may_differ {
        true => Listener::bind(address, options.socket_mode, new_files),
        false => {
            Err(io::Error::new(ErrorKind::AddrNotAvailable, "no such socket was handed to this process"))
        }
    })?;
    Ok((listeners, given))
}

/// The program asks for no others.
pub(super) fn check(
    listeners: &[Listener],
    unwanted: &Given,
    predecessor: &Option<Predecessor>,
) -> Result<(), Error> {
    if let Some((_, listener)) = unwanted.first().filter(|_| predecessor.is_none()) {
        return Err(listener.not_asked_for());
    }
    if listeners.is_empty() {
        return Err(Error::new("listen", "there is no address to listen on"));
    }
    for listener in listeners {
        match listener.origin() {
            Origin::New => log::info!("listening on a new file descriptor, {}", listener.address()),
            Origin::Given(name) => {
                log::info!("listening on the existing file {name}, {}", listener.address());
            }
        }
    }
    Ok(())
}

fn given(
    sockets: Vec<OwnedFd>,
    predecessor: &Option<Predecessor>,
    name: impl Fn(usize) -> String,
) -> Result<Given, Error> {
    let given = sockets.into_iter().enumerate().map(|(index, socket)| {
        let file = predecessor.as_ref().and_then(|predecessor| predecessor.file(index));
        Ok((index, Listener::given(socket, file, name(index))?))
    });
    given.collect()
}

/// Whether this process is told, by an argument, that sockets were handed to it, or by a variable that a
/// predecessor has set, whose link lies behind them. Programs that this process starts inherit the variable.
pub(super) fn is_successor() -> bool {
    let is_socket = |&number: &_| descriptors::is_inherited(number, listener::is_listening);
    let behind = || (descriptors::FIRST..).find(|number| !is_socket(number)).unwrap_or(descriptors::FIRST);
    program::is_graceful()
        || env::var_os(program::VARIABLE).is_some() && descriptors::is_inherited(behind(), Link::is_behind)
}

/// What was handed to this process when it was executed, by its predecessor or by a service manager. It is
/// taken before anything else is opened, so that nothing else has its numbers.
pub(super) fn inherit(
    activated: Option<usize>,
    predecessor: &mut Option<Predecessor>,
) -> Result<Vec<OwnedFd>, Error> {
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
