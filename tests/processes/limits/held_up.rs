//! Files, sockets, pipes, clients and children that do not respond: none of them keeps a process from ending, or a
//! handover from being decided.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Stdio;

use handover::NonBlockingStderr;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::client;
use crate::command::{Command, Started, Stderr, Untraced};
use crate::server::{
    BINARY, Directory, Server, exited, expect_dead, freeze, install, install_script, number_after,
    signal_process, wait_for_end, wait_until,
};
use crate::strace::tampered;

/// Replaces a file by a FIFO that has neither reader nor writer.
fn replace_by_fifo(path: &Path) {
    let new = path.with_extension("fifo");
    mkfifo(&new, Mode::S_IRWXU).unwrap();
    fs::rename(new, path).unwrap();
}

/// A server whose configuration has become a FIFO. Nothing is given up because of time.
fn start_with_fifo_as_configuration() -> Server {
    let directory = Directory::new();
    let config = directory.join("config");
    fs::write(&config, "message = before").unwrap();
    let arguments = ["--config", config.to_str().unwrap(), "--ready-timeout", "1h"];
    let server = Server::start_replaceable_in(directory, &arguments);
    replace_by_fifo(&config);
    server
}

#[test]
fn a_configuration_that_is_a_fifo_does_not_block_a_stop() {
    let server = start_with_fifo_as_configuration();
    server.signal(Signal::SIGUSR1);
    server.expect("SIGUSR1");
    // It goes on, as if nothing had been asked for.
    assert_eq!(server.control("control").unwrap(), server.first());
    assert_eq!(server.get("/"), "before");
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_configuration_that_is_a_fifo_does_not_block_a_handover() {
    let server = start_with_fifo_as_configuration();
    for _ in 0..2 {
        server.signal(Signal::SIGUSR2);
        server.expect("handover failed: successor ");
        server.expect_alone(server.first());
        // With one that was asked to be read meanwhile.
        server.signal(Signal::SIGUSR1);
    }
    let config = server.directory.join("config");
    fs::write(config.with_extension("new"), "message = after").unwrap();
    fs::rename(config.with_extension("new"), &config).unwrap();
    let successor = server.hand_over();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(server.get("/"), "after");
    assert_eq!(server.stop(), exited(successor, 0));
}

/// An unread notification socket with a full queue.
struct FullManager {
    _socket: UnixDatagram,
}

impl FullManager {
    fn start(path: &Path) -> FullManager {
        let socket = UnixDatagram::bind(path).unwrap();
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"READY=1", path).is_ok() {}
        FullManager { _socket: socket }
    }
}

#[test]
fn an_unread_notification_socket_blocks_nothing() {
    let directory = Directory::new();
    let path = directory.join("notify");
    let _manager = FullManager::start(&path);
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path).args(["--listen", "127.0.0.1:0", "--pid-file"]);
    command.arg(directory.join("pid")).arg("--control").arg(directory.join("control"));
    let server = Server::start_command(command, directory);
    server.signal(Signal::SIGUSR1);
    server.expect("SIGUSR1: nothing is changed: ");
    let held = server.hold();
    let successor = server.hand_over();
    signal_process(successor, Signal::SIGKILL);
    server.expect("accepting connections again");
    server.expect_alone(server.first());
    held.finish();
    server.hand_over();
    server.expect("stays");
    server.signal_first(Signal::SIGTERM);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    server.expect_processes(&[]);
}

#[test]
fn a_pid_file_that_has_become_a_fifo_does_not_block_a_stop() {
    let server = Server::start_replaceable(&[]);
    replace_by_fifo(&server.directory.join("pid"));
    assert_eq!(server.stop(), exited(server.first(), 0));
    // It was not the PID file of the server.
    assert_eq!(server.files(), ["pid"]);
}

