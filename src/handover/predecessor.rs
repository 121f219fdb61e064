//! The process before this one, seen through the pipe behind the listening sockets.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};

use crate::handover::descriptors;
use crate::handover::link::Word;
use crate::handover::takeover;

/// The predecessor, while there may be one.
pub(crate) struct Predecessor {
    /// Only the end of the process closes it, because that is what its end of file tells the predecessor:
    /// one that hears it earlier kills this process, which may be about to say why it cannot serve.
    pipe: ManuallyDrop<File>,
    /// It has not started this process, and has to be waited for before connections are accepted.
    is_stranger: bool,
}

impl Predecessor {
    /// The predecessor at the other end of the descriptor behind so many sockets, or `None` if that is not
    /// the write end of a pipe: then something else has started this process, and waits for no word.
    pub(crate) fn inherited(sockets: usize) -> Option<Predecessor> {
        let descriptor = descriptors::inherited(descriptors::first_free(sockets) - 1)?;
        if is_write_end_of_pipe(&descriptor) {
            let pipe = ManuallyDrop::new(File::from(descriptor));
            return Some(Predecessor { pipe, is_stranger: false });
        }
        // It was handed to the program for a purpose of its own, so it is not ours to close.
        let _ = descriptor.into_raw_fd();
        None
    }

    /// The process that has handed its sockets over through this connection.
    pub(crate) fn connected(connection: UnixStream) -> Predecessor {
        let pipe = ManuallyDrop::new(File::from(OwnedFd::from(connection)));
        Predecessor { pipe, is_stranger: true }
    }

    /// Waits until it lets this process accept connections, which the one that has started this process
    /// does from the beginning.
    ///
    /// # Errors
    ///
    /// It serves on.
    pub(crate) fn wait_for_go(&self) -> io::Result<()> {
        if self.is_stranger { takeover::wait_for_go(&*self.pipe) } else { Ok(()) }
    }

    /// Whether it is there: whether anybody holds the other end of the pipe.
    pub(crate) fn is_there(&self) -> bool {
        let mut events = [PollFd::new(self.pipe.as_fd(), PollFlags::empty())];
        matches!(poll(&mut events, PollTimeout::ZERO), Ok(0))
    }

    /// Tells the predecessor; `false` if it is gone and nobody has heard it.
    pub(crate) fn tell(&mut self, word: Word) -> bool {
        self.pipe.write_all(format!("{}\n", word.line()).as_bytes()).is_ok()
    }
}

fn is_write_end_of_pipe(descriptor: &OwnedFd) -> bool {
    let is_pipe =
        fstat(descriptor).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits());
    let is_write_end = fcntl(descriptor, FcntlArg::F_GETFL)
        .is_ok_and(|flags| flags & OFlag::O_ACCMODE.bits() == OFlag::O_WRONLY.bits());
    is_pipe && is_write_end
}
