//! The end of a successor, and its last words: a predecessor that drains takes back after a death, and only then.

use std::io::Read;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::partner::{Predecessor, Successor};
use crate::server::{
    Held, Server, exited, expect_dead, freeze, is_alive, signal_process, thaw, wait_for_end, wait_until,
};
use crate::strace::{REAPS, Tampering, Threads, expect_in_call};

/// The operator has stopped the successor: connections are refused from now on.
fn expect_not_taken_back(server: &Server) {
    server.expect_refusal();
    assert!(!server.log().contains("accepting connections again"), "{}", server.log());
}

#[test]
fn a_successor_that_is_stopped_and_killed_right_behind_is_not_succeeded_by_its_predecessor() {
    for _ in 0..30 {
        let server = Server::start_for_load(&[]);
        let held = server.hold();
        let successor = server.hand_over();
        // It keeps the successor, as well.
        let _request = server.hold();
        signal_process(successor, Signal::SIGTERM);
        // It says so to its predecessor first.
        server.expect(&format!("{successor} INFO  SIGTERM: stopping"));
        signal_process(successor, Signal::SIGKILL);
        expect_not_taken_back(&server);
        held.finish();
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    }
}

#[test]
fn words_that_are_said_before_the_end_count_however_late_they_are_heard() {
    let server = Server::start_for_load(&[]);
    let held = server.hold();
    let (old, successor) = (server.first(), server.hand_over());
    let Some(tampering) = Tampering::begin(old, Threads::Main, REAPS, "delay_enter=1000000") else { return };
    // Its look at its child takes a while. Meanwhile that is told to stop, and ends.
    signal_process(old, Signal::SIGCHLD);
    expect_in_call(old, &[libc::SYS_wait4, libc::SYS_waitid]);
    signal_process(successor, Signal::SIGTERM);
    expect_dead(successor);
    expect_not_taken_back(&server);
    drop(tampering);
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
}

#[test]
fn the_very_last_word_of_a_successor_decides_whether_its_predecessor_goes_forward() {
    let closes = "SIGTERM: stopping";
    for (ready, words, log) in [
        ("ready to overlap", "serving\nstopping", closes),
        ("ready to overlap", "serving", "goes on alone"),
        // It serves on, in another process.
        ("ready", "handed over", "goes on alone"),
    ] {
        let server = Server::start_replaceable(&[]);
        let old = server.first();
        let mut successor = Successor::go(&server.directory.join("control"), ready);
        // It looks for the last time, and takes the words that have come until the end of that.
        let delay = Tampering::begin(old, Threads::Main, "shutdown", "delay_enter=1000000");
        let Some(tampering) = delay else { return };
        signal_process(old, Signal::SIGTERM);
        expect_in_call(old, &[libc::SYS_shutdown]);
        successor.say(words);
        drop(tampering);
        let line = server.expect_any(&[closes, "goes on alone"]);
        assert!(line.contains(log), "{words:?}: {line}");
        assert_eq!(wait_for_end(old), exited(old, 0));
    }
}

#[test]
fn a_process_that_is_stopped_together_with_its_successor_is_not_succeeded_by_its_predecessor() {
    let Predecessor { server, link, moving: _moving } = Predecessor::start();
    let process = server.first();
    let mut successor = Successor::go(&server.directory.join("control"), "ready to overlap");
    let delay = Tampering::begin(process, Threads::Main, "shutdown", "delay_enter=1000000");
    let Some(tampering) = delay else { return };
    signal_process(process, Signal::SIGTERM);
    expect_in_call(process, &[libc::SYS_shutdown]);
    successor.say("serving\nstopping");
    drop(tampering);
    server.expect("SIGTERM: stopping");
    let mut words = String::new();
    (&link).read_to_string(&mut words).unwrap();
    assert_eq!(words, "stopping\n");
    assert_eq!(wait_for_end(process), exited(process, 0));
}

/// What keeps the predecessor until it is to end.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Request,
    IdleConnection,
    Probation,
}

