//! Open connections live on: the next request on a connection is answered by the next process.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

use crate::client::{Client, Reply};
use crate::command::Command;
use crate::partner::{Moving, Predecessor, Successor};
use crate::server::{
    BINARY, Directory, Server, exited, expect_at_rest, expect_dead, freeze, install_script, number_after,
    signal_process, thaw, wait_for_end, wait_until,
};
use crate::strace::{Tampering, Threads, expect_in_call};

const REQUEST: &str = "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n";

/// The process that answers. Its answer must not be the last one on the connection.
fn answerer(reply: &Reply) -> u32 {
    assert!(!reply.is_last(), "{reply:?}");
    number_after(&reply.text(), "Hello from ")
}

/// The last response on a connection: the first one, or the second if the first was due when the drain began.
fn ends_with(client: &mut Client) -> Reply {
    let reply = client.get("/hello").unwrap();
    if reply.is_last() { reply } else { client.get("/hello").unwrap() }
}

fn start_with_unix_socket(arguments: &[&str]) -> Server {
    let directory = Directory::new();
    let mut command = Command::new(BINARY);
    let socket = format!("unix:{}", directory.join("a socket").display());
    command.args(["--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0", "--listen", &socket]);
    command.arg("--control").arg(directory.join("control")).args(arguments);
    Server::start_command(command, directory)
}

fn connect(server: &Server, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::connect(server.address).unwrap()).collect()
}

#[test]
fn one_connection_is_answered_by_two_hundred_processes_in_turn() {
    let server = Server::start_for_load(&[]);
    let mut client = Client::connect(server.address).unwrap();
    for _ in 0..200 {
        let old = server.serving();
        assert_eq!(answerer(&client.get("/hello").unwrap()), old);
        server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
    }
    assert_eq!(answerer(&client.get("/hello").unwrap()), server.serving());
    assert_eq!(server.stop(), exited(server.serving(), 0));
    assert!(client.rest().unwrap().is_empty());
}

#[test]
fn every_connection_is_moved_and_the_predecessor_ends() {
    for stays in [false, true] {
        let server = start_with_unix_socket(if stays { &["--stay"] } else { &[] });
        let targets = server.targets();
        let connect = || -> Vec<Client> {
            targets.iter().cycle().take(30).map(|target| Client::connect(target.clone()).unwrap()).collect()
        };
        let (mut used, mut new) = (connect(), connect());
        used.iter_mut().for_each(|client| assert!(!client.get("/").unwrap().is_last()));
        wait_until(|| server.status("connections=") == 60, || server.log());
        for _ in 0..3 {
            let old = server.serving();
            let successor = server.hand_over();
            server.expect(&format!("{old} INFO  drained, moved=60"));
            server.expect(&format!("{successor} INFO  received connections, moved=60"));
            if !(stays && old == server.first()) {
                expect_dead(old);
            }
            assert_eq!(server.status("connections="), 60);
            for client in &mut used {
                assert_eq!(answerer(&client.get("/hello").unwrap()), successor);
            }
        }
        for client in &mut new {
            assert_eq!(answerer(&client.get("/hello").unwrap()), server.serving());
        }
    }
}

#[test]
fn a_predecessor_that_still_answers_has_let_go_of_the_connections_that_were_moved() {
    let server = Server::start(&[]);
    let old = server.serving();
    let descriptors = || fs::read_dir(format!("/proc/{old}/fd")).unwrap().count();
    let before = descriptors();
    let mut clients = connect(&server, 20);
    clients.iter_mut().for_each(|client| drop(client.get("/").unwrap()));
    let held = server.hold();
    server.expect_idle();
    let successor = server.hand_over();
    wait_until(|| descriptors() < before + 10, || server.log());
    clients.iter_mut().for_each(|client| assert_eq!(answerer(&client.get("/hello").unwrap()), successor));
    held.finish();
    expect_dead(old);
}

