//! Taking over from a process that is not the parent.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;

use nix::sys::signal::Signal;

use crate::client;
use crate::command::{Command, Stderr};
use crate::load::{Kind, Load};
use crate::server::{BINARY, Directory, Server, exited, signal_process, wait_for_end, wait_until};

/// The command with a control socket, on this address.
fn command(listen: &str, control: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--listen", listen, "--ready-timeout", "500ms", "--control"]).arg(control);
    command
}

fn start() -> (Server, PathBuf) {
    let directory = Directory::new();
    let control = directory.join("control");
    let command = command("127.0.0.1:0", &control);
    (Server::start_command(command, directory), control)
}

/// Another server, which somebody else than the first has started.
fn take_over(server: &Server, control: &Path) -> Server {
    let mut command = command(&server.address.to_string(), control);
    command.arg("--takeover");
    Server::start_command(command, Directory::new())
}

fn status(control: &Path) -> String {
    let output = Command::new(BINARY).args(["-s", "status", "--control"]).arg(control).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_process_that_is_not_a_child_takes_over_and_nothing_is_lost() {
    let (first, control) = start();
    let load = Load::start(first.address, &Kind::ALL, 2);
    let mut server = take_over(&first, &control);
    let successor = first.expect_handover();
    assert_eq!(successor, server.first());
    assert_eq!(wait_for_end(first.first()), exited(first.first(), 0));
    for generation in 3..9 {
        // In turn with the usual handovers, for which the flag means nothing.
        server.hand_over();
        let old = server.serving();
        assert!(status(&control).starts_with(&format!("pid={old} state=running ")), "{}", status(&control));
        assert!(
            status(&control).contains(&format!(" generation={} ", 2 * generation - 3)),
            "{}",
            status(&control)
        );
        let next = take_over(&server, &control);
        server.expect(&format!("handed over to successor {}", next.first()));
        server.expect(&format!("process {old} ends"));
        server.expect_processes(&[]);
        server = next;
    }
    load.stop();
    assert_eq!(server.hello(), server.first());
    assert!(status(&control).starts_with(&format!("pid={} ", server.first())));
    assert_eq!(server.stop(), exited(server.first(), 0));
    assert!(!control.exists());
    assert!(client::get(server.address, "/").is_err());
}

#[test]
fn every_kind_of_socket_is_taken_over() {
    let directory = Directory::new();
    let control = directory.join("control");
    let socket = format!("unix:{}", directory.join("socket").display());
    let mut first = command("127.0.0.1:0", &control);
    first.args(["--listen", "127.0.0.2:0", "--listen", &socket]);
    let first = Server::start_command(first, directory);
    let targets = first.targets();
    let log = first.log();
    let addresses: Vec<&str> =
        log.lines().filter_map(|line| Some(line.split_once("new file descriptor, ")?.1)).collect();
    let mut second = command(addresses[0], &control);
    second.args(["--listen", addresses[1], "--listen", &socket, "--takeover"]);
    let second = Server::start_command(second, Directory::new());
    // Until then both accept connections.
    first.expect("handed over to successor ");
    for target in targets {
        assert_eq!(client::get(target, "/hello").unwrap().text(), format!("Hello from {}!", second.first()));
    }
    assert_eq!(wait_for_end(first.first()), exited(first.first(), 0));
    assert!(first.directory.join("socket").exists());
    second.stop();
    assert!(!first.directory.join("socket").exists());
}

#[test]
fn with_nobody_there_the_address_is_bound() {
    let directory = Directory::new();
    let control = directory.join("control");
    let mut command = command("127.0.0.1:0", &control);
    command.arg("--takeover");
    let server = Server::start_command(command, directory);
    assert!(server.log().contains("listening on a new file descriptor"));
    assert!(status(&control).contains(" generation=1 "));
    let output = Command::new(BINARY).arg("--takeover").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stderr, b"handover: --takeover needs --control\n");
}

#[test]
fn an_address_that_cannot_be_bound_is_no_takeover() {
    let (server, control) = start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for (listen, reason) in [
        ("192.0.2.1:1".to_owned(), "Cannot assign requested address (os error 99)"),
        (taken.local_addr().unwrap().to_string(), "Address already in use (os error 98)"),
    ] {
        let mut command = command(&server.address.to_string(), &control);
        let Output { status, stderr, .. } =
            command.args(["--takeover", "--listen", &listen]).output().unwrap();
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.ends_with(&format!("handover: cannot listen on {listen}: {reason}\n")), "{text}");
        server.expect("has left before it was ready");
        assert_eq!(server.hello(), server.first());
        assert!(self::status(&control).starts_with(&format!("pid={} state=running ", server.first())));
    }
}

/// Somebody who wants to take over, and says what he likes.
struct Stranger {
    connection: BufReader<UnixStream>,
}

