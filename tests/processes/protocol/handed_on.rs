//! What a program hands on beside listening sockets: descriptors by name, and its state.

use std::collections::HashSet;
use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use handover::{Handle, Options, Request, Response, ResponseBox, Server as Bound};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FlockArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

use crate::embedding::programs::{install_program, start, take_over};
use crate::load::{Kind, Load};
use crate::partner::{Greeted, greet_by_inheritance, greet_by_request, pair};
use crate::server::{
    Gate, PATIENCE, Server, exited, expect_at_rest, expect_dead, install_script, number_after,
    signal_process, wait_for_end, wait_until,
};

/// An embedding program that holds a lock, and stores and says what state it is told to.
pub fn run(options: Options) -> ExitCode {
    let mut server = Bound::bind(options).unwrap();
    let lock = match server.inherited("lock") {
        Some(lock) => File::from(lock),
        None => try_lock(Path::new(&env::var("directory").unwrap())).unwrap(),
    };
    assert!(server.inherited("lock").is_none() && server.inherited("another").is_none());
    server.hand_on("lock", &lock).unwrap();
    let error = server.hand_on("a lock", &lock).unwrap_err().to_string();
    assert!(error.starts_with("cannot hand on a descriptor as \"a lock\": a name has 1 to 64"), "{error}");
    let came = server.state().map(<[u8]>::to_vec);
    let handle = server.handle();
    // A full one goes along in every handover.
    if let Some(full) = came.as_deref().filter(|came| came.len() == 65536) {
        handle.hand_on_state(full).unwrap();
    }
    server.serve(move |request: &mut Request| answer(request, &handle, came.as_deref())).unwrap().into()
}

/// Dropping it releases the lock only if nothing else has the file.
#[allow(deprecated)]
fn try_lock(directory: &Path) -> Result<File, Errno> {
    let file = File::create(directory.join("lock")).unwrap();
    nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock).map(|()| file)
}

/// A state of so many bytes, each of which depends on its place.
fn state(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

fn answer(request: &mut Request, handle: &Handle, came: Option<&[u8]>) -> ResponseBox {
    let text = match (request.url().strip_prefix("/store?"), came) {
        _ if request.url() == "/hello" => format!("Hello from {}!", process::id()),
        (Some(length), _) => match handle.hand_on_state(state(length.parse().unwrap())) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        },
        (None, Some(came)) if came == state(came.len()) => format!("{} bytes", came.len()),
        (None, Some(_)) => "another state".to_owned(),
        (None, None) => "no state".to_owned(),
    };
    Response::from_string(text).boxed()
}

/// A handover that changes nothing.
fn fail_to_hand_over(server: &Server, script: &str) {
    install_script(&server.program(), script);
    let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
    assert!(answer.ends_with("exited with status 1 before it was ready"), "{answer}");
    install_program(&server.program());
}

/// Something that goes on until it is stopped.
pub struct Background<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Background<T> {
    pub fn start(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Background<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Background { stop, thread: thread::spawn(move || work(&stopped)) }
    }