#[test]
fn a_busy_client_needs_one_connection_for_twenty_handovers() {
    let server = Server::start_for_load(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = connect(&server, 16)
        .into_iter()
        .map(|mut client| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut processes = vec![0];
                while !stop.load(Ordering::SeqCst) {
                    let process = answerer(&client.get("/hello").unwrap());
                    if processes.last() != Some(&process) {
                        // A process that has been left behind does not answer again.
                        assert!(!processes.contains(&process));
                        processes.push(process);
                    }
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let old = server.serving();
        server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
    }
    stop.store(true, Ordering::SeqCst);
    busy.into_iter().for_each(|client| client.join().unwrap());
    assert!(!server.log().contains("drain deadline"));
}

#[test]
fn a_request_of_which_any_part_has_come_is_answered_and_the_connection_lives_on() {
    let server = Server::start_in_detail();
    let request = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    let chunked =
        "PUT /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    let pieces = [request, chunked].into_iter().flat_map(|text| (0..=text.len()).map(|at| text.split_at(at)));
    let mut clients: Vec<(Client, &str)> = pieces
        .map(|(first, second)| {
            let mut client = Client::connect(server.address).unwrap();
            client.send(first).unwrap();
            (client, second)
        })
        .collect();
    let successor = server.hand_over();
    // Some of them are moved, and some are in flight.
    server.expect("moved here");
    for (client, second) in &mut clients {
        client.send(&second).unwrap();
        let reply = client.receive().unwrap();
        assert_eq!((reply.status, reply.text().as_str(), reply.is_last()), (200, "hello", false));
        assert_eq!(answerer(&client.get("/hello").unwrap()), successor);
    }
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn requests_that_lie_in_the_socket_are_answered_in_order_by_one_process_after_the_other() {
    let server = Server::start_in_detail();
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /sleep?duration=300ms HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    server.expect("GET /sleep");
    let echo = |number: usize| {
        let body = format!("{number:0100}");
        format!("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    // More than 64 KiB, of which nothing is read until the drain has begun.
    client.send((0..500).map(echo).collect::<String>() + REQUEST).unwrap();
    let successor = server.hand_over();
    assert!(!client.receive().unwrap().is_last());
    for number in 0..500 {
        let reply = client.receive().unwrap();
        assert_eq!((reply.text().parse(), reply.is_last()), (Ok(number), false));
    }
    assert_eq!(answerer(&client.receive().unwrap()), successor);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn a_client_that_has_closed_its_side_gets_its_answers() {
    let server = Server::start_in_detail();
    let mut clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let sleep = "GET /echo HTTP/1.1\r\nHost: t\r\n\r\n";
    // In flight, idle, and with a request that lies in the socket while the process is stopped.
    for client in &mut clients[..2] {
        client.write_all(sleep.as_bytes()).unwrap();
        client.read_exact(&mut [0; 12]).unwrap();
    }
    clients[1].shutdown(Shutdown::Write).unwrap();
    server.expect("connected");
    server.expect("connected");
    server.expect("connected");
    freeze(server.first());
    server.signal(Signal::SIGUSR2);
    clients[2].write_all(REQUEST.as_bytes()).unwrap();
    clients[2].shutdown(Shutdown::Write).unwrap();
    thaw(server.first());
    server.expect_handover();
    let mut answer = String::new();
    clients[2].read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Hello from "), "{answer}");
    clients[1].read_to_string(&mut answer).unwrap();
    clients[0].write_all(REQUEST.as_bytes()).unwrap();
    clients[0].shutdown(Shutdown::Write).unwrap();
    clients[0].read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{answer}");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn the_time_for_which_a_connection_has_been_idle_goes_on() {
    let server = Server::start_for_load(&["--idle-timeout", "3s", "--head-timeout", "3s"]);
    let mut clients = connect(&server, 2);
    clients[0].get("/").unwrap();
    let begin = Instant::now();
    // The time that has to pass.
    thread::sleep(Duration::from_secs(2));
    server.hand_over();
    for client in &mut clients {
        assert!(client.rest().unwrap().is_empty());
    }
    assert!((3..5).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

#[test]
fn moved_connections_are_not_refused_for_the_limit_and_new_ones_wait() {
    let directory = Directory::new();
    let config = directory.join("config");
    fs::write(&config, "").unwrap();
    let arguments = ["--config", config.to_str().unwrap(), "--head-timeout", "1h"];
    let server = Server::start_replaceable(&arguments);
    let mut held: Vec<_> = (0..4).map(|_| server.hold()).collect();
    let mut clients = connect(&server, 4);
    clients.iter_mut().for_each(|client| drop(client.get("/").unwrap()));
    fs::write(&config, "max-connections = 2").unwrap();
    let successor = server.hand_over();
    wait_until(|| server.status("connections=") == 4, || server.log());
    // They are in flight now, so that none can be evicted.
    let head = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    for client in &mut clients {
        client.send(head).unwrap();
        assert_eq!(client.receive_head().unwrap().status, 100);
    }
    let mut waiting = Client::connect(server.address).unwrap();
    waiting.send(REQUEST).unwrap();
    server.expect("at capacity");
    for client in &mut clients {
        client.send("hi").unwrap();
        assert_eq!(client.receive().unwrap().status, 200);
    }
    drop(clients);
    assert_eq!(number_after(&waiting.receive().unwrap().text(), "from "), successor);
    held.drain(..).for_each(|held| held.finish());
}

#[test]
fn in_an_overlap_connections_are_moved_from_the_one_that_leaves_to_the_one_that_stays() {
    for forward in [true, false] {
        let server = Server::start_for_load(&["--overlap"]);
        let old = server.first();
        let mut before = connect(&server, 10);
        before.iter_mut().for_each(|client| assert_eq!(answerer(&client.get("/hello").unwrap()), old));
        server.signal(Signal::SIGUSR2);
        let new = number_after(&server.expect("both this process and successor"), "successor ");
        before.iter_mut().for_each(|client| assert_eq!(answerer(&client.get("/hello").unwrap()), old));
        // Both get some of them.
        let mut after = connect(&server, 40);
        let mut answers = || -> Vec<u32> {
            after.iter_mut().map(|client| answerer(&client.get("/hello").unwrap())).collect()
        };
        assert_eq!(answers(), answers());
        let (leaves, stays) = if forward { (old, new) } else { (new, old) };
        signal_process(leaves, Signal::SIGTERM);
        expect_dead(leaves);
        assert!(answers().iter().all(|&process| process == stays));
        before.iter_mut().for_each(|client| assert_eq!(answerer(&client.get("/hello").unwrap()), stays));
        server.set_serving(stays);
        // As before: the next handover.
        signal_process(stays, Signal::SIGUSR2);
        server.expect("both this process and successor");
    }
}

#[test]
fn a_process_that_is_no_child_gets_the_connections_too() {
    let server = Server::start_replaceable(&[]);
    let mut clients = connect(&server, 20);
    clients.iter_mut().for_each(|client| drop(client.get("/").unwrap()));
    let mut command = Command::new(BINARY);
    command.args(["--listen", &server.address.to_string(), "--takeover", "--control"]);
    command.arg(server.directory.join("control"));
    let next = Server::start_command(command, Directory::new());
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    for client in &mut clients {
        assert_eq!(answerer(&client.get("/hello").unwrap()), next.first());
    }
}

#[test]
fn what_was_moved_to_a_successor_that_dies_is_lost_with_it_and_counted() {
    let server = Server::start_for_load(&[]);
    let held = server.hold();
    let mut clients = connect(&server, 5);
    clients.iter_mut().for_each(|client| drop(client.get("/").unwrap()));
    let successor = server.hand_over();
    // The first answer may be one that was due when the drain began.
    clients.iter_mut().for_each(|client| drop(client.get("/hello").unwrap()));
    clients.iter_mut().for_each(|client| assert_eq!(answerer(&client.get("/hello").unwrap()), successor));
    signal_process(successor, Signal::SIGKILL);
    server.expect("what had been moved to it has ended with it, moved=5");
    clients.iter_mut().for_each(|client| assert!(client.receive().is_err()));
    held.finish();
    assert_eq!(server.hello(), server.first());
}

#[test]
fn a_successor_without_descriptors_takes_what_it_can_and_the_rest_is_answered_by_the_predecessor() {
    let server = Server::start_replaceable(&["--drain-timeout", "1m", "--log-level", "debug"]);
    install_script(&server.program(), &format!("ulimit -n 40; exec {BINARY} \"$@\""));
    let mut clients = connect(&server, 60);
    clients.iter_mut().for_each(|client| drop(client.get("/").unwrap()));
    let old = server.first();
    server.signal(Signal::SIGUSR2);
    let successor = server.expect_handover();
    server.expect("not taken by the other process");
    let answers: Vec<(u32, bool)> = clients
        .iter_mut()
        .map(|client| {
            let reply = client.get("/hello").unwrap();
            (number_after(&reply.text(), "from "), reply.is_last())
        })
        .collect();
    assert!(answers.contains(&(old, true)) && answers.contains(&(successor, false)), "{answers:?}");
    assert!(!answers.contains(&(successor, true)), "{answers:?}");
    drop(clients);
    assert_eq!(wait_for_end(old), exited(old, 0));
}

/// A real predecessor with a connection that has been used, and the test as its successor.
fn with_successor(test: impl FnOnce(&Server, &mut Client, &Moving)) {
    let server = Server::start_replaceable(&[]);
    let mut client = server.idle_client();
    let successor = Successor::take_over(&server.directory.join("control"));
    test(&server, &mut client, &successor.moving);
    drop(successor);
    drop(client);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

/// The number by which the sender refers to a connection.
fn number(message: &str) -> u32 {
    number_after(message, "move ")
}

#[test]
fn the_predecessor_leaves_a_connection_alone_once_it_has_been_acknowledged() {
    with_successor(|server, client, moving| {
        let (message, connection) = moving.hear();
        assert!(message.contains(" used ") && message.ends_with(&format!(" {}", server.address)));
        moving.say(&format!("took {}", number(&message)), None).unwrap();
        let mut connection = TcpStream::from(connection.unwrap());
        assert!(connection.nodelay().unwrap());
        let timeout = connection.read_timeout().unwrap();
        assert!(timeout.is_some_and(|timeout| timeout < Duration::from_secs(1)), "{timeout:?}");
        client.send("question").unwrap();
        connection.read_exact(&mut [0; 8]).unwrap();
        connection.write_all(b"answer").unwrap();
        drop(connection);
        assert_eq!(client.rest().unwrap(), b"answer");
    });
}

#[test]
fn the_predecessor_answers_on_a_connection_that_the_successor_has_refused() {
    with_successor(|server, client, moving| {
        let (message, connection) = moving.hear();
        drop(connection);
        moving.say(&format!("refused {}", number(&message)), None).unwrap();
        let reply = client.get("/hello").unwrap();
        assert_eq!((number_after(&reply.text(), "from "), reply.is_last()), (server.first(), true));
        assert!(client.rest().unwrap().is_empty());
    });
}

#[test]
fn a_connection_that_was_refused_is_offered_again() {
    with_successor(|_, client, moving| {
        let (message, _) = moving.hear();
        moving.say(&format!("refused {}", number(&message)), None).unwrap();
        let (message, connection) = moving.hear();
        moving.say(&format!("took {}", number(&message)), None).unwrap();
        drop(connection);
        assert!(client.rest().unwrap().is_empty());
    });
}

/// The predecessor of a successor that says these things over and over, and then, too late, that it has taken the
/// connection.
fn keeps_its_connection(nonsense: &[&str]) {
    with_successor(|server, client, moving| {
        let (message, connection) = moving.hear();
        // Meanwhile the client's request lies in the socket.
        client.send(REQUEST).unwrap();
        let mut words = nonsense.iter().cycle();
        let is_refused = || words.next().is_none_or(|word| moving.say(word, None).is_err());
        wait_until(is_refused, || server.log());
        let reply = client.receive().unwrap();
        assert_eq!((number_after(&reply.text(), "from "), reply.is_last()), (server.first(), true));
        assert!(moving.say(&format!("took {}", number(&message)), None).is_err());
        assert_eq!(moving.hear().0, "kept");
        assert_eq!(moving.hear().0, "");
        drop(connection);
    });
}

#[test]
fn the_predecessor_keeps_its_connections_if_the_successor_is_silent() {
    keeps_its_connection(&[]);
}

#[test]
fn the_predecessor_keeps_its_connections_if_the_successor_talks_nonsense_without_end() {
    keeps_its_connection(&["hello", "took", "took -1", "took 1 2", "took x", "move", "took 99999999"]);
}

#[test]
fn the_predecessor_keeps_its_connections_if_the_successor_does_not_take_any() {
    with_successor(|server, client, moving| {
        moving.close_for_messages();
        assert_eq!(number_after(&ends_with(client).text(), "from "), server.first());
    });
}

/// The two ends of a connection.
fn pair() -> (Client, TcpStream, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    (client, socket, peer.to_string())
}

#[test]
fn a_connection_that_the_predecessor_could_not_hear_of_any_more_is_served_if_it_has_died() {
    for acknowledged in [true, false] {
        let Predecessor { server, moving, link } = Predecessor::start();
        let (mut client, socket, peer) = pair();
        let address = server.address;
        freeze(server.first());
        moving.say(&format!("move 7 used 0 {peer} {address}"), Some(&socket)).unwrap();
        if !acknowledged {
            moving.close_for_messages();
        }
        drop((moving, link, socket));
        thaw(server.first());
        assert_eq!(answerer(&client.get("/hello").unwrap()), server.first());
        server.expect(&format!("{peer}: GET /hello"));
        assert_eq!(server.stop(), exited(server.first(), 0));
    }
}

#[test]
fn a_connection_that_the_predecessor_has_kept_is_left_to_it() {
    let Predecessor { server, moving, link } = Predecessor::start();
    let (mut client, mut socket, peer) = pair();
    freeze(server.first());
    moving.say(&format!("move 7 used 0 {peer} {}", server.address), Some(&socket)).unwrap();
    moving.close_for_messages();
    moving.say("kept", None).unwrap();
    thaw(server.first());
    // The successor says the same, and its end is closed.
    server.expect("moved here");
    client.send("question").unwrap();
    socket.read_exact(&mut [0; 8]).unwrap();
    wait_until(|| moving.say("move 8", None).is_err(), || "the successor goes on reading".to_owned());
    drop((moving, link));
    socket.write_all(b"answer").unwrap();
    drop(socket);
    assert_eq!(client.rest().unwrap(), b"answer");
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_connection_that_was_not_acknowledged_is_neither_cut_nor_read_by_a_process_that_ends() {
    let Predecessor { server, moving, link: _link } = Predecessor::start();
    let (mut client, mut socket, peer) = pair();
    freeze(server.first());
    moving.say(&format!("move 7 used 0 {peer} {}", server.address), Some(&socket)).unwrap();
    moving.close_for_messages();
    thaw(server.first());
    server.expect("moved here");
    server.signal(Signal::SIGTERM);
    server.expect("SIGTERM: stopping");
    // Until then it is the same stop.
    thread::sleep(Duration::from_secs(1));
    client.send("question").unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    socket.read_exact(&mut [0; 8]).unwrap();
    socket.write_all(b"answer").unwrap();
    drop(socket);
    assert_eq!(client.rest().unwrap(), b"answer");
}

#[test]
fn a_connection_that_comes_back_in_the_last_moment_of_a_drain_is_moved_on() {
    let server = Server::start_replaceable(&[]);
    let (old, control) = (server.first(), server.directory.join("control"));
    let mut leaving = Successor::go(&control, "ready to overlap");
    leaving.say("serving\nstopping");
    server.expect("is leaving; this process goes on alone");
    // The end of the drain takes a while.
    let Some(tampering) = Tampering::begin(old, Threads::Main, "shutdown", "delay_enter=1000000") else {
        return;
    };
    let next = Successor::take_over(&control);
    expect_in_call(old, &[libc::SYS_shutdown]);
    let (_client, socket, peer) = pair();
    leaving.moving.say(&format!("move 7 used 0 {peer} {}", server.address), Some(&socket)).unwrap();
    while !leaving.moving.hear().0.starts_with("took 7") {}
    drop(tampering);
    let (message, connection) = next.moving.hear();
    assert!(message.starts_with("move ") && connection.is_some(), "{message}");
    next.moving.say(&format!("took {}", number(&message)), None).unwrap();
}

#[test]
fn a_connection_that_ends_is_closed_even_while_others_wait_to_be_moved() {
    let server = Server::start_replaceable(&["--log-level", "debug"]);
    let idle: Vec<Client> = (0..50).map(|_| server.idle_client()).collect();
    let mut ending = connect(&server, 8);
    ending.iter_mut().for_each(|client| client.send("GET /sleep?duration=1s HTTP/1.0\r\n\r\n").unwrap());
    wait_until(|| server.status("in-flight=") == 8, || server.log());
    let successor = Successor::take_over(&server.directory.join("control"));
    // It answers nothing, so that most are not even offered.
    assert!(successor.moving.hear().0.starts_with("move "));
    for client in &mut ending {
        assert_eq!(client.receive().unwrap().status, 200);
        assert!(client.rest().unwrap().is_empty());
    }
    assert!(!server.log().contains("not taken by the other process"));
    drop((successor, idle));
}

#[test]
fn an_empty_line_does_not_end_a_connection_that_was_idle_before_it_was_moved() {
    let Predecessor { server, moving, link: _link } = Predecessor::start();
    let (mut client, socket, peer) = pair();
    client.send("\r\n").unwrap();
    // For longer than a request head may take.
    moving.say(&format!("move 7 used 60000 {peer} {}", server.address), Some(&socket)).unwrap();
    assert!(moving.hear().0.starts_with("took 7"));
    // Its request comes when the connection counts as idle again.
    thread::sleep(Duration::from_millis(100));
    assert_eq!(answerer(&client.get("/hello").unwrap()), server.first());
}

#[test]
fn what_is_no_connection_is_refused() {
    let Predecessor { server, moving, .. } = Predecessor::start();
    let (mut client, socket, peer) = pair();
    let lines = ["", "used", "used 0", "old 0 local 127.0.0.1:1", "used x local 127.0.0.1:1", "used 0 x y"];
    let stream = "stream: used 0 local 127.0.0.1:1\nstate";
    // Cut off, it would be the path of a socket, too.
    let long = format!("used 0 local unix:/{}", "x".repeat(9000));
    for line in lines.iter().chain([&stream, &long.as_str()]).map(|line| format!("move 7 {line}")) {
        moving.say(&line, Some(&socket)).unwrap();
        assert_eq!(moving.hear().0, "refused 7", "{line}");
    }
    moving.say(&format!("move 7 used 0 {peer} {peer}"), None).unwrap();
    assert_eq!(moving.hear().0, "refused 7");
    moving.say(&format!("move 7 new 0 {peer} {peer}"), Some(&socket)).unwrap();
    assert_eq!(moving.hear().0, "took 7");
    drop(socket);
    assert_eq!(answerer(&client.get("/hello").unwrap()), server.first());
}

#[test]
fn connections_end_with_their_next_response_if_one_of_the_processes_does_not_move_them() {
    for (first, second) in [("no-move = true", ""), ("", "no-move = true")] {
        let directory = Directory::new();
        let config = directory.join("config");
        fs::write(&config, first).unwrap();
        let server = Server::start_replaceable_in(directory, &["--config", config.to_str().unwrap()]);
        let mut clients: Vec<Client> = (0..5).map(|_| server.idle_client()).collect();
        fs::write(&config, second).unwrap();
        let successor = server.hand_over();
        for client in &mut clients {
            let reply = ends_with(client);
            assert_eq!(number_after(&reply.text(), "from "), server.first());
        }
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
        assert_eq!(server.hello(), successor);
    }
}

#[test]
fn counters_go_on_with_each_process() {
    let server = Server::start_replaceable(&["--overlap"]);
    let counters = || ["accepted=", "requests=", "moved=", "lost="].map(|name| server.status(name));
    let mut clients = connect(&server, 5);
    for client in &mut clients {
        client.get("/").unwrap();
    }
    assert_eq!(counters(), [5, 5, 0, 0]);
    // Forward, and a second process counts on from the beginning.
    server.signal(Signal::SIGUSR2);
    let new = number_after(&server.expect("both this process and successor"), "successor ");
    assert_eq!(counters(), [5, 5, 0, 0]);
    for client in &mut clients {
        client.get("/").unwrap();
    }
    signal_process(server.first(), Signal::SIGTERM);
    expect_dead(server.first());
    wait_until(|| counters() == [5, 10, 5, 0], || format!("{:?}", counters()));
    // And back.
    signal_process(new, Signal::SIGUSR2);
    let newest = number_after(&server.expect("both this process and successor"), "successor ");
    let mut hellos = 1;
    while server.hello() != newest {
        hellos += 1;
    }
    signal_process(newest, Signal::SIGTERM);
    expect_dead(newest);
    let expected = [5 + hellos, 10 + hellos];
    let all = || server.control("control").unwrap() == new && counters()[..2] == expected;
    wait_until(all, || format!("{:?}, not {expected:?}", counters()));
}

/// Connections that have been accepted, to a server that logs it.
fn accepted(server: &Server, count: usize) -> Vec<Client> {
    let clients = connect(server, count);
    let are_connected = || server.log().matches(": connected").count() == count;
    wait_until(are_connected, || server.log());
    clients
}

/// What has become of an idle connection: the process that has answered, if there was one.
fn fate(mut client: Client) -> Option<u32> {
    client.get("/hello").ok().map(|reply| number_after(&reply.text(), "from "))
}

#[test]
fn at_whatever_moment_the_successor_is_killed_each_connection_is_answered_or_counted_as_lost() {
    let mut lost_in_all = 0;
    for moment in 0..20 {
        let server = Server::start_in_detail();
        let clients = accepted(&server, 40);
        let held = server.hold();
        server.signal(Signal::SIGUSR2);
        let successor = server.expect_handover();
        thread::sleep(Duration::from_micros(1500 * moment));
        signal_process(successor, Signal::SIGKILL);
        let line = server.expect("accepting connections again");
        let answered = clients.into_iter().map(fate).filter(|fate| *fate == Some(server.first())).count();
        let lost = if line.contains("moved") { number_after(&line, "moved=") } else { 0 };
        assert_eq!(answered + lost as usize, 40, "{moment}");
        held.finish();
        lost_in_all += lost;
    }
    assert!(lost_in_all > 0);
}

#[test]
fn at_whatever_moment_the_predecessor_is_killed_what_was_moved_is_answered() {
    for moment in 0..20 {
        let server = Server::start_in_detail();
        let clients = accepted(&server, 40);
        server.signal(Signal::SIGUSR2);
        let successor = server.expect_handover();
        thread::sleep(Duration::from_micros(1500 * moment));
        signal_process(server.first(), Signal::SIGKILL);
        expect_dead(server.first());
        let answered = clients.into_iter().map(fate).filter(|fate| *fate == Some(successor)).count();
        let moved = || server.log().matches(": moved here").count();
        wait_until(|| moved() == answered, || format!("{answered} of {} at {moment}", moved()));
        assert_eq!(server.stop(), exited(successor, 0));
    }
}

#[test]
fn what_the_successor_has_no_memory_or_threads_for_is_answered_by_the_predecessor() {
    for (call, error) in [("?clone,?clone3", "EAGAIN"), ("?recvmsg", "ENOMEM"), ("?setsockopt", "ENOMEM")] {
        let server = Server::start_for_load(&["--overlap", "--log-level", "debug"]);
        let old = server.first();
        let mut clients = connect(&server, 20);
        clients.iter_mut().for_each(|client| assert_eq!(answerer(&client.get("/hello").unwrap()), old));
        server.signal(Signal::SIGUSR2);
        let new = number_after(&server.expect("both this process and successor"), "successor ");
        // The first half is received all the same.
        let injection = format!("error={error}:when=10+");
        let Some(_tampering) = Tampering::begin(new, Threads::All, call, &injection) else { return };
        signal_process(old, Signal::SIGTERM);
        server.expect("not taken by the other process");
        let mut answers: Vec<u32> = Vec::new();
        for client in &mut clients {
            let reply = client.get("/hello").unwrap();
            let process = number_after(&reply.text(), "from ");
            assert!(process == old || !reply.is_last(), "{reply:?}");
            answers.push(process);
        }
        assert!(answers.contains(&old) && answers.iter().all(|process| [old, new].contains(process)));
        drop(clients);
        expect_dead(old);
        server.set_serving(new);
    }
}

#[test]
fn a_process_that_is_stopped_does_not_wait_for_the_connections_of_its_predecessor() {
    let server = Server::start_for_load(&[]);
    let held = server.hold();
    let successor = server.hand_over();
    let held_too = server.hold();
    signal_process(successor, Signal::SIGTERM);
    server.expect("SIGTERM: stopping");
    server.expect("says: stopping");
    expect_at_rest(successor);
    held_too.finish();
    expect_dead(successor);
    assert_eq!(server.processes(), [server.first()]);
    held.finish();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert!(!server.log().contains("deadline"), "{}", server.log());
}

/// The process that has died may have left the other one's messages unread, which is an error there that comes
/// before what it has said.
#[test]
fn what_a_successor_has_taken_before_its_death_is_left_alone() {
    let server = Server::start_replaceable(&[]);
    let clients = [server.idle_client(), server.idle_client()];
    let successor = Successor::take_over(&server.directory.join("control"));
    let (message, connection) = successor.moving.hear();
    // The other one has been sent.
    server.expect_asleep();
    freeze(server.first());
    successor.moving.say(&format!("took {}", number(&message)), None).unwrap();
    drop((successor, connection));
    thaw(server.first());
    let fates = clients.map(fate);
    assert!(fates.contains(&None) && fates.contains(&Some(server.first())), "{fates:?}");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn what_a_predecessor_has_sent_before_its_death_is_served() {
    let Predecessor { server, moving, link } = Predecessor::start();
    let (mut clients, sockets): (Vec<Client>, Vec<_>) =
        [pair(), pair()].into_iter().map(|(client, socket, peer)| (client, (socket, peer))).unzip();
    for (number, (socket, peer)) in sockets.iter().enumerate() {
        moving.say(&format!("move {number} used 0 {peer} {}", server.address), Some(socket)).unwrap();
        if number == 0 {
            server.expect(&format!("{peer}: moved here"));
            // It has answered, and the answer stays unread.
            server.expect_asleep();
            freeze(server.first());
        }
    }
    drop((moving, link, sockets));
    thaw(server.first());
    for client in &mut clients {
        assert_eq!(answerer(&client.get("/hello").unwrap()), server.first());
    }
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_successor_hears_what_the_predecessor_keeps_at_the_deadline() {
    let server = Server::start_replaceable(&["--drain-timeout", "1s"]);
    let _client = server.idle_client();
    let Successor { moving, .. } = &Successor::take_over(&server.directory.join("control"));
    let (message, connection) = moving.hear();
    assert!(moving.hear().0.starts_with("counted "));
    // Or it would take the end for the death of the predecessor, and read from the connection.
    assert_eq!(moving.hear().0, "kept");
    assert!(moving.say(&format!("took {}", number(&message)), None).is_err());
    drop(connection);
}

#[test]
fn what_is_cut_at_the_deadline_is_counted_by_the_successor() {
    let server = Server::start_replaceable(&["--drain-timeout", "300ms"]);
    let _held = server.hold();
    server.hand_over();
    expect_dead(server.first());
    wait_until(|| server.status("lost=") == 1, || server.log());
}

#[test]
fn a_refusal_is_forgotten_when_the_successor_has_died() {
    let server = Server::start_replaceable(&[]);
    let mut client = server.idle_client();
    let successor = Successor::take_over(&server.directory.join("control"));
    server.expect("handed over to successor");
    let (message, _) = successor.moving.hear();
    successor.moving.say(&format!("refused {}", number(&message)), None).unwrap();
    successor.die();
    server.expect("accepting connections again");
    let head = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    client.send(head).unwrap();
    assert_eq!(client.receive_head().unwrap().status, 100);
    let successor = server.hand_over();
    client.send("hi").unwrap();
    assert!(!client.receive().unwrap().is_last());
    assert_eq!(answerer(&client.get("/hello").unwrap()), successor);
}

#[test]
fn at_capacity_connections_are_moved_too() {
    let server = Server::start_replaceable(&["--max-connections", "1"]);
    let mut client = Client::connect(server.address).unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    client.send(head).unwrap();
    assert_eq!(client.receive_head().unwrap().status, 100);
    let mut waiting = Client::connect(server.address).unwrap();
    waiting.send(REQUEST).unwrap();
    server.expect("at capacity");
    let successor = server.hand_over();
    assert_eq!(number_after(&waiting.receive().unwrap().text(), "from "), successor);
    client.send("hi").unwrap();
    assert!(!client.receive().unwrap().is_last());
    assert_eq!(answerer(&client.get("/hello").unwrap()), successor);
}

#[test]
fn a_predecessor_that_was_stopped_goes_on_moving() {
    let server = Server::start_replaceable(&[]);
    let (_idle, held) = (server.idle_client(), server.hold());
    let successor = Successor::take_over(&server.directory.join("control"));
    let (message, _) = successor.moving.hear();
    server.expect_asleep();
    freeze(server.first());
    successor.moving.say(&format!("took {}", number(&message)), None).unwrap();
    // Longer than a successor may take.
    thread::sleep(Duration::from_millis(5500));
    thaw(server.first());
    let finished = thread::spawn(move || held.finish());
    assert!(successor.moving.hear().0.starts_with("move "));
    finished.join().unwrap();
}

#[test]
fn a_client_that_has_connected_before_the_process_had_the_socket_does_not_hold_up_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut early = Client::connect(listener.local_addr().unwrap()).unwrap();
    let Predecessor { server, .. } = Predecessor::start_with(listener);
    assert_eq!(answerer(&early.get("/hello").unwrap()), server.serving());
    assert_eq!(server.stop(), exited(server.serving(), 0));
    assert!(!server.log().contains("cutting what is in flight"), "{}", server.log());
}
