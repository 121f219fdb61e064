//! Handovers that succeed: nothing is lost, and nothing is left over.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{self, Client, Target};
use crate::embedding::programs::start;
use crate::load::{Kind, Load};
use crate::server::{Server, exited, expect_at_rest, signal_process, wait_for_end, wait_until};

#[test]
fn fifty_handovers_under_load_lose_nothing() {
    let server = Server::start_for_load(&[]);
    fifty_handovers_lose_nothing(&server, &[server.address.into()], 8);
}

#[test]
fn fifty_handovers_of_three_sockets_under_load_lose_nothing() {
    let server = Server::start_with_three_sockets();
    fifty_handovers_lose_nothing(&server, &server.targets(), 2);
    assert!(!server.directory.join("socket").exists());
}

fn fifty_handovers_lose_nothing(server: &Server, targets: &[Target], clients: u64) {
    let load = Load::start_all(targets, &Kind::ALL, clients);
    let mut generations = vec![server.first()];
    for _ in 0..50 {
        // The pace is part of the load, and no event is waited for by it.
        thread::sleep(Duration::from_millis(150));
        generations.push(server.hand_over());
    }
    let requests = load.stop();
    eprintln!("answered: {requests:?}");

    let last = generations.pop().unwrap();
    for pid in generations {
        server.expect(&format!("process {pid} ends"));
    }
    server.expect_processes(&[last]);
    assert!(!server.log().contains("cutting"));
    assert_eq!(server.hello(), last);
    assert_eq!(server.stop(), exited(last, 0));
}

/// What must be the same in every generation.
#[derive(Debug, PartialEq)]
struct Appearance {
    /// What they are, under whatever numbers.
    descriptors: Vec<String>,
    arguments: Vec<u8>,
    environment: Vec<u8>,
    directory: PathBuf,
    threads: usize,
    /// The signals that are blocked, ignored and handled, and the limit of descriptors.
    settings: Vec<String>,
}

impl Appearance {
    fn of(pid: u32) -> Appearance {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let entries = fs::read_dir(proc.join("fd")).unwrap().flatten();
        // One may be closed while we look. What the first has inherited from the tests is not passed on.
        let is_own = |number: &str| {
            let info = fs::read_to_string(proc.join("fdinfo").join(number)).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
            flags.is_some_and(|flags| i32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC != 0)
        };
        let own = entries.filter(|entry| is_own(entry.file_name().to_str().unwrap()));
        let targets = own.filter_map(|entry| fs::read_link(entry.path()).ok());
        // "pipe:[4711]": the kind is what has to stay.
        let kind = |target: PathBuf| target.to_string_lossy().split(":[").next().unwrap().to_owned();
        let mut descriptors: Vec<String> = targets.map(kind).collect();
        descriptors.sort();
        let settings = ["status", "limits"].map(|name| fs::read_to_string(proc.join(name)).unwrap()).concat();
        let setting = |line: &str| {
            let (name, value) = line.split_once(':').filter(|(name, _)| name.starts_with("Sig"))?;
            let mask = u64::from_str_radix(value.trim(), 16).ok()?;
            // Signals 32 and 33 are the C library's own.
            Some(format!("{name} {:x}", mask & !(3 << 31)))
        };
        let wanted = ["SigBlk:", "SigIgn:", "SigCgt:", "Max open files"];
        let is_wanted = |line: &&str| wanted.iter().any(|wanted| line.starts_with(wanted));
        let settings = settings.lines().filter(is_wanted);
        Appearance {
            descriptors,
            arguments: fs::read(proc.join("cmdline")).unwrap(),
            environment: fs::read(proc.join("environ")).unwrap(),
            directory: fs::read_link(proc.join("cwd")).unwrap(),
            threads: fs::read_dir(proc.join("task")).unwrap().count(),
            settings: settings.map(|line| setting(line).unwrap_or(line.to_owned())).collect(),
        }
    }
}