    pub fn stop(self) -> T {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Sends datagrams, each of which must be answered once; returns the processes that have.
fn exchange(address: SocketAddr, stop: &AtomicBool) -> HashSet<u32> {
    // The queue of a socket has room for more.
    const MOST_ON_THEIR_WAY: usize = 16;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut sent, mut unanswered, mut processes) = (0, HashSet::new(), HashSet::new());
    loop {
        while unanswered.len() < MOST_ON_THEIR_WAY && !stop.load(Ordering::SeqCst) {
            socket.send_to(format!("{sent}").as_bytes(), address).unwrap();
            unanswered.insert(sent);
            sent += 1;
        }
        if unanswered.is_empty() {
            return processes;
        }
        let mut datagram = [0; 64];
        let length = socket.recv(&mut datagram).unwrap_or_else(|error| panic!("{error}: {unanswered:?}"));
        let text = std::str::from_utf8(&datagram[..length]).unwrap();
        let (pid, number) = text.split_once(' ').unwrap();
        assert!(unanswered.remove(&number.parse::<u64>().unwrap()), "answered twice: {number}");
        processes.insert(pid.parse().unwrap());
    }
}

/// Looks all the time whether a lock is to be had, which it must not be; returns how often.
fn expect_locked(directory: &Path, stop: &AtomicBool) -> usize {
    let mut count = 0;
    while count == 0 || !stop.load(Ordering::SeqCst) {
        assert_eq!(try_lock(directory).err(), Some(Errno::EWOULDBLOCK), "after {count} times");
        count += 1;
        thread::yield_now();
    }
    count
}

/// Twenty handovers, before some of which one fails.
pub fn twenty_handovers(server: &Server) {
    for number in 0..20 {
        if number % 7 == 0 {
            fail_to_hand_over(server, "exit 1");
        }
        let old = server.serving();
        server.hand_over();
        if number == 19 {
            // While it lives, it is the one that is told how its successor ends.
            expect_dead(old);
        }
    }
}

/// Twenty handovers, half of which are to a process that is no child. Returns the servers, of which the last serves.
pub fn twenty_handovers_and_takeovers(server: Server, program: &str) -> Vec<Server> {
    let mut servers = vec![server];
    for _ in 0..10 {
        let old = servers.last().unwrap();
        let child = old.hand_over();
        let taker = take_over(old, &servers[0], program);
        old.expect(&format!("process {child} ends"));
        servers.push(taker);
    }
    servers
}

/// How an overlap ends.
#[derive(Clone, Copy)]
pub enum Decision {
    Forward,
    Back,
}

/// Hands over until both processes accept connections, and returns the successor.
pub fn overlap(server: &Server) -> u32 {
    server.signal(Signal::SIGUSR2);
    number_after(&server.expect("accept connections"), "successor ")
}

/// Ends an overlap, and waits until one process is left.
pub fn decide(server: &Server, decision: Decision) {
    let old = server.serving();
    let both = server.processes();
    let [new] = both.iter().copied().filter(|&pid| pid != old).collect::<Vec<_>>()[..] else {
        panic!("{both:?}")
    };
    let (leaves, stays) = match decision {
        Decision::Forward => (old, new),
        Decision::Back => (new, old),
    };
    signal_process(leaves, Signal::SIGTERM);
    server.expect(&format!("process {leaves} ends"));
    server.expect_processes(&[stays]);
    server.set_serving(stays);
}

fn ten_overlaps(server: Server) -> Vec<Server> {
    for decision in [Decision::Forward, Decision::Back].repeat(5) {
        overlap(&server);
        decide(&server, decision);
    }
    vec![server]
}

/// Stops a server whose first process has had these options, and which is told how the others end if it stays.
pub fn expect_stop(server: &Server, first: u32, options: &str) {
    let end = server.stop();
    match options {
        "stay" => assert_eq!(wait_for_end(first), exited(first, 0)),
        _ => assert_eq!(end, exited(server.serving(), 0)),
    }
}

fn loses_no_datagram(options: &str, hand_over: impl FnOnce(Server) -> Vec<Server>) {
    let server = start("udp", options);
    let about = server.get("/");
    let address: SocketAddr = about.split_once(' ').unwrap().0.parse().unwrap();
    let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 1);
    let datagrams = Background::start(move |stop| exchange(address, stop));
    let first = server.first();
    let servers = hand_over(server);
    let last = servers.last().unwrap();
    let processes = datagrams.stop();
    assert!(processes.len() > 1 && processes.contains(&first), "{processes:?}");
    // The socket, and what has been known since the first process.
    assert_eq!(last.get("/"), about);
    load.stop();
    expect_stop(last, first, options);
}

#[test]
fn a_udp_socket_that_is_handed_on_loses_no_datagram_through_twenty_handovers() {
    loses_no_datagram("", |server| {
        twenty_handovers(&server);
        vec![server]
    });
}

