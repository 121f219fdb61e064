//! Addresses to listen on, and the files of Unix sockets.

use std::ffi::OsStr;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{self, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use nix::sys::stat::{Mode, umask};

/// An address that a server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a TCP port.
    Network(SocketAddr),
    /// A Unix socket in the file system; unix(7), "pathname".
    Unix(PathBuf),
    /// A Unix socket outside it; unix(7), "abstract". Without the NUL byte in front.
    Abstract(Vec<u8>),
}

impl Address {
    /// The addresses that a text stands for: `HOST:PORT`, `unix:PATH` or `unix:@NAME`.
    pub(crate) fn resolve(text: &str) -> io::Result<Vec<Address>> {
        match text.strip_prefix("unix:") {
            Some(name) => Ok(vec![match name.strip_prefix('@') {
                Some(name) => Address::Abstract(name.into()),
                None => Address::Unix(name.into()),
            }]),
            None => {
                let mut addresses: Vec<Address> = Vec::new();
                for address in text.to_socket_addrs()?.map(Address::Network) {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                Ok(addresses)
            }
        }
    }

    pub(crate) fn with_port(mut self, port: u16) -> Address {
        if let Address::Network(address) = &mut self {
            address.set_port(port);
        }
        self
    }

    /// Whether a socket on `bound` is what binding this address makes: port 0 stands for any port.
    fn is_asked_for_by(&self, bound: &Address) -> bool {
        match (self, bound) {
            (Address::Network(wanted), Address::Network(bound)) => {
                wanted.ip() == bound.ip() && (wanted.port() == bound.port() || wanted.port() == 0)
            }
            _ => self == bound,
        }
    }

    /// Whether a socket on this address is what binding one of them makes.
    pub(crate) fn is_one_of(&self, wanted: &[Address]) -> bool {
        wanted.iter().any(|wanted| wanted.is_asked_for_by(self))
    }

    pub(crate) fn to_unix(&self) -> io::Result<net::SocketAddr> {
        match self {
            Address::Unix(path) => net::SocketAddr::from_pathname(path),
            Address::Abstract(name) => net::SocketAddr::from_abstract_name(name),
            Address::Network(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub(crate) fn from_unix(address: &net::SocketAddr) -> io::Result<Address> {
        match (address.as_pathname(), address.as_abstract_name()) {
            (Some(path), _) => Ok(Address::Unix(path.to_owned())),
            (_, Some(name)) => Ok(Address::Abstract(name.to_owned())),
            _ => Err(io::Error::other("the socket has no name")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Network(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{}", OsStr::from_bytes(name).display()),
        }
    }
}

/// The identity of a Unix socket's file: a path may lead to another file later.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnixFile {
    device: u64,
    inode: u64,
}

impl UnixFile {
    pub(crate) fn at(path: &Path) -> Option<UnixFile> {
        let file = fs::symlink_metadata(path).ok()?;
        Some(UnixFile { device: file.dev(), inode: file.ino() })
    }

    /// Binds a socket to a path. A socket that is there already is replaced if nobody answers on it: it has
    /// been left behind by a process that was killed.
    pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
        match UnixFile::bind_new(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                fs::remove_file(path)?;
                UnixFile::bind_new(path, mode)
            }
            result => result,
        }
    }

    /// The umask makes sure that there is no moment in which more may connect than should.
    fn bind_new(path: &Path, mode: u32) -> io::Result<UnixListener> {
        let before = umask(Mode::from_bits_truncate(!mode & 0o777));
        let bound = UnixListener::bind(path);
        umask(before);
        bound
    }
}

fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused =
        || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused()
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn an_address_is_asked_for_by_ip_and_port_or_any_port() {
        let one = |text: &str| Address::resolve(text).unwrap().remove(0);
        let asked = |wanted: &str, bound: &str| one(wanted).is_asked_for_by(&one(bound));
        assert!(asked("127.0.0.1:3000", "127.0.0.1:3000"));
        assert!(asked("127.0.0.1:0", "127.0.0.1:41234"));
        assert!(!asked("127.0.0.1:3000", "127.0.0.1:3001"));
        assert!(!asked("127.0.0.1:3000", "0.0.0.0:3000"));
        assert!(!asked("127.0.0.1:0", "127.0.0.2:41234"));
        assert!(!asked("[::1]:3000", "127.0.0.1:3000"));
        assert!(asked("unix:/run/a", "unix:/run/a"));
        assert!(!asked("unix:/run/a", "unix:/run/b"));
        assert!(!asked("unix:@a", "unix:a"));
    }

    #[test]
    fn an_address_is_displayed_as_it_is_written() {
        for text in ["127.0.0.1:3000", "[::1]:3000", "unix:/run/a", "unix:@a"] {
            assert_eq!(Address::resolve(text).unwrap()[0].to_string(), text);
        }
    }
}
