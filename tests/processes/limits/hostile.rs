//! Hostile clients and exhausted machines: the others are served, and it passes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::command::{Command, Stderr, Untraced};
use crate::load::{Kind, Load};
use crate::server::{BINARY, Directory, Server, exited, signal_process, wait_for_end, wait_until};

/// The tests themselves need a descriptor for each client.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Starts the command through a shell that sets limits.
fn start_limited(limits: &str, arguments: &[&str]) -> Server {
    let mut command = Command::new("bash");
    let script = format!("{limits}; exec \"$@\"");
    command.args(["-c", &script, "bash", BINARY, "--listen", "127.0.0.1:0"]).args(arguments);
    Server::start_command(command, Directory::new())
}

/// A request in flight until [`finish`].
fn begin(server: &Server) -> Client {
    let mut client = Client::connect(server.address).unwrap();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n").unwrap();
    client
}

fn finish(client: &mut Client) -> client::Reply {
    client.send("hi").unwrap();
    let reply = client.receive().unwrap();
    assert_eq!(reply.text(), "hi");
    reply
}

#[test]
fn at_the_limit_the_longest_idle_connection_makes_room() {
    let server = Server::start(&["--max-connections", "3"]);
    let mut oldest = server.idle_client();
    let mut newer = server.idle_client();
    server.expect_idle();
    let mut newest = server.idle_client();
    server.expect_idle();
    // It becomes the one that has been idle for the shortest time.
    newer.get("/").unwrap();
    server.expect_idle();

    let mut other = server.idle_client();
    server.expect_idle();
    assert!(oldest.rest().unwrap().is_empty());
    let mut another = Client::connect(server.address).unwrap();
    another.get("/").unwrap();
    assert!(newest.rest().unwrap().is_empty());
    for client in [&mut newer, &mut other, &mut another] {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    assert_eq!(server.log().matches("which is the limit").count(), 1, "{}", server.log());
}

#[test]
fn a_connection_that_has_never_sent_a_request_makes_room_first() {
    let server = Server::start(&["--max-connections", "2"]);
    // First, so that it is not the younger one, which would have a moment longer.
    let mut silent = Client::connect(server.address).unwrap();
    server.expect("connected");
    let mut used = server.idle_client();
    assert_eq!(server.get("/"), "Hello World");
    assert!(silent.rest().unwrap().is_empty());
    assert_eq!(used.get("/").unwrap().status, 200);
}

/// A server that is full with a request in flight, and a connection with a request that waits to be accepted.
fn start_full() -> (Server, Client, Client) {
    let server = Server::start(&["--max-connections", "1"]);
    let busy = begin(&server);
    server.expect("POST /echo");
    let mut waiting = Client::connect(server.address).unwrap();
    waiting.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("which is the limit");
    (server, busy, waiting)
}

#[test]
fn when_none_is_idle_a_new_connection_waits() {
    let (server, mut busy, mut waiting) = start_full();
    // Somebody waits, so this is the connection's last response, and says so.
    assert!(finish(&mut busy).is_last());
    drop(busy);
    assert_eq!(waiting.receive().unwrap().status, 200);
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_request_that_was_there_before_its_connection_was_accepted_is_in_flight_too() {
    let server = Server::start(&["--max-connections", "1"]);
    let mut busy = begin(&server);
    server.expect("POST /echo");
    let mut next = begin(&server);
    finish(&mut busy);
    drop(busy);
    server.expect("POST /echo");
    let mut waiting = Client::connect(server.address).unwrap();
    waiting.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    // This is the time after which it would be the one to make room, if it were idle.
    thread::sleep(Duration::from_millis(500));
    finish(&mut next);
    drop(next);
    assert_eq!(waiting.receive().unwrap().status, 200);
}

#[test]
fn a_connection_that_waits_is_accepted_by_the_successor() {
    let (server, mut busy, mut waiting) = start_full();
    let successor = server.hand_over();
    assert_eq!(waiting.receive().unwrap().text(), format!("Hello from {successor}!"));
    finish(&mut busy);
}

#[test]
fn two_thousand_silent_connections_keep_nobody_waiting() {
    raise_descriptor_limit();
    let server = Server::start_for_load(&[]);
    let mut good = Client::connect(server.address).unwrap();
    assert_eq!(good.get("/").unwrap().status, 200);
    let mut silent = Vec::new();
    for count in 0..2000 {
        silent.push(TcpStream::connect(server.address).unwrap());
        if count % 100 == 0 {
            assert_eq!(server.get("/"), "Hello World");
            assert_eq!(good.get("/").unwrap().status, 200);
        }
    }
    assert_eq!(server.get("/"), "Hello World");
    assert_eq!(good.get("/").unwrap().status, 200);
    let log = server.log();
    assert_eq!(log.matches("1024 are open, which is the limit").count(), 1, "{log}");
    assert!(log.lines().count() < 10, "{log}");
}

/// How a hostile client behaves.
#[derive(Clone, Copy)]
enum Hostile {
    /// Sends its request head a byte at a time, and never ends it.
    Loris,
    /// Never sends anything.
    Silent,
    /// Asks for much, and reads nothing of it.
    Deaf,
}

/// So many hostile connections at the same time; one that the server ends is replaced.
fn attack(address: SocketAddr, hostile: Hostile, count: usize, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let connect = || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nonblocking(true).unwrap();
            let beginning = match hostile {
                Hostile::Loris => "GET / HTTP/1.1\r\nX: ".to_owned(),
                Hostile::Silent => String::new(),
                Hostile::Deaf => "GET / HTTP/1.1\r\nHost: t\r\n\r\n".repeat(100),
            };
            // It may already have been closed.
            let _ = stream.write_all(beginning.as_bytes());
            stream
        };
        let mut streams: Vec<TcpStream> = (0..count).map(|_| connect()).collect();
        while !stop.load(Ordering::SeqCst) {
            for stream in &mut streams {
                let alive = match hostile {
                    Hostile::Loris => stream.write(b"x").is_ok(),
                    Hostile::Silent => !matches!(stream.peek(&mut [0]), Ok(0)),
                    Hostile::Deaf => stream.take_error().unwrap().is_none(),
                };
                if !alive {
                    *stream = connect();
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
    })
}

#[test]
fn a_good_client_loses_nothing_among_two_thousand_hostile_ones() {
    raise_descriptor_limit();
    // A response of this size, a hundred times, does not fit into the buffers of a connection.
    let message = "x".repeat(100_000);
    let server = Server::start_for_load(&[
        "--max-connections",
        "512",
        "--head-timeout",
        "2s",
        "--write-timeout",
        "2s",
        "--message",
        &message,
    ]);
    let fresh = resources(server.first());
    let stop = Arc::new(AtomicBool::new(false));
    let attackers = [
        attack(server.address, Hostile::Loris, 1000, &stop),
        attack(server.address, Hostile::Silent, 1000, &stop),
        attack(server.address, Hostile::Deaf, 200, &stop),
    ];
    server.expect("512 are open, which is the limit");
    let good = Load::start(server.address, &[Kind::Close, Kind::KeepAlive], 1);
    let mut generations = vec![server.first()];
    for _ in 0..10 {
        generations.push(server.hand_over());
        thread::sleep(Duration::from_millis(300));
    }
    eprintln!("answered: {:?}", good.stop());
    stop.store(true, Ordering::SeqCst);
    attackers.into_iter().for_each(|attacker| attacker.join().unwrap());

    let last = generations.pop().unwrap();
    for pid in generations {
        server.expect(&format!("process {pid} ends"));
    }
    server.expect_processes(&[last]);
    // What is left is what a process has that has never been attacked.
    let now = || resources(last);
    wait_until(|| now().0 <= fresh.0 && now().1 <= fresh.1, || format!("{:?}, not {fresh:?}", now()));
    assert_eq!(server.hello(), last);
    assert_eq!(server.stop(), exited(last, 0));
}

/// The number of threads and of descriptors of a process.
fn resources(pid: u32) -> (usize, usize) {
    let count = |what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("task"), count("fd"))
}

#[test]
fn the_descriptor_limit_is_raised() {
    let server = start_limited("ulimit -S -n 100", &[]);
    let is_raised = |pid: u32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let values: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        values[0] == values[1]
    };
    assert!(is_raised(server.first()));
    assert!(is_raised(server.hand_over()));
}

