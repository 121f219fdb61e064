//! Addresses to listen on: how they are written, and whether a socket is what one stands for.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net;
use std::path::PathBuf;
use std::{fmt, io};

use crate::error::Error;
use crate::percent;

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
    pub(crate) fn resolve(text: &str) -> Result<Vec<Address>, Error> {
        if let Some(name) = text.strip_prefix("unix:@") {
            return Ok(vec![Address::Abstract(name.into())]);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(vec![Address::Unix(path.into())]);
        }
        let resolved =
            text.to_socket_addrs().map_err(|error| Error::new(format!("listen on {text}"), error))?;
        let mut addresses: Vec<Address> = Vec::new();
        for address in resolved.map(Address::Network) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// The addresses that each text stands for. None can be bound beside one that it overlaps with.
    pub(crate) fn resolve_all(texts: &[String]) -> Result<Vec<(&str, Vec<Address>)>, Error> {
        let mut all: Vec<(&str, Vec<Address>)> = Vec::new();
        for text in texts {
            let addresses = Address::resolve(text)?;
            for address in &addresses {
                let mut before = all.iter().flat_map(|(_, addresses)| addresses);
                let reason = match before.find(|other| address.overlaps(other)) {
                    None => continue,
                    Some(other) if other == address => "it is given twice".to_owned(),
                    Some(other) => format!("it overlaps with {other}"),
                };
                return Err(Error::new(format!("listen on {address}"), reason));
            }
            all.push((text, addresses));
        }
        Ok(all)
    }

    fn overlaps(&self, other: &Address) -> bool {
        let (Address::Network(this), Address::Network(that)) = (self, other) else { return self == other };
        let is_any = |address: &SocketAddr| address.ip().is_unspecified();
        let is_bound = this.port() == that.port() && this.port() != 0 && this.is_ipv4() == that.is_ipv4();
        is_bound && (this == that || is_any(this) || is_any(that))
    }

    /// The same address, with the port of the first address of a name: port 0 is one port for all of them.
    pub(crate) fn with_port_of(&self, first: Option<&Address>) -> Address {
        let mut same = self.clone();
        if let (Address::Network(same), Some(Address::Network(first))) = (&mut same, first) {
            same.set_port(first.port());
        }
        same
    }

    /// Whether a socket on this address is what binding one of `wanted` makes: port 0 stands for any port.
    pub(crate) fn is_one_of(&self, wanted: &[Address]) -> bool {
        wanted.iter().any(|wanted| match (self, wanted) {
            (Address::Network(bound), Address::Network(wanted)) => {
                bound.ip() == wanted.ip() && (bound.port() == wanted.port() || wanted.port() == 0)
            }
            _ => self == wanted,
        })
    }

    /// The address as one word of printable ASCII; see [`from_word`](Self::from_word).
    pub(crate) fn to_word(&self) -> String {
        match self {
            Address::Network(address) => address.to_string(),
            Address::Unix(path) => format!("unix:{}", percent::word(path.as_os_str().as_bytes())),
            Address::Abstract(name) => format!("unix:@{}", percent::word(name)),
        }
    }

    /// The address that [`to_word`](Self::to_word) has made this of.
    pub(crate) fn from_word(word: &str) -> Option<Address> {
        match (word.strip_prefix("unix:@"), word.strip_prefix("unix:")) {
            (Some(name), _) => percent::decoded(name).map(Address::Abstract),
            (_, Some(path)) => {
                percent::decoded(path).map(|path| Address::Unix(OsString::from_vec(path).into()))
            }
            _ => word.parse().ok().map(Address::Network),
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
            Address::Abstract(name) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn a_socket_is_asked_for_by_ip_and_port_or_any_port_or_name() {
        let resolve = |text: &str| Address::resolve(text).unwrap();
        for (wanted, bound, expected) in [
            ("127.0.0.1:3000", "127.0.0.1:3000", true),
            ("127.0.0.1:0", "127.0.0.1:41234", true),
            ("127.0.0.1:3000", "127.0.0.1:3001", false),
            ("127.0.0.1:3000", "0.0.0.0:3000", false),
            ("127.0.0.1:0", "127.0.0.2:41234", false),
            ("[::1]:3000", "127.0.0.1:3000", false),
            ("unix:/run/a", "unix:/run/a", true),
            ("unix:/run/a", "unix:/run/b", false),
            ("unix:@a", "unix:a", false),
        ] {
            assert_eq!(resolve(bound)[0].is_one_of(&resolve(wanted)), expected, "{wanted} {bound}");
            assert_eq!(resolve(bound)[0].to_string(), bound);
            assert_eq!(resolve(bound)[0].to_word(), bound);
        }
    }

    #[test]
    fn any_address_is_one_word() {
        for (address, word) in [
            (Address::Abstract(b"\0a b\xff%41".into()), "unix:@%00a%20b%FF%2541"),
            (Address::Unix("/run/a b".into()), "unix:/run/a%20b"),
            (Address::Network("[::1]:80".parse().unwrap()), "[::1]:80"),
        ] {
            assert_eq!(address.to_word(), word);
            assert_eq!(Address::from_word(word), Some(address));
        }
        assert_eq!(Address::from_word("unix:%4"), None);
    }
}
