//! A background job that runs in exactly one process at a time, through handovers and if a successor dies, and a
//! long poll that ends when a handover begins: `cargo run --example job`, and then `kill -USR2` and `kill -INT`.
//!
//! It listens on a port that the system chooses, and writes into the file `journal`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::process;
use std::thread;
use std::time::Duration;

use handover::{Handle, Options, Outcome, Request, Response, ResponseBox, Server, Status, report_failure};

fn main() -> Result<Outcome, Box<dyn Error>> {
    run(Options { listen: vec!["127.0.0.1:0".to_owned()], ..Options::default() })
}

/// Serves until the process has been stopped or has handed over.
pub fn run(options: Options) -> Result<Outcome, Box<dyn Error>> {
    // The old process logs the reason of a failure, and serves on.
    serve(options).inspect_err(|error| report_failure(error))
}

fn serve(options: Options) -> Result<Outcome, Box<dyn Error>> {
    let server = Server::bind(options)?;
    for address in server.addresses() {
        println!("process {} listens on {address}", process::id());
    }
    let journal = File::options().append(true).create(true).open("journal");
    let journal = journal.map_err(|error| format!("cannot open journal: {error}"))?;
    let handle = server.handle();
    thread::spawn(move || job(&handle, journal));
    Ok(server.serve(answer)?)
}

fn job(handle: &Handle, mut journal: File) -> io::Result<()> {
    let pid = process::id();
    while let Some(_hold) = handle.hold_when(Duration::MAX, Status::serves_alone) {
        writeln!(journal, "start {pid}")?;
        handle.wait_until(Duration::MAX, |status| !status.state.serves());
        // The successor does not begin, and this process does not end, before this is done.
        thread::sleep(Duration::from_millis(50));
        writeln!(journal, "stop {pid}")?;
    }
    Ok(())
}

fn answer(request: &mut Request) -> ResponseBox {
    let text = match request.url() {
        // Nothing happens that a client could be told of, but it need not ask again before half a minute has passed.
        "/poll" if request.recipient().wait_for_end(Duration::from_secs(30)) => "ask again".to_owned(),
        "/poll" => "nothing new".to_owned(),
        _ => format!("Hello from {}!", process::id()),
    };
    Response::from_string(text).boxed()
}
