//! The smallest server that can be replaced while it runs: `cargo run --example hello`, and then
//! `kill -USR2` and `kill -INT` with its process ID, which it answers.

use std::process;

use handover::{Error, Options, Outcome, Request, Response, ResponseBox, serve};

fn main() -> Result<Outcome, Error> {
    run(Options { listen: vec!["127.0.0.1:3000".to_owned()], ..Options::default() })
}

/// Serves until the process has been stopped or has handed over.
pub fn run(options: Options) -> Result<Outcome, Error> {
    serve(options, hello)
}

/// Runs on the thread of the request's connection, and may block it.
fn hello(_: &mut Request) -> ResponseBox {
    Response::from_string(format!("Hello from {}!", process::id())).boxed()
}
