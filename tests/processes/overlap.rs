//! Two processes that accept at the same time: signals do not end the overlap, and both can be stopped at once.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::client;
use crate::server::{
    BINARY, Directory, Server, exited, expect_at_rest, expect_dead, freeze, number_after, signal_process,
    thaw, wait_for_end, wait_until,
};
use crate::strace::{Tampering, Threads, WAITS};

/// Two processes that overlap, with a Unix socket, a PID file and a control socket.
struct Overlap {
    server: Server,
    old: u32,
    new: u32,
}

impl Overlap {
    fn start() -> Overlap {
        let directory = Directory::new();
        let mut command = Command::new(BINARY);
        command.args(["--listen", "127.0.0.1:0", "--overlap", "--listen"]);
        command.arg(format!("unix:{}", directory.join("socket").display()));
        command.arg("--pid-file").arg(directory.join("pid")).arg("--control").arg(directory.join("control"));
        let server = Server::start_command(command, directory);
        let (old, new) = (server.first(), expect_overlap(&server));
        Overlap { server, old, new }
    }

    fn socket(&self) -> PathBuf {
        self.server.directory.join("socket")
    }

    /// Stops the successor, which undoes the overlap.
    fn go_back(&self) {
        signal_process(self.new, Signal::SIGTERM);
        self.server.expect(&format!("successor {} is leaving; this process goes on alone", self.new));
        self.server.expect_alone(self.old);
        assert_eq!(client::get(self.socket(), "/hello").unwrap().text(), format!("Hello from {}!", self.old));
        assert_eq!(self.server.files(), ["control", "pid", "socket"]);
    }
}

fn expect_overlap(server: &Server) -> u32 {
    server.signal(Signal::SIGUSR2);
    number_after(&server.expect("accept connections"), "successor ")
}

/// A process may end at any time.
fn send(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

#[test]
fn an_interrupted_system_call_ends_no_overlap() {
    let overlap = Overlap::start();
    let Overlap { server, old, new } = &overlap;
    for pid in [*old, *new] {
        // Every other call fails, so that a repeated one succeeds.
        let calls = format!("{WAITS},?recvfrom,?recvmsg");
        let Some(_tampering) = Tampering::begin(pid, Threads::Main, &calls, "error=EINTR:when=1+2") else {
            return;
        };
        for _ in 0..3 {
            signal_process(pid, Signal::SIGUSR2);
            server.expect("SIGUSR2: refused");
            server.expect_processes(&[*old, *new]);
        }
    }
    let Some(_tampering) = Tampering::begin(*new, Threads::Main, WAITS, "error=EINTR:when=1+2") else {
        return;
    };
    overlap.go_back();
}

#[test]
fn any_number_of_signals_leaves_an_overlap_as_it_is() {
    let mut overlap = Overlap::start();
    for round in 0..20 {
        let Overlap { server, old, new } = &overlap;
        // In the order of their numbers.
        let both = [*old.min(new), *old.max(new)];
        for count in 0..500 {
            for pid in [*new, *old] {
                send(pid, Signal::SIGUSR2);
                send(pid, Signal::SIGCHLD);
                send(pid, Signal::SIGHUP);
            }
            if count % 100 == 0 {
                assert_eq!(server.processes(), both, "in round {round}");
            }
        }
        expect_at_rest(*old);
        expect_at_rest(*new);
        assert_eq!(server.processes(), both, "in round {round}");
        // A stop among others.
        for _ in 0..20 {
            send(*new, Signal::SIGCHLD);
            send(*new, Signal::SIGUSR1);
        }
        overlap.go_back();
        overlap.new = expect_overlap(&overlap.server);
    }
    let log = overlap.server.log();
    assert_eq!(log.matches("started successor").count(), 21, "{log}");
}

#[test]
fn an_overlap_goes_forward_when_the_predecessor_is_killed() {
    let Overlap { server, old, new } = Overlap::start();
    signal_process(old, Signal::SIGKILL);
    server.expect_alone(new);
    let is_clear = || server.files() == ["control", "pid", "socket"];
    wait_until(is_clear, || format!("{:?}", server.files()));
    let newest = expect_overlap(&server);
    signal_process(newest, Signal::SIGTERM);
    server.expect(&format!("successor {newest} is leaving; this process goes on alone"));
    server.expect_alone(new);
    assert_eq!(server.stop(), exited(new, 0));
    assert!(server.files().is_empty(), "{:?}", server.files());
}

/// In which order the two are stopped.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// The signals come right behind each other.
    AtOnce([Side; 2]),
    /// Both are frozen until both have their signals, and go on in this order.
    Pending([Side; 2]),
    /// One has ended before the other, which was frozen, gets its signal.
    Unseen(Side),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Old,
    New,
}

impl Order {
    const ALL: [Order; 6] = [
        Order::AtOnce([Side::Old, Side::New]),
        Order::AtOnce([Side::New, Side::Old]),
        Order::Pending([Side::Old, Side::New]),
        Order::Pending([Side::New, Side::Old]),
        Order::Unseen(Side::Old),
        Order::Unseen(Side::New),
    ];
}

fn both_stop(order: Order) {
    let Overlap { server, old, new } = Overlap::start();
    let pid = |side: Side| if side == Side::Old { old } else { new };
    let end = |pid| {
        let end = wait_for_end(pid);
        // Only the parent knows how.
        assert!(matches!(end, None | Some(WaitStatus::Exited(_, 0))), "{order:?}: {end:?}");
    };
    match order {
        Order::AtOnce(both) => both.iter().for_each(|side| signal_process(pid(*side), Signal::SIGTERM)),
        Order::Pending(both) => {
            both.iter().for_each(|side| freeze(pid(*side)));
            both.iter().for_each(|side| signal_process(pid(*side), Signal::SIGTERM));
            both.iter().for_each(|side| thaw(pid(*side)));
        }
        Order::Unseen(first) => {
            let second = if first == Side::Old { new } else { old };
            freeze(second);
            signal_process(pid(first), Signal::SIGTERM);
            expect_dead(pid(first));
            signal_process(second, Signal::SIGTERM);
            thaw(second);
        }
    }
    end(new);
    assert_eq!(wait_for_end(old), exited(old, 0), "{order:?}");
    wait_until(|| server.processes().is_empty(), || format!("{order:?}: {:?}", server.processes()));
    assert!(server.files().is_empty(), "{order:?}: {:?}\n{}", server.files(), server.log());
    assert!(client::get(server.address, "/").is_err());
}

#[test]
fn two_that_overlap_and_are_both_stopped_leave_nothing() {
    for _ in 0..5 {
        Order::ALL.into_iter().for_each(both_stop);
    }
}
