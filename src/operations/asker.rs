//! The client's side of the control socket: nothing is sent to a process of another user, and none is waited for
//! that shows no sign of life.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, UnixAddr, connect, getsockopt, sockopt};
use nix::unistd::geteuid;

use super::place::aside;
use crate::handover::link::send_all;
use crate::handover::predecessor::Predecessor;
use crate::handover::takeover;
use crate::unix_file::{connect_at_once, new_socket};

/// How long a process may show no sign of life.
const LIMIT: Duration = Duration::from_secs(5);

/// How long an answer is waited for, before the process is asked for a sign of life, and after that.
const PAUSE: Duration = Duration::from_secs(1);

/// A connection to the process that serves a control socket.
struct Asked {
    connection: UnixStream,
    pid: i32,
}

impl Asked {
    fn connect(path: &Path) -> io::Result<Asked> {
        let connection = UnixStream::from(new_socket(SockFlag::empty())?);
        connection.set_read_timeout(Some(LIMIT))?;
        connection.set_write_timeout(Some(LIMIT))?;
        let address = UnixAddr::new(path)?;
        while let Err(errno) = connect(connection.as_raw_fd(), &address) {
            match errno {
                Errno::EINTR => {}
                Errno::EAGAIN => {
                    let reason = format!("there has been no room in its queue for {} s", LIMIT.as_secs());
                    return Err(io::Error::new(ErrorKind::TimedOut, reason));
                }
                errno => return Err(errno.into()),
            }
        }
        // In a directory of another user, it can be a socket of another user, too.
        let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
        let (pid, user) = (peer.pid(), peer.uid());
        if user != 0 && user != geteuid().as_raw() {
            let reason = "is neither root nor that of this process; ask it as that user, with runuser(1)";
            let reason = format!("process {pid} listens there, whose user {user} {reason}");
            return Err(io::Error::new(ErrorKind::PermissionDenied, reason));
        }
        Ok(Asked { connection, pid })
    }

    fn send(&self, request: &str) -> io::Result<()> {
        send_all(&self.connection, format!("{request}\n").as_bytes())
    }

    /// Whether it shows a sign of life, on another connection: there, or aside if it has been succeeded.
    fn lives(&self, path: &Path) -> bool {
        let answers = |other: Asked| {
            other.connection.set_read_timeout(Some(LIMIT - 2 * PAUSE))?;
            other.send("status")?;
            (&other.connection).read(&mut [0])
        };
        let paths = [path.to_owned(), aside(path)];
        let mut others = paths.iter().filter_map(|path| Asked::connect(path).ok());
        let other = others.find(|other| other.pid == self.pid);
        other.map(answers).is_some_and(|read| read.is_ok_and(|count| count > 0))
    }
}

/// The process that serves a control socket, if that has room in its queue.
pub(crate) fn process_at(path: &Path) -> Option<i32> {
    getsockopt(&connect_at_once(path).ok()?, sockopt::PeerCredentials).ok().map(|peer| peer.pid())
}

/// Whether a process serves a control socket.
pub(super) fn is_served_by(path: &Path, pid: i32) -> bool {
    Asked::connect(path).is_ok_and(|asked| asked.pid == pid)
}

fn silent(pid: i32) -> io::Error {
    let reason = format!("process {pid} has not answered within {} s", LIMIT.as_secs());
    io::Error::new(ErrorKind::TimedOut, reason)
}

/// Asks the process that serves a control socket for `status`, `restart`, `reload`, `stop` or `wait`, and waits
/// for its answer, which is one line: it begins with `error:` if the request was not fulfilled. The answer to
/// `restart` comes when it is decided whether the successor serves, that to `wait` when no handover is
/// under way and no process of one drains.
///
/// # Errors
///
/// No process answers on the socket, or shows another sign of life for five seconds, or the connection ends
/// without an answer. Nothing is sent to a process whose user is neither root nor that of this process.
pub fn ask(path: &Path, request: &str) -> io::Result<String> {
    let error =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot ask on {}: {error}", path.display()));
    answer(path, request).map_err(error)
}

fn answer(path: &Path, request: &str) -> io::Result<String> {
    let asked = Asked::connect(path)?;
    asked.connection.set_read_timeout(Some(PAUSE))?;
    asked.send(request)?;
    let mut answer = Vec::new();
    let mut lives = true;
    while let Err(error) = (&asked.connection).read_to_end(&mut answer) {
        if error.kind() != ErrorKind::WouldBlock {
            return Err(error);
        }
        if !lives {
            return Err(silent(asked.pid));
        }
        // What it does may take long. If it has been succeeded just now, there is a moment left for its answer.
        lives = asked.lives(path);
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.strip_suffix('\n').map(str::to_owned);
    line.ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "the connection has ended without an answer"))
}

/// Asks the process that serves a control socket for its listening sockets; `None` if there is none.
pub(crate) fn take_over(path: &Path) -> io::Result<Option<(Predecessor, Vec<OwnedFd>)>> {
    match Asked::connect(path) {
        Ok(Asked { connection, pid }) => match takeover::ask(connection) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(silent(pid)),
            taken => taken.map(Some),
        },
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}
