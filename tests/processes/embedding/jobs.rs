//! What an embedding program learns of handovers: its background job runs in exactly one process at a time, its
//! long polls and event streams end when a drain begins, and what it does at its end it does once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use handover::{Options, Recipient, Request, Response, Server as Bound, StatusCode, serve};
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::embedding::programs::{start, take_over};
use crate::load::{Kind, Load};
use crate::protocol::handed_on::expect_stop;
use crate::server::{
    Server, exited, expect_at_rest, expect_dead, number_after, signal_process, wait_for_end, wait_until,
};

/// What the jobs of all processes have written: `start PID` and `stop PID`.
fn journal(server: &Server) -> Vec<String> {
    let journal = fs::read_to_string(server.directory.join("journal")).unwrap_or_default();
    journal.lines().map(str::to_owned).collect()
}

/// The processes in which a job has run, one after the other and never two at a time.
fn jobs(server: &Server) -> Vec<u32> {
    let journal = journal(server);
    let pairs = journal.chunks(2).map(|pair| {
        let pid = number_after(&pair[0], "start ");
        assert!(pair.get(1).is_none_or(|stop| *stop == format!("stop {pid}")), "{journal:#?}");
        pid
    });
    pairs.collect()
}

/// Waits until a job runs in this process and in no other.
fn expect_job(server: &Server, pid: u32) {
    let runs = || journal(server).last().is_some_and(|line| *line == format!("start {pid}"));
    wait_until(runs, || format!("no job runs in {pid}: {:#?}", journal(server)));
    assert_eq!(jobs(server).last(), Some(&pid));
}

fn twenty_handovers(options: &str) {
    let server = start("job", options);
    let load = Load::start(server.address, &[Kind::Close, Kind::KeepAlive, Kind::Naive], 2);
    expect_job(&server, server.first());
    let mut processes = vec![server.first()];
    for number in 0..20 {
        processes.push(server.hand_over());
        // Or the job of this process has not begun before the next one succeeds it, while others end.
        if number % 3 == 0 {
            expect_job(&server, server.serving());
        }
    }
    let last = server.serving();
    expect_job(&server, last);
    load.stop();
    expect_stop(&server, server.first(), options);
    server.expect_processes(&[]);
    let jobs = jobs(&server);
    assert_eq!(journal(&server).len(), 2 * jobs.len());
    // In the order of the processes, and in none twice.
    let order: Vec<_> = jobs.iter().map(|job| processes.iter().position(|pid| pid == job)).collect();
    assert!(order.windows(2).all(|pair| pair[0] < pair[1]), "{order:?}");
    assert!(!server.log().contains("no longer waiting"), "{}", server.log());
}

#[test]
fn a_job_runs_in_one_process_at_a_time_through_twenty_handovers() {
    twenty_handovers("");
}

#[test]
fn a_job_runs_in_one_process_at_a_time_if_connections_are_not_moved() {
    twenty_handovers("no-move");
}

#[test]
fn a_job_runs_in_one_process_at_a_time_beside_a_process_that_stays() {
    twenty_handovers("stay");
}

#[test]
fn a_job_goes_on_where_it_was_if_the_successor_dies() {
    let server = start("job", "probation=3600000");
    let first = server.first();
    for _ in 0..3 {
        expect_job(&server, first);
        let successor = server.hand_over();
        wait_until(
            || journal(&server).last().unwrap().starts_with("stop"),
            || "the job does not stop".to_owned(),
        );
        signal_process(successor, Signal::SIGKILL);
        server.expect("accepting connections again");
        expect_dead(successor);
        server.set_serving(first);
    }
    expect_job(&server, first);
    assert_eq!(jobs(&server), [first; 4]);
    assert_eq!(server.stop(), exited(first, 0));
    assert_eq!(jobs(&server).len() * 2, journal(&server).len());
}

