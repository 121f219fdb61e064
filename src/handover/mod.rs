//! The mechanism: how one process hands its listening sockets over to the next.
//!
//! A successor finds standard input, output and error at descriptors 0 to 2, the listening sockets from 3 on,
//! in the order of their addresses, and behind them one end of a Unix stream socket, the *link*, and of
//! another socket, through which open connections are [moved](moving). Behind that, if its predecessor has a
//! predecessor, lies the link between those two. Then come the descriptors that the program hands on [by
//! name](named), at most 64, and, if it hands on a [state], a file that contains it. Nothing else is passed on.
//!
//! The first line on a link is `handover 1`, the greeting, which is written before the program is executed, with
//! these lines where they apply, in this order: `above`, `file`, `named`, `state`. Each `above`, `named` and `state`
//! stands for the next of the descriptors behind that of moving. Each further line is a word:
//!
//! | from | line | meaning |
//! |---|---|---|
//! | predecessor | `above` | The link to its own predecessor is passed. |
//! | predecessor | `file N DEVICE INODE` | The file of the Nth socket, from 0 on, which a process of this line has made, and the last one removes. A path may lead to another file meanwhile. |
//! | predecessor | `named NAME` | The program has handed on a descriptor under this name: 1 to 64 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`. |
//! | predecessor | `state` | A file from memfd_create(2) is passed with the state of the program, from its first byte on, 64 KiB at most. It is sealed: F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE. |
//! | candidate | `without N` | It will not listen on the Nth socket, which it closes when it goes. |
//! | candidate | `ready`, `ready to overlap` | All that can fail has been done. It waits. |
//! | candidate | `failed REASON` | It leaves. |
//! | predecessor | `go N NAME=N…` | Accept connections, as the Nth process; this has been counted. |
//! | predecessor | `no REASON` | Leave, because another process serves. |
//! | successor | `serving` | It accepts connections, and is found in the places where clients look. |
//! | successor | `handed over` | Its place will not have to be taken: it has a successor of its own. |
//! | successor | `stopping` | Its place will not have to be taken: it has been told to stop. |
//!
//! Until `go` has come a candidate accepts nothing, so to kill it loses nothing. After `go` it is never
//! killed by its predecessor. If it dies without one of the last two words, the predecessor *takes back*: it
//! accepts again.
//!
//! The page man/handover.7 says all this byte by byte, with what is done when something else comes, so that a
//! program in another language can be either side.
//!
//! In a line of three processes the middle one can die in a handover, at any moment. Then either the first
//! takes back or the last serves. The link between the first and the middle one decides, because the last has
//! its end, too: it says `handed over` there, on behalf of the middle one. If that cannot be said any more,
//! the first has taken back, and says `no`, or is gone itself.
//!
//! A process that is not a child asks for the descriptors through the control socket, and gets them with the
//! greeting, in the same order, but for the link; see [`takeover`]. Its connection is the link.

/// The log target of the trace: each phase of a process, and each word that it says or hears. The tests compare
/// it to a model of the protocol.
pub(crate) const TRACE: &str = "handover::trace";

pub(crate) mod descriptors;
pub(crate) mod handed;
pub(crate) mod link;
pub(crate) mod moving;
pub(crate) mod named;
pub(crate) mod predecessor;
pub(crate) mod program;
pub(crate) mod spawn;
pub(crate) mod state;
pub(crate) mod successor;
pub(crate) mod takeover;
