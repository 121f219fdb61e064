//! Each side of a handover in another language, written by the page man/handover.7 alone.

use std::path::PathBuf;

use crate::client::Client;
use crate::command::Command;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Server, exited, expect_dead, install_script, number_after, wait_for_end,
};
use crate::untested::is_installed;

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/processes/protocol/python").join(name)
}

/// Python with a script, which is not to write compiled files beside it.
fn python(name: &str) -> Command {
    let mut python = Command::new("python3");
    python.arg("-B").arg(script(name));
    python
}

/// What is there instead of the command from now on.
fn install_successor(server: &Server) {
    install_script(&server.program(), &format!("exec python3 -B '{}'", script("successor.py").display()));
}

/// The clients that it can serve.
const KINDS: [Kind; 3] = [Kind::Close, Kind::KeepAlive, Kind::Naive];

fn expect_answer(client: &mut Client, pid: u32) {
    assert_eq!(client.get("/hello").unwrap().text(), format!("Hello from {pid}!"));
}

/// The process that serves has everything of the one before it, which needed nobody to cut its connections.
fn expect_succession(server: &Server, client: &mut Client, old: u32) {
    server.expect(&format!("{old} INFO  drained, moved="));
    expect_dead(old);
    expect_answer(client, server.serving());
    assert_eq!(server.hello(), server.serving());
}

#[test]
fn a_program_in_python_succeeds_the_command_and_nothing_is_lost() {
    if !is_installed("python3") {
        return;
    }
    let server = Server::start_replaceable(&[]);
    let load = Load::start(server.address, &KINDS, 2);
    let mut client = Client::connect(server.address).unwrap();
    expect_answer(&mut client, server.first());
    install_successor(&server);
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
    let server = Server::start_replaceable(&[]);
    let first = server.first();
    let held = server.hold();
    let second = server.hand_over();
    let mut client = Client::connect(server.address).unwrap();
    expect_answer(&mut client, second);
    install_successor(&server);
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
    let server = Server::start_replaceable(&[]);
    let load = Load::start(server.address, &KINDS, 2);
    let mut client = Client::connect(server.address).unwrap();
    expect_answer(&mut client, server.first());
    let mut successor = python("takeover.py");
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
    let mut command = python("predecessor.py");
    command.arg(BINARY);
    let server = Server::start_command(command, Directory::new());
    let [mut client, mut waiting] = [(); 2].map(|()| Client::connect(server.address).unwrap());
    waiting.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    expect_answer(&mut client, server.first());
    server.expect("listening on the existing file descriptor 3, ");
    let successor = number_after(&server.expect(" is ready, "), "process ");
    assert_eq!(waiting.receive().unwrap().text(), format!("Hello from {successor}!"));
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    server.expect(&format!("{successor} INFO  received connections, moved=1"));
    expect_answer(&mut client, successor);
    server.set_serving(successor);
    assert_eq!(server.stop(), exited(successor, 0));
}
