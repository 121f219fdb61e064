//! Moving a connection to the other process of a handover, between two requests.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Activity, Connection, Peer};
use crate::server::address::Address;
use crate::server::registry::Registry;

impl Connection {
    /// Moves the connection, which has been waiting since then, if connections are moved; whether it is the
    /// other process's now.
    pub(super) fn move_away(&self, since: Instant) -> bool {
        let Some(mover) = self.registry.mover().clone() else { return false };
        let mut activity = self.activity();
        let Activity::Waiting { used, .. } = *activity else { return false };
        *activity = Activity::Moving;
        drop(activity);
        let moved = mover.send(self.socket.as_fd(), self.line(used, since));
        if moved {
            log::debug!("{}: moved to another process", self.peer);
        } else {
            log::debug!("{}: not taken by the other process", self.peer);
            self.kept.store(true, Ordering::Relaxed);
            *self.activity() = Activity::Waiting { used, idle_since: Some(since) };
        }
        moved
    }

    /// What the other process has to know: whether the connection has been used, for how many milliseconds it
    /// has been waiting for a request, its peer, and the address of the listening socket.
    fn line(&self, used: bool, since: Instant) -> String {
        let (used, waited) = (if used { "used" } else { "new" }, since.elapsed().as_millis());
        format!("{used} {waited} {} {}", self.peer, self.local.to_word())
    }

    /// The connection that another process has moved here with such a line; `None` if that is none.
    pub(in crate::server) fn from_line(
        socket: OwnedFd,
        line: &str,
        registry: Arc<Registry>,
    ) -> Option<Connection> {
        let mut words = line.split(' ');
        let used = match words.next()? {
            "used" => true,
            "new" => false,
            _ => return None,
        };
        let waited = Duration::from_millis(words.next()?.parse().ok()?);
        let since = Instant::now().checked_sub(waited)?;
        let peer = match words.next()? {
            "local" => Peer::Local,
            address => Peer::Network(address.parse().ok()?),
        };
        let local = Address::from_word(words.next()?)?;
        let activity = Activity::Waiting { used, idle_since: Some(since) };
        Connection::waiting(socket, peer, local, registry, activity).ok()
    }
}
