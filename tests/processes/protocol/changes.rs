//! What changes at a handover because the configuration has: the listening sockets, and everything else of which
//! the log says that it needs one.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;

use crate::client::{self, Client, Target};
use crate::command::Command;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Gate, Server, exited, expect_at_rest, expect_dead, freeze, install, install_script,
    number_after, signal_process, wait_for_end, wait_until,
};

/// A server with a configuration file.
struct Configured(Server);

impl std::ops::Deref for Configured {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Configured {
    /// Starts the command with a configuration that begins with a free port.
    fn start(content: impl Fn(&Directory) -> String, arguments: &[&str]) -> Configured {
        let directory = Directory::new();
        let config = directory.join("config");
        fs::write(&config, format!("listen = 127.0.0.1:0\n{}", content(&directory))).unwrap();
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(&config).args(arguments);
        Configured(Server::start_command(command, directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn unix(&self, name: &str) -> String {
        format!("listen = unix:{}\n", self.path(name).display())
    }

    /// Changes the configuration, in which the first address stays at another place.
    fn configure(&self, content: &str) {
        fs::write(self.path("config"), format!("{content}\nlisten = 127.0.0.1:0\n")).unwrap();
    }

    fn reload(&self) {
        self.signal(Signal::SIGUSR1);
        self.expect("configuration reloaded");
    }

    /// Hands over in vain, and returns the reason.
    fn fail_to_hand_over(&self) -> String {
        self.signal(Signal::SIGUSR2);
        self.expect("handover failed: ")
    }

    fn mode(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }
}

fn answers(target: impl Into<Target>, pid: u32) {
    assert_eq!(client::get(target, "/hello").unwrap().text(), format!("Hello from {pid}!"));
}

fn is_refused(target: impl Into<Target>) -> bool {
    let refused = [ErrorKind::ConnectionRefused, ErrorKind::NotFound];
    client::get(target, "/hello").is_err_and(|error| refused.contains(&error.kind()))
}

/// Starts the command on a Unix socket in a directory, and on TCP.
fn with_unix_socket(name: &str, arguments: &[&str]) -> Configured {
    Configured::start(|directory| format!("listen = unix:{}", directory.join(name).display()), arguments)
}

#[test]
fn sockets_that_are_still_asked_for_are_passed_on_and_others_opened_and_closed() {
    let server = Configured::start(
        |directory| {
            let unix = |name| format!("listen = unix:{}\n", directory.join(name).display());
            unix("one") + &unix("two") + "listen = 127.0.0.2:0"
        },
        &[],
    );
    let other = server.targets()[3].clone();
    let two = server.path("two");
    let load = Load::start_all(&[server.address.into(), two.clone().into()], &Kind::ALL, 1);
    let old = server.first();
    let held = server.hold();
    // In another order, without two of them, and with two others.
    server.configure(&(server.unix("three") + &server.unix("two") + "listen = 127.0.0.3:0"));
    server.reload();
    server.expect("a change of listen needs a handover");
    assert!(!server.path("three").exists());
    let new = server.hand_over();
    let third = server.expect("listening on a new file descriptor, 127.0.0.3");
    let third: SocketAddr = third.rsplit(' ').next().unwrap().parse().unwrap();
    for target in
        [server.address.into(), two.clone().into(), server.path("three").into(), Target::Network(third)]
    {
        answers(target, new);
    }
    // The predecessor would listen there again if the successor died.
    assert!(server.path("one").exists());
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert!(!server.path("one").exists());
    assert!(is_refused(other));
    // And as it is now, it is handed over.
    let newest = server.hand_over();
    assert_eq!(wait_for_end(new), exited(new, 0));
    load.stop();
    for target in [server.address.into(), two.into(), server.path("three").into(), Target::Network(third)] {
        answers(target, newest);
    }
    assert_eq!(server.stop(), exited(newest, 0));
    assert_eq!(server.files(), ["config"]);
}

#[test]
fn a_successor_that_listens_elsewhere_is_reported_by_its_predecessor() {
    let control = |directory: &Directory| format!("control = {}\n", directory.join("control").display());
    let server = Configured::start(
        |directory| {
            let socket = directory.join("a socket");
            control(directory) + &format!("listen = unix:{}\nlisten = 127.0.0.2:0", socket.display())
        },
        &[],
    );
    let old = server.first();
    let [_, Target::Unix(path), Target::Network(other)] = &server.targets()[..] else { panic!() };
    server.configure(&control(&server.directory));
    let answer = handover::ask(&server.path("control"), "restart").unwrap();
    let new = server.expect_handover();
    for address in [format!("unix:{}", path.display()), other.to_string()] {
        let expected = format!("{old} WARN  successor {new} does not listen on {address}, which is closed");
        server.expect(&expected);
    }
    let path = path.display().to_string().replace(' ', "%20");
    assert_eq!(answer, format!("ok {new} without unix:{path} {other}"));
    // It says nothing of what it listens on.
    assert_eq!(server.log().matches("does not listen on").count(), 2, "{}", server.log());
    let last = server.hand_over();
    assert_eq!(server.log().matches("does not listen on").count(), 2, "{}", server.log());
    assert_eq!(server.hello(), last);
}

/// They have been accepted by nobody, and came while, or before, the address was given up.
#[test]
fn clients_that_wait_at_a_socket_that_is_given_up_are_answered() {
    let server = Configured::start(
        |directory| format!("listen = unix:{}\nlisten = 127.0.0.2:0", directory.join("socket").display()),
        &[],
    );
    let given_up = server.targets()[1..].to_vec();
    let old = server.serving();
    let held = server.hold();
    server.configure("");
    let new = server.hand_over();
    let mut clients: Vec<Client> =
        given_up.iter().map(|target| Client::connect(target.clone()).unwrap()).collect();
    for client in &mut clients {
        client.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    }
    held.finish();
    for mut client in clients {
        let reply = client.receive().unwrap();
        assert_eq!(reply.text(), format!("Hello from {old}!"));
        assert!(reply.is_last());
    }
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert!(given_up.iter().all(|target| is_refused(target.clone())));
    answers(server.address, new);
}

/// A client that asks again and again, each time on a connection of its own, until it is refused. It has been
/// answered when this returns.
fn ask_until_refused(target: &Target) -> JoinHandle<()> {
    let (target, (answered, is_answered)) = (target.clone(), mpsc::channel());
    let client = thread::spawn(move || {
        loop {
            match Client::connect(target.clone()) {
                Ok(mut client) => client.get("/").expect("an answer for each client that is let in"),
                Err(error) => {
                    assert!(
                        [ErrorKind::ConnectionRefused, ErrorKind::NotFound].contains(&error.kind()),
                        "{error}"
                    );
                    return;
                }
            };
            let _ = answered.send(());
        }
    });
    is_answered.recv().unwrap();
    client
}

#[test]
fn under_load_each_client_of_a_socket_that_is_given_up_is_answered_or_refused() {
    let server = with_unix_socket("socket", &[]);
    let target = Target::Unix(server.path("socket"));
    let load = Load::start(server.address, &Kind::ALL, 1);
    let hand_over = |content: &str| {
        server.configure(content);
        let old = server.serving();
        server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
    };
    for _ in 0..5 {
        let clients = [(); 4].map(|()| ask_until_refused(&target));
        hand_over("");
        for client in clients {
            client.join().unwrap();
        }
        hand_over(&server.unix("socket"));
    }
    load.stop();
}

#[test]
fn an_address_that_cannot_be_bound_is_a_failed_handover_that_changes_nothing() {
    let server = with_unix_socket("socket", &[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for _ in 0..3 {
        server.configure(&format!("{}listen = {address}", server.unix("new")));
        let reason = server.fail_to_hand_over();
        assert!(reason.contains(&format!("cannot listen on {address}: Address already in use")), "{reason}");
        // What fails later.
        server.configure(&format!("{}pid-file = /nonexistent/pid", server.unix("new")));
        let reason = server.fail_to_hand_over();
        assert!(reason.contains("cannot write the PID file"), "{reason}");
        answers(server.address, server.first());
        answers(server.path("socket"), server.first());
        assert_eq!(server.files(), ["config", "socket"]);
    }
    server.configure("");
    answers(server.address, server.hand_over());
}

#[test]
fn a_start_that_fails_leaves_no_socket_behind() {
    let directory = Directory::new();
    let unix = |name| format!("unix:{}", directory.join(name).display());
    for arguments in [["--pid-file", "/nonexistent/pid"], ["--listen", "192.0.2.1:1"]] {
        let mut command = Command::new(BINARY);
        command.args(["--listen", &unix("one"), "--listen", &unix("two")]).args(arguments);
        assert_eq!(command.output().unwrap().status.code(), Some(1));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{arguments:?}");
    }
}

/// Nobody else is there to do it.
#[test]
fn a_candidate_whose_predecessor_dies_removes_the_socket_that_it_does_not_want() {
    let directory = Directory::new();
    let (config, socket) = (directory.join("config"), directory.join("socket"));
    fs::write(&config, format!("listen = 127.0.0.1:0\nlisten = unix:{}", socket.display())).unwrap();
    install(&directory.join("program"));
    let mut command = Command::new(directory.join("program"));
    command.arg("--config").arg(&config);
    let server = Server::start_command(command, directory);
    let old = server.first();
    fs::write(&config, "listen = 127.0.0.1:0").unwrap();
    let gate = Gate::new(&server.directory);
    install_script(&server.program(), &format!("{}; exec {BINARY} \"$@\"", gate.wait()));
    server.signal(Signal::SIGUSR2);
    let candidate = number_after(&server.expect("started successor "), "successor ");
    let waiting = gate.expect_waiting();
    // It cannot tell the candidate to go.
    freeze(old);
    drop(waiting);
    server.expect("listening on the existing file descriptor 3");
    expect_at_rest(candidate);
    assert!(socket.exists());
    signal_process(old, Signal::SIGKILL);
    server.expect(&format!("process {candidate} is ready"));
    assert!(!socket.exists());
    answers(server.address, candidate);
}

#[test]
fn a_predecessor_that_takes_back_listens_where_it_has_listened() {
    let server = with_unix_socket("socket", &[]);
    let old = server.first();
    let held = server.hold();
    server.configure(&(server.unix("new") + "socket-mode = 0600"));
    let new = server.hand_over();
    assert_eq!(server.mode("new"), 0o600);
    signal_process(new, Signal::SIGKILL);
    server.expect("accepting connections again");
    answers(server.path("socket"), old);
    answers(server.address, old);
    assert_eq!(server.mode("socket"), 0o660);
    held.finish();
    // What the dead one has left is no obstacle.
    server.set_serving(old);
    let new = server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    answers(server.path("new"), new);
    assert_eq!(server.files(), ["config", "new"]);
    assert_eq!(server.stop(), exited(new, 0));
    assert_eq!(server.files(), ["config"]);
}

/// Starts an overlap of a process that listens on `old`, and one that listens on `new`, and on TCP both.
fn overlap() -> (Configured, u32) {
    let server = with_unix_socket("old", &["--overlap"]);
    server.configure(&server.unix("new"));
    server.signal(Signal::SIGUSR2);
    let new = number_after(&server.expect("accept connections"), "successor ");
    answers(server.path("old"), server.first());
    answers(server.path("new"), new);
    (server, new)
}

#[test]
fn an_overlap_of_different_sockets_goes_forward_and_back() {
    let (server, new) = overlap();
    let old = server.first();
    let client = ask_until_refused(&server.path("old").into());
    signal_process(old, Signal::SIGTERM);
    assert_eq!(wait_for_end(old), exited(old, 0));
    client.join().unwrap();
    answers(server.path("new"), new);
    answers(server.address, new);
    assert_eq!(server.files(), ["config", "new"]);

    let (server, new) = overlap();
    let old = server.first();
    let client = ask_until_refused(&server.path("new").into());
    signal_process(new, Signal::SIGTERM);
    server.expect("is leaving; this process goes on alone");
    expect_dead(new);
    client.join().unwrap();
    answers(server.path("old"), old);
    answers(server.address, old);
    assert_eq!(server.files(), ["config", "old"]);
}

#[test]
fn a_process_that_takes_over_may_listen_elsewhere() {
    let directory = Directory::new();
    let (control, socket) = (directory.join("control"), directory.join("socket"));
    let unix = format!("unix:{}", socket.display());
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--listen", &unix, "--control"]).arg(&control);
    let first = Server::start_command(command, directory);
    let mut command = Command::new(BINARY);
    command.args([
        "--takeover",
        "--listen",
        "127.0.0.2:0",
        "--listen",
        &first.address.to_string(),
        "--control",
    ]);
    let second = Server::start_command(
        {
            command.arg(&control);
            command
        },
        Directory::new(),
    );
    assert_eq!(wait_for_end(first.first()), exited(first.first(), 0));
    assert!(!socket.exists());
    answers(first.address, second.first());
    answers(second.address, second.first());
    let mut command = Command::new(BINARY);
    command.args(["--takeover", "--listen", "127.0.0.3:0", "--control"]).arg(&control);
    let third = Server::start_command(command, Directory::new());
    assert_eq!(wait_for_end(second.first()), exited(second.first(), 0));
    assert!(is_refused(first.address) && is_refused(second.address));
    assert_eq!(third.hello(), third.first());
}

/// It recognises its successors even if no socket is left of those that it had itself.
#[test]
fn a_process_that_stays_is_not_misled_by_other_sockets() {
    let directory = Directory::new();
    let config = directory.join("config");
    fs::write(&config, "listen = 127.0.0.1:0").unwrap();
    let mut command = Command::new(BINARY);
    command.args(["--stay", "--config"]).arg(&config);
    let server = Server::start_command(command, directory);
    let watched = server.first();
    for name in ["one", "two", "three", "four"] {
        let socket = server.directory.join(name);
        fs::write(&config, format!("listen = unix:{}", socket.display())).unwrap();
        let old = server.serving();
        signal_process(watched, Signal::SIGUSR2);
        let new = server.expect_handover();
        server.expect(&if old == watched {
            format!("process {old} stays")
        } else {
            format!("process {old} ends")
        });
        server.expect_processes(&[watched, new]);
        answers(socket, new);
    }
    signal_process(watched, Signal::SIGTERM);
    assert_eq!(wait_for_end(watched), exited(watched, 0));
    server.expect_processes(&[]);
    assert_eq!(server.files(), ["config"]);
}

#[test]
fn the_permissions_of_a_socket_change_at_a_handover_and_those_of_nothing_else() {
    let server = with_unix_socket("socket", &[]);
    assert_eq!(server.mode("socket"), 0o660);
    server.configure(&(server.unix("socket") + "socket-mode = 0600"));
    server.reload();
    server.expect("a change of socket-mode needs a handover");
    assert_eq!(server.mode("socket"), 0o660);
    answers(server.path("socket"), server.hand_over());
    assert_eq!(server.mode("socket"), 0o600);

    // Something else has taken its place.
    let (socket, aside, victim) = (server.path("socket"), server.path("aside"), server.path("victim"));
    fs::rename(&socket, &aside).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o640)).unwrap();
    server.configure(&(server.unix("socket") + "socket-mode = 0666"));
    server.hand_over();
    assert_eq!(server.mode("socket"), 0o640);
    fs::remove_file(&socket).unwrap();
    fs::write(&victim, "").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&victim, &socket).unwrap();
    server.hand_over();
    assert_eq!(server.mode("victim"), 0o600);
    fs::rename(&aside, &socket).unwrap();
    server.hand_over();
    assert_eq!(server.mode("socket"), 0o666);
}

#[test]
fn the_places_where_a_process_is_found_change_at_a_handover() {
    let places = |directory: &Directory, pid: &str, control: &str| {
        let (pid, control) = (directory.join(pid), directory.join(control));
        format!("pid-file = {}\ncontrol = {}\n", pid.display(), control.display())
    };
    let server = Configured::start(|directory| places(directory, "pid", "control"), &[]);
    let old = server.first();
    server.configure(&places(&server.directory, "pid-too", "control-too"));
    server.reload();
    for name in ["pid-file", "control"] {
        server.expect(&format!("a change of {name} needs a handover"));
    }
    assert_eq!(server.files(), ["config", "control", "pid"]);
    let held = server.hold();
    let new = server.hand_over();
    assert_eq!(server.control("control-too").unwrap(), new);
    assert_eq!(fs::read_to_string(server.path("pid-too")).unwrap(), format!("{new}\n"));
    assert_eq!(server.control("control").unwrap(), old);
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.files(), ["config", "control-too", "pid-too"]);
    // There, and back, and away.
    server.configure(&places(&server.directory, "pid", "control"));
    let newest = server.hand_over();
    assert_eq!(wait_for_end(new), exited(new, 0));
    assert_eq!(server.control("control").unwrap(), newest);
    server.configure("");
    let last = server.hand_over();
    assert_eq!(wait_for_end(newest), exited(newest, 0));
    assert_eq!(server.files(), ["config"]);
    assert_eq!(server.hello(), last);
}

#[test]
fn the_control_socket_of_another_server_is_not_replaced_by_a_handover() {
    let other = Server::start_replaceable(&[]);
    let path = other.directory.join("control");
    let server = Configured::start(|_| String::new(), &[]);
    server.configure(&format!("control = {}", path.display()));
    for _ in 0..2 {
        let reason = server.fail_to_hand_over();
        let expected = format!("cannot listen for requests on {}: Address already in use", path.display());
        assert!(reason.contains(&expected), "{reason}");
    }
    assert_eq!(other.control("control").unwrap(), other.first());
    assert_eq!(server.hello(), server.first());
    // Nor is what is no socket.
    let precious = server.path("precious");
    fs::write(&precious, "precious").unwrap();
    server.configure(&format!("control = {}", precious.display()));
    server.fail_to_hand_over();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    // One that a dead process has left is.
    signal_process(other.first(), Signal::SIGKILL);
    assert!(wait_for_end(other.first()).is_some());
    server.configure(&format!("control = {}", path.display()));
    let new = server.hand_over();
    assert_eq!(other.control("control").unwrap(), new);
}

#[test]
fn what_a_handover_cannot_change_needs_a_restart() {
    let server = Configured::start(|_| String::new(), &[]);
    server.configure("stay = true\nready-fd = 7");
    server.reload();
    for name in ["stay", "ready-fd"] {
        server.expect(&format!("a change of {name} needs a restart"));
    }
    let old = server.first();
    server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
}

#[test]
fn an_overlap_changes_at_a_handover() {
    let server = Configured::start(|_| String::new(), &[]);
    server.configure("overlap = true");
    server.reload();
    server.expect("a change of overlap needs a handover");
    server.signal(Signal::SIGUSR2);
    let new = number_after(&server.expect("accept connections"), "successor ");
    wait_until(|| server.hello() == new, || "the successor does not answer".to_owned());
}