#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting() {
    let mut command = Command::new(BINARY);
    let directory = Directory::new();
    let pid_file = directory.join("pid");
    command.env("RUST_LOG", "debug").args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(&pid_file);
    let mut child = command.stderr(Stderr::Piped).untraced(Untraced::Unread).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();

    // Three lines for each request: many times what the pipe holds.
    let mut client = Client::connect(address).unwrap();
    for _ in 0..10_000 {
        assert_eq!(client.get("/hello").unwrap().status, 200);
    }
    drop(client);
    signal_process(child.id(), Signal::SIGUSR2);
    assert!(child.wait().unwrap().success());
    let successor = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(client::get(address, "/hello").unwrap().text(), format!("Hello from {successor}!"));
    signal_process(successor, Signal::SIGTERM);
    wait_for_end(successor);
    drop(log);
}

#[test]
fn a_predecessor_on_probation_takes_the_socket_back() {
    let server = Server::start_for_load(&["--probation", "1h"]);
    let old = server.first();
    let load = Load::start(server.address, &[Kind::Close], 2);
    let successor = server.hand_over();
    server.expect(&format!("staying in case successor {successor} dies"));
    load.stop();
    assert_eq!(server.hello(), successor);

    signal_process(successor, Signal::SIGKILL);
    server.expect("accepting connections again");
    assert_eq!(server.hello(), old);
    assert_eq!(server.pid_file(), old);

    // It is an ordinary process again.
    server.set_serving(old);
    let successor = server.hand_over();
    server.expect("staying in case successor");
    assert_eq!(server.hello(), successor);
    server.expect_processes(&[old, successor]);

    // A successor that hands over needs it no more.
    let newest = server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.hello(), newest);
    // Nor does one that is stopped.
    server.expect_processes(&[successor, newest]);
    signal_process(newest, Signal::SIGTERM);
    server.expect_processes(&[]);
}

#[test]
fn a_probation_ends_by_itself_or_by_a_stop_signal() {
    let server = Server::start_for_load(&["--probation", "200ms"]);
    let successor = server.hand_over();
    server.expect("staying in case successor");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(server.hello(), successor);

    let server = Server::start_for_load(&["--probation", "1h"]);
    let successor = server.hand_over();
    server.expect("staying in case successor");
    signal_process(server.first(), Signal::SIGTERM);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!(server.hello(), successor);
}
