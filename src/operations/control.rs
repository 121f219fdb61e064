//! The control socket: requests like those of signals, but with an answer.
//!
//! A connection carries one line with a request, and one line with the answer. Each process of a handover has
//! a socket of its own, so the path always leads to the process that serves; a client that waits for an
//! answer from the one before keeps its connection to that.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use super::place::{Mark, Place};
use super::places::Before;
use super::requester::{Action, Requester};
use crate::deadline::{BACK_OFF, after, has_come, poll_until, readable};
use crate::handover::link::send_all;
use crate::handover::takeover;
use crate::unix_file::{LONGEST_PATH, UnixFile};

/// The permissions of the socket: its owner's only.
const MODE: u32 = 0o600;

/// The longest request, with its end.
const LONGEST_LINE: u64 = 64;

/// How long a request may take to come, and an answer to be taken.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the end of the process waits for answers that have been given to be taken.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The requests, as they are written.
const REQUESTS: [(&str, Action); 6] = [
    ("status", Action::Status),
    ("restart", Action::Restart),
    ("reload", Action::Reload),
    ("stop", Action::Stop),
    ("wait", Action::Wait),
    (takeover::REQUEST, Action::Restart),
];

/// What is called with each request.
pub(crate) type Ask = dyn Fn(Requester, Action) + Send + Sync;

/// A control socket that is served. Dropping it removes the socket if it is still in its place.
pub(crate) struct Control {
    place: Place,
    thread: Option<JoinHandle<()>>,
    stop: Option<PipeWriter>,
    requests: Arc<Requests>,
}

/// The number of requests that have come and whose answers have not been written.
#[derive(Default)]
struct Requests {
    open: Mutex<usize>,
    changed: Condvar,
}

impl Requests {
    fn add(&self, change: isize) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = open.saturating_add_signed(change);
        self.changed.notify_all();
    }
}

impl Control {
    /// Opens a socket, beside that of a predecessor if there is one.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if there is something that is no stale socket, and no predecessor.
    pub(super) fn open(path: &Path, before: Before, ask: Arc<Ask>) -> io::Result<Control> {
        // Clients have to reach it aside, and a successor has to bind a temporary name by way of the directory.
        let (longest, longest_name) = (LONGEST_PATH - ".old".len(), 64);
        if path.as_os_str().len() > longest || path.file_name().is_some_and(|name| name.len() > longest_name)
        {
            let reason = "the path of a control socket has at most";
            let reason = format!("{reason} {longest} bytes, and its last part {longest_name}");
            return Err(io::Error::other(reason));
        }
        let mut bound = None;
        let bind = |path: &Path| {
            let (listener, file) = UnixFile::bind(path, MODE)?;
            bound = Some(listener);
            Ok(Mark::Socket(file))
        };
        let place = match before {
            Before::Nothing => Place::in_place(path, bind)?,
            Before::Predecessor => Place::prepare(path, bind)?,
        };
        let listener = bound.ok_or(io::ErrorKind::NotFound)?;
        let (stopped, stop) = io::pipe()?;
        listener.set_nonblocking(true)?;
        let requests = Arc::<Requests>::default();
        let open = Arc::clone(&requests);
        let serve = move || accept(&listener, &stopped, &ask, &open);
        let thread = thread::Builder::new().name("control".to_owned()).spawn(serve)?;
        Ok(Control { place, thread: Some(thread), stop: Some(stop), requests })
    }

    pub(crate) fn place(&mut self) -> &mut Place {
        &mut self.place
    }

    /// Waits until the answers that have been given are written, at the end of the process.
    pub(crate) fn finish(&self) {
        let open = self.requests.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.requests.changed.wait_timeout_while(open, LAST_ANSWERS, |open| *open > 0));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts connections, each of which is served on a thread of its own, until `stopped` ends.
fn accept(listener: &UnixListener, stopped: &PipeReader, ask: &Arc<Ask>, requests: &Arc<Requests>) {
    let mut events = [readable(stopped), readable(listener)];
    loop {
        poll_until(&mut events, None);
        let accepted = listener.accept().and_then(|(stream, _)| {
            let (ask, requests) = (Arc::clone(ask), Arc::clone(requests));
            // A client that has gone gets no answer.
            let serve = move || drop(serve(stream, &*ask, &requests));
            thread::Builder::new().name("control".to_owned()).spawn(serve)
        });
        if accepted.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            // What is missing, descriptors or threads, only time can bring.
            poll_until(&mut events[..1], Some(after(BACK_OFF)));
        }
        if has_come(&events[0]) {
            return;
        }
    }
}

/// Serves one connection: a line in, a line out.
fn serve(stream: UnixStream, ask: &Ask, requests: &Requests) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let action = match request(&stream) {
        Ok((takeover::REQUEST, action)) => {
            // What is said on this connection from now on is between the two processes.
            ask(Requester::Candidate(stream), action);
            return Ok(());
        }
        // This may take long, and the client may leave before.
        Ok((_, Action::Wait)) => {
            ask(Requester::Waiting(stream), Action::Wait);
            return Ok(());
        }
        Ok((_, action)) => action,
        Err(error) => return send_all(&stream, format!("error: {error}\n").as_bytes()),
    };
    requests.add(1);
    let (answer, answered) = mpsc::channel();
    ask(Requester::Client(answer), action);
    // The process may end before it has an answer.
    let answer = answered.recv().unwrap_or_else(|_| "error: the process has ended".to_owned());
    let written = send_all(&stream, format!("{answer}\n").as_bytes());
    requests.add(-1);
    written
}

fn request(stream: &UnixStream) -> Result<(&'static str, Action), String> {
    // First of all, because a connection that is closed with something unread is reset.
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE))
        .read_until(b'\n', &mut line)
        .map_err(|error| format!("no request came: {error}"))?;
    let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(|errno| errno.to_string())?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return Err(format!("user {} is neither root nor the user of this process", peer.uid()));
    }
    let known = |&&(name, _): &&(&str, Action)| Some(name.as_bytes()) == line.strip_suffix(b"\n");
    REQUESTS.iter().find(known).copied().ok_or_else(|| {
        let (names, line) = (REQUESTS.map(|(name, _)| name).join(", "), line.trim_ascii_end().escape_ascii());
        format!("unknown request \"{line}\", expected one of {names}")
    })
}
