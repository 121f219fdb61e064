//! The control socket: requests like those of signals, but with an answer.
//!
//! A connection carries one line with a request, and one line with the answer. Each process of a handover
//! puts a socket of its own in the place of the one before, so the path always leads to the process that
//! serves, or is about to; who waits for an answer from the process before keeps his connection to that.

use std::fs;
use std::io::{self, BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::handover::takeover;
use crate::operations::places;
use crate::operations::requester::{Asker, Request};
use crate::unix_file::UnixFile;

/// The permissions of the socket: its owner's only.
const MODE: u32 = 0o600;

/// The longest request, with its end.
const LONGEST_LINE: u64 = 64;

/// How long a request may take to come, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of the process waits for answers to be taken.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The requests, as they are written.
const REQUESTS: [(&str, Request); 5] = [
    ("status", Request::Status),
    ("restart", Request::Restart),
    ("reload", Request::Reload),
    ("stop", Request::Stop),
    (takeover::REQUEST, Request::TakeOver),
];

/// Whose socket may be in the place of a new one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// That of no process which is still there.
    Nobody,
    /// That of a process which gives it up.
    Goes,
    /// That of a process which goes on beside this one, and is to be asked at the place aside.
    Stays,
}

/// A control socket that is served. Dropping it waits for answers that are on their way, and removes the
/// socket if it is still this one.
pub(crate) struct Control {
    path: PathBuf,
    file: Option<UnixFile>,
    thread: Option<JoinHandle<()>>,
    stop: Option<PipeWriter>,
    answered: Receiver<()>,
}

impl Control {
    /// Opens a socket, and calls `ask` with each request.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if there is something that is no stale socket, unless it is there to be replaced.
    pub(crate) fn start(
        path: &Path,
        before: Before,
        ask: impl Fn(Asker, Request) + Send + Sync + 'static,
    ) -> io::Result<Control> {
        if before == Before::Stays
            && let Err(error) = places::put_aside(path)
        {
            log::debug!("no control socket is put aside: {}: {error}", path.display());
        }
        let listener = match before {
            Before::Nobody => UnixFile::bind(path, MODE)?,
            Before::Goes | Before::Stays => places::replace(path, |path| UnixFile::bind(path, MODE))?,
        };
        let (stopped, stop) = io::pipe()?;
        let (answering, answered) = mpsc::channel();
        let ask = Arc::new(ask);
        let thread = thread::Builder::new().name("control".to_owned()).spawn(move || {
            while wait(&listener, &stopped) {
                if let Ok((stream, _)) = listener.accept() {
                    let (ask, answering) = (Arc::clone(&ask), Sender::clone(&answering));
                    let serve = move || {
                        // A client that has gone cannot be told so.
                        let _ = serve(stream, &*ask);
                        drop(answering);
                    };
                    // Without a thread there is no answer, and the client sees the connection end.
                    let _ = thread::Builder::new().name("control".to_owned()).spawn(serve);
                }
            }
        })?;
        let file = UnixFile::at(path);
        Ok(Control { path: path.to_owned(), file, thread: Some(thread), stop: Some(stop), answered })
    }

    /// Whether the path leads to this socket, and not to that of another process.
    pub(crate) fn is_in_place(&self) -> bool {
        self.leads_here(&self.path)
    }

    fn leads_here(&self, path: &Path) -> bool {
        self.file.is_some() && UnixFile::at(path) == self.file
    }

    /// Gives the place back to the predecessor that runs beside this process.
    pub(crate) fn give_back(&self) {
        if self.is_in_place() {
            places::give_back(&self.path);
        }
    }

    /// Nobody is to look for this process beside another any more.
    pub(crate) fn clear_aside(&self) {
        let aside = places::aside(&self.path);
        if self.leads_here(&aside) {
            let _ = fs::remove_file(aside);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.clear_aside();
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Nobody ever sends: it ends with the last of those who answer.
        let _ = self.answered.recv_timeout(LAST_ANSWERS);
    }
}

/// Waits for a connection; `false` if there is to be none.
fn wait(listener: &UnixListener, stopped: &io::PipeReader) -> bool {
    let mut events =
        [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
    loop {
        return match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => false,
            Ok(_) => events[1].any() != Some(true),
        };
    }
}

/// Serves one connection: a line in, a line out.
fn serve(stream: UnixStream, ask: &impl Fn(Asker, Request)) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match request(&stream) {
        Ok(Request::TakeOver) => {
            // What is said on this connection from now on is between the two processes.
            stream.set_read_timeout(None)?;
            ask(Asker::taking_over(stream), Request::TakeOver);
            return Ok(());
        }
        Ok(request) => {
            let (answer, answered) = mpsc::channel();
            ask(Asker::waiting(answer), request);
            // The process may end before it has an answer.
            answered.recv().unwrap_or_else(|_| "error: the process has ended".to_owned())
        }
        Err(error) => format!("error: {error}"),
    };
    (&stream).write_all(format!("{answer}\n").as_bytes())
}

fn request(stream: &UnixStream) -> Result<Request, String> {
    // First of all, because a connection that is closed with something unread is reset.
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE))
        .read_until(b'\n', &mut line)
        .map_err(|error| format!("no request came: {error}"))?;
    let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(|errno| errno.to_string())?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return Err(format!("user {} is neither root nor the user of this process", peer.uid()));
    }
    let known = |&&(name, _): &&(&str, Request)| Some(name.as_bytes()) == line.strip_suffix(b"\n");
    match REQUESTS.iter().find(known) {
        Some(&(_, request)) => Ok(request),
        None => {
            let names = REQUESTS.map(|(name, _)| name).join(", ");
            Err(format!(
                "unknown request \"{}\", expected one of {names}",
                line.trim_ascii_end().escape_ascii()
            ))
        }
    }
}

/// The generation of the process that serves a control socket, or 0 if that does not tell.
pub(crate) fn generation(path: &Path) -> u64 {
    let status = ask_within(path, "status", Some(PATIENCE)).unwrap_or_default();
    let generation = status.split(' ').find_map(|field| field.strip_prefix("generation="));
    generation.and_then(|generation| generation.parse().ok()).unwrap_or(0)
}

/// Asks the process that serves a control socket for `status`, `restart`, `reload` or `stop`, and waits for
/// its answer, which is one line: it begins with `error:` if the request was not fulfilled. The answer to
/// `restart` comes when it is decided whether the successor serves.
///
/// # Errors
///
/// Nobody answers on the socket, or the connection ends without an answer.
pub fn ask(path: &Path, request: &str) -> io::Result<String> {
    ask_within(path, request, None)
}

fn ask_within(path: &Path, request: &str, patience: Option<Duration>) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(patience)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.strip_suffix('\n') {
        Some(answer) => Ok(answer.to_owned()),
        None => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended without an answer"))
        }
    }
}