#[test]
fn a_udp_socket_that_is_handed_on_loses_no_datagram_beside_a_process_that_stays() {
    loses_no_datagram("stay", |server| {
        twenty_handovers(&server);
        vec![server]
    });
}

#[test]
fn a_udp_socket_that_is_handed_on_loses_no_datagram_through_takeovers() {
    loses_no_datagram("", |server| twenty_handovers_and_takeovers(server, "udp"));
}

#[test]
fn a_udp_socket_that_is_handed_on_loses_no_datagram_however_an_overlap_is_decided() {
    loses_no_datagram("overlap", ten_overlaps);
}

fn is_locked_throughout(options: &str, hand_over: impl FnOnce(Server) -> Vec<Server>) {
    let server = start("lock", options);
    let first = server.first();
    let directory = server.directory.path().to_owned();
    let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 1);
    let lock = Background::start(move |stop| expect_locked(&directory, stop));
    let servers = hand_over(server);
    assert!(lock.stop() >= 20);
    load.stop();
    let last = servers.last().unwrap();
    expect_stop(last, first, options);
    try_lock(servers[0].directory.path()).unwrap();
}

#[test]
fn a_lock_that_is_handed_on_is_held_through_twenty_handovers() {
    is_locked_throughout("", |server| {
        twenty_handovers(&server);
        vec![server]
    });
}

#[test]
fn a_lock_that_is_handed_on_is_held_beside_a_process_that_stays() {
    is_locked_throughout("stay", |server| {
        twenty_handovers(&server);
        vec![server]
    });
}

#[test]
fn a_lock_that_is_handed_on_is_held_through_takeovers() {
    is_locked_throughout("", |server| twenty_handovers_and_takeovers(server, "lock"));
}

#[test]
fn a_lock_that_is_handed_on_is_held_however_an_overlap_is_decided() {
    is_locked_throughout("overlap", ten_overlaps);
}

#[test]
fn a_state_is_that_of_the_process_that_has_started_the_other_one_of_an_overlap() {
    let server = start("lock", "overlap");
    let (first, before) = (server.first(), "no state");
    // Each of the two answers with what came to it.
    let expect_both = |state: &str| {
        for expected in [before, state] {
            wait_until(|| server.get("/") == expected, || format!("none has {expected}"));
        }
    };
    for (stored, state) in [("1000", "1000 bytes"), ("2000", "2000 bytes")] {
        assert_eq!(server.get(&format!("/store?{stored}")), "ok");
        overlap(&server);
        expect_both(state);
        decide(&server, Decision::Back);
        assert_eq!((server.hello(), &*server.get("/")), (first, before));
    }
    let second = overlap(&server);
    expect_both("2000 bytes");
    decide(&server, Decision::Forward);
    assert_eq!((server.hello(), &*server.get("/")), (second, "2000 bytes"));
    // It has stored nothing itself.
    overlap(&server);
    decide(&server, Decision::Forward);
    assert_eq!(server.get("/"), "no state");
}

#[test]
fn what_a_successor_does_not_take_is_closed_when_it_serves() {
    let server = start("lock", "");
    let program = env::current_exe().unwrap();
    let script = format!("export HANDOVER_TEST_PROGRAM=hello; exec '{}' \"$@\"", program.display());
    assert_eq!(server.get("/store?65536"), "ok");
    install_script(&server.program(), &script);
    let successor = server.hand_over();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    try_lock(server.directory.path()).unwrap();
    assert_eq!(server.hello(), successor);
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn a_process_that_takes_back_hands_the_same_on_again() {
    let server = start("lock", "probation=3600000");
    let first = server.first();
    assert_eq!(server.get("/store?65536"), "ok");
    for _ in 0..3 {
        let successor = server.hand_over();
        assert_eq!(server.get("/"), "65536 bytes");
        signal_process(successor, Signal::SIGKILL);
        server.expect("accepting connections again");
        server.set_serving(first);
        assert_eq!(try_lock(server.directory.path()).err(), Some(Errno::EWOULDBLOCK));
    }
    assert_eq!(server.stop(), exited(first, 0));
    try_lock(server.directory.path()).unwrap();
}

#[test]
fn a_process_that_stays_keeps_nothing_that_it_has_handed_on() {
    let server = start("lock", "stay");
    let (first, lock) = (server.first(), server.directory.join("lock"));
    let held = |pid: u32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|held| held == lock)).count()
    };
    assert_eq!(held(first), 2);
    server.hand_over();
    server.expect(&format!("process {first} stays"));
    // The one of the program itself is left.
    wait_until(|| held(first) == 1, || format!("it holds {}", held(first)));
    assert_eq!(held(server.serving()), 2);
}

