//! A guest book: a few routes that share a count, and the file `guests`. `cargo run --example guests`, and then
//! `curl -H Content-Type:text/plain -d Ada http://127.0.0.1:3000/guests`, `curl http://127.0.0.1:3000/guests`, and
//! `kill -USR2`.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use env_logger::fmt::Formatter;
use handover::{Header, Method, Options, Outcome, Request, Response, ResponseBox, Server, report_failure};
use log::Record;

fn main() -> Result<Outcome, Box<dyn Error>> {
    // During a handover two processes write to one log.
    let log = |line: &mut Formatter, record: &Record<'_>| {
        writeln!(line, "{} {:<5} {}", process::id(), record.level(), record.args())
    };
    env_logger::builder().format(log).init();
    run(Options::default())
}

/// Serves until the process has been stopped or has handed over.
pub fn run(options: Options) -> Result<Outcome, Box<dyn Error>> {
    // The old process logs the reason of a failure, and serves on.
    serve(options).inspect_err(|error| report_failure(error))
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
    Ok(match (request.method(), request.url()) {
        (Method::Get, "/hello") => {
            let json = format!("{{\"visits\":{}}}", visits.fetch_add(1, Relaxed));
            let of_json = Header::from_bytes("Content-Type", "application/json").unwrap();
            Response::from_data(json).with_header(of_json).boxed()
        }
        (Method::Get, "/guests") => Response::from_string(fs::read_to_string("guests")?).boxed(),
        (Method::Post, "/guests") if !is_text(request.headers()) => Response::empty(415).boxed(),
        (Method::Post, "/guests") => {
            request.limit_body(1000);
            let name = match io::read_to_string(request.as_reader()) {
                Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                    return Ok(Response::empty(413).boxed());
                }
                name => name?,
            };
            book.write_all(format!("{name}\n").as_bytes())?;
            Response::from_string(format!("Welcome, {name}!")).with_status_code(201).boxed()
        }
        _ => Response::empty(404).boxed(),
    })
}

/// Names of header fields are compared without regard to case, and the media type may have parameters.
fn is_text(headers: &[Header]) -> bool {
    let of_type = |header: &&Header| header.field.equiv("Content-Type");
    headers.iter().find(of_type).is_some_and(|header| header.value.as_str().starts_with("text/plain"))
}
