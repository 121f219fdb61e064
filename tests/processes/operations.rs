//! Everyday operations: configuration, overlap, several sockets, Unix sockets, what is serving.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;
use std::{fs, thread};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::client::{self, Client, Target};
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Server, errno_text, exited, freeze, signal_process, thaw, wait_for_end,
};

/// Starts the command with a configuration file of this content.
fn start_with_config(content: &str, arguments: &[&str]) -> Server {
    let directory = Directory::new();
    fs::write(directory.join("config"), content).unwrap();
    let mut command = Command::new(BINARY);
    // The configuration decides what is logged.
    command.env("RUST_LOG", "");
    command.args(["--listen", "127.0.0.1:0", "--config"]).arg(directory.join("config")).args(arguments);
    Server::start_command(command, directory)
}

/// Replaces the configuration file and has it read again.
fn reload(server: &Server, content: &str) {
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

    // Timeouts, too: a connection that is idle from now on is closed at once.
    reload(&server, "message = three\nidle-timeout = 1ms");
    server.expect("SIGUSR1: configuration reloaded");
    load.stop();
    let mut client = Client::connect(server.address).unwrap();
    assert_eq!(client.get("/").unwrap().text(), "three");
    assert!(client.rest().unwrap().is_empty());

    // And the log level.
    reload(&server, "log-level = debug");
    server.expect("SIGUSR1: configuration reloaded");
    assert_eq!(server.get("/"), "Hello World");
    server.expect("GET /");
    assert_eq!(server.processes(), [server.first()]);
}

#[test]
fn a_limit_changes_in_place() {
    let server = start_with_config("max-connections = 1\nlog-level = debug", &[]);
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
    reload(&server, "pid-file = /nonexistent/pid\nsocket-mode = 0600\naccess-log = true\nmessage = new");
    for name in ["access-log", "socket-mode", "pid-file"] {
        server.expect(&format!("a change of {name} needs a handover"));
    }
    assert_eq!(server.get("/"), "new");
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

/// Both processes of an overlap, as `/hello` names them.
fn both_answer(server: &Server, old: u32, new: u32) {
    let mut seen = (false, false);
    // Which of them takes a connection is not ours to say; that one never does is out of the question.
    for _ in 0..10_000 {
        let pid = server.hello();
        assert!(pid == old || pid == new, "{pid}");
        seen = (seen.0 || pid == old, seen.1 || pid == new);
        if seen == (true, true) {
            return;
        }
    }
    panic!("only one of {old} and {new} answers: {seen:?}");
}

fn expect_overlap(server: &Server) -> u32 {
    server.signal(Signal::SIGUSR2);
    let line = server.expect("accept connections");
    crate::server::number_after(&line, "successor ")
}

#[test]
fn an_overlap_goes_forward() {
    let server = Server::start_for_load(&["--overlap"]);
    let old = server.first();
    let load = Load::start(server.address, &Kind::ALL, 1);
    let new = expect_overlap(&server);
    both_answer(&server, old, new);
    assert_eq!(server.pid_file(), new);
    assert_eq!(fs::read_to_string(server.directory.join("pid.old")).unwrap(), format!("{old}\n"));

    // No further handover before this one is decided, by neither.
    signal_process(old, Signal::SIGUSR2);
    server.expect(&format!("SIGUSR2: refused, successor {new} runs beside this process"));
    signal_process(new, Signal::SIGUSR2);
    server.expect("SIGUSR2: refused, the predecessor of this process runs beside it");

    signal_process(old, Signal::SIGQUIT);
    server.expect(&format!("process {old} ends"));
    load.stop();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.hello(), new);
    assert_eq!(server.pid_file(), new);
    assert!(!server.directory.join("pid.old").exists());

    // It can do the same in turn; and after all are stopped, nobody answers.
    server.set_serving(new);
    let newest = expect_overlap(&server);
    both_answer(&server, new, newest);
    signal_process(new, Signal::SIGTERM);
    assert_eq!(wait_for_end(new), exited(new, 0));
    server.set_serving(newest);
    assert_eq!(server.stop(), exited(newest, 0));
    assert!(client::get(server.address, "/").is_err());
    assert!(!server.directory.join("pid").exists());
}

