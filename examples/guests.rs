//! A guest book: a few routes that share a count, and the file `guests`. `cargo run --example guests`, and then
//! `curl -d Ada http://127.0.0.1:3000/guests`, `curl http://127.0.0.1:3000/guests`, and `kill -USR2`.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use handover::{Method, Options, Outcome, Request, Response, ResponseBox, Server, report_failure};

fn main() -> ExitCode {
    run(Options::default())
}

/// Serves until the process has been stopped or has handed over.
pub fn run(options: Options) -> ExitCode {
    match serve(options) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            // The old process logs the reason, and serves on.
            report_failure(&error);
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<Outcome, Box<dyn Error>> {
    let server = Server::bind(options)?;
    let book = File::options().append(true).create(true).open("guests");
    let book = book.map_err(|error| format!("cannot open guests: {error}"))?;
    let visits = AtomicU64::new(0);
    Ok(server.serve(move |request: &mut Request| {
        answer(request, &visits, &book).unwrap_or_else(|_| Response::empty(500).boxed())
    })?)
}

/// Each process has its own count, and all have the file, to which the old one may add while the new one serves.
fn answer(request: &mut Request, visits: &AtomicU64, mut book: &File) -> io::Result<ResponseBox> {
    let text = match (request.method(), request.url()) {
        (Method::Get, "/hello") => format!("{} were here before you.", visits.fetch_add(1, Relaxed)),
        (Method::Get, "/guests") => fs::read_to_string("guests")?,
        (Method::Post, "/guests") => {
            request.limit_body(1000);
            let name = io::read_to_string(request.as_reader())?;
            book.write_all(format!("{name}\n").as_bytes())?;
            format!("Welcome, {name}!")
        }
        _ => return Ok(Response::empty(404).boxed()),
    };
    Ok(Response::from_string(text).boxed())
}
