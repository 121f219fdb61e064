//! Three processes in a line: one that drains, its successor, and the candidate of that. Whichever of them dies, and
//! whenever, exactly one serves.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::command::{Command, Started, Stderr};
use crate::server::{
    BINARY, Directory, Gate, Held, Server, exited, expect_at_rest, expect_dead, freeze, install,
    install_script, is_alive, number_after, signal_process, wait_for_end, wait_until,
};
use crate::strace::{SENDS, Tampering, Threads, each, tampered};

/// The oldest process, and its successor, whose own successor waits at a gate before it begins.
struct Line {
    server: Server,
    oldest: u32,
    middle: u32,
    gate: Gate,
    /// What keeps the oldest process from ending, if it drains.
    held: Option<Held>,
}

/// What keeps the oldest process.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Draining,
    OnProbation,
}

impl Line {
    fn start(kept: Kept) -> Line {
        match kept {
            Kept::Draining => Line::draining(Directory::new(), &["--drain-timeout", "1h"]),
            Kept::OnProbation => {
                let server = Server::start_replaceable(&["--probation", "1h"]);
                let line = Line::of(server, None);
                line.server.expect("staying in case successor");
                line
            }
        }
    }

    fn draining(directory: Directory, arguments: &[&str]) -> Line {
        let server = Server::start_replaceable_in(directory, arguments);
        let held = server.hold();
        Line::of(server, Some(held))
    }

    fn of(server: Server, held: Option<Held>) -> Line {
        let oldest = server.first();
        let middle = server.hand_over();
        server.expect("started successor");
        let gate = Gate::new(&server.directory);
        install_script(&server.program(), &format!("{}; exec {BINARY} \"$@\"", gate.wait()));
        Line { server, oldest, middle, gate, held }
    }

    /// Begins the handover from the middle process. The candidate waits at the gate.
    fn begin_handover(&self) -> (u32, File) {
        self.server.signal(Signal::SIGUSR2);
        let candidate = number_after(&self.server.expect("started successor "), "successor ");
        (candidate, self.gate.expect_waiting())
    }

    /// Lets the oldest process end.
    fn end_oldest(&mut self) {
        match self.held.take() {
            Some(held) => held.finish(),
            None => signal_process(self.oldest, Signal::SIGTERM),
        }
        assert_eq!(wait_for_end(self.oldest), exited(self.oldest, 0));
    }

    fn kill_middle(&self) {
        signal_process(self.middle, Signal::SIGKILL);
    }

    /// The oldest process serves again, alone, and can hand over.
    fn expect_oldest_serves(mut self) {
        let server = &self.server;
        server.expect_alone(self.oldest);
        assert_eq!(server.files(), ["control", "gate", "pid"]);
        self.held.take().into_iter().for_each(Held::finish);
        install(&server.program());
        let next = server.hand_over();
        assert_eq!(server.hello(), next);
    }

    /// The candidate serves, alone.
    fn expect_candidate_serves(&self, candidate: u32) {
        let server = &self.server;
        server.expect(&format!("process {candidate} is ready"));
        server.expect_alone(candidate);
        wait_until(|| server.files() == ["control", "gate", "pid"], || format!("{:?}", server.files()));
        // It has no predecessor any more, so a candidate of its own serves after its death, too.
        let Some(mut taker) = self.begin_takeover() else { return };
        signal_process(candidate, Signal::SIGKILL);
        self.expect_taker_serves(&mut taker);
    }

    /// A process that takes over serves, alone.
    fn expect_taker_serves(&self, taker: &mut Started) {
        let server = &self.server;
        let control = || server.control("control");
        wait_until(|| control().is_ok_and(|pid| pid == taker.0.id()), || format!("{:?}", control()));
        server.expect_processes(&[]);
        assert_eq!(server.hello(), taker.0.id());
        assert_eq!(server.pid_file(), taker.0.id());
        signal_process(taker.0.id(), Signal::SIGTERM);
        assert_eq!(taker.status(), Some(0));
        wait_until(|| server.files() == ["gate"], || format!("{:?}", server.files()));
    }

    /// Whether the middle process completes its handover.
    fn middle_survives(&self) -> bool {
        let handed_over =
            || self.server.log().contains(&format!("{} INFO  handed over to successor ", self.middle));
        wait_until(|| handed_over() || !is_alive(self.middle), || self.server.log());
        handed_over()
    }

