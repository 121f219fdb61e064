//! The control socket: what is asked, what is answered, and who may ask.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::command::Command;
use crate::embedding::programs;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Server, errno_text, exited, install, install_script, number_after, signal_process,
    wait_for_end, wait_until,
};
use crate::untested::untested;

/// A server with a control socket, whose program is a file that can be replaced.
fn start(arguments: &[&str]) -> (Server, PathBuf) {
    let directory = Directory::new();
    let program = directory.join("program");
    install(&program);
    let control = directory.join("control");
    let mut command = Command::new(program);
    command.args(["--listen", "127.0.0.1:0", "--control"]).arg(&control);
    command.args(arguments);
    (Server::start_command(command, directory), control)
}

/// What the command prints as a client, and its status.
fn ask(control: &Path, request: &str) -> (String, Option<i32>) {
    let output = ask_as(Command::new(BINARY), control, request);
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

fn ask_as(mut command: Command, control: &Path, request: &str) -> Output {
    command.args(["-s", request, "--control"]).arg(control).output().unwrap()
}

fn ok(answer: &str) -> (String, Option<i32>) {
    (format!("{answer}\n"), Some(0))
}

#[test]
fn a_restart_is_answered_when_it_is_decided() {
    let (server, control) = start(&["--ready-timeout", "500ms"]);
    assert_eq!(fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    let load = Load::start(server.address, &Kind::ALL, 1);
    let old = server.first();

    install_script(&server.directory.join("program"), "exit 1");
    let (answer, status) = ask(&control, "restart");
    let successor = number_after(&answer, "successor ");
    assert_eq!(answer, format!("error: successor {successor} exited with status 1 before it was ready\n"));
    assert_eq!(status, Some(1));
    install_script(&server.directory.join("program"), "exec sleep 60");
    let (answer, _) = ask(&control, "restart");
    assert!(answer.ends_with("was not ready within 500ms, and was killed by SIGKILL\n"), "{answer}");
    fs::remove_file(server.directory.join("program")).unwrap();
    let (answer, _) = ask(&control, "restart");
    assert!(answer.starts_with("error: cannot start ") && answer.contains("No such file"), "{answer}");
    assert_eq!(server.hello(), old);

    install(&server.directory.join("program"));
    for _ in 0..5 {
        let (answer, status) = ask(&control, "restart");
        let successor = server.expect_handover();
        assert_eq!((answer, status), ok(&format!("ok {successor}")));
        // The answer means that it serves, and is asked next.
        assert!(ask(&control, "status").0.starts_with(&format!("pid={successor} state=running ")));
    }
    load.stop();
    let serving = server.serving();
    server.expect_processes(&[serving]);
    assert_eq!(ask(&control, "stop"), ok("ok"));
    assert_eq!(wait_for_end(serving), exited(serving, 0));
    assert!(!control.exists());
    assert!(client::get(server.address, "/").is_err());
}

#[test]
fn a_status_tells_how_the_process_is() {
    let (server, control) = start(&["--log-level", "debug"]);
    let executable = server.directory.path().join("program");
    let tells = |expected: &[String]| {
        let (status, code) = ask(&control, "status");
        assert_eq!(code, Some(0));
        let fields: Vec<&str> = status.trim_end().split(' ').collect();
        for expected in expected {
            assert!(fields.contains(&expected.as_str()), "{status} without {expected}");
        }
    };
    let mut client = Client::connect(server.address).unwrap();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n").unwrap();
    server.expect("POST /echo");
    let idle = server.idle_client();
    server.expect_asleep();
    tells(&[
        format!("pid={}", server.first()),
        "state=running".to_owned(),
        format!("version={}", env!("CARGO_PKG_VERSION")),
        format!("executable={}", executable.display()),
        "connections=2".to_owned(),
        "in-flight=1".to_owned(),
        "generation=1".to_owned(),
        "accepted=2".to_owned(),
        "requests=2".to_owned(),
        "moved=0".to_owned(),
        "evicted=0".to_owned(),
        "at-capacity=0".to_owned(),
        "refused=0".to_owned(),
        "lost=0".to_owned(),
        "handovers=0".to_owned(),
        "handovers-failed=0".to_owned(),
    ]);
    client.send("hi").unwrap();
    client.receive().unwrap();
    drop((client, idle));
    wait_until(|| server.status("connections=") == 0, || server.log());
    for generation in 2..5 {
        let successor = server.hand_over();
        let generation = format!("generation={generation}");
        tells(&[format!("pid={successor}"), generation, "connections=0".to_owned(), "requests=2".to_owned()]);
    }
}

#[test]
fn handovers_are_counted_by_all_processes_together() {
    let server = Server::start_replaceable(&["--probation", "1h"]);
    let control = server.directory.join("control");
    let expect = |handovers: u32, failed: u32| {
        let status = ask(&control, "status").0;
        assert!(status.contains(&format!(" handovers={handovers} handovers-failed={failed} ")), "{status}");
        assert_eq!(status.contains(" since-handover="), handovers > 0, "{status}");
    };
    expect(0, 0);
    // One that is not ready, and one that cannot be started.
    install_script(&server.program(), "exit 1");
    assert!(ask(&control, "restart").0.starts_with("error: "));
    expect(0, 1);
    fs::remove_file(server.program()).unwrap();
    assert!(ask(&control, "restart").0.starts_with("error: "));
    expect(0, 2);
    install(&server.program());
    let successor = server.hand_over();
    expect(1, 2);
    // One that dies, and is taken the place of.
    signal_process(successor, Signal::SIGKILL);
    server.expect("accepting connections again");
    wait_until(|| server.control("control").is_ok_and(|pid| pid == server.first()), || server.log());
    expect(1, 3);
    for handovers in 2..4 {
        server.set_serving(server.control("control").unwrap());
        server.hand_over();
        expect(handovers, 3);
    }
}

#[test]
fn a_reload_is_answered() {
    let directory = Directory::new();
    let config = directory.join("config");
    fs::write(&config, "message = one").unwrap();
    let (server, control) = start(&["--config", config.to_str().unwrap()]);
    fs::write(&config, "message = two").unwrap();
    assert_eq!(ask(&control, "reload"), ok("ok"));
    assert_eq!(server.get("/"), "two");
    let content = "message = two\nsocket-mode = 0600\nstay = true\ndrain-timeout = 1s\nmessage = three";
    fs::write(&config, content).unwrap();
    let expected = "ok, but a change of socket-mode needs a handover, and a change of stay needs a restart";
    assert_eq!(ask(&control, "reload"), ok(expected));
    assert_eq!(server.get("/"), "three");
    fs::write(&config, "nonsense").unwrap();
    let (answer, status) = ask(&control, "reload");
    assert_eq!(answer, format!("error: nothing is changed: {}:1: expected NAME = VALUE\n", config.display()));
    assert_eq!(status, Some(1));
}

#[test]
fn a_reload_of_nothing_is_an_error() {
    let (server, control) = start(&[]);
    let reason = "nothing is changed: there is no configuration file to read";
    assert_eq!(ask(&control, "reload"), (format!("error: {reason}\n"), Some(1)));
    server.signal(Signal::SIGUSR1);
    server.expect(&format!("SIGUSR1: {reason}"));
    for program in ["hello", "lines"] {
        let server = programs::start(program, "");
        let answer = handover::ask(&server.directory.join("control"), "reload").unwrap();
        assert_eq!(answer, "error: nothing is changed: the program has nothing to reload");
    }
}

#[test]
fn what_is_under_way_is_refused_with_the_reason() {
    let (server, control) = start(&[]);
    install_script(&server.directory.join("program"), "exec sleep 60");
    let path = control.clone();
    let first = thread::spawn(move || ask(&path, "restart"));
    server.expect("started successor");
    let successor = server.expect_child(server.first());
    let (answer, status) = ask(&control, "restart");
    assert_eq!(answer, format!("error: refused, successor {successor} is being started\n"));
    assert_eq!(status, Some(1));
    assert!(ask(&control, "status").0.contains(" state=handing-over "));

    // A stop ends the successor, of which whoever has asked for it hears.
    assert_eq!(ask(&control, "stop"), ok("ok"));
    let (answer, _) = first.join().unwrap();
    assert_eq!(
        answer,
        format!("error: successor {successor} was not ready when control came, and was killed by SIGKILL\n")
    );
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn the_socket_goes_with_whoever_serves() {
    let (server, control) = start(&[]);
    let inode = || fs::metadata(&control).unwrap().ino();
    let held = server.hold();
    let before = inode();
    let successor = server.hand_over();
    assert_ne!(inode(), before);
    signal_process(successor, Signal::SIGKILL);
    server.expect("accepting connections again");
    assert!(ask(&control, "status").0.starts_with(&format!("pid={} state=running ", server.first())));
    held.finish();

    // A successor that has put its socket there, and fails, leaves it to its predecessor.
    install_script(&server.directory.join("program"), &format!("rm -f {0}; exit 1", control.display()));
    server.signal_first(Signal::SIGUSR2);
    server.expect("handover failed");
    assert!(ask(&control, "status").0.starts_with(&format!("pid={} state=running ", server.first())));
    let leftovers = fs::read_dir(server.directory.path()).unwrap().count();
    assert_eq!(leftovers, 2, "program and control");
}

#[test]
fn a_live_socket_is_not_replaced_by_accident() {
    let (server, control) = start(&[]);
    for address in [server.address.to_string().as_str(), "127.0.0.1:0"] {
        let output =
            Command::new(BINARY).args(["--listen", address, "--control"]).arg(&control).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let expected = format!(
            "handover: cannot listen for requests on {}: process {} serves there; to replace it, ask it to \
             restart (-s restart), or take over from it (--takeover)\n",
            control.display(),
            server.first()
        );
        // Before anything else.
        assert_eq!(text, expected);
    }
    assert!(ask(&control, "status").0.starts_with(&format!("pid={} ", server.first())));

    // One that has been left behind is.
    signal_process(server.first(), Signal::SIGKILL);
    wait_for_end(server.first());
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--control"]).arg(&control);
    let next = Server::start_command(command, Directory::new());
    assert!(ask(&control, "status").0.starts_with(&format!("pid={} ", next.first())));
}

/// Sends bytes, and returns the answer.
fn talk(control: &Path, input: &[u8]) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    // It may be refused before all is sent.
    let _ = stream.write_all(input);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn garbage_gets_one_line() {
    let (server, control) = start(&[]);
    let expected = "expected one of status, restart, reload, stop, wait\n";
    for (input, beginning) in [
        (&b"nonsense\n"[..], "error: unknown request \"nonsense\", "),
        (b"", "error: unknown request \"\", "),
        (b"status", "error: unknown request \"status\", "),
        (b"status \n", "error: unknown request \"status\", "),
        (b"\0\xff\n", "error: unknown request \"\\x00\\xff\", "),
    ] {
        assert_eq!(talk(&control, input), format!("{beginning}{expected}"));
    }
    let long = talk(&control, &[b'x'; 100_000]);
    assert!(long.is_empty() || long.ends_with(expected), "{long}");
    // Nobody waits for one that says nothing.
    let silent = UnixStream::connect(&control).unwrap();
    assert!(ask(&control, "status").0.starts_with("pid="));
    drop(silent);
    assert_eq!(server.hello(), server.first());

    let output = Command::new(BINARY).args(["-s", "status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stderr, b"handover: --signal needs --control\n");
    let missing = Path::new("/nonexistent/control");
    let output = ask_as(Command::new(BINARY), missing, "status");
    assert_eq!(output.status.code(), Some(1));
    let error = handover::ask(missing, "status").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let reason = errno_text(Errno::ENOENT);
    assert_eq!(error.to_string(), format!("cannot ask on /nonexistent/control: {reason}"));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("handover: {error}\n"));
}

#[test]
fn another_user_is_refused() {
    let (server, control) = start(&[]);
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        untested("only root can be somebody else");
        return;
    }
    // Even if the permissions of the socket let him through.
    fs::set_permissions(&control, fs::Permissions::from_mode(0o666)).unwrap();
    let program = server.directory.path().join("program");
    let mut command = Command::new(program);
    command.uid(65534).gid(65534);
    let output = ask_as(command, &control, "stop");
    assert_eq!(output.stdout, b"error: user 65534 is neither root nor the user of this process\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(server.hello(), server.first());
}
