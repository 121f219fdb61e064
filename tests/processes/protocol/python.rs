//! Each side of a handover in another language, written by the page man/handover.7 alone.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::{env, fs};

use nix::sys::signal::Signal;

use crate::client::{self, Client, Target};
use crate::command::Command;
use crate::embedding::programs;
use crate::life::overlap::both_answer;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Gate, Server, exited, expect_dead, install_script, number_after, signal_process, thaw,
    wait_for_end,
};
use crate::untested::is_installed;

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/processes/protocol/python").join(name)
}

/// Python with a script, which is not to write compiled files beside it.
fn python(name: &str, options: &str) -> Command {
    let mut python = Command::new("python3");
    python.arg("-B").arg(script(name)).env("OPTIONS", options);
    python
}

/// What a shell does to become the successor.
fn successor(options: &str) -> String {
    format!("OPTIONS=\"{options}\" exec python3 -B \"{}\"", script("successor.py").display())
}

/// What is there instead of the command from now on.
fn install_successor(server: &Server, options: &str) {
    install_script(&server.program(), &successor(options));
}

/// The predecessor of what is installed in its directory, by default the command with both of its addresses.
fn start_predecessor(options: &str) -> Server {
    let directory = Directory::new();
    let mut command = python("predecessor.py", options);
    command.arg(directory.join("program")).args(["{0}", "{1}"]);
    let server = Server::start_command(command, directory);
    install_script(&server.program(), &format!("exec {BINARY} --listen \"$1\" --listen \"$2\""));
    server
}

/// Its other address.
fn second_address(server: &Server) -> SocketAddr {
    server.expect("listening on ").rsplit(' ').next().unwrap().parse().unwrap()
}

/// Has a predecessor in Python hand over to the command, which says that it is ready.
fn hand_over_to_command(server: &Server) -> u32 {
    server.signal_first(Signal::SIGUSR2);
    server.expect("listening on the existing file descriptor 3, ");
    let successor = number_after(&server.expect(" is ready, "), "process ");
    server.set_serving(successor);
    successor
}

/// On a busy machine, Python may take longer to start than a candidate may by default.
const PATIENT: [&str; 2] = ["--ready-timeout", "60s"];

/// The clients that it can serve.
const KINDS: [Kind; 3] = [Kind::Close, Kind::KeepAlive, Kind::Naive];
/// Those of them that need no new connection.
const KEPT: [Kind; 2] = [Kind::KeepAlive, Kind::Naive];

fn expect_answer(client: &mut Client, pid: u32) {
    assert_eq!(client.get("/hello").unwrap().text(), format!("Hello from {pid}!"));
}

/// Waits for the answer with which the connection ends. One to a request that has come before the process knows that
/// the connection stays is not the last.
fn expect_last_answer(client: &mut Client, pid: u32) {
    loop {
        let reply = client.get("/hello").unwrap();
        assert_eq!(reply.text(), format!("Hello from {pid}!"));
        if reply.is_last() {
            return;
        }
    }
}

/// A client that this process has answered.
fn client_of(address: SocketAddr, pid: u32) -> Client {
    let mut client = Client::connect(address).unwrap();
    expect_answer(&mut client, pid);
    client
}

fn is_refused(address: SocketAddr) -> bool {
    Client::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The process that serves has everything of the one before it, which needed nobody to cut its connections.
fn expect_succession(server: &Server, client: &mut Client, old: u32) {
    server.expect(&format!("{old} INFO  drained, moved="));
    expect_dead(old);
    expect_answer(client, server.serving());
    assert_eq!(server.hello(), server.serving());
}

/// This process serves under load, until it is stopped.
fn expect_to_serve(server: &Server, pid: u32) {
    let load = Load::start(server.address, &KINDS, 1);
    assert_eq!(server.hello(), pid);
    load.stop();
    server.set_serving(pid);
    assert_eq!(server.stop(), exited(pid, 0));
}

#[test]
fn a_successor_of_thirty_lines_is_enough() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let load = Load::start(server.address, &KINDS, 2);
    let mut client = client_of(server.address, server.first());
    let script = format!("exec python3 -B \"{}\"", script("shortest_successor.py").display());
    install_script(&server.program(), &script);
    server.hand_over();
    expect_succession(&server, &mut client, server.first());
    load.stop();
}

