//! A process that stays for a supervisor, its successors, and whatever else becomes its child.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::command::Command;
use crate::server::{
    BINARY, Directory, Gate, Server, exited, expect_at_rest, expect_dead, install, install_script,
    number_after, signal_process, wait_for_end, wait_until,
};

#[test]
fn a_stop_of_a_process_that_stays_means_both_of_an_overlap() {
    let server = Server::start_replaceable(&["--stay", "--overlap"]);
    let watched = server.first();
    server.signal(Signal::SIGUSR2);
    server.expect("accept connections");
    signal_process(watched, Signal::SIGTERM);
    assert_eq!(wait_for_end(watched), exited(watched, 0));
    server.expect_processes(&[]);
    assert!(server.files().is_empty(), "{:?}", server.files());
    server.expect_refusal();
}

#[test]
fn a_stop_of_a_process_that_stays_and_is_on_probation_means_both() {
    let server = Server::start_replaceable(&["--stay", "--probation", "1h"]);
    let watched = server.first();
    server.hand_over();
    server.expect("staying in case successor");
    signal_process(watched, Signal::SIGTERM);
    assert_eq!(wait_for_end(watched), exited(watched, 0));
    server.expect_processes(&[]);
    assert!(server.files().is_empty(), "{:?}", server.files());
}

#[test]
fn a_stop_of_a_process_that_stays_means_one_that_has_taken_over_too() {
    let server = Server::start_replaceable(&["--stay"]);
    let watched = server.first();
    let held = server.hold();
    let mut command = Command::new(BINARY);
    command.args(["--takeover", "--listen", &server.address.to_string()]);
    command.arg("--control").arg(server.directory.join("control"));
    let next = Server::start_command(command, Directory::new());
    assert_eq!(server.expect_handover(), next.first());
    signal_process(watched, Signal::SIGTERM);
    assert_eq!(wait_for_end(next.first()), exited(next.first(), 0));
    held.finish();
    assert_eq!(wait_for_end(watched), exited(watched, 0));
    server.expect_refusal();
}

/// How a successor ends before the process that stays has finished its own connections.
enum End {
    Killed,
    Cutting,
}

fn ends_with_the_status_of_its_successor(end: End, status: i32) {
    let server = Server::start_replaceable(&["--stay"]);
    let watched = server.first();
    let held = server.hold();
    let successor = server.hand_over();
    let lost = server.hold();
    signal_process(successor, Signal::SIGTERM);
    server.expect(&format!("{successor} INFO  SIGTERM: stopping"));
    // From here on the process that stays does not answer for it any more.
    expect_at_rest(watched);
    match end {
        End::Killed => signal_process(successor, Signal::SIGKILL),
        End::Cutting => {
            // Within half a second it would count as the same stop.
            thread::sleep(Duration::from_secs(1));
            signal_process(successor, Signal::SIGINT);
        }
    }
    expect_dead(successor);
    expect_at_rest(watched);
    drop(lost);
    held.finish();
    assert_eq!(wait_for_end(watched), exited(watched, status));
}

#[test]
fn a_process_that_stays_ends_like_a_successor_that_was_stopped_and_killed_before_it() {
    ends_with_the_status_of_its_successor(End::Killed, 128 + 9);
}

#[test]
fn a_process_that_stays_ends_like_a_successor_that_was_stopped_and_has_cut_before_it() {
    ends_with_the_status_of_its_successor(End::Cutting, 1);
}

/// A process whose parent has ended, and which waits at a gate.
struct Orphan {
    gate: Gate,
    file: PathBuf,
}

impl Orphan {
    fn new(directory: &Directory, name: &str) -> Orphan {
        let gate = Gate::at(directory.join(&format!("{name}.gate")));
        Orphan { gate, file: directory.join(name) }
    }

    /// Shell commands that start it, and write its number into a file.
    fn start(&self) -> String {
        let file = self.file.display();
        // The subshell in between is its parent, and ends at once.
        format!("({} & echo $! >'{file}.new'; mv '{file}.new' '{file}')", self.gate.wait())
    }