#[test]
fn the_two_hundredth_successor_is_like_the_first() {
    the_last_is_like_the_first(&Server::start_for_load(&["--message", "Hi"]));
}

#[test]
fn the_two_hundredth_successor_with_three_sockets_is_like_the_first() {
    the_last_is_like_the_first(&Server::start_with_three_sockets());
}

#[test]
fn the_two_hundredth_successor_that_gets_a_descriptor_and_a_state_is_like_the_first() {
    let server = start("lock", "pid-file");
    assert_eq!(server.get("/store?65536"), "ok");
    // The test harness, which is the program, has done something else in the first.
    let successor = server.hand_over();
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    expect_at_rest(successor);
    the_others_are_like(&server, &Appearance::of(successor));
}

fn the_last_is_like_the_first(server: &Server) {
    let mut expected = Appearance::of(server.first());
    expected.arguments.extend(b"--graceful\0");
    expected.environment.extend(b"HANDOVER=1\0");
    the_others_are_like(server, &expected);
}

fn the_others_are_like(server: &Server, expected: &Appearance) {
    assert_eq!(expected.settings.len(), 4);
    for _ in 0..200 {
        let predecessor = server.serving();
        let successor = server.hand_over();
        assert_eq!(wait_for_end(predecessor), exited(predecessor, 0));
        assert_eq!(server.pid_file(), successor);
        // The link to a predecessor is closed when that has ended.
        let complaint = || format!("{:#?}\nnot\n{expected:#?}", Appearance::of(successor));
        wait_until(|| Appearance::of(successor) == *expected, complaint);
    }

    assert_eq!(server.processes(), [server.serving()]);
    assert_eq!(server.hello(), server.serving());
    assert_eq!(server.stop(), exited(server.serving(), 0));
}

#[test]
fn a_request_in_flight_is_answered_by_the_predecessor_and_new_ones_by_the_successor() {
    let server = Server::start(&["--message", "Graceful Reload"]);
    let old = server.first();
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /test HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("GET /");

    let new = server.hand_over();
    assert_eq!(server.hello(), new);
    assert_eq!(server.get("/"), "Graceful Reload");
    assert_eq!(server.processes().len(), 2);

    let reply = client.receive().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "Graceful Reload"));
    assert!(!reply.is_last(), "{reply:?}");
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.processes(), [new]);
    assert_eq!(client.get("/hello").unwrap().text(), format!("Hello from {new}!"));
}

#[test]
fn only_one_handover_at_a_time() {
    let server = Server::start_for_load(&[]);
    let load = Load::start(server.address, &[Kind::Naive, Kind::Close], 4);
    for _ in 0..10 {
        // A signal that is still pending swallows the next one of its kind, so these come as two kinds.
        signal_process(server.first(), Signal::SIGUSR2);
        signal_process(server.first(), Signal::SIGHUP);
    }
    let successor = server.expect_handover();
    server.expect("refused");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    load.stop();
    server.expect_processes(&[successor]);
    let log = server.log();
    assert_eq!(log.matches("started successor").count(), 1, "{log}");
    assert!(log.contains("refused, successor") || log.contains("refused, this process has handed over"));
}

#[test]
fn signals_never_kill_a_young_successor() {
    let server = Server::start_for_load(&[]);
    let load = Load::start(server.address, &[Kind::Naive, Kind::Close], 2);
    for _ in 0..20 {
        let old = server.serving();
        let held = server.hold();
        server.signal(Signal::SIGUSR2);
        // From the moment on in which the process is visible.
        let young = server.expect_child(old);
        for _ in 0..50 {
            // It may have obeyed and ended before the last of them.
            let _ = kill(Pid::from_raw(young as i32), Signal::SIGHUP);
            let _ = kill(Pid::from_raw(young as i32), Signal::SIGUSR2);
        }
        held.finish();
        // They have been kept, and have made it hand over in turn, once it was ready.
        server.expect(&format!("handed over to successor {young};"));
        let grandchild = server.expect_handover();
        server.expect(&format!("process {old} ends"));
        server.expect(&format!("process {young} ends"));
        assert_eq!(server.hello(), grandchild);
    }
    load.stop();
}