    /// After the middle process was killed, exactly one of the others serves.
    fn expect_exactly_one_serves(mut self, when: &str) {
        // If the oldest does not serve, it ends with this.
        self.held.take().into_iter().for_each(Held::finish);
        let server = &self.server;
        let log = || format!("killed at {when}, left {:?}\n{}", server.processes(), server.log());
        wait_until(|| server.processes().len() <= 1, log);
        let &[left] = &server.processes()[..] else { panic!("{}", log()) };
        wait_until(|| server.control("control").is_ok_and(|pid| pid == left), log);
        server.expect_alone(left);
    }

    /// A process that is taking over from the middle one, and is held up when it has received the sockets; `None`
    /// without strace.
    fn begin_takeover(&self) -> Option<Started> {
        let command = tampered("?recvmsg", "delay_exit=2000000:when=1")?;
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command} \"$@\""), "sh", "--takeover"]);
        shell.args(["--listen", &self.server.address.to_string()]);
        shell.arg("--control").arg(self.server.directory.join("control"));
        shell.arg("--pid-file").arg(self.server.directory.join("pid"));
        let child = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stderr::Null).spawn().unwrap();
        let taker = Started(child);
        self.server.expect(&format!("adopted successor {}", taker.0.id()));
        Some(taker)
    }
}

#[test]
fn the_oldest_takes_back_and_a_candidate_that_starts_late_leaves() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let line = Line::start(kept);
        let (candidate, waiting) = line.begin_handover();
        line.kill_middle();
        line.server.expect("accepting connections again");
        drop(waiting);
        assert_eq!(wait_for_end(candidate), exited(candidate, 1), "{kept:?}");
        line.expect_oldest_serves();
    }
}

#[test]
fn the_oldest_and_a_ready_candidate_agree_which_of_them_serves() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let line = Line::start(kept);
        let (candidate, waiting) = line.begin_handover();
        freeze(line.middle);
        drop(waiting);
        let executable = format!("/proc/{candidate}/exe");
        wait_until(|| fs::read_link(&executable).unwrap() == Path::new(BINARY), || "it waits".to_owned());
        expect_at_rest(candidate);
        line.kill_middle();
        line.expect_exactly_one_serves(&format!("{kept:?}"));
    }
}

/// Whatever the middle process has told the candidate, the oldest has not heard of it.
#[test]
fn a_candidate_that_reads_go_after_the_oldest_has_taken_back_leaves() {
    let line = Line::draining(Directory::new(), &["--drain-timeout", "1h", "--ready-timeout", "1m"]);
    let Some(command) = tampered("?recv,?recvfrom,?recvmsg", "delay_exit=1500000") else { return };
    install_script(&line.server.program(), &format!("exec {command} \"$@\""));
    line.server.signal(Signal::SIGUSR2);
    let candidate = number_after(&line.server.expect("started successor "), "successor ");
    let is_told = || {
        let status = handover::ask(&line.server.directory.join("control"), "status").unwrap();
        status.contains(" state=overlapping ")
    };
    wait_until(is_told, || "the candidate is not told to go".to_owned());
    line.kill_middle();
    // The oldest does, unless the candidate has been faster in spite of all.
    line.expect_exactly_one_serves(&format!("go to {candidate}"));
}

#[test]
fn a_candidate_serves_if_the_oldest_has_ended_before_the_handover_and_its_predecessor_dies() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let mut line = Line::start(kept);
        line.end_oldest();
        let (candidate, waiting) = line.begin_handover();
        line.kill_middle();
        drop(waiting);
        line.expect_candidate_serves(candidate);
    }
}

#[test]
fn a_candidate_serves_if_the_oldest_ends_during_the_handover_and_its_predecessor_dies() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let mut line = Line::start(kept);
        let (candidate, waiting) = line.begin_handover();
        line.end_oldest();
        // The middle process has noticed.
        expect_at_rest(line.middle);
        line.kill_middle();
        drop(waiting);
        line.expect_candidate_serves(candidate);
    }
}

/// It may be stopped, or wait for memory or a disk, when the oldest ends.
#[test]
fn a_candidate_serves_if_the_oldest_ends_unnoticed_by_its_predecessor_which_then_dies() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let mut line = Line::start(kept);
        let (candidate, waiting) = line.begin_handover();
        freeze(line.middle);
        line.end_oldest();
        line.kill_middle();
        drop(waiting);
        line.expect_candidate_serves(candidate);
    }
}

#[test]
fn the_oldest_takes_back_and_a_process_that_takes_over_leaves() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let line = Line::start(kept);
        let Some(mut candidate) = line.begin_takeover() else { return };
        line.kill_middle();
        line.server.expect("accepting connections again");
        assert_eq!(candidate.status(), Some(1), "{kept:?}");
        line.expect_oldest_serves();
    }
}

