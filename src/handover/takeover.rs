//! The listening sockets for a process that is not a child, through a connection that it has made.
//!
//! The process asks with the line `takeover`, and gets the greeting of a link with the sockets (unix(7),
//! SCM_RIGHTS), or a line with the reason why not. From then on the connection is the link between the two.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::link::{GREETING, send_all};
use super::predecessor::Predecessor;
use super::{descriptors, moving};

/// The request.
pub(crate) const REQUEST: &str = "takeover";

/// As many as one message takes; unix(7), SCM_RIGHTS.
const MOST_DESCRIPTORS: usize = 253;

/// Sends the greeting, with the listening sockets and what a successor finds behind them.
pub(crate) fn grant(
    connection: &UnixStream,
    greeting: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(greeting)], &rights, flags, None)?;
    Ok(())
}

/// Asks the process at the other end of the connection for its listening sockets. The timeouts of the
/// connection apply.
///
/// # Errors
///
/// The reason why it refuses, or what recvmsg(2) said.
pub(crate) fn ask(connection: UnixStream) -> io::Result<(Predecessor, Vec<OwnedFd>)> {
    send_all(&connection, format!("{REQUEST}\n").as_bytes())?;
    // No more than the greeting, because what follows it belongs to the link.
    let mut answer = [0; GREETING.len()];
    let mut space = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut answer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("not all of its sockets could be received: too many open files"));
    }
    let mut sockets = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            sockets.extend(descriptors::received(numbers));
        }
    }
    let count = message.bytes;
    if answer[..count] == *GREETING {
        // None of the sockets before is of this type, but one that has been handed on by name may be.
        let moving = sockets.iter().position(|socket| moving::is_end(socket.as_fd()));
        let mut behind = sockets.split_off(moving.unwrap_or(sockets.len())).into_iter();
        let predecessor = Predecessor::new(connection, behind.next(), behind)?;
        return Ok((predecessor, sockets));
    }
    let mut text = answer[..count].to_vec();
    connection.take(1024).read_to_end(&mut text)?;
    match String::from_utf8_lossy(&text).trim_end() {
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        answer => Err(io::Error::other(answer.to_owned())),
    }
}
