//! The process before this one, as its successor sees it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::iter;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};

use super::link::{Ancestry, GREETING, Link, Mode, Word};
use super::named::Named;
use super::{descriptors, moving, state};
use crate::unix_file::UnixFile;

/// How long a predecessor may take to say `go`. It is a matter of microseconds, unless the process is
/// stopped.
const GO_TIMEOUT: Duration = Duration::from_secs(60);

/// The predecessor, while there is one.
#[derive(Debug)]
pub(crate) struct Predecessor {
    link: Link,
    /// The socket through which connections are moved; a predecessor may know none.
    moving: Option<OwnedFd>,
    /// The predecessor's link to its own predecessor, which takes back if this one dies before it says `go`.
    above: Option<Link>,
    /// By the indices of their sockets, the files that it or a process before it has made.
    files: HashMap<usize, UnixFile>,
    named: Named,
    state: Option<Vec<u8>>,
    is_parent: bool,
}

impl Predecessor {
    /// The predecessor that has started this process, if the descriptor behind so many sockets is a link. If
    /// it is not, something else has started this process.
    pub(crate) fn inherited(sockets: usize) -> io::Result<Option<Predecessor>> {
        let inherited = descriptors::inherited(descriptors::number(sockets), Link::is_behind);
        let Some(mut socket) = inherited.map(UnixStream::from) else { return Ok(None) };
        socket.read_exact(&mut [0; GREETING.len()])?;
        let moving = descriptors::inherited(descriptors::number(sockets + 1), moving::is_end);
        let mut numbers = (sockets + 1 + usize::from(moving.is_some())..).map(descriptors::number);
        let others = iter::from_fn(|| descriptors::inherited(numbers.next()?, |_| true));
        let predecessor = Predecessor::new(socket, moving, others)?;
        Ok(Some(Predecessor { is_parent: true, ..predecessor }))
    }

    /// The process at the other end of a connection on which the greeting has come, with the other descriptors
    /// that it has passed.
    pub(crate) fn new(
        connection: UnixStream,
        moving: Option<OwnedFd>,
        others: impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Predecessor> {
        let (files, named, state) = (HashMap::new(), Named::default(), None);
        let link = Link::new(connection)?;
        let mut predecessor =
            Predecessor { link, moving, above: None, files, named, state, is_parent: false };
        match predecessor.hear_greeting(others) {
            Ok(()) => Ok(predecessor),
            Err(error) => {
                predecessor.say(&Word::Failed(error.to_string()));
                Err(error)
            }
        }
    }

    fn hear_greeting(&mut self, mut others: impl Iterator<Item = OwnedFd>) -> io::Result<()> {
        while let Some(word) = self.link.hear_greeting() {
            let mut next =
                || others.next().ok_or_else(|| error(format!("no descriptor has come for \"{word}\"")));
            match &word {
                Word::File { socket, file } => drop(self.files.insert(*socket, *file)),
                Word::Above => self.above = Some(Link::new(next()?.into())?),
                Word::Named(name) => self.named.put(name, next()?).map_err(error)?,
                Word::State => self.state = Some(state::read(next()?)?),
                _ => return Err(error(format!("its greeting says \"{word}\""))),
            }
        }
        Ok(())
    }

    /// Whether it has started this process, so that no supervisor has.
    pub(crate) fn is_parent(&self) -> bool {
        self.is_parent
    }

    /// How many descriptors it takes until it has ended.
    pub(crate) fn descriptors(&self) -> usize {
        1 + self.moving.iter().count() + self.above.iter().count()
    }

    /// Its process ID, as it is seen from here: 0 if it lies in a namespace where it cannot be seen.
    pub(crate) fn pid(&self) -> i32 {
        getsockopt(&self.link, sockopt::PeerCredentials).map_or(0, |peer| peer.pid())
    }

    /// The file of a socket, if this line of processes has made it.
    pub(crate) fn file(&self, socket: usize) -> Option<UnixFile> {
        self.files.get(&socket).copied()
    }

    /// What the program has handed on: descriptors by name, and its state.
    pub(crate) fn handed_on(&mut self) -> (Named, Option<Vec<u8>>) {
        (mem::take(&mut self.named), self.state.take())
    }

    /// Says that this process is ready, without these sockets, and waits until it may accept connections;
    /// returns what came before, if the predecessor has lived to say it.
    ///
    /// # Errors
    ///
    /// Why it may not: another process serves.
    pub(crate) fn wait_for_go(
        &mut self,
        ready: Mode,
        without: impl Iterator<Item = usize>,
    ) -> Result<Option<Ancestry>, String> {
        for socket in without {
            self.link.say(&Word::Without(socket));
        }
        self.link.say(&Word::Ready(ready));
        let deadline = Instant::now() + GO_TIMEOUT;
        let mut above = self.above.take();
        let mut may_serve = || above.as_mut().is_none_or(|above| inherit(above, deadline));
        loop {
            match self.link.hear() {
                None if self.link.wait(deadline) => {}
                None => return Err(format!("it has not said go within {} s", GO_TIMEOUT.as_secs())),
                Some(Word::Go(ancestry)) if may_serve() => return Ok(Some(ancestry)),
                Some(Word::End) if may_serve() => return Ok(None),
                Some(Word::Go(_) | Word::End) => {
                    return Err("it has died, and its own predecessor serves".to_owned());
                }
                Some(word) => return Err(format!("it said {word}")),
            }
        }
    }

    /// The socket through which connections are moved.
    pub(crate) fn moving(&mut self) -> Option<OwnedFd> {
        self.moving.take()
    }

    /// Says a word; `false` if the predecessor will never read it, because it has left.
    pub(crate) fn say(&self, word: &Word) -> bool {
        self.link.say(word)
    }

    /// Whether it is there, or has at least not ended this link.
    pub(crate) fn is_there(&mut self) -> bool {
        while self.link.hear().is_some_and(|word| word != Word::End) {}
        self.link.is_open()
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }
}

fn error(reason: String) -> io::Error {
    io::Error::other(reason)
}

/// Whether this process may serve in the place of its predecessor. The link between that and its own
/// predecessor decides: either that one hears that it is succeeded, or it has closed the link for words,
/// because it takes back, which it says, or because it leaves.
fn inherit(above: &mut Link, deadline: Instant) -> bool {
    above.say(&Word::HandedOver)
        || loop {
            match above.hear() {
                None if above.wait(deadline) => {}
                None | Some(Word::No(_)) => break false,
                Some(Word::End) => break true,
                Some(_) => {}
            }
        }
}
