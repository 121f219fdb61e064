//! The listening sockets: bound here, or taken over from descriptor 3 on and checked before they are
//! trusted.
//!
//! A socket is shared between the processes of a handover, and with it everything that belongs to the
//! socket and not to the descriptor: O_NONBLOCK, the backlog, the queue of connections that nobody has
//! accepted yet. It is therefore always non-blocking, and never shut down.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::{fs, io};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockType, SockaddrLike, SockaddrStorage, sockopt};
use nix::sys::socket::{getpeername, getsockname, getsockopt, listen, setsockopt};

use crate::error::Error;
use crate::handover::descriptors;
use crate::server::address::{Address, UnixFile};
use crate::server::connection::Peer;

/// Connections that the kernel may queue until they are accepted, bounded by net.core.somaxconn. The
/// standard library asks for 128, which a burst of reconnecting clients fills at once.
pub(crate) const BACKLOG: i32 = 4096;

/// A listening socket.
pub(crate) struct Listener {
    socket: Socket,
    address: Address,
    /// The file of a Unix socket, as it was when this process began to listen on it.
    file: Option<UnixFile>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds everything that is asked for. A name that has several addresses asks for all of them.
    pub(crate) fn bind_all(asked: &[String], socket_mode: u32) -> Result<Vec<Listener>, Error> {
        let mut listeners = Vec::new();
        for text in asked {
            let error = |source: io::Error| Error::new(format!("listen on {text}"), source);
            let first = listeners.len();
            let mut failure = None;
            for address in Address::resolve(text).map_err(error)? {
                // Port 0 is one port for all addresses of a name.
                let address = match listeners.get(first).map(Listener::address) {
                    Some(Address::Network(bound)) => address.with_port(bound.port()),
                    _ => address,
                };
                match Listener::bind(&address, socket_mode) {
                    Ok(listener) => listeners.push(listener),
                    Err(source) => failure = Some(source),
                }
            }
            // One of several may belong to a protocol that this machine does not speak.
            if let Some(source) = failure.filter(|source| listeners.len() == first || !is_elsewhere(source)) {
                return Err(error(source));
            }
        }
        Ok(listeners)
    }

    fn bind(address: &Address, socket_mode: u32) -> io::Result<Listener> {
        let socket = match address {
            Address::Network(address) => Socket::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => Socket::Unix(UnixFile::bind(path, socket_mode)?),
            Address::Abstract(_) => Socket::Unix(UnixListener::bind_addr(&address.to_unix()?)?),
        };
        Listener::prepare(socket)
    }

    /// Takes over the sockets from descriptor 3 on, if they are what is asked for.
    ///
    /// # Errors
    ///
    /// A line of its own for each thing that can be wrong: nothing was handed over, it is not a socket,
    /// not a stream, not listening, or listening on another address than what is asked for in its place.
    pub(crate) fn take_over_all(asked: &[String]) -> Result<Vec<Listener>, Error> {
        let mut listeners: Vec<Listener> = Vec::new();
        let next = |listeners: &Vec<Listener>| descriptors::FIRST + listeners.len() as i32;
        for text in asked {
            let error = |source: io::Error| Error::new(format!("listen on {text}"), source);
            let wanted = Address::resolve(text).map_err(error)?;
            let first = listeners.len();
            while listeners.len() < first + wanted.len() {
                let number = next(&listeners);
                // A name may have fewer sockets than addresses; see `bind_all`.
                if listeners.len() > first && !is_listening_on_one_of(number, &wanted) {
                    break;
                }
                let listener = Listener::take_over(number)?;
                if !listener.address.is_one_of(&wanted) {
                    let reason = format!("it listens on {}, not on {text}", listener.address);
                    return Err(cannot_take_over(number, reason));
                }
                listeners.push(listener);
            }
        }
        let number = next(&listeners);
        if let Some(address) = listening_on(number) {
            let reason = format!("it listens on {address}, which nobody has asked for");
            return Err(cannot_take_over(number, reason));
        }
        Ok(listeners)
    }

