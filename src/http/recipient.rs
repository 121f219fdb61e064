//! The client of a request, for as long as something is to be sent to it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::deadline::after;
use crate::server::connection::Connection;

/// The client to which a response goes.
///
/// A handler that waits for something, as in a long poll, or the body of a response that does, as in a stream of
/// events, is to end when nobody waits for it any more, and when a drain begins. A body, which is read when the
/// [`Request`](crate::Request) is gone, has a `Recipient` of its own.
///
/// That a client has left is found out by one of these waits, or by writing to it. Until then its connection counts
/// among the [`max_connections`](crate::Limits::max_connections).
///
/// It is for the thread of the connection, which runs the handler and reads the body. On another thread a wait that
/// outlives the response keeps the socket open, and the client from seeing the end of its connection.
#[derive(Clone)]
pub struct Recipient(Weak<Connection>);

impl Recipient {
    pub(super) fn new(connection: &Arc<Connection>) -> Recipient {
        Recipient(Arc::downgrade(connection))
    }

    /// Waits until the client has ended its side of the connection, at most for `timeout`, and returns whether
    /// it has; a zero timeout is a look, and [`Duration::MAX`] is for ever.
    ///
    /// A client may have ended only its sending side, and still read the response. That cannot be told from a
    /// client that has left, so it is up to the program; what it returns is sent in either case.
    pub fn wait_for_hangup(&self, timeout: Duration) -> bool {
        self.wait(|connection| connection.wait_for_hangup(after(timeout)))
    }

    /// Waits until the client has ended its side of the connection, as [`wait_for_hangup`](Self::wait_for_hangup)
    /// does, or the process begins to [drain](crate::Request::is_draining), at most for `timeout`, and returns whether
    /// one of them has happened. A long poll or a stream of events ends then: the client asks again, on the same
    /// connection, and is answered by the successor.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        self.wait(|connection| connection.wait_for_end(after(timeout)))
    }

    /// A connection that is gone has ended.
    fn wait(&self, wait: impl FnOnce(&Connection) -> bool) -> bool {
        self.0.upgrade().is_none_or(|connection| wait(&connection))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.0.upgrade().map(|connection| connection.peer());
        f.debug_tuple("Recipient").field(&peer).finish()
    }
}