#[test]
fn a_predecessor_of_thirty_lines_is_enough() {
    if !is_installed("python3") {
        return;
    }
    let directory = Directory::new();
    let mut command = python("shortest_predecessor.py", "");
    command.arg(directory.join("program"));
    let server = Server::start_command(command, directory);
    let load = Load::start(server.address, &[Kind::Close], 2);
    // One that fails changes nothing.
    install_script(&server.program(), "echo failed >&2; exit 1");
    server.signal_first(Signal::SIGUSR2);
    server.expect("failed");
    assert_eq!(server.hello(), server.first());
    install_script(&server.program(), &format!("exec {BINARY} --listen {}", server.address));
    let successor = hand_over_to_command(&server);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(server.hello(), successor);
    load.stop();
}

#[test]
fn a_program_in_python_succeeds_the_command_and_nothing_is_lost() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let load = Load::start(server.address, &KINDS, 2);
    let mut client = client_of(server.address, server.first());
    install_successor(&server, "");
    server.hand_over();
    expect_succession(&server, &mut client, server.first());
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    load.stop();
    assert_eq!(server.stop(), exited(server.serving(), 0));
}

#[test]
fn a_program_in_python_says_to_the_first_of_three_that_it_succeeds_the_second() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let first = server.first();
    let held = server.hold();
    let second = server.hand_over();
    let mut client = client_of(server.address, second);
    install_successor(&server, "");
    server.hand_over();
    server.expect(&format!("{first} INFO  successor {second} says: handed over"));
    held.finish();
    expect_succession(&server, &mut client, second);
    assert_eq!(wait_for_end(first), exited(first, 0));
    assert_eq!(server.stop(), exited(server.serving(), 0));
}

