//! Reading and writing on a connection, within time limits.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::POLLRDHUP;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::Connection;
use crate::counters::Counters;
use crate::deadline::{after, later, poll_until, readable};
use crate::server::pace::Pace;

/// The most time for the head of a request if that is to make room for another connection.
const SHORTENED: Duration = Duration::from_secs(1);

/// The time for a client to close its side of a connection after its last response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

impl Connection {
    pub(crate) fn has_unread(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.descriptor(), &mut [0], flags).is_ok_and(|count| count > 0)
    }

    /// Reads what has come, or waits for input until the deadline, which is an error; 0 is the end of the
    /// input.
    pub(crate) fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.receive(buffer, || self.wait_for(PollFlags::POLLIN, deadline))
    }

    /// The same for the head of a request, which began at that time and may take as long as `patience`, but no
    /// longer than a tenth of that or a second if it is to make room for another connection.
    pub(crate) fn read_head(
        &self,
        buffer: &mut [u8],
        begin: Instant,
        patience: Duration,
    ) -> io::Result<usize> {
        let (deadline, short) = (later(begin, patience), SHORTENED.min(patience / 10));
        let mut look = later(begin, short);
        self.receive(buffer, || {
            while look < deadline {
                if self.wait_for(PollFlags::POLLIN, look).is_ok() {
                    return Ok(());
                }
                if self.makes_room() {
                    self.registry.count(Counters { refused: 1, ..Counters::default() });
                    return Err(io::ErrorKind::TimedOut.into());
                }
                look = after(short);
            }
            self.wait_for(PollFlags::POLLIN, deadline)
        })
    }

    /// The same for a body.
    pub(crate) fn read_paced(&self, buffer: &mut [u8], pace: &mut Pace) -> io::Result<usize> {
        let wait = || pace.wait(|deadline| self.wait_for(PollFlags::POLLIN, deadline));
        self.receive(buffer, wait).inspect(|&count| pace.count(count))
    }

    /// Reads what has come, and fails if nothing has.
    pub(crate) fn read_available(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.descriptor(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Reads what has come of a line, and nothing behind it.
    pub(crate) fn read_rest_of_line(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match recv(self.descriptor(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            peeked => {
                let peeked = &mut buffer[..peeked?];
                let end = peeked.iter().position(|&byte| byte == b'\n').map_or(peeked.len(), |end| end + 1);
                self.read_available(&mut peeked[..end])
            }
        }
    }

    fn receive(&self, buffer: &mut [u8], mut wait: impl FnMut() -> io::Result<()>) -> io::Result<usize> {
        loop {
            match recv(self.descriptor(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN | Errno::EINTR) => wait()?,
                result => return Ok(result?),
            }
        }
    }

    /// Writes everything; it is an error when the client takes it too slowly.
    pub(crate) fn write_all(&self, mut bytes: &[u8], pace: &mut Pace) -> io::Result<()> {
        // Not SIGPIPE, which an embedding program may have set back to its deadly default.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !bytes.is_empty() {
            match send(self.descriptor(), bytes, flags) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    pace.count(count);
                    pace.begin_step();
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    pace.wait(|deadline| self.wait_for(PollFlags::POLLOUT, deadline))?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits until the client has ended its side, or until the deadline, and returns whether it has.
    pub(crate) fn wait_for_hangup(&self, deadline: Instant) -> bool {
        poll_until(&mut [self.hangup()], Some(deadline))
    }

    /// The same, but a drain ends the wait as well.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        poll_until(&mut [self.hangup(), readable(&self.registry.drain_begun)], Some(deadline))
    }

    fn hangup(&self) -> PollFd<'_> {
        // The input of an evicted connection has been ended here: then it is too early to tell.
        let end_of_input = if self.is_evicted() { 0 } else { POLLRDHUP };
        PollFd::new(self.socket.as_fd(), PollFlags::from_bits_retain(end_of_input))
    }

    /// Closes the write side, and reads until the client has closed its own, for a while.
    ///
    /// A plain close with unread input, or with input still to come, makes the kernel send a reset, which
    /// can destroy the response before the client has read it (RFC 9112 section 9.6).
    // Not inlined, or its buffer lies on the stack of every idle connection.
    #[inline(never)]
    pub(crate) fn linger(&self) {
        let deadline = after(LINGER_TIMEOUT);
        if shutdown(self.descriptor(), Shutdown::Write).is_err() {
            return;
        }
        self.become_lingering();
        self.registry.offer_capacity();
        let mut discarded = [0; 4096];
        while Instant::now() < deadline && self.read(&mut discarded, deadline).is_ok_and(|count| count > 0) {}
    }

    fn wait_for(&self, what: PollFlags, deadline: Instant) -> io::Result<()> {
        let has_come = poll_until(&mut [PollFd::new(self.socket.as_fd(), what)], Some(deadline));
        if has_come { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}
