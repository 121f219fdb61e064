//! Taking the listening sockets over from a process that is not the parent, through its control socket.
//!
//! The new process asks for them with the line `takeover`, and gets the line `ok` with the sockets
//! (unix(7), SCM_RIGHTS), or an error. From then on it says the words of any successor. But nobody can kill
//! it, so it waits for `go` behind its `ready`, and accepts connections only then; at `no` it gives up.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::handover::descriptors;

/// The request.
pub(crate) const REQUEST: &str = "takeover";
/// The answer with the sockets.
const GRANTED: &str = "ok";
/// Behind `ready`: connections may be accepted.
pub(crate) const GO: &str = "go";
/// At any time: it is over.
pub(crate) const NO: &str = "no";

/// More sockets than anybody listens on.
const MOST_SOCKETS: usize = 64;

/// Sends the sockets, with the line that says so.
pub(crate) fn send(connection: &UnixStream, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let line = format!("{GRANTED}\n");
    let rights = [ControlMessage::ScmRights(&numbers)];
    let text = [IoSlice::new(line.as_bytes())];
    sendmsg::<()>(connection.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Asks for the sockets of the process that serves a control socket; `None` if nobody does.
pub(crate) fn ask(path: &Path) -> io::Result<Option<(UnixStream, Vec<OwnedFd>)>> {
    let mut connection = match UnixStream::connect(path) {
        Ok(connection) => connection,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    connection.write_all(format!("{REQUEST}\n").as_bytes())?;

    let mut text = [0; 512];
    let mut space = cmsg_space!([RawFd; MOST_SOCKETS]);
    let mut sockets = Vec::new();
    let count = {
        let mut slices = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                sockets.extend(numbers.into_iter().map(descriptors::received));
            }
        }
        message.bytes
    };
    let answer = String::from_utf8_lossy(&text[..count]);
    match answer.trim_end() {
        GRANTED => Ok(Some((connection, sockets))),
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        answer => Err(io::Error::other(answer.to_owned())),
    }
}

/// Waits until connections may be accepted. If the other process ends before it says so, they may as well:
/// then nobody else does.
///
/// # Errors
///
/// The other process serves on.
pub(crate) fn wait_for_go(connection: impl Read) -> io::Result<()> {
    let mut line = String::new();
    match BufReader::new(connection).read_line(&mut line) {
        Ok(_) if line.trim_end() == NO => {
            Err(io::Error::other("the process that serves has given up waiting"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::wait_for_go;

    #[test]
    fn whoever_has_the_sockets_serves_unless_the_other_says_that_it_does() {
        assert!(wait_for_go(&b"go\n"[..]).is_ok());
        assert!(wait_for_go(&b"no\n"[..]).is_err());
        // It has died.
        assert!(wait_for_go(&b""[..]).is_ok());
    }
}
