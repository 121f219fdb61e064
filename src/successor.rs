//! The process after this one: starting it, hearing its words, watching it, killing it.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::descriptor::{self, Limit};
use crate::program::Program;
use crate::signals;
use crate::words::Word;

/// A started successor. Dropping it stops listening to it and does not touch the process.
pub(crate) struct Successor {
    child: Child,
    ear: Arc<Ear>,
    /// Keeps the thread that listens.
    _listening: Listening,
    /// How the successor has described itself last.
    said: Option<Word>,
}

/// The thread that listens; it ends when this is dropped, or when the pipe ends.
struct Listening {
    thread: Option<JoinHandle<()>>,
    hang_up: Option<PipeWriter>,
}

/// What comes out of the pipe to the successor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// One of the agreed words.
    Word(Word),
    /// Something else: the beginning of the line.
    Nonsense(String),
    /// The end of the file: nobody holds the other end any more.
    End,
}

impl Successor {
    /// Starts `program` with the listening sockets from descriptor 3 on, the pipe behind them, and the limit
    /// of descriptors that this process was started with; and calls `report` whenever [`hear`](Self::hear) may have something new.
    pub(crate) fn start(
        program: &Program,
        sockets: &[BorrowedFd<'_>],
        limit: Option<Limit>,
        report: impl Fn() + Send + 'static,
    ) -> io::Result<Successor> {
        let (pipe, their_end) = io::pipe()?;
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let child = spawn(program, sockets, their_end, limit)?;

        let (hung_up, hang_up) = match io::pipe() {
            Ok(pipes) => pipes,
            Err(error) => return Err(abandon(child, error)),
        };
        let ear = Arc::new(Ear { pipe, unread: Mutex::default() });
        let shared = Arc::clone(&ear);
        let listening = thread::Builder::new().name("successor".to_owned()).spawn(move || {
            listen(&shared, &hung_up, report);
        });
        match listening {
            Ok(thread) => {
                let listening = Listening { thread: Some(thread), hang_up: Some(hang_up) };
                Ok(Successor { child, ear, _listening: listening, said: None })
            }
            Err(error) => Err(abandon(child, error)),
        }
    }

    /// Its process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next thing the successor has said, if there is one.
    pub(crate) fn hear(&mut self) -> Option<Heard> {
        let heard = self.ear.next();
        if let Some(Heard::Word(word)) = heard {
            self.said = Some(word);
        }
        heard
    }

    /// The last word the successor has said.
    pub(crate) fn said(&self) -> Option<Word> {
        self.said
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Closes the pipe, from which it knows that this process does not answer for it any more. What is left
    /// is a child that has to be waited for.
    pub(crate) fn retire(self) -> Child {
        self.child
    }

    /// Waits for the end of the process, and tells how it ended.
    pub(crate) fn reap(mut self) -> End {
        End::ByItself(wait(&mut self.child))
    }

    /// Ends a successor that is not ready: kills and reaps it, and tells how it ended.
    ///
    /// It may become ready in this very moment and accept a connection, which must not be killed. So it
    /// is frozen first. If it has said that it is ready by then, it lives on, and comes back as `Err`. If
    /// it has not, it cannot have accepted anything, because it says so before it accepts, and it will not
    /// run again.
    pub(crate) fn end_unless_ready(mut self) -> Result<End, Successor> {
        let pid = Pid::from_raw(self.child.id() as i32);
        if self.has_ended() {
            return Ok(self.reap());
        }
        // It has not been reaped, so the ID is still its own.
        let _ = kill(pid, Signal::SIGSTOP);
        let frozen_or_ended = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let waited = loop {
            match waitid(Id::Pid(pid), frozen_or_ended) {
                Err(Errno::EINTR) => {}
                waited => break waited,
            }
        };
        if self.hear() == Some(Heard::Word(Word::Ready)) {
            let _ = kill(pid, Signal::SIGCONT);
            return Err(self);
        }
        if !matches!(waited, Ok(WaitStatus::Stopped(..))) {
            return Ok(self.reap());
        }
        let _ = self.child.kill();
        wait(&mut self.child);
        Ok(End::Killed)
    }
}

/// How a successor has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// Without our doing.
    ByItself(ExitStatus),
    /// By us.
    Killed,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Killed => write!(f, "was killed"),
            End::ByItself(status) => match (status.code(), status.signal().map(Signal::try_from)) {
                (Some(code), _) => write!(f, "exited with status {code}"),
                (None, Some(Ok(signal))) => write!(f, "was killed by {signal}"),
                _ => write!(f, "ended with {status}"),
            },
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hang_up = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    // wait(2) can only fail if somebody else has reaped our child.
    child.wait().unwrap_or_default()
}

/// A child that nobody can listen to is as good as none.
fn abandon(mut child: Child, error: io::Error) -> io::Error {
    let _ = child.kill();
    wait(&mut child);
    error
}

/// Starts the program. Nothing of the preparations is left when this returns: the child alone holds the
/// write end of the pipe, without which its end of file would never come.
fn spawn(
    program: &Program,
    sockets: &[BorrowedFd<'_>],
    pipe: PipeWriter,
    limit: Option<Limit>,
) -> io::Result<Child> {
    let count = sockets.len();
    let handed_over = sockets.iter().copied().chain([pipe.as_fd()]);
    let handed_over: Vec<OwnedFd> =
        handed_over.map(|each| descriptor::duplicate(count, each)).collect::<io::Result<_>>()?;
    let mut command = Command::new(&program.path);
    command.arg0(&program.name).args(&program.arguments);
    let prepare = move || {
        place(&handed_over)?;
        limit.map_or(Ok(()), Limit::restore)
    };
    // SAFETY: `prepare` runs in the child between fork(2) and execve(2), where only what is
    // async-signal-safe may be called: it makes some system calls, and neither allocates nor locks.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(prepare);
    }
    let _blocked = signals::block()?;
    retry_while_busy(|| command.spawn())
}

/// Puts the descriptors where the successor expects them, open across execve(2), and closes the rest.
///
/// The sources lie above the targets, so none overwrites another's source, and none is the no-op on equal
/// numbers that would leave close-on-exec set.
#[allow(unsafe_code)]
fn place(sources: &[OwnedFd]) -> io::Result<()> {
    let mut target = descriptor::FIRST;
    for source in sources {
        // SAFETY: this changes the descriptor table of the child, which is a copy and its own; what the
        // target may have been is of no use to it, because it has kept these numbers from its own pipe.
        if unsafe { libc::dup2(source.as_raw_fd(), target) } == -1 {
            return Err(io::Error::last_os_error());
        }
        target += 1;
    }
    // SAFETY: this closes nothing yet. It marks, to be closed by execve(2), what the embedding program has
    // not marked. Kernels before 5.11 do not know it: there, that is inherited, as by any program.
    unsafe {
        let (first, last) = (target as libc::c_uint, libc::c_uint::MAX);
        libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
}

/// A file that was written a moment ago may be open for writing still, in a child that another process
/// has forked and that has not reached its own execve(2): ETXTBSY, over in a moment.
fn retry_while_busy<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const PAUSE: Duration = Duration::from_millis(5);
    const RETRIES: u32 = 20;
    for _ in 0..RETRIES {
        match start() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(PAUSE),
            result => return result,
        }
    }
    start()
}

