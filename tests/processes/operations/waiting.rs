//! Waiting for the end of a handover, which may not have been decided yet.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::server::{
    BINARY, Directory, Gate, Server, exited, install_script, number_after, signal_process, wait_for_end,
    wait_until,
};

/// A client that waits for the end of a handover.
struct Waiter(UnixStream);

impl Waiter {
    fn start(control: &Path) -> Waiter {
        let mut client = UnixStream::connect(control).unwrap();
        client.write_all(b"wait\n").unwrap();
        // This comes behind it, and so does what is done from now on.
        handover::ask(control, "status").unwrap();
        Waiter(client)
    }

    fn waits(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let read = (&self.0).read(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    fn expect(self, expected: &str) {
        assert_eq!(io::read_to_string(self.0).unwrap(), expected);
    }
}

/// A server whose next candidate waits, and a client that waits for the end of the handover.
fn with_waiter(arguments: &[&str]) -> (Server, File, Waiter) {
    let directory = Directory::new();
    let gate = Gate::new(&directory);
    let server = Server::start_replaceable_in(directory, &[&["--ready-timeout", "1m"], arguments].concat());
    install_script(&server.program(), &format!("{}; exec {BINARY} \"$@\"", gate.wait()));
    server.signal(Signal::SIGUSR2);
    let candidate = gate.expect_waiting();
    let waiter = Waiter::start(&server.directory.join("control"));
    assert!(waiter.waits());
    (server, candidate, waiter)
}

#[test]
fn a_wait_lasts_until_a_handover_has_failed() {
    let (server, candidate, waiter) = with_waiter(&[]);
    signal_process(number_after(&server.expect("started successor "), "successor "), Signal::SIGKILL);
    waiter.expect("ok\n");
    drop(candidate);
    server.expect_processes(&[server.first()]);
}

#[test]
fn a_wait_that_began_before_a_handover_was_decided_lasts_until_its_end() {
    // With --stay the process goes on, but has drained.
    for arguments in [&[][..], &["--stay"]] {
        let (server, candidate, waiter) = with_waiter(arguments);
        let control = server.directory.join("control");
        let patient = thread::spawn(move || handover::ask(&control, "wait"));
        let held = server.hold();
        drop(candidate);
        server.expect_handover();
        // After this time a client gives up if it sees no sign of life, which is at another path now.
        thread::sleep(Duration::from_millis(2500));
        assert!(waiter.waits(), "{}", server.log());
        assert!(!patient.is_finished(), "{:?}", patient.join());
        held.finish();
        waiter.expect("ok\n");
        assert_eq!(patient.join().unwrap().unwrap(), "ok");
        // The successor learns of that at the same time.
        let is_alone = || server.status("predecessors=") == 0;
        wait_until(is_alone, || server.log());
    }
}

#[test]
fn a_wait_lasts_until_an_overlap_is_decided() {
    for undone in [true, false] {
        let (server, candidate, waiter) = with_waiter(&["--overlap"]);
        let old = server.first();
        drop(candidate);
        let new = number_after(&server.expect("accept connections"), "successor ");
        let another = Waiter::start(&server.directory.join("control.old"));
        assert!(waiter.waits() && another.waits());
        signal_process(if undone { new } else { old }, Signal::SIGTERM);
        [waiter, another].into_iter().for_each(|waiter| waiter.expect("ok\n"));
        server.expect_processes(&[if undone { old } else { new }]);
    }
}

#[test]
fn a_stop_ends_each_wait() {
    let refused = "error: refused, this process does not serve\n";
    let (server, candidate, waiter) = with_waiter(&[]);
    server.signal(Signal::SIGTERM);
    waiter.expect(refused);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    drop(candidate);

    // The predecessor drains on.
    let server = Server::start_replaceable(&[]);
    let held = server.hold();
    server.hand_over();
    let waiter = Waiter::start(&server.directory.join("control"));
    assert!(waiter.waits());
    server.stop();
    waiter.expect(refused);
    held.finish();
    server.expect_processes(&[]);
}
