//! A small synchronous HTTP server that is replaced by a new version of itself while it runs, without
//! refusing, dropping or resetting one request.
//!
//! A program hands [`serve`] its [`Options`] and a handler, and can from then on be replaced with
//! `kill -USR2` and stopped with `kill -INT`:
//!
//! ```no_run
#![doc = include_str!("../examples/hello.rs")]
//! ```
//!
//! [`serve()`] is all of it. A program that has something of its own to prepare, or to know, [binds](Server::bind) a
//! [`Server`] first, and serves then; its [`Handle`] stops and replaces the server from any thread, reports its
//! [`Status`], and lets a background job run in exactly one process at a time. `examples/job.rs` does that.
//!
//! # How a process is replaced
//!
//! The listening sockets outlive the processes. A process that receives SIGUSR2 starts the program again, the
//! way it was invoked itself, with the sockets from descriptor 3 on and, behind them, one end of a *link*, a
//! Unix socket between the two. The new process is a *candidate*: it prepares everything that can fail, says
//! `ready` on the link, and waits. Until its *predecessor* says `go` it accepts nothing, so it can be killed
//! at any time, and nothing has changed. From then on it is the *successor*: it accepts connections, and says
//! `serving`. The predecessor stops accepting, and *drains*: it answers the requests that it has, and *moves*
//! each connection to the successor as soon as none is in flight on it. The client notices nothing: its next
//! request on the same connection is answered by the successor. When no connection is left, the predecessor
//! exits.
//!
//! Until a stop, some process always has the listening sockets open, so no client is refused; and if a
//! process dies in the middle of a handover, exactly one of the others serves.
//!
//! # Logging
//!
//! The library logs through [`log`], under targets that begin with `handover`. Without a logger nothing is
//! written anywhere, and the reason of a failed handover is lost, but for the answer of [`ask`]. One line installs
//! one: `env_logger::init();`, or for a program that uses tracing `tracing_log::LogTracer::init()?;`, which
//! `tracing_subscriber::fmt().init()` includes. Both write to standard error or standard output, and wait for its
//! reader, with every request that logs; [`NonBlockingStderr`] does not. Neither says which process writes,
//! and during a handover two of them do: in `examples/guests.rs` each line begins with the process ID.
//!
//! | level | what is logged |
//! |---|---|
//! | error | An operator has to act: a handover has failed, a successor has died, a handler has panicked. |
//! | warn | Something is refused, lost or less than what the options ask for, such as requests that are cut. |
//! | info | The life of a process: a few lines for each handover, and none while nothing changes. |
//! | info, as `handover::access` | Each response; its fields are described in handover(1). `handover::access=off` silences it. |
//! | debug | Each connection, each request, and what becomes of them. |
//! | debug, as `handover::trace` | Each phase of a process, and each word that it says to another one or hears. |
//!
//! Figures in a line have the names that they have in the answer to `status`, such as `in-flight=1`. What clients
//! have sent is in no line but as printable ASCII.
//!
//! # How to read the code
//!
//! Start with `process.rs`: a table of what each event means in each phase, and one function for each phase;
//! those of an overlap and of the end are in `process/`. What comes before is in `serve.rs`: the listening sockets
//! (`serve/sockets.rs`), what the program adds to them (`serve/handed_on.rs`), and all that can fail before the
//! first connection (`serve/start.rs`). `events.rs` is the one place where the loop waits. What it publishes for
//! other threads is in `watch.rs`; a program sees of that a `status.rs`, with what `counters.rs` counts, through a
//! `handle.rs`. They rest on four folders, none of which knows them:
//!
//! - `handover`, the mechanism: the protocol (`mod.rs`) and its words (`link.rs`), the process after this one
//!   (`successor.rs`; `handed.rs`: what it gets, `program.rs`: which program, `spawn.rs`: as a child, `takeover.rs`:
//!   not as a child) and the one before it (`predecessor.rs`), what a program hands on by name and as its state
//!   (`named.rs`, `state.rs`), and open connections on their way (`moving.rs`). Every `unsafe` is in
//!   `descriptors.rs`.
//! - `server`, the connections: where to listen (`listener.rs`), the accept loop (`acceptor.rs`), and the
//!   open connections, each entered in `registry.rs` and served on a thread of `workers.rs`; `capacity.rs` says
//!   how many there may be. One connection is `connection.rs`: what it is doing (`connection/activity.rs`), its
//!   bytes within their time limits (`transfer.rs`), and what goes along when it moves (`moving.rs`).
//! - `http`, which speaks HTTP on one connection. Beside it, `stream.rs` is a connection on which the embedding
//!   program speaks a protocol of its own; `service.rs` is the choice between the two, and `buffer.rs` is what both
//!   have read and not used.
//! - `operations`, the operator's and the supervisor's side: requests come as signals and on the control
//!   socket, `places.rs` and `systemd.rs` show which process serves, `keeper.rs` stays for a supervisor.
//!
//! The command is `main.rs` and `command/`, and uses nothing but the items below.
//! `tests/model` has the protocol as a model, every interleaving of which is visited, and to which the traces of
//! real processes are compared.

#[cfg(not(target_os = "linux"))]
compile_error!("handover runs on Linux only: nothing else has abstract sockets, eventfd(2) and /proc/self");

#[cfg(target_os = "linux")]
mod buffer;
#[cfg(target_os = "linux")]
mod counters;
#[cfg(target_os = "linux")]
mod deadline;
#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod events;
#[cfg(target_os = "linux")]
mod handle;
#[cfg(target_os = "linux")]
mod handover;
#[cfg(target_os = "linux")]
mod http;
#[cfg(target_os = "linux")]
mod lock;
#[cfg(target_os = "linux")]
mod operations;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod outcome;
#[cfg(target_os = "linux")]
mod percent;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod server;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod status;
#[cfg(target_os = "linux")]
mod stderr;
#[cfg(target_os = "linux")]
mod stream;
#[cfg(target_os = "linux")]
mod unix_file;
#[cfg(target_os = "linux")]
mod watch;

pub use tiny_http::{HTTPVersion, Header, HeaderField, Method, Response, ResponseBox, StatusCode};

#[cfg(target_os = "linux")]
pub use crate::{
    counters::Counters,
    error::Error,
    handle::{Handle, Hold},
    http::{Handler, Recipient, Request, TestRequest},
    operations::asker::ask,
    options::{Limits, Options},
    outcome::Outcome,
    serve::{Server, report_failure, serve, serve_connections},
    server::address::Address,
    status::{State, Status},
    stderr::NonBlockingStderr,
    stream::{Next, Stream},
};
