//! The access log: a line for each response, of fields between single spaces.

use std::fmt::{self, Write};
use std::time::Instant;

use super::head::Head;
use crate::server::connection::Peer;

/// The log target.
pub(super) const TARGET: &str = "handover::access";

/// IP address and port of the peer, method, URL, status, bytes of the body as it was sent, milliseconds since
/// the first byte of the request, and in quotes Host and User-Agent. A dash stands for what there is not.
pub(super) struct Line<'a> {
    pub(super) peer: Peer,
    pub(super) head: Option<&'a Head>,
    pub(super) status: u16,
    pub(super) bytes: usize,
    pub(super) begin: Instant,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Peer::Network(address) => write!(f, "{} {}", address.ip(), address.port())?,
            Peer::Local => f.write_str("- -")?,
        }
        match self.head {
            Some(head) => write!(f, " {head}")?,
            None => f.write_str(" - -")?,
        }
        let milliseconds = self.begin.elapsed().as_secs_f64() * 1e3;
        write!(f, " {} {} {milliseconds:.3}", self.status, self.bytes)?;
        ["Host", "User-Agent"].into_iter().try_for_each(|name| self.quoted(f, name))
    }
}

impl Line<'_> {
    /// What a client sends can neither end the quotes nor begin an escape of its own.
    fn quoted(&self, f: &mut fmt::Formatter<'_>, name: &'static str) -> fmt::Result {
        let has_name = |header: &&tiny_http::Header| header.field.equiv(name);
        let header = self.head.and_then(|head| head.headers.iter().find(has_name));
        f.write_str(" \"")?;
        for byte in header.map_or("-", |header| header.value.as_str()).bytes() {
            match byte {
                b'"' | b'\\' | ..b' ' | 0x7f.. => write!(f, "\\x{byte:02X}")?,
                _ => f.write_char(byte.into())?,
            }
        }
        f.write_str("\"")
    }
}