    /// Lets it end, and waits until it has been reaped.
    fn expect_reaped(&self) {
        drop(self.gate.expect_waiting());
        wait_until(|| self.file.exists(), || "no orphan was started".to_owned());
        let orphan: u32 = fs::read_to_string(&self.file).unwrap().trim().parse().unwrap();
        fs::remove_file(&self.file).unwrap();
        let stat = format!("/proc/{orphan}/stat");
        wait_until(|| fs::read_to_string(&stat).is_err(), || fs::read_to_string(&stat).unwrap_or_default());
    }
}

#[test]
fn a_process_that_stays_reaps_orphans_whatever_it_does_itself() {
    let server = Server::start_replaceable(&["--stay"]);
    let watched = server.first();
    let [orphan, other] = ["orphan", "other"].map(|name| Orphan::new(&server.directory, name));
    // It serves.
    install_script(&server.program(), &format!("{}; exit 1", orphan.start()));
    for _ in 0..5 {
        server.signal(Signal::SIGUSR2);
        server.expect("handover failed: successor ");
        orphan.expect_reaped();
    }
    // It drains.
    let held = server.hold();
    let both = format!("{}; {}", orphan.start(), other.start());
    install_script(&server.program(), &format!("{both}; exec {BINARY} \"$@\""));
    server.hand_over();
    orphan.expect_reaped();
    // It only stays.
    held.finish();
    server.expect("stays");
    other.expect_reaped();
    signal_process(watched, Signal::SIGTERM);
    assert_eq!(wait_for_end(watched), exited(watched, 0));
}

#[test]
fn a_process_that_stays_is_not_kept_by_an_orphan_and_does_not_end_like_one() {
    let server = Server::start_replaceable(&["--stay"]);
    let watched = server.first();
    // Without the listening socket and the link.
    let fails = "(sh -c 'sleep 0.05; exit 42' 3<&- 4<&- & sh -c 'kill -9 $$' 3<&- 4<&- &)";
    let orphan = server.directory.join("orphan");
    let lives = format!("(exec setsid sleep 1h 3<&- 4<&- & echo $! >{})", orphan.display());
    install_script(&server.program(), &format!("{fails}; {lives}; exec {BINARY} \"$@\""));
    let successor = server.hand_over();
    server.expect("stays");
    let orphan = fs::read_to_string(orphan).unwrap().trim().parse().unwrap();
    // A signal for all of its successors is none for others.
    for signal in [Signal::SIGUSR1, Signal::SIGTERM] {
        signal_process(watched, signal);
    }
    expect_dead(successor);
    let end = wait_for_end(watched);
    signal_process(orphan, Signal::SIGKILL);
    assert_eq!(end, exited(watched, 0));
}

/// A client of the control socket that sends nothing.
fn silent(server: &Server) -> UnixStream {
    UnixStream::connect(server.directory.join("control")).unwrap()
}

#[test]
fn a_silent_client_of_the_control_socket_delays_nothing() {
    let begin = Instant::now();
    // A stop, ten times; each of which takes a few milliseconds.
    for _ in 0..10 {
        let server = Server::start_replaceable(&[]);
        let mut silent = silent(&server);
        // When this is answered, the connection before it has been accepted.
        server.control("control").unwrap();
        assert_eq!(server.stop(), exited(server.first(), 0));
        assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
    }
    // To take back, and the end of an overlap, as often.
    let server = Server::start_replaceable(&["--overlap"]);
    let old = server.first();
    let mut clients = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL].repeat(5) {
        clients.push(silent(&server));
        server.signal(Signal::SIGUSR2);
        let successor = number_after(&server.expect("accept connections"), "successor ");
        clients.push(silent(&server));
        signal_process(successor, signal);
        server.expect(&format!("successor {successor} is leaving; this process goes on alone"));
        expect_dead(successor);
        server.expect_alone(old);
    }
    // Each was delayed by a second, or by the five of a request that does not come.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[test]
fn the_requests_of_a_client_are_served_while_others_are_silent() {
    let server = Server::start_replaceable(&[]);
    let silent: Vec<UnixStream> = (0..50).map(|_| silent(&server)).collect();
    let mut client = Client::connect(server.address).unwrap();
    for _ in 0..3 {
        assert_eq!(server.control("control").unwrap(), server.serving());
        client.get("/").unwrap();
        let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
        assert_eq!(answer, format!("ok {}", server.expect_handover()));
        client = Client::connect(server.address).unwrap();
    }
    install(&server.program());
    drop(silent);
}