const PROBATION: Duration = Duration::from_millis(300);

#[test]
fn a_drain_that_completes_in_the_moment_of_the_death_of_the_successor_refuses_no_connection() {
    for round in 0..60 {
        let kept = [Kept::Request, Kept::IdleConnection, Kept::Probation][round % 3];
        let arguments: &[&str] = match kept {
            Kept::Request => &[],
            Kept::IdleConnection => &["--no-move"],
            Kept::Probation => &["--probation", "300ms"],
        };
        let server = Server::start_for_load(arguments);
        let old = server.first();
        let (mut held, mut idle) = match kept {
            Kept::Request => (Some(server.hold()), None),
            Kept::IdleConnection => (None, Some(server.idle_client())),
            Kept::Probation => (None, None),
        };
        let begin = Instant::now();
        let successor = server.hand_over();
        // While it is stopped, both things happen.
        freeze(old);
        if let Kept::Probation = kept {
            if begin.elapsed() > PROBATION / 2 {
                // It may be on its way out already.
                continue;
            }
            thread::sleep(PROBATION);
        }
        held.iter_mut().for_each(Held::release);
        drop(idle.take());
        signal_process(successor, Signal::SIGKILL);
        expect_dead(successor);
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(server.address).unwrap()).collect();
        clients
            .iter_mut()
            .for_each(|client| client.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap());
        thaw(old);
        held.into_iter().for_each(Held::expect_answer);
        for client in &mut clients {
            let reply =
                client.receive().unwrap_or_else(|error| panic!("{kept:?}: {error}\n{}", server.log()));
            assert_eq!(reply.text(), format!("Hello from {old}!"));
        }
        server.expect("accepting connections again");
        assert_eq!(server.hello(), old);
        assert_eq!(server.pid_file(), old);
        drop(clients);
        server.set_serving(old);
        assert_eq!(server.stop(), exited(old, 0));
    }
}

/// In which order a predecessor that drains and its successor are stopped.
#[derive(Clone, Copy, Debug)]
enum Order {
    PredecessorFirst,
    SuccessorFirst,
    AtOnce,
}

#[test]
fn when_all_are_stopped_a_new_client_is_refused_while_what_is_in_flight_is_answered() {
    for order in [Order::PredecessorFirst, Order::SuccessorFirst, Order::AtOnce] {
        let server = Server::start_for_load(&[]);
        let old = server.first();
        let held = server.hold();
        let successor = server.hand_over();
        let held_too = server.hold();
        match order {
            Order::PredecessorFirst => {
                signal_process(old, Signal::SIGTERM);
                server.expect(&format!("{old} INFO  SIGTERM: "));
                // That is nothing to its successor.
                assert_eq!(server.hello(), successor);
                signal_process(successor, Signal::SIGTERM);
            }
            Order::SuccessorFirst => {
                signal_process(successor, Signal::SIGTERM);
                server.expect(&format!("{successor} INFO  SIGTERM: stopping"));
                signal_process(old, Signal::SIGTERM);
            }
            Order::AtOnce => {
                [old, successor].iter().for_each(|pid| freeze(*pid));
                [old, successor].iter().for_each(|pid| signal_process(*pid, Signal::SIGTERM));
                [old, successor].iter().for_each(|pid| thaw(*pid));
            }
        }
        server.expect_refusal();
        // The next start would get the address.
        drop(TcpListener::bind(server.address).unwrap_or_else(|error| panic!("{order:?}: {error}")));
        assert!(is_alive(old) && is_alive(successor), "{order:?}");
        held.finish();
        held_too.finish();
        wait_for_end(successor);
        assert_eq!(wait_for_end(old), exited(old, 0), "{order:?}");
        wait_until(|| server.processes().is_empty(), || format!("{:?}", server.processes()));
        assert!(server.files().is_empty(), "{order:?}: {:?}", server.files());
        assert!(client::get(server.address, "/").is_err());
    }
}
