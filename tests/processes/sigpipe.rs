//! A peer that has gone kills nobody, even in a program in which SIGPIPE has its default disposition.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::{env, fs, io, process};

use handover::{Options, Request, Response, ResponseBox, serve};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::getppid;

use crate::client;
use crate::server::{BINARY, Directory, Server, exited, freeze, thaw, wait_for_end};
use crate::supervised::is_installed;

/// What a process finds in its environment that no predecessor has started: the number of the process that has.
const PARENT: &str = "HANDOVER_TEST_PARENT";
/// The control socket.
const CONTROL: &str = "HANDOVER_TEST_CONTROL";
/// The descriptor for the readiness, if there is one.
const READY_FD: &str = "HANDOVER_TEST_READY_FD";

struct StandardError;

impl log::Log for StandardError {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}  {}\n", process::id(), record.level(), record.args());
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// No test, but the embedding program that the tests start.
#[test]
#[ignore = "other tests start it"]
fn embedding_program() {
    // SAFETY: it installs no handler.
    #[allow(unsafe_code)]
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    log::set_logger(&StandardError).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let options = Options {
        listen: vec!["127.0.0.1:0".to_owned()],
        graceful: env::var(PARENT).unwrap() != getppid().to_string(),
        control: env::var_os(CONTROL).map(Into::into),
        ready_fd: env::var(READY_FD).ok().map(|number| number.parse().unwrap()),
        ..Options::default()
    };
    serve(options, answer).unwrap();
}

fn answer(request: &mut Request) -> ResponseBox {
    let mut body = String::new();
    request.as_reader().read_to_string(&mut body).unwrap();
    let hello = format!("Hello from {}!", process::id());
    Response::from_string(if body.is_empty() { hello } else { body }).boxed()
}

/// Starts the program, by way of a shell that does something before.
fn start(script: &str) -> Server {
    let directory = Directory::new();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{script} exec \"$@\""), "sh"]).arg(env::current_exe().unwrap());
    command.args([
        "--ignored",
        "--exact",
        "sigpipe::embedding_program",
        "--nocapture",
        "--test-threads",
        "1",
    ]);
    // The argument of a successor, as a value for which the harness of the tests has no use.
    command.args(["--skip", "--graceful"]);
    command.env(PARENT, process::id().to_string()).env(CONTROL, directory.join("control"));
    Server::start_command(command, directory)
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
    let server = start("");
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
    let fifo = format!("\"${CONTROL}.fifo\"");
    let server = start(&format!("mkfifo {fifo}; exec 8<>{fifo} 7>{fifo} 8<&-; export {READY_FD}=7;"));
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