#[test]
fn an_overlap_goes_back_when_the_successor_is_stopped() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--overlap"]);
    command.arg("--listen").arg(format!("unix:{}", socket.display()));
    command.arg("--pid-file").arg(directory.join("pid"));
    let server = Server::start_command(command, directory);
    let old = server.first();
    let load = Load::start_all(&server.targets(), &Kind::ALL, 1);
    let new = expect_overlap(&server);
    both_answer(&server, old, new);
    signal_process(new, Signal::SIGTERM);
    server.expect(&format!("successor {new} is leaving; this process goes on alone"));
    server.expect(&format!("process {new} ends"));
    server.expect_processes(&[old]);
    load.stop();
    assert_eq!(server.hello(), old);
    assert_eq!(client::get(socket, "/hello").unwrap().text(), format!("Hello from {old}!"));
    assert_eq!(server.pid_file(), old);
    assert!(!server.directory.join("pid.old").exists());
    // It is reaped, and the next overlap works.
    assert_eq!(wait_for_end(new), None);
    let new = expect_overlap(&server);
    both_answer(&server, old, new);
}

/// The successor that leaves and the predecessor that goes on put their names in the same places at the same
/// time; whoever looks there in any moment finds one of them.
#[test]
fn whoever_goes_back_is_found_at_any_moment() {
    let directory = Directory::new();
    let control = directory.join("control");
    let pid_file = directory.join("pid");
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--overlap", "--control"]).arg(&control);
    command.arg("--pid-file").arg(&pid_file);
    let server = Server::start_command(command, directory);
    let old = server.first();

    let (going_on, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let (going_on, pid_file, control) = (going_on, &pid_file, &control);
        let aside = server.directory.join("control.old");
        let tells = |path: &Path, pid: u32| {
            let status = handover::ask(path, "status").unwrap();
            assert!(status.starts_with(&format!("pid={pid} ")), "{status}");
        };
        let looking = scope.spawn(move || {
            let mut looks = 0;
            while ended.try_recv() == Err(TryRecvError::Empty) {
                fs::read_to_string(pid_file).expect("the PID file").trim().parse::<u32>().unwrap();
                let mut connection = UnixStream::connect(control).expect("the control socket");
                // The end of that, however it comes, so that the server is not flooded.
                let _ = connection.write_all(b"\n").and_then(|()| io::copy(&mut connection, &mut io::sink()));
                looks += 1;
            }
            looks
        });
        for _ in 0..50 {
            let new = expect_overlap(&server);
            assert_eq!(server.pid_file(), new);
            tells(control, new);
            tells(&aside, old);
            signal_process(new, Signal::SIGTERM);
            server.expect_processes(&[old]);
            assert_eq!(server.pid_file(), old);
            tells(control, old);
            server.expect(&format!("successor {new} is leaving"));
            assert!(!server.directory.join("pid.old").exists());
            assert!(!aside.exists());
        }
        drop(going_on);
        assert!(looking.join().unwrap() > 0);
    });
}

/// The two must agree on what they do, and the newer configuration is the one that is wanted.
#[test]
fn the_successor_decides_whether_there_is_an_overlap() {
    let server = start_with_config("", &[]);
    let old = server.first();
    let held = server.hold();
    reload(&server, "overlap = true");
    server.expect("a change of overlap needs a handover");
    let new = expect_overlap(&server);
    both_answer(&server, old, new);
    signal_process(new, Signal::SIGTERM);
    server.expect_processes(&[old]);
    assert_eq!(server.hello(), old);

    reload(&server, "overlap = false");
    server.expect("configuration reloaded");
    let new = server.hand_over();
    // The predecessor still drains, which is no reason for the successor to leave to it what it does not do.
    assert_eq!(server.hello(), new);
    signal_process(new, Signal::SIGTERM);
    server.expect("SIGTERM: stopping");
    server.expect_processes(&[old]);
    held.finish();
    server.expect_processes(&[]);
}