#[test]
fn a_program_in_python_takes_over_from_the_command() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let load = Load::start(server.address, &KINDS, 2);
    let mut client = client_of(server.address, server.first());
    let mut successor = python("takeover.py", "");
    // It ends with the group of the server.
    successor.arg(server.directory.join("control")).process_group(server.first() as i32);
    let successor = successor.spawn().unwrap().id();
    assert_eq!(server.expect_handover(), successor);
    expect_succession(&server, &mut client, server.first());
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    load.stop();
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn the_command_succeeds_a_program_in_python_and_nothing_is_lost() {
    if !is_installed("python3") {
        return;
    }
    let server = start_predecessor("");
    let load = Load::start(server.address, &KINDS, 2);
    let mut client = client_of(server.address, server.first());
    let successor = hand_over_to_command(&server);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    server.expect(&format!("{successor} INFO  received connections, moved="));
    expect_answer(&mut client, successor);
    load.stop();
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn a_connection_that_a_program_in_python_refuses_or_does_not_take_ends_where_it_was() {
    if !is_installed("python3") {
        return;
    }
    for options in ["refuses", "moves-none"] {
        let server = Server::start_replaceable(&PATIENT);
        let load = Load::start(server.address, &KINDS, 1);
        let mut client = client_of(server.address, server.first());
        install_successor(&server, options);
        server.hand_over();
        expect_last_answer(&mut client, server.first());
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
        load.stop();
        assert_eq!(server.stop(), exited(server.serving(), 0));
    }
}

#[test]
fn connections_end_where_they_are_if_one_of_the_two_moves_none() {
    if !is_installed("python3") {
        return;
    }
    for (options, argument) in [("moves-none", ""), ("", "--no-move")] {
        let server = start_predecessor(options);
        install_script(&server.program(), &format!("exec {BINARY} --listen $1 --listen $2 {argument}"));
        let load = Load::start(server.address, &KINDS, 1);
        let mut client = client_of(server.address, server.first());
        hand_over_to_command(&server);
        expect_last_answer(&mut client, server.first());
        load.stop();
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
        assert_eq!(server.stop(), exited(server.serving(), 0));
    }
}

#[test]
fn a_socket_on_which_the_successor_does_not_listen_ends_with_the_predecessor() {
    if !is_installed("python3") {
        return;
    }
    let to_python = Server::start_replaceable(&[PATIENT[0], PATIENT[1], "--listen", "127.0.0.1:0"]);
    let Target::Network(second) = to_python.targets().remove(1) else { unreachable!() };
    install_successor(&to_python, "without");
    let to_command = start_predecessor("");
    install_script(&to_command.program(), &format!("exec {BINARY} --listen \"$1\""));
    let other = second_address(&to_command);
    for (server, second) in [(to_python, second), (to_command, other)] {
        let load = Load::start(server.address, &KINDS, 1);
        let mut client = client_of(second, server.first());
        server.signal_first(Signal::SIGUSR2);
        let successor = number_after(&server.expect(" is ready, "), "process ");
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
        expect_answer(&mut client, successor);
        assert!(is_refused(second));
        load.stop();
        server.set_serving(successor);
        assert_eq!(server.stop(), exited(successor, 0));
    }
}

#[test]
fn a_program_in_python_is_handed_a_lock_and_a_state() {
    if !is_installed("python3") {
        return;
    }
    let server = programs::start("lock", "ready-timeout=60000");
    assert_eq!(server.get("/store?7"), "ok");
    install_successor(&server, "");
    let successor = server.hand_over();
    server.expect(r"the state is b'\x00\x01\x02\x03\x04\x05\x06'");
    let lock = fs::read_to_string(server.directory.join("lock")).unwrap();
    assert_eq!(lock, format!("held by {successor}"));
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn a_program_in_python_hands_on_a_lock_and_a_state() {
    if !is_installed("python3") {
        return;
    }
    let server = start_predecessor("hands-on");
    let directory = server.directory.path().display();
    // There is no lock file that it could lock without having been handed one.
    let program = format!(
        "HANDOVER_TEST_PROGRAM=lock HANDOVER_TEST_OPTIONS=\"listen=$1,$2\" directory={directory}/none exec {} \
         --ignored --exact embedding::programs::embedding_program --nocapture",
        env::current_exe().unwrap().display()
    );
    install_script(&server.program(), &program);
    let mut client = client_of(server.address, server.first());
    let successor = hand_over_to_command(&server);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(client.get("/").unwrap().text(), "7 bytes");
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn the_command_and_a_program_in_python_overlap_until_one_of_them_is_told_to_stop() {
    if !is_installed("python3") {
        return;
    }
    for forward in [true, false] {
        let from_command = Server::start_replaceable(&PATIENT);
        install_successor(&from_command, "overlaps");
        let from_python = start_predecessor("");
        let overlap = format!("exec {BINARY} --listen \"$1\" --listen \"$2\" --overlap");
        install_script(&from_python.program(), &overlap);
        for server in [from_command, from_python] {
            let old = server.first();
            let load = Load::start(server.address, &KINDS, 1);
            server.signal_first(Signal::SIGUSR2);
            let new = number_after(&server.expect(" is ready, "), "process ");
            both_answer(&server, old, new);
            let mut clients: Vec<Client> =
                (0..20).map(|_| Client::connect(server.address).unwrap()).collect();
            clients.iter_mut().for_each(|client| drop(client.get("/hello").unwrap()));
            let (leaving, staying) = if forward { (old, new) } else { (new, old) };
            signal_process(leaving, Signal::SIGTERM);
            expect_dead(leaving);
            clients.iter_mut().for_each(|client| expect_answer(client, staying));
            load.stop();
            server.set_serving(staying);
            assert_eq!(server.stop(), exited(staying, 0));
        }
    }
}

#[test]
fn wherever_a_successor_in_python_dies_everything_is_as_before() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let first = server.first();
    let load = Load::start(server.address, &KEPT, 2);
    let mut client = client_of(server.address, first);
    let files = server.files();
    for (word, consequence) in [
        ("ready", "handover failed: successor "),
        ("serving", "handover failed: successor "),
        ("took", "; accepting connections again"),
    ] {
        install_successor(&server, &format!("dies-before-{word}"));
        server.signal_first(Signal::SIGUSR2);
        server.expect(consequence);
        server.expect_alone(first);
        assert_eq!(server.files(), files, "{word}");
        if word != "took" {
            expect_answer(&mut client, first);
        }
    }
    load.stop();
    assert_eq!(server.stop(), exited(first, 0));
}

#[test]
fn wherever_a_predecessor_in_python_dies_its_successor_serves() {
    if !is_installed("python3") {
        return;
    }
    for word in ["ready", "go", "move"] {
        let server = start_predecessor(&format!("dies-before-{word}"));
        let _client = client_of(server.address, server.first());
        let gate = Gate::new(&server.directory);
        let command = fs::read_to_string(server.program()).unwrap();
        install_script(&server.program(), &format!("{}; {}", gate.wait(), command.lines().last().unwrap()));
        server.signal_first(Signal::SIGUSR2);
        let waiting = gate.expect_waiting();
        if word == "ready" {
            signal_process(server.first(), Signal::SIGKILL);
        }
        drop(waiting);
        let successor = number_after(&server.expect(" is ready, "), "process ");
        expect_dead(server.first());
        expect_to_serve(&server, successor);
    }
}

#[test]
fn a_successor_in_python_serves_on_when_the_command_dies_that_has_told_it_to_go() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let held = server.hold();
    let mut client = client_of(server.address, server.first());
    install_successor(&server, "");
    let successor = server.hand_over();
    expect_answer(&mut client, successor);
    signal_process(server.first(), Signal::SIGKILL);
    expect_dead(server.first());
    drop(held);
    let load = Load::start(server.address, &KINDS, 1);
    expect_answer(&mut client, successor);
    assert_eq!(server.hello(), successor);
    load.stop();
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn a_connection_that_a_program_in_python_is_too_late_to_take_stays_where_it_was() {
    if !is_installed("python3") {
        return;
    }
    let from_command = Server::start_replaceable(&PATIENT);
    let from_python = start_predecessor("");
    let servers = [from_command, from_python].map(|server| {
        install_successor(&server, "stops-before-took");
        let client = client_of(server.address, server.first());
        server.signal_first(Signal::SIGUSR2);
        let successor = number_after(&server.expect(" is ready, in Python"), "process ");
        (server, client, successor)
    });
    for (server, mut client, successor) in servers {
        expect_last_answer(&mut client, server.first());
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
        thaw(successor);
        expect_to_serve(&server, successor);
    }
}

#[test]
fn wherever_its_successor_dies_a_predecessor_in_python_serves_on() {
    if !is_installed("python3") {
        return;
    }
    let server = start_predecessor("moves-none");
    let first = server.first();
    let mut client = client_of(server.address, first);
    for (program, failure) in [
        ("exit 1", "handover failed: nothing"),
        ("kill -9 $$", "handover failed: nothing"),
        (&*format!("exec {BINARY} --listen 1.2.3.4:1"), "handover failed: failed cannot listen on 1.2.3.4:1"),
    ] {
        install_script(&server.program(), program);
        let load = Load::start(server.address, &KINDS, 1);
        server.signal_first(Signal::SIGUSR2);
        server.expect(failure);
        server.expect_processes(&[first]);
        load.stop();
        expect_answer(&mut client, first);
    }
    install_script(&server.program(), &format!("exec {BINARY} --listen \"$1\" --listen \"$2\""));
    let successor = hand_over_to_command(&server);
    signal_process(successor, Signal::SIGKILL);
    server.expect("accepting again");
    let load = Load::start(server.address, &KINDS, 1);
    server.expect_processes(&[first]);
    expect_answer(&mut client, first);
    load.stop();
    server.set_serving(first);
    assert_eq!(server.stop(), exited(first, 0));
}

/// Three processes, of which the last is a candidate in Python, and the second dies before it can say `go`.
fn lose_the_second(first_dies: bool) -> (Server, u32) {
    let server = Server::start_replaceable(&PATIENT);
    let (first, held) = (server.first(), server.hold());
    let second = server.hand_over();
    let gate = Gate::new(&server.directory);
    install_script(&server.program(), &format!("{}; {}", gate.wait(), successor("")));
    server.signal(Signal::SIGUSR2);
    let third = number_after(&server.expect(&format!("{second} INFO  started successor ")), "successor ");
    let waiting = gate.expect_waiting();
    if first_dies {
        signal_process(first, Signal::SIGKILL);
        expect_dead(first);
    }
    signal_process(second, Signal::SIGKILL);
    if first_dies {
        expect_dead(second);
        drop(waiting);
    } else {
        server.expect(&format!("successor {second} was killed by SIGKILL; accepting connections again"));
        drop(waiting);
        held.finish();
    }
    (server, third)
}

#[test]
fn a_candidate_in_python_serves_if_none_of_the_processes_before_it_is_left() {
    if !is_installed("python3") {
        return;
    }
    let (server, third) = lose_the_second(true);
    let load = Load::start(server.address, &KINDS, 1);
    server.expect(&format!("process {third} is ready, in Python"));
    assert_eq!(server.hello(), third);
    load.stop();
    server.set_serving(third);
    assert_eq!(server.stop(), exited(third, 0));
}

#[test]
fn a_candidate_in_python_exits_if_the_first_of_three_has_taken_back() {
    if !is_installed("python3") {
        return;
    }
    let (server, third) = lose_the_second(false);
    server.expect("another process serves");
    assert_eq!(wait_for_end(third), exited(third, 1));
    let load = Load::start(server.address, &KINDS, 1);
    server.expect_alone(server.first());
    load.stop();
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_takeover_by_a_program_in_python_that_dies_leaves_everything_as_before() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&PATIENT);
    let load = Load::start(server.address, &KEPT, 2);
    for word in ["ready", "serving", "took"] {
        let mut successor = python("takeover.py", &format!("dies-before-{word}"));
        successor.arg(server.directory.join("control")).process_group(server.first() as i32);
        drop(successor.spawn().unwrap().wait());
        server.expect_any(&["handover failed: successor ", "; accepting connections again"]);
        server.expect_alone(server.first());
    }
    load.stop();
    assert_eq!(client::get(server.address, "/hello").unwrap().status, 200);
    assert_eq!(server.stop(), exited(server.first(), 0));
}
