//! What an embedding program learns of handovers: its background job runs in exactly one process at a time, and
//! its long polls end when a drain begins.

use std::fs;

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::embedding::programs::start;
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
