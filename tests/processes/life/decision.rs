//! The moment in which a handover is decided: whatever happens in it, one process serves, and nothing is lost.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::client;
use crate::command::{Command, Stderr};
use crate::life::failed_successor::resources;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Gate, Held, Server, exited, expect_dead, freeze, install, install_script, number_after,
    signal_process, thaw, wait_for_end, wait_until,
};
use crate::strace::{Tampering, Threads, WAITS};

/// Waits until a handover has been decided; returns the successor if it has succeeded.
fn expect_decision(server: &Server) -> Option<u32> {
    let line = server.expect_any(&["handed over to successor ", "handover failed: successor "]);
    let successor = number_after(&line, "successor ");
    let succeeded = line.contains("handed over");
    if succeeded {
        server.set_serving(successor);
    }
    succeeded.then_some(successor)
}

/// However the handover is decided, what is in flight is answered, and a predecessor that ends has status 0.
fn expect_that_nothing_is_cut(server: &Server, old: u32, held: Vec<Held>) {
    let successor = expect_decision(server);
    held.into_iter().for_each(Held::finish);
    if successor.is_some() {
        assert_eq!(wait_for_end(old), exited(old, 0));
    }
    server.expect_processes(&[server.serving()]);
    assert_eq!(server.hello(), server.serving());
}

#[test]
fn a_predecessor_that_is_stopped_for_longer_than_the_ready_timeout_cuts_no_request() {
    let server = Server::start_for_load(&["--ready-timeout", "200ms"]);
    for _ in 0..40 {
        let old = server.serving();
        let held = (0..4).map(|_| server.hold()).collect();
        server.signal(Signal::SIGUSR2);
        server.expect("started successor");
        freeze(old);
        // The time that has to pass: the candidate becomes ready, and the deadline passes.
        thread::sleep(Duration::from_millis(300));
        thaw(old);
        expect_that_nothing_is_cut(&server, old, held);
    }
    assert_eq!(server.stop(), exited(server.serving(), 0));
}

#[test]
fn ready_that_is_read_after_the_deadline_cuts_no_request() {
    let server = Server::start_for_load(&["--ready-timeout", "1s"]);
    let old = server.first();
    let held = (0..4).map(|_| server.hold()).collect();
    let tampering = Tampering::begin(old, Threads::All, WAITS, "delay_exit=2000000");
    if tampering.is_none() {
        return;
    }
    server.signal(Signal::SIGUSR2);
    expect_that_nothing_is_cut(&server, old, held);
    assert_eq!(server.stop(), exited(server.serving(), 0));
}

/// Shell commands of a candidate that begins as it must.
const GREETED: &str = "read greeting <&4; test \"$greeting\" = 'handover 1' || exit 9;";
/// Shell commands that wait for `go`.
const TOLD_TO_GO: &str = "while read word <&4; do case $word in go*) break;; esac; done;";

/// A handover to this shell script fails: the predecessor serves all the time, and is as it was before.
fn fails_without_a_trace(script: &str) {
    let server = Server::start_replaceable(&[]);
    let old = server.first();
    let before = resources(old);
    let files = server.files();
    let mut client = server.idle_client();
    install_script(&server.program(), script);
    let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 2);
    for _ in 0..5 {
        server.signal(Signal::SIGUSR2);
        let line = server.expect_any(&[
            "handover failed: successor ",
            "accepting connections again",
            "goes on alone",
        ]);
        expect_dead(number_after(&line, "successor "));
        server.expect_processes(&[old]);
        assert_eq!(server.pid_file(), old);
        assert_eq!(server.control("control").unwrap(), old);
    }
    load.stop();
    server.expect_alone(old);
    assert_eq!(server.files(), files);
    // Its connection was not cut.
    client.get("/").unwrap();
    drop(client);
    wait_until(|| resources(old) == before, || format!("{:#?}\nnot\n{before:#?}", resources(old)));

    install(&server.program());
    let successor = server.hand_over();
    assert_eq!(server.hello(), successor);
    assert_eq!(wait_for_end(old), exited(old, 0));
    server.expect_alone(successor);
}

