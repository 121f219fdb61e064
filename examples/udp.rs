//! A UDP socket beside HTTP, of which no datagram is lost when the process is replaced, and a state that goes along:
//! `cargo run --example udp`, and then `kill -USR2` and `kill -INT`.
//!
//! A datagram is sent back, behind the process ID. HTTP says where, and since when.

use std::error::Error;
use std::net::UdpSocket;
use std::process;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use handover::{Handle, Options, Outcome, Request, Response, Server, report_failure};

/// The state begins with its version.
const VERSION: u8 = 1;

fn main() -> Result<Outcome, Box<dyn Error>> {
    run(Options::default())
}

/// Serves until the process has been stopped or has handed over.
pub fn run(options: Options) -> Result<Outcome, Box<dyn Error>> {
    // The old process logs the reason of a failure, and serves on.
    serve(options).inspect_err(|error| report_failure(error))
}

fn serve(options: Options) -> Result<Outcome, Box<dyn Error>> {
    let mut server = Server::bind(options)?;
    let socket = match server.inherited("echo") {
        Some(socket) => UdpSocket::from(socket),
        None => UdpSocket::bind("127.0.0.1:0")?,
    };
    server.hand_on("echo", &socket)?;
    let began = match server.state() {
        Some([VERSION, began @ ..]) => String::from_utf8_lossy(began).into_owned(),
        // It is the first process, or the predecessor is of another version.
        _ => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos().to_string(),
    };
    let handle = server.handle();
    handle.hand_on_state([&[VERSION], began.as_bytes()].concat())?;

    let text = format!("{} since {began}", socket.local_addr()?);
    // A thread has to see in time that the process does not serve any more.
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    thread::spawn(move || echo(&handle, &socket));
    Ok(server.serve(move |_: &mut Request| Response::from_string(text.as_str()).boxed())?)
}

/// Other than connections, datagrams wait in one queue for all processes: what this one leaves is the successor's.
fn echo(handle: &Handle, socket: &UdpSocket) {
    let mut datagram = [0; 512];
    // What has been received is answered before the process ends.
    while let Some(_hold) = handle.hold_when(Duration::MAX, |status| status.state.serves()) {
        while handle.status().state.serves() {
            if let Ok((length, peer)) = socket.recv_from(&mut datagram) {
                let answer = [process::id().to_string().as_bytes(), b" ", &datagram[..length]].concat();
                let _ = socket.send_to(&answer, peer);
            }
        }
    }
}
