//! Connections that have not come from anywhere, for tests of embedding programs.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::{Connection, Peer};
use crate::server::address::Address;
use crate::server::registry::Registry;

impl Connection {
    /// A connection and its other end, which stays open for as long as this.
    pub(crate) fn pair(peer: Peer, local: Address) -> io::Result<(Connection, Arc<UnixStream>)> {
        let (server, client) = UnixStream::pair()?;
        let (client, (idle_closed, close_idle)) = (Arc::new(client), io::pipe()?);
        let kept = (Arc::clone(&client), close_idle);
        let keep = move || {
            let _ = &kept;
        };
        let registry = Registry::new(String::new(), idle_closed, keep)?;
        Ok((Connection::new(server.into(), peer, local, Arc::new(registry))?, client))
    }
}
