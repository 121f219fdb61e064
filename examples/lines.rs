//! Something that is not HTTP: each line comes back with its number on the connection, whichever process answers.
//! `cargo run --example lines`, then `nc 127.0.0.1 3000`, and `kill -USR2` in another terminal.

use std::io::{self, BufRead, Read, Write};

use handover::{Error, Next, Options, Outcome, Stream, serve_connections};

fn main() -> Result<Outcome, Error> {
    run(Options::default())
}

/// Serves until the process has been stopped or has handed over.
pub fn run(options: Options) -> Result<Outcome, Error> {
    serve_connections(options, number_lines)
}

/// Runs on the thread of the connection, and may block it. The count goes with the connection when that is moved.
fn number_lines(stream: &mut Stream) -> io::Result<()> {
    let mut count = stream.state().and_then(|state| state.try_into().ok()).map_or(0, u64::from_be_bytes);
    while stream.wait(&count.to_be_bytes())? == Next::Input {
        let mut line = Vec::new();
        // A client must not fill the memory.
        stream.take(1000).read_until(b'\n', &mut line)?;
        count += 1;
        write!(stream, "{count} ")?;
        stream.write_all(&line)?;
    }
    Ok(())
}
