//! What a process is given and what it leaves: descriptors, flags, files, exit status.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::client;
use crate::command::{Child, Command, Stderr, Untraced};
use crate::server::{
    BINARY, Directory, Server, errno_text, exited, install, install_script, number_after, signal_process,
    wait_for_end,
};

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs the command through a shell that prepares its descriptors.
fn run_in_shell(script: &str) -> Output {
    let script = format!("{script} exec {BINARY} --graceful --listen 127.0.0.1:0");
    Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().unwrap()
}

fn one_line(output: &Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn wrong_flags_end_with_one_line_and_status_2() {
    for (arguments, expected) in [
        (&["--bogus"][..], "handover: invalid option '--bogus'\n"),
        (&["--listen"], "handover: missing argument for option '--listen'\n"),
        (
            &["--listen", "nonsense"],
            "handover: --listen: invalid value \"nonsense\", expected HOST:PORT, unix:PATH or unix:@NAME\n",
        ),
        (
            &["--listen", "http://127.0.0.1:3000"],
            "handover: --listen: invalid value \"http://127.0.0.1:3000\", expected HOST:PORT, unix:PATH or unix:@NAME\n",
        ),
        (
            &["--ready-timeout", "10"],
            "handover: --ready-timeout: invalid value \"10\", expected a time greater than 0, such as 20s, 500ms or 1m\n",
        ),
        (
            &["--config", "/nonexistent"],
            "handover: cannot read /nonexistent: No such file or directory (os error 2)\n",
        ),
        (&["extra"], "handover: unexpected argument \"extra\"\n"),
    ] {
        assert_eq!(one_line(&run(arguments), 2), expected);
    }
}

#[test]
fn help_and_version_are_printed() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(help.stdout.starts_with(b"handover: "), "{help:?}");
    let version = run(&["-V"]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("handover {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn an_address_in_use_ends_with_one_line_and_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = one_line(&run(&["--listen", &address]), 1);
    assert!(
        line.starts_with(&format!("handover: cannot listen on {address}: {}", errno_text(Errno::EADDRINUSE))),
        "{line}"
    );
}

#[test]
fn an_unusable_descriptor_3_ends_with_one_line_and_status_1() {
    let refused = "handover: cannot take over the listening socket at descriptor 3: ";
    let server = Server::start(&[]);
    let connected = format!("exec 3<>/dev/tcp/127.0.0.1/{};", server.address.port());
    for (script, reason) in [
        ("exec 3</dev/null;", "it is not a socket"),
        (&connected, "it is not listening"),
        ("exec 3<>/dev/udp/127.0.0.1/9;", "it is not a stream socket but Datagram"),
    ] {
        assert_eq!(one_line(&run_in_shell(script), 1), format!("{refused}{reason}\n"));
    }
    let expected = "handover: cannot listen on 127.0.0.1:0: no such socket was handed to this process\n";
    assert_eq!(one_line(&run_in_shell("exec 3<&-;"), 1), expected);
}

#[test]
fn an_unwritable_pid_file_ends_with_status_1() {
    let output = run(&["--listen", "127.0.0.1:0", "--pid-file", "/nonexistent/pid"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.ends_with(
            "handover: cannot write the PID file /nonexistent/pid: No such file or directory (os error 2)\n"
        ),
        "{text}"
    );
}

#[test]
fn the_pid_file_goes_with_its_process_only() {
    let server = Server::start_for_load(&[]);
    let path = server.directory.join("pid");
    assert_eq!(server.pid_file(), server.first());
    server.hand_over();
    wait_for_end(server.first());
    assert_eq!(server.pid_file(), server.serving());
    assert_eq!(server.stop(), exited(server.serving(), 0));
    assert!(!path.exists());

    let server = Server::start_for_load(&[]);
    let path = server.directory.join("pid");
    fs::write(&path, "1\n").unwrap();
    server.stop();
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
}

#[test]
fn only_descriptors_0_to_5_reach_the_successor() {
    let directory = Directory::new();
    let program = directory.join("program");
    install(&program);
    let mut command = Command::new("bash");
    command.args(["-c", "exec 7</dev/null 20</dev/zero; exec \"$@\"", "bash"]).arg(&program);
    command.args(["--listen", "127.0.0.1:0"]);
    let server = Server::start_command(command, directory);
    let seen = server.directory.join("seen");
    let script = format!("exec >{} ls -l /proc/self/fd", seen.display());
    install_script(&program, &script);
    let held = fs::read_link(format!("/proc/{}/fd/20", server.first())).unwrap();
    assert_eq!(held.to_str(), Some("/dev/zero"));
    server.signal(Signal::SIGUSR2);
    server.expect("handover failed: ");
    let seen = fs::read_to_string(seen).unwrap();
    let mut descriptors: Vec<(u32, &str)> = seen
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, target)| (left.rsplit(' ').next().unwrap().parse().unwrap(), target))
        // The directory that is being listed.
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .collect();
    descriptors.sort_unstable();
    let numbers: Vec<u32> = descriptors.iter().map(|&(number, _)| number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5], "{descriptors:?}");
    assert!(descriptors[3].1.starts_with("socket:"), "{descriptors:?}");
    assert!(descriptors[4].1.starts_with("socket:"), "{descriptors:?}");
    assert!(descriptors[5].1.starts_with("socket:"), "{descriptors:?}");
}