#[test]
fn a_process_that_takes_over_serves_if_the_oldest_has_ended() {
    for kept in [Kept::Draining, Kept::OnProbation] {
        let mut line = Line::start(kept);
        line.end_oldest();
        let Some(mut candidate) = line.begin_takeover() else { return };
        line.kill_middle();
        line.expect_taker_serves(&mut candidate);
    }
}

/// A process that stays for a supervisor has closed its sockets, and cannot take back.
#[test]
fn a_candidate_serves_if_the_oldest_only_stays_for_a_supervisor() {
    let server = Server::start_replaceable(&["--stay"]);
    let line = Line::of(server, None);
    line.server.expect("stays");
    let (candidate, waiting) = line.begin_handover();
    line.kill_middle();
    drop(waiting);
    line.server.expect(&format!("process {candidate} is ready"));
    line.server.expect_processes(&[line.oldest, candidate]);
    assert_eq!(line.server.hello(), candidate);
    assert_eq!(line.server.pid_file(), candidate);
    signal_process(line.oldest, Signal::SIGTERM);
    assert_eq!(wait_for_end(line.oldest), exited(line.oldest, 0));
    line.server.expect_processes(&[]);
}

#[test]
fn the_oldest_does_not_take_back_from_an_overlap_that_has_lost_one_of_two() {
    let directory = Directory::new();
    let config = directory.join("config");
    fs::write(&config, "").unwrap();
    let mut line = Line::draining(directory, &["--config", config.to_str().unwrap()]);
    fs::write(&config, "overlap = true").unwrap();
    let (candidate, waiting) = line.begin_handover();
    drop(waiting);
    line.server.expect(&format!("both this process and successor {candidate} accept connections"));
    line.kill_middle();
    expect_dead(line.middle);
    expect_at_rest(line.oldest);
    expect_at_rest(candidate);
    for _ in 0..20 {
        assert_eq!(line.server.hello(), candidate);
    }
    line.end_oldest();
    line.server.expect_alone(candidate);
    assert!(!line.server.log().contains("accepting connections again"));
}

#[test]
fn whatever_the_middle_process_has_said_when_it_is_killed_exactly_one_serves() {
    let mut kills = 0;
    for call in each(SENDS) {
        for count in 1.. {
            let line = Line::start(Kept::Draining);
            install(&line.server.program());
            let injection = format!("signal=KILL:when={count}");
            let Some(_tampering) = Tampering::begin(line.middle, Threads::Main, call, &injection) else {
                return;
            };
            line.server.signal(Signal::SIGUSR2);
            if line.middle_survives() {
                break;
            }
            line.expect_exactly_one_serves(&format!("{call} {count}"));
            kills += 1;
        }
    }
    assert!(kills > 0);
}

#[test]
fn whatever_a_candidate_has_said_when_it_is_killed_its_predecessor_serves() {
    let mut kills = 0;
    for call in each(SENDS) {
        for count in 1.. {
            let mut line = Line::start(Kept::Draining);
            let Some(command) = tampered(call, &format!("signal=KILL:when={count}")) else { return };
            install_script(&line.server.program(), &format!("exec {command} \"$@\""));
            line.server.signal(Signal::SIGUSR2);
            let decided = line.server.expect_any(&["handed over to ", "handover failed: "]);
            if decided.contains("handed over") {
                break;
            }
            line.end_oldest();
            line.server.expect_alone(line.middle);
            assert_eq!(line.server.files(), ["control", "gate", "pid"], "killed at {call} {count}");
            kills += 1;
        }
    }
    assert!(kills > 0);
}

#[test]
fn whatever_a_process_has_said_when_it_is_killed_its_candidate_serves() {
    for call in each(SENDS) {
        for count in 1.. {
            let server = Server::start_replaceable(&[]);
            let old = server.first();
            let begun = server.directory.join("begun");
            install_script(&server.program(), &format!("echo >{}; exec {BINARY} \"$@\"", begun.display()));
            let injection = format!("signal=KILL:when={count}");
            let Some(_tampering) = Tampering::begin(old, Threads::Main, call, &injection) else { return };
            server.signal(Signal::SIGUSR2);
            let handed_over = || server.log().contains("handed over to successor ");
            wait_until(|| handed_over() || !is_alive(old), || server.log());
            let serves = || server.control("control").is_ok_and(|pid| pid != old);
            wait_until(|| serves() || server.processes().is_empty(), || server.log());
            // It may have died before there was one.
            assert!(serves() || !begun.exists(), "killed at {call} {count}\n{}", server.log());
            if handed_over() {
                break;
            }
        }
    }
}
