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
use std::path::PathBuf;
use std::slice;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, setsockopt, sockopt};

use crate::error::{Error, Reason};
use crate::server::address::Address;
use crate::server::connection::Peer;
use crate::unix_file::{self, LONGEST_PATH, UnixFile};

pub(crate) struct Listener {
    socket: Socket,
    address: Address,
    /// The file of a Unix socket, if this process or one before it has made that.
    file: Option<UnixFile>,
    origin: Origin,
}

/// Where a listening socket has come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This process has bound it, so its predecessor has not got it.
    New,
    /// Another process has opened it. How it is called here.
    Given(String),
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The files of the sockets that this process has bound. If it does not come to serve, they are removed.
#[derive(Default)]
pub(crate) struct NewFiles(Vec<(PathBuf, UnixFile)>);

impl NewFiles {
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        self.0.iter().for_each(|(path, file)| file.remove(path));
    }
}

/// The sockets that were given to a process and are not asked for, by the indices that they were given with.
pub(crate) type Given = Vec<(usize, Listener)>;

impl Listener {
    /// Takes everything that is asked for from the sockets that were `given`, in any order, and makes what is
    /// missing: of a name that has several addresses, all that this machine has.
    pub(crate) fn open_all(
        asked: &[String],
        given: &mut Given,
        mut make: impl FnMut(&Address) -> io::Result<Listener>,
    ) -> Result<Vec<Listener>, Error> {
        let resolved = Address::resolve_all(asked)?;
        let is_asked = |address: &Address| resolved.iter().any(|(_, wanted)| wanted.contains(address));
        let mut listeners: Vec<Listener> = Vec::new();
        for (text, wanted) in &resolved {
            let error = |error| Error::new(format!("listen on {text}"), error);
            let (first, mut unavailable) = (listeners.len(), None);
            for address in wanted {
                let address = address.with_port_of(listeners.get(first).map(Listener::address));
                // A socket with a port that is asked for is not taken for port 0, which is any.
                let fits = |found: &Address| {
                    *found == address || found.is_one_of(slice::from_ref(&address)) && !is_asked(found)
                };
                let found = given.iter().position(|(_, given)| fits(&given.address));
                match found.map_or_else(|| make(&address), |found| Ok(given.remove(found).1)) {
                    Ok(listener) => listeners.push(listener),
                    Err(source) if is_unavailable(&source) => unavailable = Some(source),
                    Err(source) => return Err(error(source)),
                }
            }
            if let Some(source) = unavailable.filter(|_| listeners.len() == first) {
                return Err(error(source));
            }
        }
        // Only now, because any other socket is none of our business.
        for listener in &listeners {
            listener.prepare().map_err(|errno| listener.refuse(errno))?;
        }
        Ok(listeners)
    }

    #[cfg(test)]
    pub(crate) fn bind_all(asked: &[String], socket_mode: u32) -> Result<Vec<Listener>, Error> {
        let mut new_files = NewFiles::default();
        let bind = |address: &_| Listener::bind(address, socket_mode, &mut new_files);
        Listener::open_all(asked, &mut Vec::new(), bind)
    }

    /// Binds a socket, the file of which, if there is one, is added to the `new_files`.
    pub(crate) fn bind(
        address: &Address,
        socket_mode: u32,
        new_files: &mut NewFiles,
    ) -> io::Result<Listener> {
        let (socket, file) = match address {
            Address::Network(address) => (Socket::Tcp(TcpListener::bind(address)?), None),
            Address::Unix(path) if path.as_os_str().len() > LONGEST_PATH => {
                let reason = format!("the path of a Unix socket has at most {LONGEST_PATH} bytes");
                return Err(io::Error::other(reason));
            }
            Address::Unix(path) => {
                let (socket, file) = UnixFile::bind(path, socket_mode)?;
                new_files.0.push((path.clone(), file));
                (Socket::Unix(socket), Some(file))
            }
            Address::Abstract(name) => {
                let name = SocketAddr::from_abstract_name(name)?;
                (Socket::Unix(UnixListener::bind_addr(&name)?), None)
            }
        };
        Listener::new(socket, file, Origin::New)
    }

    /// A socket that the program makes itself, and that listens on this address. A file that it makes for that is
    /// treated like one of [`bind`](Self::bind).
    pub(crate) fn own<S: Into<OwnedFd>>(
        address: &Address,
        make: impl FnOnce() -> io::Result<S>,
        socket_mode: u32,
        new_files: &mut NewFiles,
    ) -> io::Result<Listener> {
        // If there is one that is in use, the socket comes from elsewhere, and so does its file.
        let path = match address {
            Address::Unix(path) if UnixFile::at(path).is_none() || unix_file::is_left(path) => Some(path),
            _ => None,
        };
        let socket = make()?.into();
        let file = path.and_then(|path| UnixFile::at(path));
        new_files.0.extend(path.cloned().zip(file));
        let listener = Listener::check(socket, file, Origin::New).map_err(io::Error::other)?;
        if !listener.address.is_one_of(slice::from_ref(address)) {
            return Err(io::Error::other(format!("the program's socket listens on {}", listener.address)));
        }
        listener.set_mode(socket_mode);
        Ok(listener)
    }

