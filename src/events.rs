//! What can happen to a process, and the one place where its loop waits.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::deadline::{hangup, has_come, poll_until, readable};
use crate::handover::link::Link;
use crate::operations::configuration::Reading;
use crate::operations::requester::{Action, Requester};

/// What can happen to a process.
#[derive(Debug)]
pub(crate) enum Event {
    /// It is asked for something.
    Asked(Requester, Action),
    /// The configuration has been read again.
    Reloaded(Reading),
    /// A child has changed its state.
    Child,
    /// Something has come on the link to the successor.
    Successor,
    /// Something has come on the link to the predecessor.
    Predecessor,
    /// A client that waits for an answer has left.
    Left,
    /// No connection is open any more, and none will be.
    Drained,
    /// The deadline has passed.
    Deadline,
}

/// The queue that other threads post events to.
pub(crate) struct Events {
    queue: Receiver<Event>,
    poster: Poster,
}

/// A way to post events from any thread.
#[derive(Clone)]
pub(crate) struct Poster {
    queue: Sender<Event>,
    /// The number of events in the queue.
    count: Arc<EventFd>,
    /// [`Event::Child`] is in the queue. Once is enough for all children, and they may end faster than a process
    /// that stays can look at all processes.
    has_child: Arc<AtomicBool>,
}

impl Poster {
    pub(crate) fn post(&self, event: Event) {
        if matches!(event, Event::Child) && self.has_child.swap(true, Ordering::SeqCst) {
            return;
        }
        // It fails only once the loop has ended.
        if self.queue.send(event).is_ok() {
            let _ = self.count.write(1);
        }
    }
}

impl Events {
    pub(crate) fn new() -> io::Result<Events> {
        let flags = EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let (sender, queue) = mpsc::channel();
        let (count, has_child) = (Arc::new(EventFd::from_flags(flags)?), Arc::default());
        Ok(Events { queue, poster: Poster { queue: sender, count, has_child } })
    }

    pub(crate) fn poster(&self) -> Poster {
        self.poster.clone()
    }

    /// Waits for the next event, at most until the deadline; `links` are those to the successor and the
    /// predecessor, and `waiting` the clients that may leave.
    ///
    /// What has come on a link goes first: a word that was said in time is not too late because this process
    /// was stopped meanwhile. The deadline goes before the queue, so that a flood of requests cannot put it
    /// off.
    pub(crate) fn next(
        &self,
        deadline: Option<Instant>,
        links: [Option<&Link>; 2],
        waiting: &[UnixStream],
    ) -> Event {
        let [successor, predecessor] = links.map(|link| link.filter(|link| link.is_open()));
        loop {
            if successor.is_some_and(Link::has_come) {
                return Event::Successor;
            }
            if predecessor.is_some_and(Link::has_come) {
                return Event::Predecessor;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Event::Deadline;
            }
            if self.poster.count.read().is_ok()
                && let Ok(event) = self.queue.try_recv()
            {
                // From now on another one may end that is not looked at.
                if matches!(event, Event::Child) {
                    self.poster.has_child.store(false, Ordering::SeqCst);
                }
                return event;
            }
            let links = [successor, predecessor].into_iter().flatten().map(readable);
            let queue = [readable(&*self.poster.count)];
            let mut events: Vec<_> = waiting.iter().map(hangup).chain(links).chain(queue).collect();
            poll_until(&mut events, deadline);
            if events[..waiting.len()].iter().any(has_come) {
                return Event::Left;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn children_that_end_faster_than_they_are_looked_at_do_not_put_off_a_stop() {
        let events = Events::new().unwrap();
        let next = || events.next(Some(Instant::now() + Duration::from_secs(60)), [None, None], &[]);
        for _ in 0..2 {
            for _ in 0..1000 {
                events.poster.post(Event::Child);
            }
            events.poster.post(Event::Drained);
            assert!(matches!(next(), Event::Child));
            assert!(matches!(next(), Event::Drained));
        }
    }
}
