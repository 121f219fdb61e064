//! Open connections for the other process of a handover, through a socket of their own beside the link.
//!
//! It is a Unix socket of type SOCK_SEQPACKET, so that each message is received as it was sent:
//!
//! | message | meaning |
//! |---|---|
//! | `move N LINE` | A connection comes with it (unix(7), SCM_RIGHTS), to which the sender refers as N. Behind a newline, LINE may go on with what belongs to it. |
//! | `took N` | It is served here from now on. |
//! | `refused N` | It is not. |
//! | `kept` | None that has not been acknowledged will be moved any more. |
//! | `counted NAME=N…` | The sender has counted this beyond what is known. |
//!
//! No connection is ever read by two processes. The receiver reads from one only when its acknowledgement has
//! been sent; the sender only when it knows that none will come. If that is late, the sender shuts the
//! receiving side of its socket, so that an acknowledgement either has been sent or cannot be. A receiver that
//! finds it shut looks at what comes next: `kept`, or the end, if the sender has died and reads no more.

mod socket;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::Shutdown;

use self::socket::{Message, Socket};
pub(crate) use self::socket::{is_end, pair};
use crate::counters::Counters;
use crate::lock::lock;

/// The most connections on their way, so that there is no lack of references to descriptors (ETOOMANYREFS), and
/// one that is in use does not wait for long behind idle ones.
const MOST_ON_THEIR_WAY: usize = 16;

/// How long the other process may take to acknowledge a connection, whose client waits meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that has been received: calling it begins to serve the connection, dropping it closes the
/// connection in this process only.
pub(crate) type Received = Box<dyn FnOnce() + Send>;

/// A connection that is not to be used before the answer, which is whether it is the other process's now.
pub(crate) struct Offer {
    descriptor: RawFd,
    line: Vec<u8>,
    is_moved: bool,
    answer: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl Offer {
    /// The connection under this descriptor, which stays open until the answer, with a line about it.
    pub(crate) fn new(descriptor: RawFd, line: Vec<u8>, answer: impl FnOnce(bool) + Send + 'static) -> Offer {
        Offer { descriptor, line, is_moved: false, answer: Some(Box::new(answer)) }
    }

    fn answer(mut self, is_moved: bool) {
        self.is_moved = is_moved;
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.answer.take().into_iter().for_each(|answer| answer(self.is_moved));
    }
}

/// What receives.
pub(crate) trait Host: Send + 'static {
    /// Takes in a connection, with the line about it; `None` refuses it.
    fn receive(&self, connection: OwnedFd, line: &[u8]) -> Option<Received>;

    /// Adds what the other process has counted.
    fn count(&self, counts: Counters);
}

/// One end, to which connections are moved, and from which they come. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Mover {
    /// The thread owns it, and closes the socket when it ends.
    end: Weak<End>,
    thread: Mutex<Option<JoinHandle<u64>>>,
}

impl Mover {
    /// Passes what comes to the host, on a thread of its own.
    pub(crate) fn start(socket: OwnedFd, host: impl Host) -> io::Result<Mover> {
        let socket = Socket::new(socket)?;
        let (waiting, sent, progress) = (VecDeque::new(), HashMap::new(), Instant::now());
        let offers = Mutex::new(Some(Offers { waiting, idle: None, sent, progress }));
        let end = Arc::new(End { socket, offers, known: Mutex::default() });
        let (weak, thread) = (Arc::downgrade(&end), thread::Builder::new().name("moving".to_owned()));
        let thread = thread.spawn(move || end.receive_all(&host))?;
        Ok(Mover { end: weak, thread: Mutex::new(Some(thread)) })
    }

    /// Moves a connection.
    pub(crate) fn send(&self, offer: Offer) {
        self.change(|offers| offers.waiting.push_back(offer));
    }

    /// Moves these as well, while there are no others. They are dropped when there are no more of them, or no
    /// more can be moved.
    pub(crate) fn send_idle(&self, idle: impl Iterator<Item = Offer> + Send + 'static) {
        self.change(|offers| offers.idle = Some(Box::new(idle)));
    }

    fn change(&self, change: impl FnOnce(&mut Offers)) {
        let Some(end) = self.end.upgrade() else { return };
        if let Some(offers) = &mut *end.offers() {
            change(offers);
            end.send_next(offers);
        }
    }

    /// The other process knows this.
    pub(crate) fn is_known(&self, total: Counters) {
        self.end.upgrade().iter().for_each(|end| *end.known() = total);
    }

    /// Says what has been counted here and is not known to the other process.
    pub(crate) fn report(&self, total: Counters) {
        let Some(end) = self.end.upgrade() else { return };
        let mut known = end.known();
        // If it cannot be said, the other process has ended.
        let _ = end.socket.say(format!("counted {}", total - *known), &[]);
        *known = total;
    }