    /// Takes over sockets that have come from a process that is not the parent, if they are what is asked
    /// for.
    ///
    /// # Errors
    ///
    /// As for [`take_over_all`](Self::take_over_all).
    pub(crate) fn adopt_all(asked: &[String], sockets: Vec<OwnedFd>) -> Result<Vec<Listener>, Error> {
        let mut listeners = Vec::new();
        let mut sockets = sockets
            .into_iter()
            .map(Listener::checked)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|reason| Error::new("take over the listening sockets", reason))?
            .into_iter()
            .peekable();
        for text in asked {
            let error = |source: io::Error| Error::new(format!("listen on {text}"), source);
            let wanted = Address::resolve(text).map_err(error)?;
            let is_wanted = |listener: &Listener| listener.address.is_one_of(&wanted);
            let first = listeners.len();
            while listeners.len() < first + wanted.len()
                && let Some(listener) = sockets.next_if(is_wanted)
            {
                listeners.push(listener);
            }
            if listeners.len() == first {
                let got =
                    sockets.peek().map_or("nothing".to_owned(), |listener| listener.address.to_string());
                let reason = format!("it listens on {got}, not on {text}");
                return Err(Error::new("take over the listening sockets", reason));
            }
        }
        match sockets.next() {
            None => Ok(listeners),
            Some(Listener { address, .. }) => {
                let reason = format!("it listens on {address}, which nobody has asked for");
                Err(Error::new("take over the listening sockets", reason))
            }
        }
    }

    fn take_over(number: i32) -> Result<Listener, Error> {
        let missing = || "no such descriptor was handed to this process".to_owned();
        let socket = descriptors::inherited(number).ok_or_else(|| cannot_take_over(number, missing()))?;
        Listener::checked(socket).map_err(|reason| cannot_take_over(number, reason))
    }

    /// A socket that somebody else has opened, once it is known to be a listening one.
    fn checked(socket: OwnedFd) -> Result<Listener, String> {
        let system = |source: io::Error| source.to_string();

        let family = match getsockname::<SockaddrStorage>(socket.as_raw_fd()) {
            Ok(name) => name.family(),
            Err(Errno::ENOTSOCK) => return Err("it is not a socket".to_owned()),
            Err(errno) => return Err(system(errno.into())),
        };
        match getsockopt(&socket, sockopt::SockType).map_err(|errno| system(errno.into()))? {
            SockType::Stream => {}
            other => return Err(format!("it is not a stream socket but {other:?}")),
        }
        if !getsockopt(&socket, sockopt::AcceptConn).map_err(|errno| system(errno.into()))? {
            return Err("it is not listening".to_owned());
        }
        let socket = match family {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => Socket::Tcp(socket.into()),
            Some(AddressFamily::Unix) => Socket::Unix(socket.into()),
            _ => return Err("it is neither a TCP nor a Unix socket".to_owned()),
        };
        Listener::prepare(socket).map_err(system)
    }

    fn prepare(socket: Socket) -> io::Result<Listener> {
        let address = match &socket {
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                // A response is written in one piece, or in pieces as large as its buffer: Nagle's algorithm
                // could only delay the last one. Every connection inherits this.
                setsockopt(socket, sockopt::TcpNoDelay, &true)?;
                Address::Network(socket.local_addr()?)
            }
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Address::from_unix(&socket.local_addr()?)?
            }
        };
        let file = match &address {
            Address::Unix(path) => UnixFile::at(path),
            _ => None,
        };
        let listener = Listener { socket, address, file };
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(listener)
    }

    /// The address that clients connect to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Takes the next connection from the queue; the error is `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> io::Result<(OwnedFd, Peer)> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                Ok((stream.into(), Peer::Network(peer)))
            }
            Socket::Unix(socket) => Ok((socket.accept()?.0.into(), Peer::Local)),
        }
    }

    /// Removes the file of a Unix socket, unless it has become another one.
    pub(crate) fn remove_file(&self) {
        if let (Address::Unix(path), Some(file)) = (&self.address, &self.file)
            && UnixFile::at(path).as_ref() == Some(file)
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("cannot remove the socket {}: {error}", path.display());
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

fn cannot_take_over(number: i32, reason: String) -> Error {
    Error::new(format!("take over the listening socket at descriptor {number}"), reason)
}

/// Whether an address cannot be bound because it does not belong to this machine.
fn is_elsewhere(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}

fn is_listening_on_one_of(number: i32, wanted: &[Address]) -> bool {
    listening_on(number).is_some_and(|address| address.is_one_of(wanted))
}

/// The address of the socket that was handed over under this number, if there is one. It is only looked at.
fn listening_on(number: i32) -> Option<Address> {
    if !descriptors::is_inherited(number) || getpeername::<SockaddrStorage>(number).is_ok() {
        return None;
    }
    let name: SockaddrStorage = getsockname(number).ok()?;
    if let Some(name) = name.as_sockaddr_in() {
        return Some(Address::Network(SocketAddr::V4((*name).into())));
    }
    if let Some(name) = name.as_sockaddr_in6() {
        return Some(Address::Network(SocketAddr::V6((*name).into())));
    }
    let name = name.as_unix_addr()?;
    match (name.path(), name.as_abstract()) {
        (Some(path), _) => Some(Address::Unix(path.to_owned())),
        (_, Some(name)) => Some(Address::Abstract(name.to_owned())),
        _ => None,
    }
}