/// Starts the command behind a systemd-socket-activate of our own: the socket at descriptor 3, and nobody
/// at descriptor 4.
fn socket_activated(arguments: &[&str]) -> (Child, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut command = Command::new("sh");
    // Standard input is the one descriptor that Command passes on as it is.
    command.args(["-c", "exec 3<&0 4<&- 0</dev/null; exec \"$@\"", "sh", BINARY, "--graceful"]);
    command.args(["--listen", &address.to_string()]).args(arguments);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(socket))).stderr(Stderr::Piped);
    (command.spawn().unwrap(), address)
}

#[test]
fn a_socket_can_come_from_a_service_manager() {
    let (mut child, address) = socket_activated(&["--message", "activated"]);
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(line.contains(&format!("listening on the existing file descriptor 3, {address}")), "{line}");
    assert_eq!(client::get(address, "/").unwrap().text(), "activated");
    signal_process(child.id(), Signal::SIGTERM);
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", BINARY, "--listen", "127.0.0.1:0"]);
    let server = Server::start_command(command, Directory::new());
    server.signal(Signal::SIGHUP);
    let successor = server.hand_over();
    wait_for_end(server.first());
    server.signal(Signal::SIGHUP);
    assert_eq!(server.hello(), successor);
    assert_eq!(server.stop(), exited(successor, 0));
    assert!(!server.log().contains("SIGHUP"));
}

#[test]
fn a_closed_log_does_not_end_the_process() {
    let mut command = Command::new(BINARY);
    let directory = Directory::new();
    let pid_file = directory.join("pid");
    command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(&pid_file);
    let mut child = command.stderr(Stderr::Piped).untraced(Untraced::Unread).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    line.clear();
    log.read_line(&mut line).unwrap();
    assert!(line.contains("is ready"), "{line}");
    drop(log);

    let hello = || client::get(address, "/hello").unwrap().text();
    assert_eq!(hello(), format!("Hello from {}!", child.id()));
    signal_process(child.id(), Signal::SIGUSR2);
    assert!(child.wait().unwrap().success());
    let successor = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(hello(), format!("Hello from {successor}!"));
    signal_process(successor, Signal::SIGTERM);
    wait_for_end(successor);
    assert!(client::get(address, "/").is_err());
}

#[test]
fn an_idle_server_does_not_wake_up() {
    let server = Server::start(&[]);
    let switches = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.first())).unwrap();
        let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        let voluntary = |status: String| number_after(&status, "\nvoluntary_ctxt_switches:\t");
        statuses.map(voluntary).sum::<u32>()
    };
    server.expect_asleep();
    let before = switches();
    // This is the time in which nothing must happen.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(), before);
}