#[test]
fn an_overlap_that_has_gone_forward_leaves_an_ordinary_process() {
    let server = Server::start_for_load(&["--overlap"]);
    let old = server.first();
    let held = server.hold();
    let new = expect_overlap(&server);
    signal_process(old, Signal::SIGTERM);
    server.expect("draining");
    // The predecessor still has a request, but has nothing more to say.
    server.set_serving(new);
    let newest = expect_overlap(&server);
    both_answer(&server, new, newest);
    signal_process(new, Signal::SIGTERM);
    server.expect("draining");
    // It stays, because a connection of the predecessor may still be moved.
    assert_eq!(server.processes(), [old, new, newest]);
    server.set_serving(newest);
    server.stop();
    assert!(client::get(server.address, "/").is_err());
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    server.expect_processes(&[]);
}

#[test]
fn an_overlap_goes_back_when_the_successor_dies() {
    let server = Server::start_for_load(&["--overlap"]);
    let old = server.first();
    let new = expect_overlap(&server);
    signal_process(new, Signal::SIGKILL);
    server.expect("this process goes on alone");
    assert_eq!(server.hello(), old);
    assert_eq!(server.pid_file(), old);
    assert_eq!(wait_for_end(new), None);
    assert_eq!(server.processes(), [old]);
}

#[test]
fn every_socket_is_served_and_handed_over() {
    let server = Server::start_with_three_sockets();
    let targets = server.targets();
    assert_eq!(targets.len(), 3);
    let answered = |pid: u32| {
        for target in &targets {
            assert_eq!(client::get(target.clone(), "/hello").unwrap().text(), format!("Hello from {pid}!"));
        }
    };
    answered(server.first());
    let successor = server.hand_over();
    answered(successor);
    for number in 3..6 {
        server.expect(&format!("listening on the existing file descriptor {number}, "));
    }
}

#[test]
fn a_name_stands_for_all_of_its_addresses() {
    // Whatever localhost is on this machine: the addresses share a port, and each answers.
    let mut command = Command::new(BINARY);
    command.args(["--listen", "localhost:0"]);
    let server = Server::start_command(command, Directory::new());
    let targets = server.targets();
    let ports: Vec<u16> = targets
        .iter()
        .map(|target| match target {
            Target::Network(address) => address.port(),
            Target::Unix(_) => panic!("{target:?}"),
        })
        .collect();
    assert!(!ports.is_empty() && ports.iter().all(|port| port == &ports[0] && *port != 0), "{targets:?}");
    let successor = server.hand_over();
    for target in targets {
        assert_eq!(client::get(target, "/hello").unwrap().text(), format!("Hello from {successor}!"));
    }
}

#[test]
fn an_ipv6_wildcard_serves_ipv4_too() {
    if TcpListener::bind("[::]:0").is_err() {
        eprintln!("this machine does not speak IPv6");
        return;
    }
    let mut command = Command::new(BINARY);
    command.args(["--listen", "[::]:0"]);
    let server = Server::start_command(command, Directory::new());
    let port = server.address.port();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let address: std::net::SocketAddr = address.parse().unwrap();
        assert_eq!(client::get(address, "/").unwrap().status, 200);
    }
}

/// More than the 128 that the standard library, and a C library's SOMAXCONN, would let wait.
#[test]
fn a_burst_of_connections_waits_in_the_queue() {
    let most = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let server = Server::start(&[]);
    freeze(server.first());
    let connect = |_| TcpStream::connect_timeout(&server.address, Duration::from_secs(10)).unwrap();
    let waiting: Vec<TcpStream> = (0..400.min(most)).map(connect).collect();
    thaw(server.first());
    server.get("/");
    drop(waiting);
}

