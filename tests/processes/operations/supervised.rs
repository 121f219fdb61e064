//! Under supervisors: what they are told, and what they see.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::command::{Child, Command, Stderr};
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Held, PATIENCE, Server, exited, expect_at_rest, install, install_script, number_after,
    signal_process, wait_for_end, wait_until,
};
use crate::untested::{is_installed, untested};

/// A service manager as sd_notify(3) sees it.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The manager, and a server that knows of it.
    fn start(arguments: &[&str]) -> (Manager, Server) {
        let directory = Directory::new();
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(BINARY);
        command.env("NOTIFY_SOCKET", &path).args(["--listen", "127.0.0.1:0"]).args(arguments);
        let server = Server::start_command(command, directory);
        (Manager { socket }, server)
    }

    fn receive(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    fn expect_ready(&self) {
        assert_eq!(self.receive(), ["READY=1"]);
    }

    fn expect_reloading(&self) {
        let message = self.receive();
        assert_eq!(message[0], "RELOADING=1");
        let time = message[1].strip_prefix("MONOTONIC_USEC=").unwrap_or_else(|| panic!("{message:?}"));
        assert!(time.parse::<u64>().unwrap() > 0);
    }

    /// What has been told must have been told by now.
    fn is_told_at_once(&self) {
        self.socket.set_nonblocking(true).unwrap();
    }
}

#[test]
fn a_service_manager_is_told_of_every_change() {
    let (manager, server) = Manager::start(&[]);
    let old = server.first();
    manager.expect_ready();

    server.signal(Signal::SIGUSR1);
    server.expect("SIGUSR1: nothing is changed: ");
    manager.expect_reloading();
    manager.expect_ready();

    // The new process has told it before it has told its predecessor.
    let held = server.hold();
    let new = server.hand_over();
    manager.is_told_at_once();
    manager.expect_reloading();
    manager.expect_ready();
    manager.socket.set_nonblocking(false).unwrap();

    signal_process(new, Signal::SIGKILL);
    server.expect("accepting connections again");
    manager.expect_ready();
    server.set_serving(old);
    held.finish();

    server.signal(Signal::SIGTERM);
    assert_eq!(manager.receive(), ["STOPPING=1"]);
    assert_eq!(wait_for_end(old), exited(old, 0));
}

#[test]
fn a_service_manager_is_told_of_a_failed_handover() {
    let directory = Directory::new();
    let program = directory.join("program");
    install(&program);
    let path = directory.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(&program);
    command.env("NOTIFY_SOCKET", &path).args(["--listen", "127.0.0.1:0"]);
    let server = Server::start_command(command, Directory::new());
    let manager = Manager { socket };
    manager.expect_ready();
    // Whether it cannot be started at all, or is started in vain.
    fs::remove_file(&program).unwrap();
    server.signal(Signal::SIGUSR2);
    server.expect("handover failed");
    manager.expect_reloading();
    manager.expect_ready();
    install_script(&program, "exit 1");
    server.signal(Signal::SIGUSR2);
    server.expect("handover failed");
    manager.expect_reloading();
    manager.expect_ready();
}

/// Starts the command through a shell that has two listening sockets at descriptors 3 and 4.
fn activated(script: &str, arguments: &[&str]) -> (Command, [String; 2]) {
    let sockets = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let addresses = sockets.each_ref().map(|socket| socket.local_addr().unwrap().to_string());
    let mut command = Command::new("sh");
    let script = format!("exec 3<&0 4<&1 0</dev/null 1>&2; {script} exec \"$@\"");
    command.args(["-c", &script, "sh", BINARY, "--listen", &addresses[0], "--listen", &addresses[1]]);
    let [first, second] = sockets.map(std::os::fd::OwnedFd::from);
    command.args(arguments).stdin(Stdio::from(first)).stdout(Stdio::from(second));
    (command, addresses)
}

