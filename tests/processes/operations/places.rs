//! The PID file and the control socket lead to the process that serves, at any moment, and nothing is left over beside
//! them.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;

use crate::command::Command;
use crate::server::{
    BINARY, Directory, Gate, Held, Server, exited, expect_dead, install, install_script, number_after,
    signal_process, wait_for_end, wait_until,
};
use crate::strace::{FILES, SENDS, Tampering, Threads, each, tampered};

/// The files of a server, beside its program.
const ALL: [&str; 2] = ["control", "pid"];

fn expect_files(server: &Server, files: &[&str]) {
    wait_until(
        || server.files() == files,
        || format!("{:?}, not {files:?}\n{}", server.files(), server.log()),
    );
}

/// Looks at the PID file and asks for the status over and over, until this is dropped.
struct Looker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<HashSet<u32>>>,
}

impl Looker {
    fn start(directory: &Path) -> Looker {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, directory) = (Arc::clone(&stop), directory.to_owned());
        let look = move || {
            let mut found = HashSet::new();
            while !stopped.load(Ordering::SeqCst) {
                let pid = fs::read_to_string(directory.join("pid")).expect("a PID file");
                found.insert(pid.trim().parse().expect("a complete PID file"));
                match handover::ask(&directory.join("control"), "status") {
                    Ok(status) if status.starts_with("pid=") => {
                        found.insert(number_after(&status, "pid="));
                    }
                    // A process may end before it has answered.
                    Ok(answer) => assert_eq!(answer, "error: the process has ended"),
                    Err(error) => {
                        let absent = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
                        assert!(!absent.contains(&error.kind()), "no control socket: {error}");
                    }
                }
            }
            found
        };
        Looker { stop, thread: Some(thread::spawn(look)) }
    }

    /// The processes that were found.
    fn stop(mut self) -> HashSet<u32> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_process_that_has_been_accepted_is_found_at_any_moment() {
    let directory = Directory::new();
    let config = directory.join("config");
    let write = |control: &Path| {
        let pid_file = config.with_file_name("pid");
        let content = format!("pid-file = {}\ncontrol = {}", pid_file.display(), control.display());
        fs::write(&config, content).unwrap();
    };
    let good = directory.join("control");
    write(&good);
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--config"]).arg(&config);
    let server = Server::start_command(command, directory);
    let mut have_served = HashSet::from([server.first()]);
    let looker = Looker::start(server.directory.path());
    for _ in 0..20 {
        // The candidate fails when it has prepared its PID file.
        write(Path::new("/nonexistent/control"));
        server.signal(Signal::SIGUSR2);
        server.expect("handover failed: successor ");
        write(&good);
        // This one fails earlier.
        let refused = take_over(&server, &["--listen", "192.0.2.1:1"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        server.expect("handover failed: successor ");
        have_served.insert(server.hand_over());
    }
    let next = Server::start_command(take_over(&server, &[]), Directory::new());
    server.expect_handover();
    have_served.insert(next.first());
    server.expect_processes(&[]);
    let found = looker.stop();
    let refused: Vec<&u32> = found.difference(&have_served).collect();
    assert!(refused.is_empty(), "{refused:?} of {found:?}\n{}", server.log());
    assert!(found.len() > 1);
    assert_eq!(server.control("control").unwrap(), next.first());
    assert_eq!(next.stop(), exited(next.first(), 0));
    expect_files(&server, &["config"]);
}

/// A process that takes over from a server.
fn take_over(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--takeover", "--listen", &server.address.to_string()]).args(arguments);
    command.arg("--pid-file").arg(server.directory.join("pid"));
    command.arg("--control").arg(server.directory.join("control"));
    command
}

fn read_pid(path: &Path) -> u32 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// A predecessor that drains, which is found aside, and its successor.
struct Draining {
    server: Server,
    old: u32,
    new: u32,
    held: Held,
}

impl Draining {
    fn start() -> Draining {
        let server = Server::start_replaceable(&[]);
        let old = server.first();
        let held = server.hold();
        let new = server.hand_over();
        for (pid, suffix) in [(new, ""), (old, ".old")] {
            assert_eq!(read_pid(&server.directory.join(&format!("pid{suffix}"))), pid);
            assert_eq!(server.control(&format!("control{suffix}")).unwrap(), pid);
        }
        assert_eq!(server.files(), ["control", "control.old", "pid", "pid.old"]);
        Draining { server, old, new, held }
    }
}

#[test]
fn a_predecessor_is_found_aside_until_it_ends() {
    let Draining { server, old, new, held } = Draining::start();
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.files(), ALL);
    server.expect_alone(new);
}

#[test]
fn a_predecessor_is_found_aside_until_it_is_killed() {
    let Draining { server, old, new, .. } = Draining::start();
    signal_process(old, Signal::SIGKILL);
    expect_files(&server, &ALL);
    server.expect_alone(new);
}

#[test]
fn a_predecessor_that_takes_back_is_not_aside_any_more() {
    let Draining { server, old, new, held } = Draining::start();
    signal_process(new, Signal::SIGKILL);
    server.expect("accepting connections again");
    server.expect_alone(old);
    assert_eq!(server.files(), ALL);
    held.finish();
}

#[test]
fn a_predecessor_that_drains_is_alone_aside_when_its_successor_is_stopped() {
    let Draining { server, old, new, held } = Draining::start();
    signal_process(new, Signal::SIGTERM);
    expect_dead(new);
    assert_eq!(server.files(), ["control.old", "pid.old"]);
    assert_eq!(server.control("control.old").unwrap(), old);
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert!(server.files().is_empty(), "{:?}", server.files());
}

#[test]
fn the_oldest_of_three_removes_only_what_is_its_own() {
    let Draining { server, old, new, held } = Draining::start();
    let held_too = server.hold();
    let newest = server.hand_over();
    held.finish();
    assert_eq!(wait_for_end(old), exited(old, 0));
    for (pid, suffix) in [(newest, ""), (new, ".old")] {
        assert_eq!(read_pid(&server.directory.join(&format!("pid{suffix}"))), pid);
        assert_eq!(server.control(&format!("control{suffix}")).unwrap(), pid);
    }
    held_too.finish();
    expect_dead(new);
    assert_eq!(server.files(), ALL);
    server.expect_alone(newest);
}

#[test]
fn a_process_that_takes_over_finds_its_predecessor_aside_too() {
    let server = Server::start_replaceable(&[]);
    let old = server.first();
    let held = server.hold();
    let next = Server::start_command(take_over(&server, &[]), Directory::new());
    server.expect_handover();
    for (pid, suffix) in [(next.first(), ""), (old, ".old")] {
        assert_eq!(read_pid(&server.directory.join(&format!("pid{suffix}"))), pid);
        assert_eq!(server.control(&format!("control{suffix}")).unwrap(), pid);
    }
    signal_process(old, Signal::SIGKILL);
    drop(held);
    expect_files(&server, &ALL);
    assert_eq!(next.stop(), exited(next.first(), 0));
    expect_files(&server, &[]);
}

/// What clears away the files of a process that was killed.
#[derive(Clone, Copy, Debug)]
enum Next {
    Handover,
    Stop,
}

#[test]
fn wherever_a_candidate_is_killed_nothing_of_it_is_left() {
    let mut kills = 0;
    for call in each(FILES) {
        for count in 1.. {
            let Some(command) = tampered(call, &format!("signal=KILL:when={count}")) else { return };
            let script = format!("exec {command} \"$@\"");
            let when = format!("{call} {count}");
            if [Next::Handover, Next::Stop].iter().any(|next| candidate_survives(&script, *next, &when)) {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 0);
}

/// Whether a candidate survives. If it does not, nothing is left of it after the next handover or stop.
fn candidate_survives(script: &str, next: Next, when: &str) -> bool {
    let server = Server::start_replaceable(&[]);
    let old = server.first();
    install_script(&server.program(), script);
    server.signal(Signal::SIGUSR2);
    let decided = ["handed over to ", "handover failed: ", "accepting connections again", "goes on alone"];
    let line = server.expect_any(&decided);
    let candidate = number_after(&line, "successor ");
    if line.contains("handed over") {
        return true;
    }
    expect_dead(candidate);
    server.expect_alone(old);
    install(&server.program());
    if let Next::Handover = next {
        let successor = server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
        server.expect_alone(successor);
        assert_eq!(server.files(), ALL, "killed at {when}");
    }
    server.stop();
    assert!(server.files().is_empty(), "killed at {when}, {next:?}: {:?}", server.files());
    false
}

#[test]
fn wherever_a_predecessor_is_killed_nothing_of_it_is_left() {
    let mut kills = 0;
    for call in each(FILES).chain(each(SENDS)) {
        for count in 1.. {
            let server = Server::start_replaceable(&[]);
            let old = server.first();
            let injection = format!("signal=KILL:when={count}");
            let Some(_tampering) = Tampering::begin(old, Threads::Main, call, &injection) else { return };
            server.signal(Signal::SIGUSR2);
            let end = wait_for_end(old);
            let serves = || server.control("control").is_ok_and(|pid| pid != old);
            wait_until(|| serves() || server.processes().is_empty(), || server.log());
            // Without a candidate yet, there is no server any more.
            if serves() {
                server.expect_alone(server.pid_file());
                expect_files(&server, &ALL);
                server.stop();
                assert!(server.files().is_empty(), "killed at {call} {count}: {:?}", server.files());
            }
            if end == exited(old, 0) {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 0);
}

#[test]
fn what_a_killed_server_has_left_is_cleared_by_the_next_start() {
    let directory = Directory::new();
    let gate = Gate::new(&directory);
    let server = Server::start_replaceable_in(directory, &[]);
    let held = server.hold();
    let (old, new) = (server.first(), server.hand_over());
    // There are three processes, and the files of two.
    install_script(&server.program(), &format!("{}; exec {BINARY} \"$@\"", gate.wait()));
    server.signal(Signal::SIGUSR2);
    let waiting = gate.expect_waiting();
    let candidate = server.expect_child(new);
    for pid in [candidate, new, old] {
        signal_process(pid, Signal::SIGKILL);
    }
    drop((held, waiting));
    server.expect_processes(&[]);
    let mut command = Command::new(BINARY);
    command.args(["--listen", &server.address.to_string(), "--pid-file"]).arg(server.directory.join("pid"));
    command.arg("--control").arg(server.directory.join("control"));
    let next = Server::start_command(command, Directory::new());
    assert_eq!(read_pid(&server.directory.join("pid")), next.first());
    assert_eq!(server.control("control").unwrap(), next.first());
    next.hand_over();
    expect_files(&server, &["control", "gate", "pid"]);
    next.stop();
    expect_files(&server, &["gate"]);
}