    /// A listening socket that another process has opened, called by this name here. With it comes its file if
    /// that is to be removed at the end, because another process of this line has made it.
    pub(crate) fn given(socket: OwnedFd, file: Option<UnixFile>, name: String) -> Result<Listener, Error> {
        let origin = Origin::Given(name.clone());
        Listener::check(socket, file, origin).map_err(|reason| refuse(&name, reason))
    }

    /// The error for a socket that was given and is not asked for.
    pub(crate) fn not_asked_for(&self) -> Error {
        self.refuse(format!("it listens on {}, which is not asked for", self.address))
    }

    fn refuse(&self, reason: impl Into<Reason>) -> Error {
        match &self.origin {
            Origin::New => Error::new(format!("listen on {}", self.address), reason),
            Origin::Given(name) => refuse(name, reason),
        }
    }

    /// A listening socket, or what else it is.
    fn check(socket: OwnedFd, file: Option<UnixFile>, origin: Origin) -> Result<Listener, Reason> {
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
        Listener::new(socket, file, origin).map_err(|_| "it is neither a TCP nor a Unix socket".into())
    }

    fn new(socket: Socket, file: Option<UnixFile>, origin: Origin) -> io::Result<Listener> {
        let address = match &socket {
            Socket::Tcp(socket) => Address::Network(socket.local_addr()?),
            Socket::Unix(socket) => Address::from_unix(&socket.local_addr()?)?,
        };
        Ok(Listener { socket, address, file, origin })
    }

    fn prepare(&self) -> nix::Result<()> {
        fcntl(self, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if let Socket::Tcp(socket) = &self.socket {
            // A response is written in one piece, or in pieces as large as its buffer: Nagle's algorithm
            // could only delay the last one. Every connection inherits this.
            setsockopt(socket, sockopt::TcpNoDelay, &true)?;
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

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
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

    /// Sets the permissions of the file of a Unix socket, unless it has become another one.
    pub(crate) fn set_mode(&self, mode: u32) {
        if let (Address::Unix(path), Some(file)) = (&self.address, self.file)
            && let Err(error) = file.set_mode(path, mode)
        {
            log::warn!("cannot set the permissions of {}: {error}", path.display());
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

fn refuse(name: &str, reason: impl Into<Reason>) -> Error {
    Error::new(format!("take over the listening socket at {name}"), reason)
}

/// Whether a descriptor is a stream socket that listens.
pub(crate) fn is_listening(descriptor: BorrowedFd<'_>) -> bool {
    getsockopt(&descriptor, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(&descriptor, sockopt::AcceptConn) == Ok(true)
}

/// Whether an address cannot be had because it does not belong to this machine, or was not given.
fn is_unavailable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error().map(Errno::from_raw) == Some(Errno::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_in_any_order_and_a_port_before_any_port() {
        let bound: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let [first, second] = [0, 1].map(|index: usize| bound[index].local_addr().unwrap().to_string());
        let any = "127.0.0.1:0";
        let other = "127.0.0.2:0";
        // What is asked for, what is found for it, or made, and which are left.
        for (asked, expected, left) in [
            (vec![&*first, &second], vec![&*first, &second], vec![]),
            (vec![&second, &first], vec![&second, &first], vec![]),
            (vec![any, &first], vec![&second, &first], vec![]),
            (vec![any, any], vec![&first, &second], vec![]),
            (vec![&second], vec![&second], vec![0]),
            (vec![any], vec![&first], vec![1]),
            (vec![other, &first], vec![other, &first], vec![1]),
            (vec![other], vec![other], vec![0, 1]),
        ] {
            let given = bound.iter().map(|socket| {
                let socket = socket.try_clone().unwrap().into();
                Listener::given(socket, None, "here".to_owned()).unwrap()
            });
            let mut given = given.enumerate().collect();
            let asked: Vec<String> = asked.into_iter().map(str::to_owned).collect();
            let make = |address: &Address| {
                assert_eq!(address.to_string(), other);
                Listener::bind(address, 0, &mut NewFiles::default())
            };
            let found = Listener::open_all(&asked, &mut given, make).unwrap();
            let is_expected = |(found, expected): (&Listener, &&str)| match found.origin() {
                Origin::New => *expected == other,
                Origin::Given(_) => found.address().to_string() == *expected,
            };
            assert!(
                found.len() == expected.len() && found.iter().zip(&expected).all(is_expected),
                "{asked:?}"
            );
            assert_eq!(given.into_iter().map(|(index, _)| index).collect::<Vec<_>>(), left, "{asked:?}");
        }
    }
}
