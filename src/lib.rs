//! A small synchronous HTTP server that is replaced by a new version of itself while it runs, without
//! refusing, dropping or resetting one request.
//!
//! A program hands [`serve`] its [`Options`] and a handler, and can from then on be replaced with
//! `kill -USR2` and stopped with `kill -INT`:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use handover::{Options, Request, Response, ResponseBox, serve};
//!
//! fn main() -> ExitCode {
//!     let options = Options {
//!         listen: vec!["127.0.0.1:3000".to_owned()],
//!         // A successor is started with the same arguments and this one.
//!         graceful: std::env::args().any(|argument| argument == "--graceful"),
//!         ..Options::default()
//!     };
//!     match serve(options, hello) {
//!         Ok(outcome) => outcome.into(),
//!         Err(error) => {
//!             eprintln!("{error}");
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//!
//! /// Runs on the thread of the request's connection, and may block it.
//! fn hello(request: &mut Request) -> ResponseBox {
//!     Response::from_string(format!("Hello from {}!", request.url())).boxed()
//! }
//! ```
//!
//! # How a process is replaced
//!
//! The listening socket outlives the processes. A process that gets SIGUSR2 starts the program again, the
//! way it was invoked itself, with the socket at descriptor 3. The new process, its *successor*, prepares
//! everything, says `ready` through a pipe at descriptor 4, and accepts connections. The old one, its
//! *predecessor*, stops accepting then, and *drains*: it answers the requests it has, and the next one on
//! each kept-alive connection, with `Connection: close`, so that no client ever writes into a connection
//! that is being closed. With nothing left to do it exits. There is no moment without an open listening
//! socket, so nobody is refused.
//!
//! Whatever else happens, somebody serves: a successor that does not become ready is killed, and nothing
//! has changed; one that dies while its predecessor is still there is succeeded by its predecessor.
//!
//! # How to read the code
//!
//! `serve.rs` is how a process begins, and `process.rs` is its story: one loop over its states. Beneath them,
//! each module does one job, and none knows those above it.
//!
//! - The sockets: `server/listener.rs` binds them or takes them over (`server/address.rs`: where,
//!   `handover/descriptors.rs`: under which numbers).
//! - The other processes, in `handover`: `successor.rs` starts the next one (`program.rs`: which program,
//!   `spawn.rs`: how), hears its words (`link.rs`, `ear.rs`), watches and kills it; `predecessor.rs` is the other end of that;
//!   `takeover.rs` is the same between processes that are not parent and child, and
//!   `operations/keeper.rs` is for a process that stays when it has handed over.
//! - Who asks for something, in `operations` (`requester.rs`): `signals.rs` and `control.rs` turn it into events; `pid_file.rs`
//!   and `systemd.rs` tell who serves (`places.rs`: at which path).
//! - The connections: `server` accepts them, each is entered in `registry.rs` and served on a thread of
//!   `workers.rs`, and `http` speaks HTTP on one (`connection.rs`).

mod deadline;
mod error;
mod handover;
mod http;
mod operations;
mod options;
mod outcome;
mod process;
mod serve;
mod server;
mod unix_file;

pub use tiny_http::{HTTPVersion, Header, HeaderField, Method, Response, ResponseBox, StatusCode};

pub use crate::error::Error;
pub use crate::http::{Handler, Request};
pub use crate::operations::control::ask;
pub use crate::options::{Limits, Options};
pub use crate::outcome::Outcome;
pub use crate::serve::serve;
pub use crate::server::address::Address;