/// Waits for words and reports them, until the pipe ends or the other side hangs up.
fn listen(ear: &Ear, hung_up: &PipeReader, report: impl Fn()) {
    loop {
        let mut events = [
            PollFd::new(ear.pipe.as_fd(), PollFlags::POLLIN),
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

/// The read end of the pipe. It is shared: the thread waits at it, but whoever has to know at once whether
/// there is a word looks himself.
struct Ear {
    pipe: PipeReader,
    unread: Mutex<Unread>,
}

/// What has come out of the pipe and was not understood yet.
#[derive(Default)]
struct Unread {
    bytes: Vec<u8>,
    ended: bool,
}

impl Ear {
    /// More than the longest word; a longer line is nonsense, and nothing after it is of interest.
    const LONGEST_LINE: usize = 64;

    /// Takes in what the pipe holds.
    fn read(&self) -> MutexGuard<'_, Unread> {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; Self::LONGEST_LINE];
        while !unread.ended && unread.bytes.len() <= Self::LONGEST_LINE {
            match (&self.pipe).read(&mut bytes) {
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

    fn next(&self) -> Option<Heard> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_file_is_tried_again() {
        let mut attempts = 0;
        let result = retry_while_busy(|| {
            attempts += 1;
            if attempts < 3 { Err(io::ErrorKind::ExecutableFileBusy.into()) } else { Ok("started") }
        });
        assert_eq!((result.unwrap(), attempts), ("started", 3));

        let mut attempts = 0;
        let result: io::Result<()> = retry_while_busy(|| {
            attempts += 1;
            Err(io::ErrorKind::NotFound.into())
        });
        assert_eq!((result.unwrap_err().kind(), attempts), (io::ErrorKind::NotFound, 1));
    }
}