#[test]
fn a_pid_file_that_has_become_a_fifo_does_not_block_a_handover() {
    let server = Server::start_replaceable(&[]);
    let path = server.directory.join("pid");
    for held in [false, true] {
        let old = server.serving();
        replace_by_fifo(&path);
        let held = held.then(|| server.hold());
        let successor = server.hand_over();
        held.into_iter().for_each(crate::server::Held::finish);
        assert_eq!(wait_for_end(old), exited(old, 0));
        server.expect_alone(successor);
    }
    // A predecessor that takes back looks there, as well.
    let old = server.serving();
    let held = server.hold();
    let successor = server.hand_over();
    replace_by_fifo(&path);
    let aside = server.directory.join("pid.old");
    let _ = fs::remove_file(&aside);
    mkfifo(&aside, Mode::S_IRWXU).unwrap();
    signal_process(successor, Signal::SIGKILL);
    server.expect("accepting connections again");
    assert_eq!(server.hello(), old);
    assert_eq!(server.control("control").unwrap(), old);
    held.finish();
    server.set_serving(old);
    assert_eq!(server.stop(), exited(old, 0));
}

/// A pipe that takes no more.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut file = File::from(writer.try_clone().unwrap());
    for size in [4096, 1] {
        while file.write(&[b'\n'; 4096][..size]).is_ok() {}
    }
    // The flag is shared with the server.
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader.into(), writer)
}

#[test]
fn a_full_standard_error_blocks_nothing() {
    let directory = Directory::new();
    let (pid_file, control) = (directory.join("pid"), directory.join("control"));
    install(&directory.join("program"));
    let (_reader, writer) = full_pipe();
    let mut command = Command::new(directory.join("program"));
    command.args(["--listen", "127.0.0.1:0", "--log-level", "debug", "--pid-file"]).arg(&pid_file);
    command.arg("--control").arg(&control).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stderr::Direct(writer.into())).untraced(Untraced::Unread);
    let mut first = Started(command.spawn().unwrap());
    drop(command);
    let status = || handover::ask(&control, "status").map(|status| number_after(&status, "pid="));
    wait_until(|| status().is_ok(), || "it does not begin".to_owned());
    // One that fails writes there as well.
    install_script(&directory.join("program"), &format!("exec {BINARY} --graceful --listen 192.0.2.1:1"));
    let answer = handover::ask(&control, "restart").unwrap();
    assert!(answer.starts_with("error: successor "), "{answer}");
    install(&directory.join("program"));
    let answer = handover::ask(&control, "restart").unwrap();
    let successor = number_after(&answer, "ok ");
    assert_eq!(first.status(), Some(0));
    assert_eq!(status().unwrap(), successor);
    signal_process(successor, Signal::SIGTERM);
    expect_dead(successor);
    assert!(!pid_file.exists() && !control.exists());
}

/// How many lines the embedding program logs, which is more than a pipe and the queue hold.
const LINES: u32 = 100_000;

/// No test, but the embedding program that the next one starts.
#[test]
#[ignore = "another test starts it"]
fn a_program_that_logs_more_than_is_read() {
    let stderr = NonBlockingStderr::start().unwrap();
    let mut log = stderr.writer();
    for _ in 0..LINES {
        log.write_all(b"a line\n").unwrap();
    }
    println!("\nall is logged");
    io::read_to_string(io::stdin()).unwrap();
    log.write_all(b"the last line\n").unwrap();
}

#[test]
fn an_embedding_program_waits_for_no_reader_of_its_log_and_each_line_is_written_or_counted() {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--ignored",
        "--exact",
        "--nocapture",
        "limits::held_up::a_program_that_logs_more_than_is_read",
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stderr::Piped);
    let mut program = Started(command.spawn().unwrap());
    let mut output = BufReader::new(program.0.stdout.take().unwrap()).lines();
    assert!(output.any(|line| line.unwrap() == "all is logged"));
    // Only now its log is read.
    let mut log = BufReader::new(program.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let (mut written, mut lost) = (0, 0);
    while written + lost < LINES {
        match log.next().unwrap() {
            line if line == "a line" => written += 1,
            line => lost += number_after(&line, &format!("{} log lines lost here: ", program.0.id())),
        }
    }
    assert!(written > 0 && lost > 0, "{written} lines are written, {lost} are lost");
    drop(program.0.stdin.take());
    assert_eq!(log.collect::<Vec<_>>(), ["the last line"]);
    assert_eq!(program.status(), Some(0));
}

