//! The control socket: requests like those of signals, but with an answer.
//!
//! A connection carries one line with a request, and one line with the answer. Each process of a handover has
//! a socket of its own, so the path always leads to the process that serves; a client that waits for an
//! answer from the one before keeps its connection to that.

use std::io::{self, PipeWriter};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::clients;
use super::place::{Mark, Place};
use super::places::Before;
use super::requester::{Action, Requester};
use crate::handover::takeover;
use crate::unix_file::{LONGEST_PATH, UnixFile};

/// The permissions of the socket: its owner's only.
const MODE: u32 = 0o600;

/// The requests of operators, as they are written.
pub(super) const REQUESTS: [(&str, Action); 5] = [
    ("status", Action::Status),
    ("restart", Action::Restart),
    ("reload", Action::Reload),
    ("stop", Action::Stop),
    ("wait", Action::Wait),
];

/// That of a process that is to be the successor.
pub(super) const TAKEOVER: (&str, Action) = (takeover::REQUEST, Action::Restart);

/// What is called with each request.
pub(crate) type Ask = dyn Fn(Requester, Action) + Send + Sync;

/// A control socket that is served. Dropping it removes the socket if it is still in its place.
pub(crate) struct Control {
    // In this order: once the socket is closed, another file may get the inode by which the place knows its own.
    place: Place,
    _serving: Serving,
}

/// The thread that takes the requests, and has the socket.
struct Serving {
    thread: Option<JoinHandle<()>>,
    stop: Option<PipeWriter>,
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
        let serve = move || clients::serve(&listener, &stopped, &*ask);
        let thread = thread::Builder::new().name("control".to_owned()).spawn(serve)?;
        Ok(Control { place, _serving: Serving { thread: Some(thread), stop: Some(stop) } })
    }

    pub(crate) fn place(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::{Mutex, mpsc};
    use std::time::Instant;
    use std::{env, process};

    use super::*;
    use crate::deadline::{BACK_OFF, after};
    use crate::lock::lock;

    #[test]
    fn the_file_is_removed_while_its_socket_is_open_so_that_no_other_file_has_its_inode() {
        let path = env::temp_dir().join(format!("handover-control-{}", process::id()));
        let (asked, requests) = mpsc::channel();
        let (go_on, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let ask = move |_, _| {
            asked.send(()).unwrap();
            let _ = lock(&held).recv();
        };
        let control = Control::open(&path, Before::Nothing, Arc::new(ask)).unwrap();
        UnixStream::connect(&path).unwrap().write_all(b"status\n").unwrap();
        requests.recv().unwrap();
        // The thread is in the midst of a request, and so has the socket.
        let dropping = thread::spawn(move || drop(control));
        let deadline = after(100 * BACK_OFF);
        while path.exists() && Instant::now() < deadline {
            thread::yield_now();
        }
        let is_removed = !path.exists();
        drop(go_on);
        dropping.join().unwrap();
        assert!(is_removed);
    }
}