#[test]
fn a_stop_signal_for_a_young_successor_waits_until_it_can_be_obeyed() {
    let server = Server::start(&[]);
    let old = server.first();
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /sleep?duration=1s HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("GET /");
    server.signal(Signal::SIGUSR2);
    let young = server.expect_child(old);
    signal_process(young, Signal::SIGTERM);
    assert_eq!(server.expect_handover(), young);
    server.expect("SIGTERM: stopping");
    assert_eq!(client.receive().unwrap().status, 200);
    drop(client);
    // The operator has stopped the service: the predecessor does not bring it back.
    server.expect(&format!("process {young} ends"));
    assert_eq!(wait_for_end(old), exited(old, 0));
    server.expect_processes(&[]);
    assert!(client::get(server.address, "/").is_err());
}

#[test]
fn a_dead_successor_is_succeeded_by_its_predecessor() {
    let server = Server::start_in_detail();
    let old = server.first();
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /sleep?duration=2s HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("GET /");
    let successor = server.hand_over();
    assert_eq!(server.pid_file(), successor);

    signal_process(successor, Signal::SIGKILL);
    server.expect(&format!("successor {successor} was killed by SIGKILL; accepting connections again"));
    assert_eq!(server.hello(), old);
    assert_eq!(server.pid_file(), old);
    assert_eq!(client.receive().unwrap().status, 200);
    drop(client);
    assert_eq!(server.processes(), [old]);

    // It is an ordinary process again: the answers are not the last ones, and it can hand over.
    let mut client = Client::connect(server.address).unwrap();
    assert!(!client.get("/").unwrap().is_last());
    drop(client);
    signal_process(old, Signal::SIGUSR2);
    let successor = server.expect_handover();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.hello(), successor);
    assert_eq!(server.pid_file(), successor);
}

#[test]
fn a_successor_that_has_handed_over_itself_is_not_succeeded_by_its_predecessor() {
    let server = Server::start_in_detail();
    let (mut first, mut second) =
        (Client::connect(server.address).unwrap(), Client::connect(server.address).unwrap());
    first.send("GET /sleep?duration=2s HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.expect("GET /");
    let oldest = server.first();
    let middle = server.hand_over();
    drop(second);
    second = Client::connect(server.address).unwrap();
    assert!(!second.get("/hello").unwrap().is_last());
    let newest = server.hand_over();
    server.expect(&format!("successor {middle} says: handed over"));

    // It dies while it drains, and so does not end in good order; but its place is taken.
    signal_process(middle, Signal::SIGKILL);
    assert_eq!(first.receive().unwrap().status, 200);
    drop(first);
    assert_eq!(wait_for_end(oldest), exited(oldest, 0));
    assert_eq!(server.pid_file(), newest);
    assert_eq!(server.hello(), newest);
    assert_eq!(server.processes(), [newest]);
}

#[test]
fn the_successor_serves_when_its_predecessor_is_killed() {
    // Killed at once, at the first sight of the successor, when that is started, and when it is ready.
    for moment in 0..4 {
        for _ in 0..5 {
            let server = Server::start_for_load(&[]);
            let old = server.first();
            let _held = server.hold();
            server.signal(Signal::SIGUSR2);
            let young = server.expect_child(old);
            match moment {
                0 => {}
                1 => thread::yield_now(),
                2 => drop(server.expect("started successor")),
                _ => drop(server.expect("is ready")),
            }
            signal_process(old, Signal::SIGKILL);
            server.set_serving(young);
            if moment < 3 {
                server.expect(&format!("process {young} is ready"));
            }
            assert_eq!(server.hello(), young);
            assert_eq!(server.pid_file(), young);
            assert_eq!(server.stop(), exited(young, 0));
        }
    }
}
