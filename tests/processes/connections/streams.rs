//! Something that is not HTTP, on the same mechanism: the example that numbers the lines of each connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Next, Options, Stream, serve_connections};
use nix::sys::signal::Signal;

use crate::embedding::programs::start;
use crate::protocol::handed_on::{
    Decision, decide, overlap, twenty_handovers, twenty_handovers_and_takeovers,
};
use crate::server::{
    Server, exited, expect_dead, freeze, is_alive, number_after, signal_process, thaw, wait_for_end,
    wait_until,
};

/// A client, and how many of its lines have been answered.
struct Client {
    stream: BufReader<TcpStream>,
    count: u64,
}

impl Client {
    fn connect(server: &Server) -> Client {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Client::new(stream)
    }

    fn connect_locally(server: &Server) -> Client {
        let stream = UnixStream::connect(server.directory.join("socket")).unwrap();
        // What is called of it means the same there.
        Client::new(OwnedFd::from(stream).into())
    }

    fn new(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { stream: BufReader::new(stream), count: 0 }
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Receives the answer to this line; it must have the next number.
    fn expect(&mut self, line: &str) {
        assert_eq!(self.receive().unwrap(), format!("{} {line}\n", self.count));
    }

    fn receive(&mut self) -> io::Result<String> {
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        self.count += 1;
        Ok(answer)
    }

    fn ask(&mut self, line: &str) {
        self.send(&format!("{line}\n"));
        self.expect(line);
    }
}

fn connect(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(server)).collect();
    clients.iter_mut().for_each(|client| client.ask("hello"));
    clients
}

/// What a client does all the time.
#[derive(Clone, Copy)]
enum Habit {
    /// One line after the other.
    Ask,
    /// Several lines at a time, the last of them in two pieces.
    Pipeline,
    /// The same with a pause in between, and after it.
    Hesitate,
}

impl Habit {
    fn exercise(self, client: &mut Client) {
        let pause = || thread::sleep(Duration::from_millis(3));
        match self {
            Habit::Ask => return client.ask("one"),
            Habit::Pipeline => client.send("one\ntwo\nthr"),
            Habit::Hesitate => {
                client.send("one\ntwo\nthr");
                pause();
            }
        }
        client.send("ee\n");
        ["one", "two", "three"].iter().for_each(|line| client.expect(line));
        if let Habit::Hesitate = self {
            pause();
        }
    }
}

/// Each line is answered once and in order, on the connection on which it was sent, whatever happens.
fn lives_through<T>(mut clients: Vec<Client>, work: impl FnOnce() -> T) -> T {
    let mut idle = clients.split_off(12);
    let stop = Arc::new(AtomicBool::new(false));
    let habits = [Habit::Ask, Habit::Pipeline, Habit::Hesitate].into_iter().cycle();
    let busy: Vec<_> = habits
        .zip(clients)
        .map(|(habit, mut client)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    habit.exercise(&mut client);
                }
            })
        })
        .collect();
    let result = work();
    idle.iter_mut().for_each(|client| client.ask("still here"));
    stop.store(true, Ordering::SeqCst);
    busy.into_iter().for_each(|client| client.join().unwrap());
    result
}

/// They were neither closed nor cut.
fn expect_no_loss(server: &Server) {
    assert_eq!((server.status("accepted="), server.status("lost=")), (32, 0));
    assert!(!server.log().contains("deadline"));
}

#[test]
fn each_line_is_answered_once_and_in_order_on_one_connection_over_twenty_handovers() {
    let server = start("lines", "");
    lives_through(connect(&server, 32), || {
        for _ in 0..20 {
            let old = server.serving();
            server.hand_over();
            assert_eq!(wait_for_end(old), exited(old, 0));
        }
    });
    expect_no_loss(&server);
}

#[test]
fn each_line_of_a_client_on_a_unix_socket_is_answered_once_and_in_order() {
    let server = start("lines", "unix");
    let clients = (0..32).map(|_| Client::connect_locally(&server)).collect();
    lives_through(clients, || {
        for _ in 0..10 {
            let old = server.serving();
            server.hand_over();
            assert_eq!(wait_for_end(old), exited(old, 0));
        }
    });
    expect_no_loss(&server);
}

#[test]
fn each_line_is_answered_once_and_in_order_beside_a_process_that_stays() {
    let server = start("lines", "stay");
    lives_through(connect(&server, 32), || twenty_handovers(&server));
    expect_no_loss(&server);
    assert!(is_alive(server.first()), "{}", server.log());
}

#[test]
fn each_line_is_answered_once_and_in_order_whoever_takes_over() {
    let server = start("lines", "");
    let clients = connect(&server, 32);
    let servers = lives_through(clients, || twenty_handovers_and_takeovers(server, "lines"));
    expect_no_loss(&servers[0]);
}

#[test]
fn each_line_is_answered_once_and_in_order_however_an_overlap_is_decided() {
    let server = start("lines", "overlap");
    let accepted = lives_through(connect(&server, 32), || {
        for decision in [Decision::Forward, Decision::Back].repeat(5) {
            overlap(&server);
            // Each of the two processes is answered by for a while, on connections that nothing moves.
            let mut clients = connect(&server, 3);
            decide(&server, decision);
            clients.iter_mut().for_each(|client| client.ask("again"));
        }
        server.status("accepted=")
    });
    assert_eq!((accepted, server.status("lost=")), (62, 0));
    assert!(!server.log().contains("deadline"));
}