#[test]
fn the_number_of_sockets_must_match() {
    let one = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = one.local_addr().unwrap().to_string();
    let start = |script: &str, arguments: &[&str]| -> Output {
        let one = one.try_clone().unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{script} exec \"$@\""), "bash", BINARY, "--graceful"]).args(arguments);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(one))).output().unwrap()
    };
    for (script, arguments, expected) in [
        (
            "exec 3<&0 4<&- 0</dev/null;",
            &["--listen", &address, "--listen", "127.0.0.1:1"][..],
            "cannot listen on 127.0.0.1:1: no such socket was handed to this process",
        ),
        (
            "exec 3<&0 4<&0 0</dev/null;",
            &["--listen", &address],
            &format!("descriptor 4: it listens on {address}, which is not asked for"),
        ),
        (
            "exec 3<&0 4<&0 0</dev/null;",
            &["--listen", &address, "--listen", "127.0.0.1:1"],
            "cannot listen on 127.0.0.1:1: no such socket was handed to this process",
        ),
    ] {
        let output = start(script, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.ends_with(&format!("{expected}\n")), "{text}");
    }
}

/// Starts the command on a Unix socket, and on TCP.
fn start_with_unix_socket(directory: Directory, arguments: &[&str]) -> Server {
    let socket = format!("unix:{}", directory.join("socket").display());
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--listen", &socket]).args(arguments);
    Server::start_command(command, directory)
}

#[test]
fn a_unix_socket_stays_through_handovers_and_goes_with_the_last_process() {
    let server = start_with_unix_socket(Directory::new(), &[]);
    let path = server.directory.join("socket");
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    for _ in 0..3 {
        let old = server.serving();
        let new = server.hand_over();
        wait_for_end(old);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(client::get(path.clone(), "/hello").unwrap().text(), format!("Hello from {new}!"));
    }
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_that_has_become_another_is_left_alone() {
    let server = start_with_unix_socket(Directory::new(), &["--socket-mode", "0600"]);
    let path = server.directory.join("socket");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Kept under another name, so that its inode is not given to the next file.
    fs::rename(&path, server.directory.join("before")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    server.stop();
    assert!(path.exists());
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
    let directory = Directory::new();
    let path = directory.join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = start_with_unix_socket(directory, &[]);
    assert_eq!(client::get(path.clone(), "/").unwrap().status, 200);

    let start = |path: &std::path::Path| {
        let output =
            Command::new(BINARY).arg("--listen").arg(format!("unix:{}", path.display())).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = start(&path);
    assert_eq!(status, Some(1));
    assert!(text.ends_with(&format!(": {}\n", errno_text(Errno::EADDRINUSE))), "{text}");
    assert_eq!(client::get(path, "/").unwrap().status, 200);

    // What is no socket is nobody's to replace.
    let file = server.directory.join("file");
    fs::write(&file, "precious").unwrap();
    assert_eq!(start(&file).0, Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn an_abstract_unix_socket_is_served() {
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};

    let name = format!("handover-test-{}", std::process::id());
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--listen", &format!("unix:@{name}")]);
    let server = Server::start_command(command, Directory::new());
    let successor = server.hand_over();
    let mut stream =
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with(&format!("Hello from {successor}!\n")), "{reply}");
}

#[test]
fn what_is_serving_is_told() {
    let server = Server::start(&[]);
    let (version, pid) = (env!("CARGO_PKG_VERSION"), server.first());
    let executable = fs::canonicalize(BINARY).unwrap();
    let executable = executable.display();
    assert_eq!(server.get("/healthz"), format!("ok\nhandover {version}"));
    let log = server.log();
    assert!(log.contains(&format!("process {pid} is ready, version {version}, {executable}")), "{log}");
}

#[test]
fn an_echo_is_not_taken_for_a_page() {
    let server = Server::start(&[]);
    let mut client = Client::connect(server.address).unwrap();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\n<script>").unwrap();
    let reply = client.receive().unwrap();
    assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.text(), "<script>");
}

#[test]
fn options_and_absolute_targets_are_answered() {
    let server = Server::start(&[]);
    let mut client = Client::connect(server.address).unwrap();
    for (target, allowed) in [("*", "GET, HEAD, POST, PUT, OPTIONS"), ("/hello", "GET, HEAD, OPTIONS")] {
        client.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: test\r\n\r\n")).unwrap();
        let reply = client.receive().unwrap();
        assert_eq!((reply.status, reply.header("allow")), (204, Some(allowed)));
    }
    assert_eq!(client.get(&format!("http://{}/", server.address)).unwrap().text(), "Hello World");
}