#[test]
fn a_refused_process_leaves_even_if_standard_error_is_full() {
    let server = Server::start_replaceable(&["--ready-timeout", "1h"]);
    let (_reader, writer) = full_pipe();
    let mut command = Command::new(BINARY);
    command
        .args(["--takeover", "--listen", "192.0.2.1:1", "--control"])
        .arg(server.directory.join("control"));
    command.stderr(Stderr::Direct(writer.into())).untraced(Untraced::Unread);
    let mut refused = Started(command.stdin(Stdio::null()).spawn().unwrap());
    drop(command);
    server.expect("handover failed: successor ");
    assert_eq!(refused.status(), Some(1));
    server.expect_alone(server.first());
}

#[test]
fn control_clients_that_never_read_block_nothing() {
    let server = Server::start_replaceable(&["--ready-timeout", "1h"]);
    let control = server.directory.join("control");
    let ask = |request: &str| {
        let mut client = UnixStream::connect(&control).unwrap();
        client.write_all(format!("{request}\n").as_bytes()).unwrap();
        client
    };
    let clients: Vec<UnixStream> = (0..100).map(|_| ask("status")).collect();
    let restart = ask("restart");
    let successor = server.expect_handover();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    // One that is to take over, and never says anything.
    let taker = ask("takeover");
    server.expect(&format!("{successor} INFO  adopted successor {}", std::process::id()));
    assert_eq!(server.control("control").unwrap(), successor);
    let stop = ask("stop");
    assert_eq!(wait_for_end(successor), exited(successor, 0));
    // The listening socket lies in the connection of the one that was to take over.
    drop((clients, restart, taker, stop));
    assert!(client::get(server.address, "/").is_err());
}

/// Its tracer, which is frozen, has to see its end before its parent can. A candidate that waits for a dead disk does
/// not end either.
#[test]
fn a_candidate_that_does_not_end_when_killed_blocks_nothing() {
    let Some(command) = tampered("?fork", "error=EPERM") else { return };
    let server = Server::start_replaceable(&["--ready-timeout", "2s"]);
    let gate = server.directory.join("gate");
    mkfifo(&gate, Mode::S_IRWXU).unwrap();
    let strace = command.strip_suffix(BINARY).unwrap();
    install_script(&server.program(), &format!("exec {strace} sh -c 'read _ <{}'", gate.display()));
    server.signal(Signal::SIGUSR2);
    let candidate = number_after(&server.expect("started successor "), "successor ");
    let tracer = || {
        let status = fs::read_to_string(format!("/proc/{candidate}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok()).unwrap_or(0)
    };
    // It may have been too slow for the timeout.
    let mut traced_by = 0;
    wait_until(
        || {
            traced_by = tracer();
            traced_by != 0 || !Path::new(&format!("/proc/{candidate}")).exists()
        },
        || "it is not traced".to_owned(),
    );
    if traced_by == 0 {
        return;
    }
    freeze(traced_by);
    server.expect("handover failed: successor ");
    let status = handover::ask(&server.directory.join("control"), "status");
    let held = server.hold();
    server.signal(Signal::SIGTERM);
    server.expect("SIGTERM: stopping");
    held.finish();
    let end = wait_for_end(server.first());
    signal_process(traced_by, Signal::SIGKILL);
    assert_eq!(end, exited(server.first(), 0));
    assert!(status.unwrap().starts_with("pid="));
}