impl Stranger {
    fn connect(control: &Path) -> Stranger {
        let connection = UnixStream::connect(control).unwrap();
        Stranger { connection: BufReader::new(connection) }
    }

    fn say(&mut self, text: &str) {
        self.connection.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// A line from the other side. Sockets that come with it are closed.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.connection.read_line(&mut line).unwrap();
        line
    }
}

#[test]
fn whoever_does_not_become_ready_changes_nothing() {
    let (server, control) = start();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", server.first())).unwrap().count();
    let before = descriptors();
    let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 2);
    let serves_on = |reason: &str| {
        server.expect(reason);
        assert_eq!(server.hello(), server.first());
    };

    // He connects, and says nothing.
    let mut silent = Stranger::connect(&control);
    // He says half of it.
    Stranger::connect(&control).say("take");
    // He dies between the two phases.
    let mut dying = Stranger::connect(&control);
    dying.say("takeover\n");
    assert_eq!(dying.hear(), "handover 1\n");
    drop(dying);
    serves_on("has left before it was ready");
    // He says nothing more.
    let mut slow = Stranger::connect(&control);
    slow.say("takeover\n");
    assert_eq!(slow.hear(), "handover 1\n");
    // Only one at a time.
    let mut second = Stranger::connect(&control);
    second.say("takeover\n");
    assert!(second.hear().starts_with("error: refused, successor "));
    serves_on("was not ready within 500ms, and has left");
    assert_eq!(slow.hear(), "no was not ready within 500ms\n");
    // He says something else.
    let mut garbled = Stranger::connect(&control);
    garbled.say("takeover\n");
    assert_eq!(garbled.hear(), "handover 1\n");
    garbled.say("hello\n");
    serves_on("said \"hello\" instead of \"ready\", and has left");
    assert_eq!(garbled.hear(), "no said \"hello\" instead of \"ready\"\n");

    drop((slow, second, garbled));
    let mut answer = String::new();
    silent.say("status\n");
    silent.connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("pid="), "{answer}");
    drop(silent);
    load.stop();
    wait_until(|| descriptors() <= before, || format!("{} descriptors, not {before}", descriptors()));

    let next = take_over(&server, &control);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(next.hello(), next.first());
}

#[test]
fn two_that_take_over_at_once_are_served_one_after_the_other_or_refused() {
    let (server, control) = start();
    let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 2);
    let spawn = || {
        let mut command = command(&server.address.to_string(), &control);
        command.arg("--takeover").stderr(Stderr::Null).spawn().unwrap()
    };
    let mut both = [spawn(), spawn()];
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    // Whoever has come second was refused, or has taken over from the first.
    let one_is_left = || both.iter_mut().filter_map(|process| process.try_wait().unwrap()).count() == 1;
    wait_until(one_is_left, || "both are there".to_owned());
    load.stop();
    let mut left = both.iter_mut().filter_map(|process| match process.try_wait().unwrap() {
        None => Some(process.id()),
        Some(_) => None,
    });
    let left = left.next().unwrap();
    let hello = client::get(server.address, "/hello").unwrap().text();
    assert_eq!(hello, format!("Hello from {left}!"));
    for process in &mut both {
        let _ = process.kill();
        process.wait().unwrap();
    }
}

#[test]
fn a_successor_that_is_no_child_and_dies_is_succeeded_by_its_predecessor() {
    let (server, control) = start();
    let held = server.hold();
    let next = take_over(&server, &control);
    server.expect("handed over to successor");
    assert_eq!(
        client::get(server.address, "/hello").unwrap().text(),
        format!("Hello from {}!", next.first())
    );
    signal_process(next.first(), Signal::SIGKILL);
    server.expect("has left; accepting connections again");
    assert_eq!(server.hello(), server.first());
    assert!(status(&control).starts_with(&format!("pid={} state=running ", server.first())));
    held.finish();

    // One that is told to stop is not brought back.
    let _held = server.hold();
    let next = take_over(&server, &control);
    server.expect("handed over to successor");
    assert_eq!(next.stop(), exited(next.first(), 0));
    server.expect("says: stopping");
    wait_until(|| client::get(server.address, "/").is_err(), || "somebody answers".to_owned());
}

#[test]
fn a_process_that_cannot_receive_the_sockets_says_why() {
    let (server, control) = start();
    let takeover = |limit: u32| {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("ulimit -n {limit}; exec {BINARY} \"$@\"")).arg("bash");
        command.args(["--listen", &server.address.to_string(), "--takeover", "--control"]).arg(&control);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    // One of the two descriptors finds no place, or none does.
    let errors: Vec<String> = (4..7).map(takeover).collect();
    let why = "not all of its sockets could be received: too many open files";
    assert!(errors.iter().any(|error| error.contains(why)), "{errors:?}");
    assert_eq!(server.hello(), server.first());
}