#[test]
fn nothing_is_handed_on_but_what_is_named_and_the_state_behind_it() {
    let server = start("lock", "");
    let listed = server.directory.join("listed");
    let list = format!("ls -l /proc/self/fd >{} 2>&1; exit 1", listed.display());
    let descriptors = || -> Vec<(u32, PathBuf)> {
        fail_to_hand_over(&server, &list);
        let text = fs::read_to_string(&listed).unwrap();
        let links = text.lines().filter_map(|line| line.split_once(" -> "));
        let number = |left: &str| left.rsplit(' ').next().unwrap().parse().unwrap();
        let mut links: Vec<_> = links.map(|(left, target)| (number(left), target.into())).collect();
        // Standard input, output and error, and the directory that is being listed.
        links.retain(|(number, target): &(u32, PathBuf)| *number > 2 && !target.starts_with("/proc"));
        links.sort_unstable();
        links
    };
    let lock = server.directory.join("lock");
    let without = descriptors();
    assert_eq!(without.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 4, 5, 6], "{without:?}");
    assert_eq!(without[3].1, lock);
    assert_eq!(server.get("/store?65536"), "ok");
    let with = descriptors();
    assert_eq!(with.len(), 5, "{with:?}");
    assert_eq!(with[3], (6, lock));
    assert!(with[4].0 == 7 && with[4].1.starts_with("/memfd:handover-state (deleted)"), "{with:?}");
    // In a successor they are close-on-exec again.
    let successor = server.hand_over();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    for entry in fs::read_dir(format!("/proc/{successor}/fdinfo")).unwrap().flatten() {
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t")).unwrap_or("02000000");
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert!(number <= 2 || flags & nix::libc::O_CLOEXEC != 0, "{number}: {info}");
    }
}

#[test]
fn a_state_of_64_kib_goes_along_and_one_of_more_is_refused() {
    let server = start("lock", "");
    assert_eq!(server.get("/"), "no state");
    let refused = "cannot hand on a state of 65537 bytes: it has at most 65536 bytes";
    assert_eq!(server.get("/store?65537"), refused);
    server.hand_over();
    assert_eq!(server.get("/"), "no state");
    for length in [65536, 0, 1] {
        assert_eq!(server.get(&format!("/store?{length}")), "ok");
        // The one before stays.
        assert_eq!(server.get("/store?65537"), refused);
        let old = server.serving();
        let descriptors = || fs::read_dir(format!("/proc/{old}/fd")).unwrap().count();
        expect_at_rest(old);
        let before = descriptors();
        fail_to_hand_over(&server, "exit 1");
        wait_until(|| descriptors() <= before, || format!("{} descriptors, not {before}", descriptors()));
        server.hand_over();
        assert_eq!(server.get("/"), format!("{length} bytes"));
        assert_eq!(wait_for_end(old), exited(old, 0));
    }
    assert_eq!(server.get("/store?2000"), "ok");
    let taker = take_over(&server, &server, "lock");
    assert_eq!(taker.get("/"), "2000 bytes");
    // It has not stored anything itself.
    let next = take_over(&taker, &server, "lock");
    assert_eq!(next.get("/"), "no state");
    assert_eq!(next.stop(), exited(next.first(), 0));
}