#[test]
fn a_job_that_does_not_end_is_left_at_the_drain_deadline() {
    let server = start("job", "drain-timeout=0");
    expect_job(&server, server.first());
    server.signal(Signal::SIGTERM);
    server.expect("the drain deadline has passed: no longer waiting for the program, holds=1");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn a_successor_waits_with_its_job_for_a_predecessor_that_is_stopped_while_it_drains() {
    let server = start("job", "");
    let first = server.first();
    expect_job(&server, first);
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /hello HTTP/1.1\r\n").unwrap();
    wait_until(|| server.status("in-flight=") == 1, || "it is not in flight".to_owned());
    let successor = server.hand_over();
    signal_process(first, Signal::SIGTERM);
    server.expect("closing idle connections");
    // By now it does not answer for the successor any more.
    expect_at_rest(first);
    assert_eq!(server.status("predecessors="), 1);
    assert_eq!(jobs(&server), [first]);
    client.send("Host: test\r\n\r\n").unwrap();
    assert_eq!(client.receive().unwrap().text(), format!("Hello from {first}!"));
    assert_eq!(wait_for_end(first), exited(first, 0));
    expect_job(&server, successor);
    assert_eq!(jobs(&server), [first, successor]);
}

#[test]
fn a_long_poll_ends_when_the_drain_begins_and_goes_on_in_the_successor() {
    let server = start("job", "");
    let first = server.first();
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /poll HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    wait_until(|| server.status("in-flight=") == 1, || "it is not in flight".to_owned());
    let successor = server.hand_over();
    assert_eq!(client.receive().unwrap().text(), "ask again");
    assert_eq!(wait_for_end(first), exited(first, 0));
    assert_eq!(client.get("/hello").unwrap().text(), format!("Hello from {successor}!"));
    // A stop does the same.
    client.send("GET /poll HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    wait_until(|| server.status("in-flight=") == 1, || "it is not in flight".to_owned());
    assert_eq!(server.stop(), exited(successor, 0));
    assert_eq!(client.receive().unwrap().text(), "ask again");
}

/// A program that answers each request with a stream of server-sent events, which goes on and on.
pub fn run_events(options: Options) -> ExitCode {
    let answer = |request: &mut Request| {
        let events = Events { client: request.recipient(), has_begun: false };
        Response::new(StatusCode(200), Vec::new(), events, None, None).boxed()
    };
    serve(options, answer).unwrap().into()
}

/// The first event is the process; there is no other.
struct Events {
    client: Recipient,
    has_begun: bool,
}

impl Read for Events {
    fn read(&mut self, mut target: &mut [u8]) -> io::Result<usize> {
        if self.has_begun {
            assert!(self.client.wait_for_end(Duration::MAX));
            return Ok(0);
        }
        self.has_begun = true;
        let event = event(process::id());
        target.write_all(event.as_bytes()).map(|()| event.len())
    }
}

fn event(pid: u32) -> String {
    format!("data: {pid}\n\n")
}

/// Asks for a stream, and waits for its first event.
fn expect_event(client: &mut Client, pid: u32) {
    client.send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert_eq!(client.receive_head().unwrap().header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.receive_chunk().unwrap(), event(pid).as_bytes());
}

fn event_streams_go_on_in_the_successor(options: &str) {
    let server = start("events", options);
    let mut clients = [(); 3].map(|()| Client::connect(server.address).unwrap());
    for _ in 0..3 {
        let old = server.serving();
        clients.iter_mut().for_each(|client| expect_event(client, old));
        server.hand_over();
        for client in &mut clients {
            // It is complete, and the connection goes on.
            assert_eq!(client.receive_chunk().unwrap(), b"");
        }
        server.expect(&format!("{old} INFO  drained, moved=3"));
        // On a connection of its own as well.
        clients[0] = Client::connect(server.address).unwrap();
    }
    let last = server.serving();
    clients.iter_mut().for_each(|client| expect_event(client, last));
    server.stop();
    for client in &mut clients {
        assert_eq!(client.receive_chunk().unwrap(), b"");
    }
    server.expect_processes(&[]);
    assert!(!server.log().contains("cut"), "{}", server.log());
}

#[test]
fn an_event_stream_ends_when_the_drain_begins_and_goes_on_in_the_successor() {
    event_streams_go_on_in_the_successor("");
}

#[test]
fn an_event_stream_ends_in_a_process_that_stays_when_its_drain_begins() {
    event_streams_go_on_in_the_successor("stay");
}

#[test]
fn an_event_stream_goes_on_in_the_process_that_has_taken_back() {
    let server = start("events", "probation=3600000");
    let first = server.first();
    let mut client = Client::connect(server.address).unwrap();
    for _ in 0..2 {
        expect_event(&mut client, first);
        let successor = server.hand_over();
        assert_eq!(client.receive_chunk().unwrap(), b"");
        signal_process(successor, Signal::SIGKILL);
        server.expect("accepting connections again");
        server.set_serving(first);
        client = Client::connect(server.address).unwrap();
    }
    expect_event(&mut client, first);
}

#[test]
fn an_event_stream_whose_client_has_left_makes_room() {
    let server = start("events", "max-connections=2");
    for _ in 0..3 {
        let mut clients = [(); 2].map(|()| Client::connect(server.address).unwrap());
        clients.iter_mut().for_each(|client| expect_event(client, server.first()));
    }
}

/// A program that does something when it has served, and notes when it begins with that and when it is done.
pub fn run_flush(options: Options) -> ExitCode {
    let server = Bound::bind(options).unwrap();
    let text = format!("Hello from {}!", process::id());
    let outcome = server.serve(move |_: &mut Request| Response::from_string(&text).boxed()).unwrap();
    let mut journal = File::options().append(true).create(true).open("journal").unwrap();
    writeln!(journal, "start {}", process::id()).unwrap();
    // Long enough for another one to begin meanwhile, if it does not wait.
    thread::sleep(Duration::from_millis(100));
    writeln!(journal, "stop {}", process::id()).unwrap();
    outcome.into()
}

/// A program that notes each answer, and what it does last, when all clients have been answered.
pub fn run_last(options: Options) -> ExitCode {
    let server = Bound::bind(options).unwrap();
    let handle = server.handle();
    let note = |what| {
        let mut journal = File::options().append(true).create(true).open("journal").unwrap();
        writeln!(journal, "{what} {}", process::id()).unwrap();
    };
    thread::spawn(move || {
        while let Some(_hold) = handle.hold_when(Duration::MAX, |status| status.state.serves()) {
            handle.wait_until(Duration::MAX, |status| !status.state.serves() && status.connections == 0);
            note("last");
        }
    });
    let answer = move |request: &mut Request| {
        if request.url() == "/poll" {
            request.recipient().wait_for_hangup(Duration::MAX);
            note("answer");
        }
        Response::from_string(format!("Hello from {}!", process::id())).boxed()
    };
    server.serve(answer).unwrap().into()
}

#[test]
fn a_program_that_holds_a_process_learns_when_its_last_client_has_been_answered() {
    let server = start("last", "");
    for _ in 0..2 {
        let old = server.serving();
        let mut polling = TcpStream::connect(server.address).unwrap();
        polling.write_all(b"GET /poll HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        wait_until(|| server.status("in-flight=") == 1, || "it is not in flight".to_owned());
        server.hand_over();
        polling.shutdown(Shutdown::Write).unwrap();
        assert!(io::read_to_string(polling).unwrap().ends_with(&format!("Hello from {old}!")));
        assert_eq!(wait_for_end(old), exited(old, 0));
        assert_eq!(journal(&server), [format!("answer {old}"), format!("last {old}")]);
        fs::remove_file(server.directory.join("journal")).unwrap();
    }
    let last = server.serving();
    assert_eq!(server.stop(), exited(last, 0));
    assert_eq!(journal(&server), [format!("last {last}")]);
    assert!(!server.log().contains("no longer waiting"), "{}", server.log());
}

/// Waits until this has been done in these processes, in this order, once in each, and in no two at a time.
fn expect_flushes(server: &Server, processes: &[u32]) {
    let is_done = || journal(server).len() >= 2 * processes.len();
    wait_until(is_done, || format!("{:#?}", journal(server)));
    assert_eq!(jobs(server), processes);
}

#[test]
fn what_a_program_does_at_its_end_it_does_once_in_each_process() {
    let server = start("flush", "");
    let mut processes = vec![server.first()];
    for _ in 0..2 {
        processes.push(server.hand_over());
        expect_dead(processes[processes.len() - 2]);
    }
    let taker = take_over(&server, &server, "flush");
    expect_flushes(&server, &processes);
    assert_eq!(taker.stop(), exited(taker.first(), 0));
    processes.push(taker.first());
    expect_flushes(&server, &processes);
}

#[test]
fn what_a_program_does_at_its_end_is_not_done_before_it_has_taken_back() {
    let server = start("flush", "probation=3600000");
    for _ in 0..3 {
        let successor = server.hand_over();
        signal_process(successor, Signal::SIGKILL);
        server.expect("accepting connections again");
        server.set_serving(server.first());
    }
    assert_eq!(server.hello(), server.first());
    expect_flushes(&server, &[]);
    assert_eq!(server.stop(), exited(server.first(), 0));
    expect_flushes(&server, &[server.first()]);
}

#[test]
fn a_process_that_stays_does_what_it_does_at_its_end_when_its_successors_have_done_that() {
    for stopped_by_supervisor in [false, true] {
        let server = start("flush", "stay");
        let first = server.first();
        let mut processes = vec![server.hand_over()];
        server.expect(&format!("process {first} stays"));
        processes.push(server.hand_over());
        expect_flushes(&server, &processes[..1]);
        signal_process(if stopped_by_supervisor { first } else { processes[1] }, Signal::SIGTERM);
        assert_eq!(wait_for_end(first), exited(first, 0));
        processes.push(first);
        expect_flushes(&server, &processes);
    }
}
