//! The listening sockets: bound here, or opened by another process and checked before they are trusted.
//!
//! A socket is shared between the processes of a handover, and with it everything that belongs to the
//! socket and not to the descriptor: O_NONBLOCK, the backlog, the queue of connections that are not accepted
//! yet. It is therefore always non-blocking, and never shut down.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, setsockopt, sockopt};

use crate::error::{Error, Reason};
use crate::server::address::Address;
use crate::server::connection::{self, Peer};
use crate::unix_file::{LONGEST_PATH, UnixFile};

pub(crate) struct Listener {
    socket: Socket,
    address: Address,
    /// The file of a Unix socket, if this process or one before it has made that.
    file: Option<UnixFile>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds everything that is asked for: of a name that has several addresses, all that this machine has.
    pub(crate) fn bind_all(asked: &[String], socket_mode: u32) -> Result<Vec<Listener>, Error> {
        let mut listeners: Vec<Listener> = Vec::new();
        for text in asked {
            let error = |error| Error::new(format!("listen on {text}"), error);
            let (first, mut unavailable) = (listeners.len(), None);
            for mut address in Address::resolve(text)? {
                // Port 0 is one port for all addresses of a name.
                if let Address::Network(address) = &mut address
                    && let Some(Listener { address: Address::Network(first), .. }) = listeners.get(first)
                {
                    address.set_port(first.port());
                }
                match Listener::bind(&address, socket_mode) {
                    Ok(listener) => listeners.push(listener),
                    Err(source) if is_unavailable(&source) => unavailable = Some(source),
                    Err(source) => return Err(error(source)),
                }
            }
            if let Some(source) = unavailable.filter(|_| listeners.len() == first) {
                return Err(error(source));
            }
        }
        Ok(listeners)
    }

    fn bind(address: &Address, socket_mode: u32) -> io::Result<Listener> {
        let (socket, file) = match address {
            Address::Network(address) => (Socket::Tcp(TcpListener::bind(address)?), None),
            Address::Unix(path) if path.as_os_str().len() > LONGEST_PATH => {
                let reason = format!("the path of a Unix socket has at most {LONGEST_PATH} bytes");
                return Err(io::Error::other(reason));
            }
            Address::Unix(path) => {
                let (socket, file) = UnixFile::bind(path, socket_mode)?;
                (Socket::Unix(socket), Some(file))
            }
            Address::Abstract(name) => {
                let name = SocketAddr::from_abstract_name(name)?;
                (Socket::Unix(UnixListener::bind_addr(&name)?), None)
            }
        };
        let listener = Listener::new(socket, file)?;
        listener.prepare()?;
        Ok(listener)
    }

    /// Takes over the sockets that another process has opened, if they are what is asked for, in that order.
    /// A host name stands for all of its addresses, of which the other process may have bound only some. With
    /// each comes its file if that is to be removed at the end, because another process of this line has made it.
    /// `name` says where a socket has come from, for the error if one is not as expected.
    pub(crate) fn adopt_all(
        asked: &[String],
        sockets: Vec<(OwnedFd, Option<UnixFile>)>,
        name: impl Fn(usize) -> String,
    ) -> Result<Vec<Listener>, Error> {
        let refuse = |index: usize, reason: Reason| {
            Error::new(format!("take over the listening socket at {}", name(index)), reason)
        };
        let check =
            |(index, (socket, file))| Listener::check(socket, file).map_err(|reason| refuse(index, reason));
        let listeners: Vec<_> = sockets.into_iter().enumerate().map(check).collect::<Result<_, _>>()?;
        let mut next = 0;
        for text in asked {
            let wanted = Address::resolve(text)?;
            let candidates = listeners[next..].iter().take(wanted.len());
            let found = candidates.take_while(|listener| listener.address.is_one_of(&wanted)).count();
            if found == 0 {
                let reason = match listeners.get(next) {
                    Some(Listener { address, .. }) => format!("it listens on {address}, not on {text}"),
                    None => "no such descriptor was handed to this process".to_owned(),
                };
                return Err(refuse(next, reason.into()));
            }
            next += found;
        }
        if let Some(Listener { address, .. }) = listeners.get(next) {
            let reason = format!("it listens on {address}, which is not asked for");
            return Err(refuse(next, reason.into()));
        }
        // Only now, because any other socket is none of our business.
        for (index, listener) in listeners.iter().enumerate() {
            listener.prepare().map_err(|error| refuse(index, error.into()))?;
        }
        Ok(listeners)
    }

    /// A listening socket, or what else it is.
    fn check(socket: OwnedFd, file: Option<UnixFile>) -> Result<Listener, Reason> {
        match getsockopt(&socket, sockopt::SockType) {
            Ok(SockType::Stream) => {}
            Ok(other) => return Err(format!("it is not a stream socket but {other:?}").into()),
            Err(Errno::ENOTSOCK) => return Err("it is not a socket".into()),
            Err(errno) => return Err(errno.into()),
        }
        if !is_listening(socket.as_fd()) {
            return Err("it is not listening".into());
        }
        // Neither type has an address for a socket of the other's family.
        let socket = UnixListener::from(socket);
        let is_unix = socket.local_addr().is_ok();
        let socket = if is_unix { Socket::Unix(socket) } else { Socket::Tcp(OwnedFd::from(socket).into()) };
        Listener::new(socket, file).map_err(|_| "it is neither a TCP nor a Unix socket".into())
    }

    fn new(socket: Socket, file: Option<UnixFile>) -> io::Result<Listener> {
        let address = match &socket {
            Socket::Tcp(socket) => Address::Network(socket.local_addr()?),
            Socket::Unix(socket) => Address::from_unix(&socket.local_addr()?)?,
        };
        Ok(Listener { socket, address, file })
    }

    fn prepare(&self) -> nix::Result<()> {
        fcntl(self, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if let Socket::Tcp(socket) = &self.socket {
            // A response is written in one piece, or in pieces as large as its buffer: Nagle's algorithm
            // could only delay the last one. Every connection inherits this.
            setsockopt(socket, sockopt::TcpNoDelay, &true)?;
            setsockopt(socket, sockopt::ReceiveTimeout, &connection::moment())?;
        }
        // As many as net.core.somaxconn allows. The standard library asks for 128, which a burst of
        // reconnecting clients fills at once.
        listen(self, Backlog::MAXALLOWABLE)
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn file(&self) -> Option<UnixFile> {
        self.file
    }

    /// Takes the next connection from the queue; the error is `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> io::Result<(OwnedFd, Peer)> {
        match &self.socket {
            Socket::Tcp(socket) => socket.accept().map(|(stream, peer)| (stream.into(), Peer::Network(peer))),
            Socket::Unix(socket) => socket.accept().map(|(stream, _)| (stream.into(), Peer::Local)),
        }
    }

    /// Removes the file of a Unix socket, unless it has become another one.
    pub(crate) fn remove_file(&self) {
        if let (Address::Unix(path), Some(file)) = (&self.address, self.file) {
            file.remove(path);
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

/// Whether a descriptor is a stream socket that listens.
pub(crate) fn is_listening(descriptor: BorrowedFd<'_>) -> bool {
    getsockopt(&descriptor, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(&descriptor, sockopt::AcceptConn) == Ok(true)
}

/// Whether an address cannot be bound because it does not belong to this machine.
fn is_unavailable(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}