#[test]
fn sockets_from_a_service_manager_need_no_flag() {
    let (mut command, addresses) = activated("export LISTEN_PID=$$ LISTEN_FDS=2;", &[]);
    command.stderr(Stderr::Piped);
    let mut child = command.spawn().unwrap();
    for address in addresses {
        let address: std::net::SocketAddr = address.parse().unwrap();
        assert_eq!(client::get(address, "/hello").unwrap().text(), format!("Hello from {}!", child.id()));
    }
    signal_process(child.id(), Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn sockets_that_are_meant_for_another_process_are_refused() {
    let (mut command, _) = activated("export LISTEN_PID=1 LISTEN_FDS=2;", &["--graceful"]);
    let output = command.stderr(Stderr::Piped).spawn().unwrap().wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.ends_with("descriptor 3: LISTEN_PID says that it is meant for process 1\n"), "{text}");
}

#[test]
fn systemd_socket_activate_starts_it_and_it_hands_over() {
    if !is_installed("systemd-socket-activate") {
        return;
    }
    // The port has to be known before; it is free for a moment.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new("systemd-socket-activate");
    command.args(["-E", "RUST_LOG", "-l", &address.to_string(), BINARY, "--graceful"]);
    command.args(["--listen", &address.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stderr::Null);
    let mut child = command.spawn().unwrap();
    let mut hello = String::new();
    let answered = || match client::get(address, "/hello") {
        Ok(reply) => {
            hello = reply.text();
            true
        }
        Err(_) => false,
    };
    wait_until(answered, || "nobody answers".to_owned());
    assert_eq!(hello, format!("Hello from {}!", child.id()));
    signal_process(child.id(), Signal::SIGUSR2);
    assert!(child.wait().unwrap().success());
    let successor = number_after(&client::get(address, "/hello").unwrap().text(), "from ");
    signal_process(successor, Signal::SIGTERM);
    wait_until(|| client::get(address, "/").is_err(), || "it does not stop".to_owned());
}

#[test]
fn a_process_that_stays_is_what_a_supervisor_sees() {
    let server = Server::start_for_load(&["--stay"]);
    let watched = server.first();
    let load = Load::start(server.address, &Kind::ALL, 1);
    // Every signal goes to the one process that the supervisor knows.
    let mut serving = watched;
    let mut before = watched;
    for generation in 0..5 {
        signal_process(watched, Signal::SIGUSR2);
        serving = server.expect_handover();
        // The one before has finished, and the next signal is passed on to this one only.
        server.expect(&match generation {
            0 => format!("process {watched} stays"),
            _ => format!("process {before} ends"),
        });
        before = serving;
        assert_eq!(server.pid_file(), serving);
    }
    load.stop();
    assert_eq!(server.hello(), serving);
    server.expect_processes(&[watched, serving]);
    // The keeper has closed everything.
    let threads = || fs::read_dir(format!("/proc/{watched}/task")).unwrap().count();
    wait_until(|| threads() == 3, || format!("{} threads", threads()));

    signal_process(watched, Signal::SIGTERM);
    assert_eq!(wait_for_end(watched), exited(watched, 0));
    server.expect_processes(&[]);
    assert!(client::get(server.address, "/").is_err());
}

#[test]
fn a_process_that_stays_ends_like_the_last_of_its_successors() {
    let server = Server::start_for_load(&["--stay"]);
    let watched = server.first();
    server.hand_over();
    server.expect("stays");
    signal_process(watched, Signal::SIGUSR2);
    let serving = server.expect_handover();
    server.expect("ends");
    server.expect_processes(&[watched, serving]);
    signal_process(serving, Signal::SIGKILL);
    assert_eq!(wait_for_end(watched), exited(watched, 128 + 9));
}

#[test]
fn a_stop_while_a_process_that_stays_still_drains_stops_its_successor_too() {
    let server = Server::start(&["--stay"]);
    let watched = server.first();
    let mut client = Client::connect(server.address).unwrap();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n").unwrap();
    server.expect("POST /echo");
    let successor = server.hand_over();
    signal_process(watched, Signal::SIGTERM);
    server.expect(&format!("process {successor} ends"));
    client.send("hi").unwrap();
    assert_eq!(client.receive().unwrap().text(), "hi");
    drop(client);
    assert_eq!(wait_for_end(watched), exited(watched, 0));
    server.expect_processes(&[]);
}

/// A directory for the command as process 1 of a namespace, and the command.
struct Namespace {
    directory: Directory,
    outside: Child,
}

impl Namespace {
    /// Starts a program in a process ID namespace of its own, as a container has one, with the command as the last
    /// of its arguments; `None` if no namespace is to be had, which takes root.
    fn start(directory: Directory, init: &[&str], arguments: &[&str]) -> Option<Namespace> {
        let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        let probe = Command::new("unshare").args(unshare).arg("true").output();
        if !probe.is_ok_and(|output| output.status.success()) {
            untested("no namespace is to be had");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(unshare).args(init).args([BINARY, "--control"]).arg(directory.join("control"));
        command.args(arguments).stderr(Stderr::file(&directory.join("log")));
        let outside = command.spawn().unwrap();
        let namespace = Namespace { directory, outside };
        wait_until(|| namespace.log().contains("is ready"), || namespace.log());
        Some(namespace)
    }

    fn log(&self) -> String {
        self.outside.catch_up();
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.log().lines().next().unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Process 1, as it is seen from here.
    fn init(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.outside.id());
        fs::read_to_string(children).unwrap().trim().parse().unwrap()
    }

    /// Process 1 gets the signals, as from `docker kill` and `docker stop`, and is there until the end.
    fn replace_and_stop(mut self, times: usize) {
        let (address, init) = (self.address(), self.init());
        let serving = || number_after(&client::get(address, "/hello").unwrap().text(), "from ");
        for _ in 0..times {
            let before = serving();
            signal_process(init, Signal::SIGHUP);
            wait_until(|| serving() != before, || self.log());
            wait_until(|| self.log().contains(" stays until "), || self.log());
        }
        let held = Held::begin(address);
        signal_process(init, Signal::SIGTERM);
        wait_until(|| self.log().contains("SIGTERM: stopping"), || self.log());
        held.finish();
        assert!(self.outside.wait().unwrap().success(), "{}", self.log());
        assert!(!self.log().contains("cutting"), "{}", self.log());
        assert!(client::get(address, "/").is_err());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

#[test]
fn process_1_stays_without_being_told_to() {
    if let Some(namespace) = Namespace::start(Directory::new(), &[], &["--listen", "127.0.0.1:0"]) {
        namespace.replace_and_stop(3);
    }
}

#[test]
fn process_1_stays_if_it_has_taken_over() {
    let server = Server::start_replaceable(&[]);
    let directory = Directory::new();
    symlink(server.directory.join("control"), directory.join("control")).unwrap();
    let arguments = ["--takeover", "--listen", &server.address.to_string()];
    let Some(namespace) = Namespace::start(directory, &[], &arguments) else { return };
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    namespace.replace_and_stop(3);
}

#[test]
fn a_process_that_stays_works_below_a_small_init() {
    // Where a signal goes to the whole group, it may mean two handovers, of which a further signal may meet the second.
    for (init, times) in
        [(&["tini", "--"][..], 3), (&["tini", "-g", "--"], 1), (&["dumb-init"], 1), (&["dumb-init", "-c"], 3)]
    {
        if is_installed(init[0])
            && let Some(namespace) =
                Namespace::start(Directory::new(), init, &["--stay", "--listen", "127.0.0.1:0"])
        {
            namespace.replace_and_stop(times);
        }
    }
}

#[test]
fn a_process_that_has_taken_over_stays_and_reports_its_readiness() {
    let server = Server::start_replaceable(&[]);
    let told = server.directory.join("told");
    let mut command = Command::new("bash");
    command.args(["-c", "exec 3>\"$0\"; exec \"$@\""]).arg(&told).args([BINARY, "--takeover", "--stay"]);
    command.args(["--ready-fd", "3", "--listen", &server.address.to_string()]);
    command.arg("--control").arg(server.directory.join("control"));
    let next = Server::start_command(command, Directory::new());
    assert_eq!(fs::read_to_string(&told).unwrap(), "\n");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    let successor = next.hand_over();
    next.expect(&format!("process {} stays", next.first()));
    assert_eq!(next.hello(), successor);
    next.signal_first(Signal::SIGTERM);
    assert_eq!(wait_for_end(next.first()), exited(next.first(), 0));
    next.expect_processes(&[]);
    assert_eq!(fs::read_to_string(&told).unwrap(), "\n");
}

#[test]
fn runit_sees_one_process_through_handovers() {
    if !is_installed("runsv") {
        return;
    }
    let directory = Directory::new();
    let service = directory.join("service");
    fs::create_dir(&service).unwrap();
    let log = directory.join("log");
    let run = service.join("run");
    let script =
        format!("exec {BINARY} --stay --listen 127.0.0.1:0 --pid-file {}", directory.join("pid").display());
    install_script(&run, &script);
    let mut supervisor = Command::new("runsv").arg(&service).stderr(Stderr::file(&log)).spawn().unwrap();
    let read = || fs::read_to_string(&log).unwrap_or_default();
    wait_until(|| read().contains("is ready"), read);
    let text = read();
    let address = text.lines().find_map(|line| line.split_once("descriptor, ")).unwrap().1;
    let address: std::net::SocketAddr = address.parse().unwrap();
    let watched = || fs::read_to_string(service.join("supervise/pid")).unwrap();
    let first = watched();

    let load = Load::start(address, &[Kind::Naive, Kind::Close], 2);
    for count in 1..=3 {
        assert!(Command::new("sv").arg("hup").arg(&service).status().unwrap().success());
        wait_until(|| read().matches("handed over to successor").count() == count, read);
        assert_eq!(watched(), first);
    }
    load.stop();
    let serving = number_after(&client::get(address, "/hello").unwrap().text(), "from ");
    assert_ne!(serving.to_string(), first.trim());
    assert!(Command::new("sv").args(["-w", "20", "down"]).arg(&service).status().unwrap().success());
    assert!(client::get(address, "/").is_err());
    assert!(Command::new("sv").arg("exit").arg(&service).status().unwrap().success());
    assert!(supervisor.wait().unwrap().success());
}

/// A copy of the command, which an init has started.
fn start_under(init: &[&str], arguments: &[&str]) -> Server {
    let directory = Directory::new();
    install(&directory.join("program"));
    let mut command = Command::new(init[0]);
    command.args(&init[1..]).arg(directory.join("program")).args(["--listen", "127.0.0.1:0"]);
    command.arg("--control").arg(directory.join("control")).args(arguments);
    Server::start_command(command, directory)
}

/// A stop that reaches each process twice, by its group and by the one that stays or its parent, is one.
fn a_stop_from_it_cuts_nothing(init: &[&str]) {
    if !is_installed(init[0]) {
        return;
    }
    let server = start_under(init, &["--stay"]);
    let watched = server.serving();
    let held = server.hold();
    server.hand_over();
    let other = server.hold();
    server.signal_first(Signal::SIGTERM);
    server.expect(&format!("{watched} INFO  SIGTERM: passed on to"));
    server.expect(&format!("{} INFO  SIGTERM: stopping", server.serving()));
    for pid in [watched, server.serving()] {
        expect_at_rest(pid);
    }
    held.finish();
    other.finish();
    server.expect_processes(&[]);
    assert!(!server.log().contains("cutting"), "{}", server.log());
}

#[test]
fn a_stop_from_dumb_init_to_the_whole_group_cuts_nothing() {
    a_stop_from_it_cuts_nothing(&["dumb-init"]);
}

#[test]
fn a_stop_from_tini_to_the_whole_group_cuts_nothing() {
    a_stop_from_it_cuts_nothing(&["tini", "-s", "-g", "--"]);
}

#[test]
fn a_stop_from_timeout_cuts_nothing() {
    a_stop_from_it_cuts_nothing(&["timeout", "1h"]);
}

#[test]
fn a_descriptor_is_told_of_the_readiness_once() {
    let directory = Directory::new();
    let told = directory.join("told");
    for number in [3, 4, 7] {
        let mut command = Command::new("bash");
        let script = format!("exec {number}>\"$0\"; exec \"$@\"");
        command.args(["-c", &script]).arg(&told).args([BINARY, "--listen", "127.0.0.1:0"]);
        command.args(["--ready-fd", &number.to_string()]);
        let server = Server::start_command(command, Directory::new());
        assert_eq!(fs::read_to_string(&told).unwrap(), "\n");
        let successor = server.hand_over();
        assert_eq!(server.hello(), successor);
        assert_eq!(fs::read_to_string(&told).unwrap(), "\n");
        server.stop();
    }
    let output = Command::new(BINARY).args(["--listen", "127.0.0.1:0", "--ready-fd", "99"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.ends_with("cannot report readiness to descriptor 99: it was not handed to this process\n"));
}