#[test]
fn a_state_that_is_stored_while_a_successor_starts_is_for_the_next() {
    let server = start("lock", "");
    let gate = Gate::new(&server.directory);
    let program = env::current_exe().unwrap();
    install_script(&server.program(), &format!("{}; exec '{}' \"$@\"", gate.wait(), program.display()));
    assert_eq!(server.get("/store?1000"), "ok");
    server.signal(Signal::SIGUSR2);
    let waiting = gate.expect_waiting();
    assert_eq!(server.get("/store?2000"), "ok");
    drop(waiting);
    server.expect_handover();
    assert_eq!(server.get("/"), "1000 bytes");
}

/// A file that lies in memory, with so many bytes.
fn in_memory(length: usize, seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("test", flags).unwrap());
    file.write_all(&state(length)).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

#[test]
fn a_greeting_that_does_not_fit_what_is_passed_is_refused_with_the_reason() {
    let (other, _pipe) = io::pipe().unwrap();
    let other = OwnedFd::from(other);
    let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    let (long, changeable) = (in_memory(65537, sealed), in_memory(1, SealFlag::F_SEAL_GROW));
    let is_no_state = "the state is not in a file in memory that is sealed";
    let many: String = (0..65).map(|number| format!("named {number}\n")).collect();
    for (lines, others, reason) in [
        (&b"named a\n"[..], &[][..], "no descriptor has come for \"named a\""),
        (b"named a\nnamed b\n", &[&other], "no descriptor has come for \"named b\""),
        (b"named a\nstate\n", &[&other], "no descriptor has come for \"state\""),
        (b"above\n", &[], "no descriptor has come for \"above\""),
        (b"state\n", &[&other], is_no_state),
        (b"state\n", &[&changeable], is_no_state),
        (b"state\n", &[&long], "the state has 65537 bytes, and at most 65536 are taken"),
        (b"nonsense\n", &[], "its greeting says \"nonsense\""),
        (b"named a\nnamed\n", &[&other], "its greeting says \"named\""),
        (b"named a b\n", &[&other], "its greeting says \"named a b\""),
        (b"named ../a\n", &[&other], "its greeting says \"named ../a\""),
        (b"\xff\x1b\n", &[], "its greeting says \"\u{fffd} \""),
        (b"file x\n", &[], "its greeting says \"file x\""),
        (b"ready\n", &[], "its greeting says \"ready\""),
        (many.as_bytes(), &[&other; 65], "there are 64, and no more are handed on"),
        (&b"nonsense\n".repeat(10_000), &[], "its greeting says \"nonsense\""),
    ] {
        let mut greeted = vec![greet_by_request(lines, others)];
        if others.len() < 2 {
            greeted.push(greet_by_inheritance(lines, others.first().copied()));
        }
        for Greeted { said, reason: text } in greeted {
            assert_eq!(said, format!("failed {reason}\n"));
            assert!(text.ends_with(&format!(": {reason}\n")), "{text}");
        }
    }
}

#[test]
fn each_line_of_a_greeting_stands_for_the_next_descriptor() {
    let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    let full = in_memory(65536, sealed);
    // It is not taken for the one through which connections are moved.
    let (other, _) = pair(SockType::SeqPacket);
    let all: String = (0..64).map(|number| format!("named {number:064}\n")).collect();
    for (lines, others) in [
        (&b"state\nnamed a\n"[..], &[&full, &other][..]),
        (b"named a\nstate\n", &[&other, &full]),
        (b"named a\nnamed a\n", &[&other, &other]),
        (b"", &[&other, &full]),
        (all.as_bytes(), &[&other; 64]),
    ] {
        let Greeted { said, reason } = greet_by_request(lines, others);
        assert_eq!(said, "ready\n", "{reason}");
        assert!(reason.ends_with("cannot succeed the predecessor: it said no test\n"), "{reason}");
    }
    let Greeted { said, reason } = greet_by_inheritance(b"state\n", Some(&full));
    assert_eq!(said, "ready\n", "{reason}");
}
