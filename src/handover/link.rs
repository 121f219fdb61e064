//! The link between a predecessor and its successor: a Unix stream socket, on which each line is a word.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::TRACE;
use super::named::is_name;
use crate::counters::Counters;
use crate::deadline::{poll_until, readable, uninterrupted};
use crate::unix_file::UnixFile;

/// The first line of every link, written before the successor runs. A descriptor without it is no link.
pub(crate) const GREETING: &[u8] = b"handover 1\n";

/// The longest word that is said, with its reason.
const LONGEST_LINE: usize = 2048;

/// More than that, and than the longest greeting. What follows is of no interest.
const MOST_UNHEARD: usize = 16 << 10;

/// What comes on a link after the greeting; `handover/mod.rs` says what each word means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Above,
    File {
        socket: usize,
        file: UnixFile,
    },
    Named(String),
    State,
    Go(Ancestry),
    No(String),
    Without(usize),
    Ready(Mode),
    Failed(String),
    Serving,
    HandedOver,
    Stopping,
    /// A line that is no word.
    Other(String),
    /// Nothing more will come: the peer has closed its end, or has ended.
    End,
}

/// What came before a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ancestry {
    /// How many processes there have been, with this one.
    pub(crate) generation: u64,
    /// What they have counted.
    pub(crate) counts: Counters,
}

impl Ancestry {
    /// That of a process whose predecessor has died without a word.
    pub(crate) fn unknown() -> Ancestry {
        Ancestry { generation: 2, counts: Counters { handovers: 1, ..Counters::default() } }
    }
}

/// Which process accepts connections after a handover: the successor, or both until an operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Alone,
    Overlap,
}

impl Word {
    fn from_line(line: &str) -> Word {
        let file = |numbers: &str| {
            let mut numbers = numbers.split(' ').map_while(|number| number.parse().ok());
            let socket = usize::try_from(numbers.next()?).ok()?;
            Some(Word::File { socket, file: UnixFile { device: numbers.next()?, inode: numbers.next()? } })
        };
        match (line, line.split_once(' ').unwrap_or_default()) {
            ("above", _) => Word::Above,
            (_, ("file", numbers)) => file(numbers).unwrap_or(Word::Other(line.to_owned())),
            ("state", _) => Word::State,
            (_, ("named", name)) if is_name(name) => Word::Named(name.to_owned()),
            (_, ("without", socket)) => {
                socket.parse().map_or_else(|_| Word::Other(line.to_owned()), Word::Without)
            }
            ("ready", _) => Word::Ready(Mode::Alone),
            ("ready to overlap", _) => Word::Ready(Mode::Overlap),
            ("serving", _) => Word::Serving,
            ("handed over", _) => Word::HandedOver,
            ("stopping", _) => Word::Stopping,
            (_, ("go", number)) => {
                let (generation, counts) = number.split_once(' ').unwrap_or((number, ""));
                let go = |generation| Word::Go(Ancestry { generation, counts: Counters::from_words(counts) });
                generation.parse().map_or(Word::Other(line.to_owned()), go)
            }
            (_, ("no", reason)) => Word::No(reason.to_owned()),
            (_, ("failed", reason)) => Word::Failed(reason.to_owned()),
            _ => Word::Other(line.to_owned()),
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Above => write!(f, "above"),
            Word::File { socket, file: UnixFile { device, inode } } => {
                write!(f, "file {socket} {device} {inode}")
            }
            Word::State => write!(f, "state"),
            Word::Named(name) => write!(f, "named {name}"),
            Word::Go(Ancestry { generation, counts }) => write!(f, "go {generation} {counts}"),
            Word::No(reason) => write!(f, "no {reason}"),
            Word::Without(socket) => write!(f, "without {socket}"),
            Word::Ready(Mode::Alone) => write!(f, "ready"),
            Word::Ready(Mode::Overlap) => write!(f, "ready to overlap"),
            Word::Failed(reason) => write!(f, "failed {reason}"),
            Word::Serving => write!(f, "serving"),
            Word::HandedOver => write!(f, "handed over"),
            Word::Stopping => write!(f, "stopping"),
            Word::Other(line) => f.write_str(line),
            Word::End => Ok(()),
        }
    }
}

/// One end of a link.
#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixStream,
    unheard: Vec<u8>,
    ended: bool,
}

impl Link {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Link> {
        socket.set_nonblocking(true)?;
        Ok(Link { socket, unheard: Vec::new(), ended: false })
    }

    /// Whether a descriptor is an end of a link on which the greeting waits.
    pub(crate) fn is_behind(descriptor: BorrowedFd<'_>) -> bool {
        let mut line = [0; GREETING.len()];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(descriptor.as_raw_fd(), &mut line, flags) == Ok(GREETING.len()) && line == GREETING
    }

    /// Says a word, without ever waiting; `false` if it was not sent: then the peer will never hear it.
    pub(crate) fn say(&self, word: &Word) -> bool {
        let mut line = word.to_string().replace(char::is_control, " ").into_bytes();
        line.truncate(LONGEST_LINE);
        line.push(b'\n');
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = uninterrupted(|| send(self.socket.as_raw_fd(), &line, flags)) == Ok(line.len());
        if sent {
            log::debug!(target: TRACE, "trace: says {word}");
        }
        sent
    }

    /// The next line of the greeting, which has come as a whole. The one word that may have come by then, before this
    /// process has said any, is left to be heard.
    pub(crate) fn hear_greeting(&mut self) -> Option<Word> {
        self.read();
        let is_greeting = self.unheard.contains(&b'\n') && !self.unheard.starts_with(b"no ");
        if is_greeting { self.hear() } else { None }
    }

    /// The next word that has come, if there is one. The end comes again and again.
    pub(crate) fn hear(&mut self) -> Option<Word> {
        self.read();
        if let Some(end) = self.unheard.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.unheard.drain(..=end).take(end).collect();
            let word = Word::from_line(&String::from_utf8_lossy(&line).replace(char::is_control, " "));
            log::debug!(target: TRACE, "trace: hears {word}");
            return Some(word);
        }
        if self.ended && !self.unheard.is_empty() {
            let half = std::mem::take(&mut self.unheard);
            return Some(Word::Other(half[..half.len().min(64)].escape_ascii().to_string()));
        }
        self.ended.then_some(Word::End)
    }

    fn read(&mut self) {
        let mut bytes = [0; 256];
        while !self.ended {
            match uninterrupted(|| recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)) {
                Err(Errno::EAGAIN) => return,
                Ok(0) | Err(_) => self.ended = true,
                Ok(count) => {
                    self.unheard.extend_from_slice(&bytes[..count]);
                    self.ended = self.unheard.len() > MOST_UNHEARD;
                }
            }
        }
    }

    /// Whether there is something to hear.
    pub(crate) fn has_come(&self) -> bool {
        self.unheard.contains(&b'\n') || self.wait(Instant::now())
    }

    /// Waits until something comes; `false` if nothing has until the deadline.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        poll_until(&mut [readable(self)], Some(deadline))
    }

    /// Whether something may still come, so that it makes sense to wait for it.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended
    }

    /// Takes no more words: what the peer says from now on fails there. What it has said is still to be
    /// heard.
    pub(crate) fn close_for_words(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
    }
}

/// Sends everything, within the timeout of the socket. If the peer has gone there is no SIGPIPE, as std 1.89
/// raises it, which kills an embedding program that has set it back to its default.
pub(crate) fn send_all(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[uninterrupted(|| send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL))?..];
    }
    Ok(())
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
