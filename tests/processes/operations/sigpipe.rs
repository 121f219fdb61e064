//! A peer that has gone kills nobody, even in a program in which SIGPIPE has its default disposition.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{self, ExitCode};

use handover::{Options, Request, Response, ResponseBox, serve};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::client;
use crate::command::Command;
use crate::embedding::programs::{start, start_by};
use crate::server::{BINARY, Directory, Server, exited, freeze, thaw, wait_for_end};
use crate::untested::is_installed;

/// The embedding program.
pub fn run(options: Options) -> ExitCode {
    // SAFETY: it installs no handler.
    #[allow(unsafe_code)]
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    serve(options, answer).unwrap().into()
}

fn answer(request: &mut Request) -> ResponseBox {
    let mut body = String::new();
    request.as_reader().read_to_string(&mut body).unwrap();
    let hello = format!("Hello from {}!", process::id());
    Response::from_string(if body.is_empty() { hello } else { body }).boxed()
}

/// Sends a request while the serving process is stopped, and leaves before it can be read.
fn ask_and_leave(server: &Server, request: &str) {
    freeze(server.serving());
    let mut client = UnixStream::connect(server.directory.join("control")).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    drop(client);
    thaw(server.serving());
}

#[test]
fn a_client_of_the_control_socket_that_has_gone_kills_no_embedding_program() {
    let server = start("sigpipe", "");
    let old = server.first();
    for request in ["status\n", "nonsense\n", "reload\n"] {
        ask_and_leave(&server, request);
        assert_eq!(server.control("control").unwrap(), old);
    }
    ask_and_leave(&server, "takeover\n");
    server.expect("handover failed: ");
    assert_eq!(server.control("control").unwrap(), old);

    let held = server.hold();
    ask_and_leave(&server, "restart\n");
    let new = server.expect_handover();
    assert_eq!(server.hello(), new);
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    ask_and_leave(&server, "stop\n");
    assert_eq!(wait_for_end(new), exited(new, 0));
}

#[test]
fn a_supervisor_that_has_closed_the_descriptor_for_readiness_kills_no_embedding_program() {
    let fifo = "\"$directory/fifo\"";
    let script = format!("mkfifo {fifo}; exec 8<>{fifo} 7>{fifo} 8<&-;");
    let server = start_by(&script, "sigpipe", "ready-fd=7");
    assert_eq!(server.hello(), server.first());
    assert_eq!(server.stop(), exited(server.first(), 0));
}

/// A command under strace(1), which writes what is sent to a file.
fn traced(program: &Path, trace: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-DD", "-f", "-y", "-e", "trace=?write,?writev,?sendto,?sendmsg", "-o"]).arg(trace);
    command.arg(program);
    command
}

#[test]
fn whatever_is_sent_to_a_socket_is_sent_without_a_signal() {
    if !is_installed("strace") {
        return;
    }
    let directory = Directory::new();
    let traces = ["server", "client", "taker"].map(|name| directory.join(name));
    let control = directory.join("control");
    let program = Path::new(BINARY);
    let mut command = traced(program, &traces[0]);
    command.args(["--listen", "127.0.0.1:0", "--control"]).arg(&control);
    let server = Server::start_command(command, directory);
    assert_eq!(server.hello(), server.first());
    // It is refused.
    let mut stranger = UnixStream::connect(&control).unwrap();
    stranger.write_all(b"nonsense\n").unwrap();
    stranger.read_to_string(&mut String::new()).unwrap();
    let asked =
        traced(program, &traces[1]).args(["-s", "restart", "--control"]).arg(&control).output().unwrap();
    let new = server.expect_handover();
    assert_eq!(asked.stdout, format!("ok {new}\n").as_bytes());
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    let mut command = traced(program, &traces[2]);
    command.args(["--takeover", "--listen", &server.address.to_string(), "--control"]).arg(&control);
    let taker = Server::start_command(command, Directory::new());
    assert_eq!(wait_for_end(new), exited(new, 0));
    assert_eq!(client::get(server.address, "/hello").unwrap().status, 200);
    assert_eq!(taker.stop(), exited(taker.first(), 0));

    let mut sent = 0;
    let traced: String = traces.iter().map(|trace| fs::read_to_string(trace).unwrap()).collect();
    for line in traced.lines() {
        // A socket pair of the signal handlers, both ends of which are in the same process, carries an X.
        let is_sent = line.contains("<socket:[") && !line.contains("resumed>") && !line.contains("\"X\", 1");
        if is_sent {
            assert!(line.contains("MSG_NOSIGNAL"), "{line}");
            sent += 1;
        }
    }
    assert!(sent > 10);
}
