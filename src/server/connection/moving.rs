//! Moving a connection to the other process of a handover, between two requests, with what belongs to it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Activity, Connection, Peer};
use crate::handover::moving::Offer;
use crate::server::address::Address;
use crate::server::registry::Registry;

impl Connection {
    /// Has the connection moved, if it waits for a request.
    pub(super) fn move_away(self: &Arc<Self>) {
        if let Some(mover) = self.registry.mover().clone()
            && let Some(offer) = self.offer()
        {
            mover.send(offer);
        }
    }

    /// Offers it to the other process if it is idle, unless that has refused it.
    pub(in crate::server) fn offer_if_idle(self: &Arc<Self>) -> Option<Offer> {
        if self.kept.load(Ordering::Relaxed) { None } else { self.offer() }
    }

    fn offer(self: &Arc<Self>) -> Option<Offer> {
        let mut activity = self.activity();
        let Activity::Waiting { used, idle_since: Some(since) } = *activity else { return None };
        *activity = Activity::Moving { used, since };
        drop(activity);
        let this = Arc::clone(self);
        Some(Offer::new(self.descriptor(), self.line(used, since), move |is_moved| this.decide(is_moved)))
    }

    fn decide(self: &Arc<Self>, is_moved: bool) {
        if is_moved {
            log::debug!("{}: moved to another process", self.peer);
            *self.activity() = Activity::Moved;
            self.registry.leave(self);
            self.registry.report_if_empty();
        } else {
            log::debug!("{}: not taken by the other process", self.peer);
            self.kept.store(true, Ordering::Relaxed);
            self.arrive();
        }
        self.decided.notify_one();
    }

    /// The connection, which was on its way, waits for a request here.
    pub(in crate::server) fn arrive(&self) {
        let mut activity = self.activity();
        if let Activity::Moving { used, since } = *activity {
            *activity = Activity::Waiting { used, idle_since: Some(since) };
        }
    }

    /// What the other process has to know: the protocol, whether the connection has been used, for how many
    /// milliseconds it has been waiting for a request, its peer, and the address of the listening socket; behind
    /// a newline the state of a stream.
    fn line(&self, used: bool, since: Instant) -> Vec<u8> {
        let (used, waited) = (if used { "used" } else { "new" }, since.elapsed().as_millis());
        let (protocol, local) = (&self.registry.protocol, self.local.to_word());
        let line = format!("{protocol}{used} {waited} {} {local}", self.peer).into_bytes();
        match &*self.state() {
            Some(state) => [&line[..], b"\n", state].concat(),
            None => line,
        }
    }

    /// The connection that another process has moved here with such a line; `None` if that is none, or if
    /// something else is spoken on it.
    pub(in crate::server) fn from_line(
        socket: OwnedFd,
        line: &[u8],
        registry: Arc<Registry>,
    ) -> Option<Connection> {
        let mut parts = line.splitn(2, |&byte| byte == b'\n');
        let line = str::from_utf8(parts.next()?).ok()?;
        let mut words = line.strip_prefix(registry.protocol.as_str())?.split(' ');
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
        let activity = Activity::Moving { used, since };
        let connection = Connection::waiting(socket, peer, local, registry, activity).ok()?;
        *connection.state() = parts.next().map(<[u8]>::to_owned);
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_read_from_a_connection_that_was_moved_before_its_thread_began() {
        let local = Address::from_word("127.0.0.1:1").unwrap();
        let (connection, client) = Connection::pair(Peer::Local, local).unwrap();
        let connection = Arc::new(connection);
        // As one that has just been moved here.
        connection.become_idle();
        let offer = connection.offer().unwrap();
        (&*client).write_all(b"!").unwrap();
        // There is no mover any more, but one on its way may still be taken.
        let thread = thread::spawn({
            let connection = Arc::clone(&connection);
            move || connection.read_request(&mut [0], Duration::from_secs(10)).unwrap()
        });
        connection.decide(true);
        assert_eq!(thread.join().unwrap(), 0);
        assert!(connection.has_unread());
        drop(offer);
    }
}
