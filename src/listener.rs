//! The listening socket: bound here, or taken over at descriptor 3 and checked before it is trusted.
//!
//! The socket is shared between the processes of a handover, and with it everything that belongs to the
//! socket and not to the descriptor: O_NONBLOCK, the backlog, the queue of connections that nobody has
//! accepted yet. It is therefore always non-blocking, and never shut down.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockType, SockaddrLike, SockaddrStorage, sockopt};
use nix::sys::socket::{getsockname, getsockopt, listen};

use crate::descriptor;
use crate::error::Error;

/// Connections that the kernel may queue until they are accepted, bounded by net.core.somaxconn. The
/// standard library asks for 128, which a burst of reconnecting clients fills at once.
pub(crate) const BACKLOG: i32 = 4096;

/// The listening socket of this process.
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds the first of the addresses that `address` resolves to and that can be bound.
    pub(crate) fn bind(address: &str) -> Result<Listener, Error> {
        let error = |source| Error::Listen { address: address.to_owned(), source };
        let socket = TcpListener::bind(address).map_err(error)?;
        Listener::prepare(socket).map_err(error)
    }

    /// Takes over the socket at descriptor 3, if it is what was asked for.
    ///
    /// # Errors
    ///
    /// A line of its own for each thing that can be wrong: nothing was handed over, it is not a socket,
    /// not a stream, not for TCP, not listening, or listening on another address than `address`.
    pub(crate) fn take_over(address: &str) -> Result<Listener, Error> {
        let refuse = |reason: String| Error::TakeOver { reason };
        let system = |source: io::Error| refuse(source.to_string());

        let socket = descriptor::inherited(descriptor::SOCKET)
            .ok_or_else(|| refuse("no descriptor 3 was handed to this process".to_owned()))?;
        let name: SockaddrStorage = match getsockname(descriptor::SOCKET) {
            Ok(name) => name,
            Err(Errno::ENOTSOCK) => return Err(refuse("it is not a socket".to_owned())),
            Err(errno) => return Err(system(errno.into())),
        };
        match getsockopt(&socket, sockopt::SockType).map_err(|errno| system(errno.into()))? {
            SockType::Stream => {}
            other => return Err(refuse(format!("it is not a stream socket but {other:?}"))),
        }
        if !matches!(name.family(), Some(AddressFamily::Inet | AddressFamily::Inet6)) {
            return Err(refuse(format!("it is not a TCP socket but bound to {name}")));
        }
        if !getsockopt(&socket, sockopt::AcceptConn).map_err(|errno| system(errno.into()))? {
            return Err(refuse("it is not listening".to_owned()));
        }
        let listener = Listener::prepare(TcpListener::from(socket)).map_err(system)?;

        let wanted: Vec<SocketAddr> = address
            .to_socket_addrs()
            .map_err(|source| Error::Listen { address: address.to_owned(), source })?
            .collect();
        if !wanted.iter().any(|&wanted| is_asked_for(wanted, listener.address)) {
            return Err(refuse(format!("it listens on {}, not on {address}", listener.address)));
        }
        Ok(listener)
    }

    fn prepare(socket: TcpListener) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        let address = socket.local_addr()?;
        Ok(Listener { socket, address })
    }

    /// The address that clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the next connection from the queue; the error is `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> io::Result<(OwnedFd, SocketAddr)> {
        let (stream, peer) = self.socket.accept()?;
        // A response is written in one piece, or in pieces as large as its buffer: Nagle's algorithm
        // could only delay the last one. A peer that is gone already fails here; reading will tell.
        let _ = stream.set_nodelay(true);
        Ok((stream.into(), peer))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a socket bound to `bound` is what `wanted` would have bound: port 0 stands for any port.
fn is_asked_for(wanted: SocketAddr, bound: SocketAddr) -> bool {
    wanted.ip() == bound.ip() && (wanted.port() == bound.port() || wanted.port() == 0)
}

#[cfg(test)]
mod tests {
    use super::is_asked_for;

    #[test]
    fn an_address_is_asked_for_by_ip_and_port_or_any_port() {
        let asked = |wanted: &str, bound: &str| is_asked_for(wanted.parse().unwrap(), bound.parse().unwrap());
        assert!(asked("127.0.0.1:3000", "127.0.0.1:3000"));
        assert!(asked("127.0.0.1:0", "127.0.0.1:41234"));
        assert!(!asked("127.0.0.1:3000", "127.0.0.1:3001"));
        assert!(!asked("127.0.0.1:3000", "0.0.0.0:3000"));
        assert!(!asked("127.0.0.1:0", "127.0.0.2:41234"));
        assert!(!asked("[::1]:3000", "127.0.0.1:3000"));
    }
}
