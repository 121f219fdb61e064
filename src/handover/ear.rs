//! Hearing what a successor says, line by line, without ever waiting for it.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::handover::link::Word;

/// What a successor has said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// One of the agreed words.
    Word(Word),
    /// Something else: the beginning of the line.
    Nonsense(String),
    /// The end of the file: nobody is at the other end any more.
    End,
}

/// The thread that listens; it ends when this is dropped, or when the other side has gone.
pub(crate) struct Listening {
    thread: Option<JoinHandle<()>>,
    hang_up: Option<PipeWriter>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hang_up = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for words and reports them, until the pipe ends or the other side hangs up.
fn listen(ear: &Ear, hung_up: &PipeReader, report: impl Fn()) {
    loop {
        let mut events = [
            PollFd::new(ear.connection.as_fd(), PollFlags::POLLIN),
            PollFd::new(hung_up.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) if events[1].any() == Some(true) => return,
            Ok(_) => {}
        }
        let ended = ear.read().ended;
        report();
        if ended {
            return;
        }
    }
}

/// Our end of the connection to a successor. It is shared: the thread waits at it, but whoever has to know
/// at once whether there is a word looks himself.
pub(crate) struct Ear {
    connection: File,
    unread: Mutex<Unread>,
}

/// What has come and was not understood yet.
#[derive(Default)]
struct Unread {
    bytes: Vec<u8>,
    ended: bool,
}

impl Ear {
    /// More than the longest word; a longer line is nonsense, and nothing after it is of interest.
    const LONGEST_LINE: usize = 64;

    /// Takes in what has come.
    fn read(&self) -> MutexGuard<'_, Unread> {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; Self::LONGEST_LINE];
        while !unread.ended && unread.bytes.len() <= Self::LONGEST_LINE {
            match (&self.connection).read(&mut bytes) {
                Ok(0) => unread.ended = true,
                Ok(count) => unread.bytes.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return unread,
                Err(_) => unread.ended = true,
            }
        }
        unread.ended = true;
        unread
    }

    /// An ear for a connection, and the thread that listens there and calls `report` whenever
    /// [`next`](Self::next) may have something new.
    pub(crate) fn open(
        connection: OwnedFd,
        report: impl Fn() + Send + 'static,
    ) -> io::Result<(Arc<Ear>, Listening)> {
        fcntl(&connection, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let (hung_up, hang_up) = io::pipe()?;
        let ear = Arc::new(Ear { connection: File::from(connection), unread: Mutex::default() });
        let shared = Arc::clone(&ear);
        let listen = move || listen(&shared, &hung_up, report);
        let thread = thread::Builder::new().name("successor".to_owned()).spawn(listen)?;
        Ok((ear, Listening { thread: Some(thread), hang_up: Some(hang_up) }))
    }

    /// Says a line to the other side, which may have gone.
    pub(crate) fn say(&self, line: &str) {
        let _ = (&self.connection).write_all(format!("{line}\n").as_bytes());
    }

    /// Whether nothing more will come.
    pub(crate) fn has_ended(&self) -> bool {
        self.read().ended
    }

    /// The next thing that was said, if there is one.
    pub(crate) fn next(&self) -> Option<Heard> {
        let mut unread = self.read();
        if let Some(end) = unread.bytes.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = unread.bytes.drain(..=end).collect();
            let line = &line[..end];
            return Some(Word::from_line(line).map_or_else(|| nonsense(line), Heard::Word));
        }
        match (unread.ended, unread.bytes.is_empty()) {
            (false, _) => None,
            (true, true) => Some(Heard::End),
            (true, false) => Some(nonsense(&std::mem::take(&mut unread.bytes))),
        }
    }
}

fn nonsense(line: &[u8]) -> Heard {
    Heard::Nonsense(line.escape_ascii().to_string())
}
