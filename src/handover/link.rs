//! What a successor tells its predecessor through descriptor 4: one word a line.
//!
//! The first word decides the handover. The later ones tell a successor that ends in good order from one
//! that dies: only after a death may the predecessor take the socket back.

/// A word from a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Everything is in place; the next thing it does is to accept connections.
    Ready,
    /// The same, and it wants its predecessor to go on accepting connections, too.
    ReadyToOverlap,
    /// It has handed the socket over to a successor of its own.
    HandedOver,
    /// It was told to stop.
    Stopping,
}

impl Word {
    const ALL: [Word; 4] = [Word::Ready, Word::ReadyToOverlap, Word::HandedOver, Word::Stopping];

    /// Whether whoever says it is about to accept connections, or does so.
    pub(crate) fn is_ready(self) -> bool {
        matches!(self, Word::Ready | Word::ReadyToOverlap)
    }

    /// The line that stands for the word, without its end.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Word::Ready => "ready",
            Word::ReadyToOverlap => "ready to overlap",
            Word::HandedOver => "handed over",
            Word::Stopping => "stopping",
        }
    }

    /// The word that a line, without its end, stands for.
    pub(crate) fn from_line(line: &[u8]) -> Option<Word> {
        Word::ALL.into_iter().find(|word| word.line().as_bytes() == line)
    }
}
