//! The socket through which connections are moved, and its messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, getsockopt,
    recvmsg, sendmsg, setsockopt, shutdown, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::counters::Counters;
use crate::deadline::uninterrupted;
use crate::handover::descriptors;

/// The longest message, in bytes.
const LONGEST_MESSAGE: usize = 8 * 1024;

/// The two ends of a new socket.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Whether a descriptor is an end of such a socket.
pub(crate) fn is_end(descriptor: BorrowedFd<'_>) -> bool {
    getsockopt(&descriptor, sockopt::SockType) == Ok(SockType::SeqPacket)
}

/// What has come.
pub(super) enum Message {
    Move(RawFd, Vec<u8>, Option<OwnedFd>),
    Answer(RawFd, bool),
    Kept,
    Counted(Counters),
    /// What is no message of this protocol.
    Other,
    /// Nothing, until now.
    None,
    /// There will not be another one.
    End,
}

#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    is_shut: AtomicBool,
}

impl Socket {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Socket> {
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Socket { socket, is_shut: AtomicBool::new(false) })
    }

    /// Sends a message, without ever waiting.
    pub(super) fn say(&self, message: impl AsRef<[u8]>, numbers: &[RawFd]) -> nix::Result<()> {
        let rights = [ControlMessage::ScmRights(numbers)];
        let rights = if numbers.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let bytes = [IoSlice::new(message.as_ref())];
        uninterrupted(|| sendmsg::<()>(self.socket.as_raw_fd(), &bytes, rights, flags, None)).map(drop)
    }

    /// Waits for the next message, for a second at most.
    pub(super) fn hear(&self) -> Message {
        let mut buffer = [0; LONGEST_MESSAGE];
        let mut space = cmsg_space!(RawFd);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                // The other process has died, and has not read all: that is an error before what it has said.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Message::None,
                Err(_) => return Message::End,
                Ok(message) => break message,
            }
        };
        // It is missing if this process has too many open files.
        let socket = message.cmsgs().into_iter().flatten().find_map(|control| match control {
            ControlMessageOwned::ScmRights(numbers) => descriptors::received(numbers).last(),
            _ => None,
        });
        // Nor is a connection any good of which something else is.
        let socket = socket.filter(|_| !message.flags.contains(MsgFlags::MSG_TRUNC));
        let count = message.bytes;
        if let Some(counts) = buffer[..count].strip_prefix(b"counted ") {
            return Message::Counted(Counters::from_words(&String::from_utf8_lossy(counts)));
        }
        let mut parts = buffer[..count].splitn(3, |&byte| byte == b' ');
        let (word, number) = (parts.next().unwrap_or_default(), parts.next().map(str::from_utf8));
        match (word, number.map(|number| number.unwrap_or_default().parse()), parts.next()) {
            (b"move", Some(Ok(number)), Some(line)) => Message::Move(number, line.to_owned(), socket),
            (b"took", Some(Ok(number)), None) => Message::Answer(number, true),
            (b"refused", Some(Ok(number)), None) => Message::Answer(number, false),
            (b"kept", None, None) => Message::Kept,
            (b"", None, None) => Message::End,
            _ => Message::Other,
        }
    }

    /// Whether a side of it has been shut here.
    pub(super) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::SeqCst)
    }

    pub(super) fn shut(&self, how: Shutdown) {
        self.is_shut.store(true, Ordering::SeqCst);
        let _ = shutdown(self.socket.as_raw_fd(), how);
    }
}