#[test]
fn a_line_of_which_any_part_has_come_is_answered_and_the_connection_lives_on() {
    let server = start("lines", "");
    let halves: Vec<(&str, &str)> = (0..=6).map(|at| "hello\n".split_at(at)).collect();
    let mut clients: Vec<(Client, &str)> = connect(&server, 14)
        .into_iter()
        .zip(halves.repeat(2))
        .map(|(client, (_, second))| (client, second))
        .collect();
    // Of one half the beginning is being read, of the other it lies in the socket when the drain begins.
    let send = |clients: &mut [(Client, &str)]| {
        clients.iter_mut().zip(&halves).for_each(|((client, _), (first, _))| client.send(first));
    };
    send(&mut clients[..7]);
    wait_until(|| server.status("in-flight=") == 5, || server.log());
    freeze(server.first());
    server.signal(Signal::SIGUSR2);
    send(&mut clients[7..]);
    thaw(server.first());
    server.expect_handover();
    // What lies in a socket goes with it.
    wait_until(|| server.status("moved=") >= 2, || server.log());
    for (client, second) in &mut clients {
        client.send(second);
        client.expect("hello");
        client.ask("again");
    }
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    assert_eq!((server.status("accepted="), server.status("moved=")), (14, 14));
}

#[test]
fn at_whatever_moment_the_successor_is_killed_each_connection_goes_on_or_is_counted_as_lost() {
    for moment in 0..10 {
        let server = start("lines", "");
        let mut clients = connect(&server, 40);
        let mut held = clients.pop().unwrap();
        held.send("hel");
        wait_until(|| server.status("in-flight=") == 1, || server.log());
        server.signal(Signal::SIGUSR2);
        let successor = server.expect_handover();
        thread::sleep(Duration::from_micros(1500 * moment));
        signal_process(successor, Signal::SIGKILL);
        let line = server.expect("accepting connections again");
        let lost = if line.contains("moved") { number_after(&line, "moved=") } else { 0 };
        let goes_on = |client: &mut &mut Client| {
            let sent = client.stream.get_mut().write_all(b"again\n");
            sent.and_then(|()| client.receive()).is_ok_and(|answer| answer == "2 again\n")
        };
        let kept = clients.iter_mut().filter_map(|mut client| goes_on(&mut client).then_some(())).count();
        assert_eq!(kept + lost as usize, 39, "{moment}");
        held.send("lo\n");
        held.expect("hello");
    }
}

#[test]
fn a_stop_answers_the_line_that_has_begun_and_ends_every_connection() {
    let server = start("lines", "");
    let mut clients = connect(&server, 3);
    clients[0].send("hel");
    wait_until(|| server.status("in-flight=") == 1, || server.log());
    server.signal(Signal::SIGTERM);
    server.expect("stopping");
    clients[0].send("lo\n");
    clients[0].expect("hello");
    for client in &mut clients {
        assert_eq!(client.receive().unwrap(), "");
    }
    drop(clients);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn a_line_that_is_not_complete_at_the_deadline_is_cut_and_counted() {
    let server = start("lines", "drain-timeout=300");
    let mut clients = connect(&server, 2);
    clients[0].send("hel");
    wait_until(|| server.status("in-flight=") == 1, || server.log());
    server.hand_over();
    server.expect("lost=1");
    expect_dead(server.first());
    assert!(!matches!(clients[0].receive(), Ok(answer) if !answer.is_empty()));
    clients[1].ask("again");
    wait_until(|| server.status("lost=") == 1, || server.log());
}

/// A program that answers each line with the seconds until it would be cut.
pub fn run(options: Options) -> ExitCode {
    let answer = |stream: &mut Stream| {
        while stream.wait(b"")? == Next::Input {
            stream.read_line(&mut String::new())?;
            let left = stream.deadline().map(|deadline| deadline.duration_since(Instant::now()).as_secs());
            let is_draining = stream.is_draining();
            writeln!(stream, "{is_draining} {left:?}")?;
        }
        Ok(())
    };
    serve_connections(options, answer).unwrap().into()
}

#[test]
fn a_function_learns_of_a_drain_and_when_that_ends() {
    for signal in [Signal::SIGUSR2, Signal::SIGTERM] {
        let server = start("deadline", "drain-timeout=100000");
        let mut client = Client::connect(&server);
        client.send("hello\n");
        assert_eq!(client.receive().unwrap(), "false None\n");
        client.send("hel");
        wait_until(|| server.status("in-flight=") == 1, || server.log());
        server.signal(signal);
        server.expect_any(&["handed over", "stopping"]);
        client.send("lo\n");
        let answer = client.receive().unwrap();
        assert!((30..100).contains(&number_after(&answer, "true Some(")), "{answer}");
    }
}

#[test]
fn a_client_that_has_ended_its_side_gets_its_answers() {
    let server = start("lines", "");
    let mut clients = connect(&server, 2);
    freeze(server.first());
    server.signal(Signal::SIGUSR2);
    for client in &mut clients {
        client.send("one\ntwo");
        client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }
    thaw(server.first());
    server.expect_handover();
    for client in &mut clients {
        client.expect("one");
        assert_eq!(client.receive().unwrap(), "3 two");
        assert_eq!(client.receive().unwrap(), "");
    }
}
