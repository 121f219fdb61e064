//! Two processes that accept at the same time: which of them stays, signals do not end the overlap, and both can
//! be stopped at once.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, TryRecvError};
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::client;
use crate::command::Command;
use crate::load::{Kind, Load};
use crate::operations::configuration::{reload, start_with_config};
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

/// Both processes of an overlap, as `/hello` names them.
pub fn both_answer(server: &Server, old: u32, new: u32) {
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
