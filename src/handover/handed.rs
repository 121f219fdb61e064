//! What a candidate gets, and the greeting that says what it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::link::{GREETING, Link, Word};
use super::moving::Mover;
use super::named::Named;
use crate::unix_file::UnixFile;

/// How many files of sockets go with the greeting. Those beyond are not removed at the end.
const MOST_FILES: usize = 64;

/// What a candidate gets.
pub(crate) struct Handed<'a> {
    /// The listening sockets, each with its file if that is to be removed with it.
    pub(crate) sockets: Vec<(BorrowedFd<'a>, Option<UnixFile>)>,
    /// What moves connections to it, and its end of that.
    pub(crate) mover: Mover,
    pub(crate) moving: OwnedFd,
    /// The link of this process to its own predecessor, if that is there.
    pub(crate) above: Option<&'a Link>,
    pub(crate) named: &'a Named,
    /// The file with the state.
    pub(crate) state: Option<OwnedFd>,
}

impl Handed<'_> {
    /// The greeting, with a line for each descriptor that need not be there, in their order.
    pub(super) fn greeting(&self) -> Vec<u8> {
        let files = self.sockets.iter().enumerate();
        let files = files.filter_map(|(socket, (_, file))| Some(Word::File { socket, file: (*file)? }));
        let above = self.above.map(|_| Word::Above);
        let named = self.named.iter().map(|(name, _)| Word::Named(name.to_owned()));
        let state = self.state.as_ref().map(|_| Word::State);
        let words = above.into_iter().chain(files.take(MOST_FILES)).chain(named).chain(state);
        words.fold(GREETING.to_vec(), |greeting, word| [greeting, format!("{word}\n").into()].concat())
    }

    /// In the order in which a candidate finds them.
    pub(super) fn descriptors<'a>(&'a self, link: Option<BorrowedFd<'a>>) -> Vec<BorrowedFd<'a>> {
        let sockets = self.sockets.iter().map(|(socket, _)| *socket);
        let behind = link.into_iter().chain([self.moving.as_fd()]).chain(self.above.map(AsFd::as_fd));
        let named = self.named.iter().map(|(_, descriptor)| descriptor);
        sockets.chain(behind).chain(named).chain(self.state.as_ref().map(AsFd::as_fd)).collect()
    }
}
