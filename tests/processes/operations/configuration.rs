//! The configuration file: what a reload changes, and what it leaves alone.

use std::fs;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::client::{self, Client};
use crate::command::Command;
use crate::load::{Kind, Load};
use crate::server::{BINARY, Directory, Server, expect_at_rest};

/// Starts the command with a configuration file of this content.
pub fn start_with_config(content: &str, arguments: &[&str]) -> Server {
    let directory = Directory::new();
    fs::write(directory.join("config"), content).unwrap();
    let mut command = Command::new(BINARY);
    // Or it would decide what is logged.
    if content.contains("log-level") {
        command.env("RUST_LOG", "");
    }
    command.args(["--listen", "127.0.0.1:0", "--config"]).arg(directory.join("config")).args(arguments);
    Server::start_command(command, directory)
}

/// Replaces the configuration file and has it read again.
pub fn reload(server: &Server, content: &str) {
    fs::write(server.directory.join("config"), content).unwrap();
    server.signal(Signal::SIGUSR1);
}

#[test]
fn a_reload_takes_effect_for_the_next_request_and_disturbs_no_connection() {
    let server = start_with_config("message = one", &[]);
    let mut client = server.idle_client();
    assert_eq!(client.get("/").unwrap().text(), "one");
    let load = Load::start(server.address, &[Kind::KeepAlive, Kind::Naive, Kind::Close], 2);

    reload(&server, "message = two");
    server.expect("SIGUSR1: configuration reloaded");
    let reply = client.get("/").unwrap();
    assert_eq!(reply.text(), "two");
    assert!(!reply.is_last());
    load.stop();

    // Timeouts, too: a connection that is idle from now on is closed at once.
    reload(&server, "message = three\nidle-timeout = 1ms");
    server.expect("SIGUSR1: configuration reloaded");
    let mut client = Client::connect(server.address).unwrap();
    assert_eq!(client.get("/").unwrap().text(), "three");
    assert!(client.rest().unwrap().is_empty());

    assert_eq!(server.processes(), [server.first()]);
}

#[test]
fn a_reload_changes_the_log_level() {
    // As a command-line option, it would not.
    let server = start_with_config("log-level = debug", &[]);
    for (level, path) in [("debug", "/one"), ("info", "/two"), ("debug", "/three")] {
        reload(&server, &format!("log-level = {level}"));
        server.expect("SIGUSR1: configuration reloaded");
        assert_eq!(client::get(server.address, path).unwrap().status, 404);
    }
    server.expect("GET /three");
    assert!(server.log().contains("GET /one") && !server.log().contains("GET /two"), "{}", server.log());
}

#[test]
fn a_limit_changes_in_place() {
    let server = start_with_config("max-connections = 1", &["--log-level", "debug"]);
    let mut busy = Client::connect(server.address).unwrap();
    busy.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n").unwrap();
    server.expect("POST /echo");
    let mut waiting = Client::connect(server.address).unwrap();
    waiting.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("1 are open, which is the limit");
    reload(&server, "max-connections = 2");
    assert_eq!(waiting.receive().unwrap().status, 200);
    busy.send("hi").unwrap();
    assert_eq!(busy.receive().unwrap().text(), "hi");
}

#[test]
fn a_bad_file_changes_nothing() {
    let server = start_with_config("message = good", &[]);
    let path = server.directory.join("config");
    reload(&server, "message = half\nnonsense = 1");
    server.expect(&format!("SIGUSR1: nothing is changed: {}:2: unknown option \"nonsense\"", path.display()));
    assert_eq!(server.get("/"), "good");

    // A handover reads it anew, and fails.
    server.signal(Signal::SIGUSR2);
    server.expect(&format!("handover: {}:2: unknown option \"nonsense\"", path.display()));
    let line = server.expect("handover failed: ");
    assert!(line.contains("exited with status 2"), "{line}");
    assert_eq!(server.get("/"), "good");

    fs::remove_file(&path).unwrap();
    server.signal(Signal::SIGUSR1);
    server.expect(&format!("SIGUSR1: nothing is changed: cannot read {}", path.display()));
    assert_eq!(server.get("/"), "good");

    // It does not wait for a FIFO that has no writer.
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    server.signal(Signal::SIGUSR1);
    server.expect(&format!("nothing is changed: cannot read {}: it is not a regular file", path.display()));
    fs::remove_file(&path).unwrap();

    reload(&server, "message = better");
    server.expect("configuration reloaded");
    let successor = server.hand_over();
    assert_eq!(server.get("/"), "better");
    assert_eq!(server.hello(), successor);
}

#[test]
fn what_needs_a_handover_is_named() {
    let server = start_with_config("", &[]);
    reload(&server, "pid-file = /nonexistent/pid\nsocket-mode = 0600\nmessage = new");
    for name in ["socket-mode", "pid-file"] {
        server.expect(&format!("a change of {name} needs a handover"));
    }
    assert_eq!(server.get("/"), "new");
}

#[test]
fn a_reload_switches_the_access_log_on_and_off() {
    // The trace comes with this level, and does not need the environment, which would decide about responses, too.
    let server = start_with_config("", &["--log-level", "debug"]);
    server.get("/?before");
    // By then it would have been logged.
    expect_at_rest(server.first());
    reload(&server, "access-log = true");
    server.expect("configuration reloaded");
    server.get("/?on");
    server.expect(" GET /?on 200 ");
    reload(&server, "");
    server.expect("configuration reloaded");
    server.get("/?off");
    server.stop();
    server.expect(" ends");
    let log = server.log();
    assert!(!log.contains(" GET /?before 200 ") && !log.contains(" GET /?off 200 "), "{log}");
}

#[test]
fn a_bad_file_at_the_start_ends_with_status_2() {
    let directory = Directory::new();
    let path = directory.join("config");
    fs::write(&path, "# comment\nlisten = nowhere\n").unwrap();
    let output = Command::new(BINARY).arg("--config").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let expected = format!(
        "handover: {}:2: invalid value \"nowhere\", expected HOST:PORT, unix:PATH or unix:@NAME\n",
        path.display()
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}
