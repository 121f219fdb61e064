//! The clients of a control socket: one thread takes the requests of all of them, because one for each could
//! be refused when a handover is needed most.

use std::io::{self, PipeReader, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use super::control::{Ask, REQUESTS, TAKEOVER};
use super::requester::{Action, Requester};
use crate::deadline::{BACK_OFF, after, has_come, poll_until, readable};
use crate::handover::link::send_all;
use crate::handover::takeover;

/// The longest request, with its end.
const LONGEST_LINE: usize = 64;

/// How long a request may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many clients there may be, so that they leave a handover the descriptors that it needs.
const MOST: usize = 8;

/// A client that waits for the answer to its request.
#[derive(Debug)]
pub(crate) struct Client {
    connection: UnixStream,
    /// Counters it.
    _place: Arc<()>,
}

impl Client {
    /// Sends the answer, which fits into the buffer of the socket. The first one counts; the client may be gone.
    pub(crate) fn answer(&self, text: &str) {
        let _ = send_all(&self.connection, format!("{text}\n").as_bytes());
        let _ = self.connection.shutdown(Shutdown::Write);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.answer("error: the process has ended");
    }
}

/// A client whose request has not come.
struct Silent {
    connection: UnixStream,
    place: Arc<()>,
    line: Vec<u8>,
    deadline: Instant,
}

/// Passes on requests until `stopped` ends.
pub(super) fn serve(listener: &UnixListener, stopped: &PipeReader, ask: &Ask) {
    let place = Arc::new(());
    let mut clients: Vec<Silent> = Vec::new();
    loop {
        let events = [readable(stopped), readable(listener)].into_iter();
        let mut events: Vec<_> = events.chain(clients.iter().map(readable)).collect();
        poll_until(&mut events, clients.first().map(|client| client.deadline));
        let [has_stopped, has_connected] = [0, 1].map(|index| has_come(&events[index]));
        if has_stopped {
            return;
        }
        // Whether a client has sent its request before another one has connected is known now.
        clients = clients.into_iter().filter_map(|client| client.proceed(ask)).collect();
        if !has_connected {
            continue;
        }
        if Arc::strong_count(&place) > MOST && !clients.is_empty() {
            clients.remove(0).end().answer("error: no request came, and other clients wait");
        }
        match accept(listener, &place) {
            Ok(client) => clients.push(client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // What is missing, descriptors or answers, only time can bring.
            Err(_) => drop(poll_until(&mut [readable(stopped)], Some(after(BACK_OFF)))),
        }
    }
}

fn accept(listener: &UnixListener, place: &Arc<()>) -> io::Result<Silent> {
    if Arc::strong_count(place) > MOST {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let (connection, _) = listener.accept()?;
    connection.set_nonblocking(true)?;
    let (place, deadline) = (Arc::clone(place), after(REQUEST_TIMEOUT));
    Ok(Silent { connection, place, line: Vec::new(), deadline })
}

impl Silent {
    /// Reads what has come, and passes on the request if that is all of it; otherwise the client stays.
    fn proceed(mut self, ask: &Ask) -> Option<Silent> {
        let mut bytes = [0; LONGEST_LINE];
        let has_ended = match self.connection.read(&mut bytes[self.line.len()..]) {
            Ok(count) => {
                self.line.extend(&bytes[self.line.len()..][..count]);
                count == 0 || self.line.len() == LONGEST_LINE
            }
            Err(_) if Instant::now() < self.deadline => false,
            Err(error) => {
                self.end().answer(&format!("error: no request came: {error}"));
                return None;
            }
        };
        if !has_ended && !self.line.contains(&b'\n') {
            return Some(self);
        }
        match self.request() {
            // What is said on this connection from now on is between the two processes.
            Ok((takeover::REQUEST, action)) => ask(Requester::Candidate(self.connection), action),
            // This may take long, and the client may leave before.
            Ok((_, Action::Wait)) => ask(Requester::Waiting(self.connection), Action::Wait),
            Ok((_, action)) => ask(Requester::Client(self.end()), action),
            Err(error) => self.end().answer(&format!("error: {error}")),
        }
        None
    }

    fn request(&self) -> Result<(&'static str, Action), String> {
        let peer =
            getsockopt(&self.connection, sockopt::PeerCredentials).map_err(|errno| errno.to_string())?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            return Err(format!("user {} is neither root nor the user of this process", peer.uid()));
        }
        let line = self.line.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default();
        let known = |&&(name, _): &&(&str, Action)| Some(name.as_bytes()) == line.strip_suffix(b"\n");
        REQUESTS.iter().chain([&TAKEOVER]).find(known).copied().ok_or_else(|| {
            let (names, line) =
                (REQUESTS.map(|(name, _)| name).join(", "), line.trim_ascii_end().escape_ascii());
            format!("unknown request \"{line}\", expected one of {names}")
        })
    }

    fn end(self) -> Client {
        Client { connection: self.connection, _place: self.place }
    }
}

impl AsFd for Silent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