#[test]
fn a_candidate_that_dies_right_after_ready_changes_nothing() {
    fails_without_a_trace(&format!("{GREETED} echo ready >&4; exit 3"));
}

#[test]
fn a_candidate_that_dies_right_after_ready_to_overlap_changes_nothing() {
    fails_without_a_trace(&format!("{GREETED} echo ready to overlap >&4; exit 3"));
}

#[test]
fn a_successor_that_dies_before_it_serves_changes_nothing() {
    fails_without_a_trace(&format!("{GREETED} echo ready >&4; {TOLD_TO_GO} kill -9 $$"));
}

#[test]
fn a_successor_that_fails_before_it_serves_changes_nothing() {
    fails_without_a_trace(&format!(
        "{GREETED} echo ready >&4; {TOLD_TO_GO} echo failed for a test >&4; exit 3"
    ));
}

#[test]
fn a_successor_that_dies_before_it_overlaps_changes_nothing() {
    fails_without_a_trace(&format!("{GREETED} echo ready to overlap >&4; {TOLD_TO_GO} kill -9 $$"));
}

#[test]
fn a_predecessor_accepts_connections_until_its_successor_serves() {
    let server = Server::start_replaceable(&[]);
    let old = server.first();
    let gate = Gate::new(&server.directory);
    install_script(&server.program(), &format!("{GREETED} echo ready >&4; {TOLD_TO_GO} {}", gate.wait()));
    server.signal(Signal::SIGUSR2);
    let waiting = gate.expect_waiting();
    // It has been told to go, and hangs.
    let child = server.expect_child(old);
    for _ in 0..20 {
        assert_eq!(server.hello(), old);
    }
    assert_eq!(server.pid_file(), old);
    drop(waiting);
    expect_dead(child);
    server.expect_alone(old);
}

#[test]
fn the_reason_that_a_candidate_gives_is_reported() {
    let server = Server::start_replaceable(&[]);
    install_script(&server.program(), &format!("{GREETED} echo failed out of cheese >&4; exit 3"));
    for _ in 0..20 {
        let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
        assert!(answer.starts_with("error: successor ") && answer.contains("out of cheese"), "{answer}");
        assert!(server.expect("handover failed: successor ").contains("out of cheese"));
    }
    server.expect_alone(server.first());
}

/// A socket in the place of the link, on which a peer has written this.
fn is_no_link(said: &str) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(said.as_bytes()).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 4<&1 0</dev/null 1>&2; exec \"$@\"", "sh", BINARY]);
    command.args(["--graceful", "--listen", &address.to_string()]);
    command.stdin(OwnedFd::from(socket)).stdout(OwnedFd::from(theirs)).stderr(Stderr::Null);
    let mut child = command.spawn().unwrap();
    drop(command);
    let hello = client::get(address, "/hello").unwrap().text();
    assert_eq!(hello, format!("Hello from {}!", child.id()), "{said:?}");
    // Nothing is written to it.
    ours.set_nonblocking(true).unwrap();
    assert_eq!(ours.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    signal_process(child.id(), Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_descriptor_that_is_no_link_is_left_alone() {
    for said in ["", "go\n", "inherit\n", "handover 2\n", "handover 1"] {
        is_no_link(said);
    }
}

#[test]
fn a_socket_that_the_predecessor_has_not_passed_is_left_alone() {
    let server = Server::start_replaceable(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // A wrapper of the program has opened it, behind the link.
    let port = listener.local_addr().unwrap().port();
    let open = format!("exec 5<>/dev/tcp/127.0.0.1/{port}; exec {BINARY} \"$@\"");
    install_script(&server.program(), &format!("exec bash -c '{open}' bash \"$@\""));
    let successor = server.hand_over();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_nonblocking(true).unwrap();
    let read = connection.read(&mut [0; 10]);
    assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    assert_eq!(server.hello(), successor);
}
