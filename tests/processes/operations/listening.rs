//! Listening sockets of every kind: several at a time, names, IPv6, Unix sockets and their files.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::errno::Errno;

use crate::client::{self, Target};
use crate::command::Command;
use crate::server::{BINARY, Directory, Server, errno_text, freeze, thaw, wait_for_end};

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