    /// Ends the moving. What has come until now is dealt with. Returns how many connections the other process
    /// has taken.
    pub(crate) fn finish(&self) -> u64 {
        // The other process still has to hear of it.
        self.end.upgrade().iter().for_each(|end| end.socket.shut(Shutdown::Read));
        let thread = lock(&self.thread).take();
        thread.and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.finish();
    }
}

struct End {
    socket: Socket,
    /// `None` when no more are sent.
    offers: Mutex<Option<Offers>>,
    /// What the other process has been told, or has told itself.
    known: Mutex<Counters>,
}

/// The connections that are to be moved.
struct Offers {
    /// Those on which the next request is likely to come soon.
    waiting: VecDeque<Offer>,
    /// The others, which go when none of those is left.
    idle: Option<Box<dyn Iterator<Item = Offer> + Send>>,
    /// Those on their way, to be acknowledged.
    sent: HashMap<RawFd, Offer>,
    /// When the last one was acknowledged, or sent if none was on its way.
    progress: Instant,
}

impl Offers {
    fn next(&mut self) -> Option<Offer> {
        self.waiting.pop_front().or_else(|| {
            let next = self.idle.as_mut()?.next();
            self.idle.take_if(|_| next.is_none());
            next
        })
    }
}

impl End {
    /// Returns how many connections the other process has taken.
    fn receive_all(&self, host: &impl Host) -> u64 {
        let (mut unacknowledged, mut count) = (Vec::new(), 0);
        loop {
            match self.socket.hear() {
                Message::Move(number, line, socket) => {
                    let received = socket.and_then(|socket| host.receive(socket, &line));
                    let word = if received.is_some() { "took" } else { "refused" };
                    match (self.socket.say(format!("{word} {number}"), &[]), received) {
                        (Ok(()), Some(serve)) => serve(),
                        (_, received) => unacknowledged.extend(received),
                    }
                }
                Message::Answer(number, taken) if self.answer(number, taken) => count += u64::from(taken),
                Message::Counted(counts) => {
                    *self.known() += counts;
                    host.count(counts);
                }
                // Not at any other time, because this process may have been stopped. What has been sent by now
                // still comes, and then the end.
                Message::Answer(..) | Message::Other | Message::None if self.is_overdue() => {
                    self.socket.shut(Shutdown::Read);
                }
                Message::Answer(..) | Message::Other | Message::None => {}
                Message::Kept => break,
                Message::End => {
                    // If the moves were ended here, the other process may live, and read from them.
                    if !self.socket.is_shut() {
                        unacknowledged.into_iter().for_each(|serve| serve());
                    }
                    break;
                }
            }
        }
        self.keep();
        count
    }

    /// No answer will come any more. What has not been acknowledged stays here.
    fn keep(&self) {
        let said = self.socket.say("kept", &[]);
        self.socket.shut(Shutdown::Both);
        let offers = self.offers().take();
        // If the other process may not have heard it: to lose connections is better than to have two processes
        // read from them.
        let are_lost = !matches!(said, Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET));
        offers.into_iter().flat_map(|offers| offers.sent).for_each(|(_, offer)| offer.answer(are_lost));
    }

    /// Sends what may be sent now.
    fn send_next(&self, offers: &mut Offers) {
        while offers.sent.len() < MOST_ON_THEIR_WAY
            && let Some(offer) = offers.next()
        {
            if offers.sent.is_empty() {
                offers.progress = Instant::now();
            }
            let Offer { descriptor, line, .. } = &offer;
            let message = [format!("move {descriptor} ").as_bytes(), line].concat();
            match self.socket.say(message, &[*descriptor]) {
                Ok(()) => drop(offers.sent.insert(*descriptor, offer)),
                // The next answer makes room.
                Err(Errno::EAGAIN) if !offers.sent.is_empty() => return offers.waiting.push_front(offer),
                Err(_) => offer.answer(false),
            }
        }
    }

    /// Whether the other process takes too long.
    fn is_overdue(&self) -> bool {
        let is_late =
            |offers: &Offers| !offers.sent.is_empty() && offers.progress.elapsed() >= ANSWER_TIMEOUT;
        self.offers().as_ref().is_some_and(is_late)
    }

    /// Whether there was something to answer.
    fn answer(&self, number: RawFd, taken: bool) -> bool {
        let mut offers = self.offers();
        let Some(offers) = &mut *offers else { return false };
        let Some(offer) = offers.sent.remove(&number) else { return false };
        offers.progress = Instant::now();
        self.send_next(offers);
        offer.answer(taken);
        true
    }

    fn offers(&self) -> MutexGuard<'_, Option<Offers>> {
        lock(&self.offers)
    }

    fn known(&self) -> MutexGuard<'_, Counters> {
        lock(&self.known)
    }
}
