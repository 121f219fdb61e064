//! Limits of the process and of the system: known before they are reached, with room left for a handover.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::command::Command;
use crate::server::{
    BINARY, Directory, Server, errno_text, exited, expect_at_rest, install, number_after, wait_for_end,
    wait_until,
};
use crate::untested::untested;

/// The tests themselves need a descriptor for each client.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// A command that can be replaced, with a PID file and a control socket, after a shell has set limits.
fn limited(directory: &Directory, limits: &str) -> Command {
    raise_descriptor_limit();
    install(&directory.join("program"));
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{limits}; exec \"$@\""), "bash"]).arg(directory.join("program"));
    command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(directory.join("pid"));
    command.arg("--control").arg(directory.join("control"));
    command
}

fn start_limited(limits: &str) -> Server {
    let directory = Directory::new();
    Server::start_command(limited(&directory, limits), directory)
}

/// The number of connections that the log says a limit allows.
fn capacity(server: &Server, limit: &str) -> usize {
    let line = server.expect(&format!(" instead of 1024: {limit}"));
    number_after(&line, "max-connections=") as usize
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Clients with a request each, which is in flight as soon as their connection has been accepted.
fn attack(server: &Server, count: usize) -> Vec<Client> {
    let head = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n";
    let begin = |_| {
        let mut client = Client::connect(server.address).unwrap();
        client.send(head).unwrap();
        client
    };
    (0..count).map(begin).collect()
}

/// The answer of a process that may be one of another user, from which the command would take none.
pub fn ask(control: &Path, request: &str) -> String {
    let mut client = UnixStream::connect(control).unwrap();
    client.write_all(format!("{request}\n").as_bytes()).unwrap();
    io::read_to_string(client).unwrap()
}

/// Waits until so many requests are in flight in the serving process.
fn expect_in_flight(server: &Server, count: usize) {
    let status = || ask(&server.directory.join("control"), "status");
    wait_until(|| number_after(&status(), "in-flight=") as usize == count, status);
}

/// Each that is answered makes room for another.
fn finish(clients: Vec<Client>) {
    for mut client in clients {
        client.send("hi").unwrap();
        assert_eq!(client.receive().unwrap().text(), "hi");
    }
}

/// Fills a server, which this limit keeps from having as many connections as there are attackers, and replaces it
/// in every way. Returns the number of its connections.
fn is_replaced_at_capacity(server: &Server, limit: &str, attackers: usize) -> usize {
    let most = capacity(server, limit);
    let mut clients = attack(server, attackers);
    server.expect(&format!("{most} are open, which is the limit"));
    expect_in_flight(server, most);
    let answer = ask(&server.directory.join("control"), "restart");
    let second = server.expect_handover();
    assert_eq!(answer, format!("ok {second}\n"));
    // Those that were not accepted are now.
    clients.extend(attack(server, attackers));
    expect_in_flight(server, capacity(server, limit));
    let third = server.hand_over();
    assert_eq!(number_after(&ask(&server.directory.join("control"), "status"), "pid="), third);
    finish(clients);
    for pid in [server.first(), second] {
        assert!(wait_for_end(pid).is_none_or(|end| Some(end) == exited(pid, 0)));
    }
    server.expect_processes(&[third]);
    assert_eq!(server.hello(), third);
    most
}

#[test]
fn with_every_descriptor_in_use_that_connections_may_have_a_process_is_replaced() {
    let server = start_limited("ulimit -n 64");
    let most = is_replaced_at_capacity(&server, "RLIMIT_NOFILE is 64", 64);
    assert!((5..50).contains(&most), "{most}");
}

/// A user of its own, because a limit of threads is one of a user, and none for root.
fn as_another_user(command: &mut Command, directory: &Directory) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let user = 1_000_000_000 + 10 * process::id() + COUNT.fetch_add(1, Ordering::Relaxed);
    command.uid(user);
    std::os::unix::fs::chown(directory.path(), Some(user), None).unwrap();
}

fn is_root() -> bool {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        untested("only root can be another user");
    }
    is_root
}

#[test]
fn with_every_thread_in_use_that_connections_may_have_a_process_is_replaced() {
    if !is_root() {
        return;
    }
    let directory = Directory::new();
    let mut command = limited(&directory, "ulimit -u 40");
    as_another_user(&mut command, &directory);
    let server = Server::start_command(command, directory);
    let most = is_replaced_at_capacity(&server, "RLIMIT_NPROC is 40", 40);
    assert!((5..15).contains(&most), "{most}");
}

/// A control group, which is removed with this.
struct Group(PathBuf);

impl Group {
    /// One in which there may be so many threads.
    fn new(threads: usize) -> Option<Group> {
        let name = format!("handover-test-{}", process::id());
        let group = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].iter().find_map(|root| {
            let group = Group(PathBuf::from(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join("pids.max"), threads.to_string()).is_ok().then_some(group)
        });
        if group.is_none() {
            untested("no control group for threads is to be had");
        }
        group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_until(|| fs::remove_dir(&self.0).is_ok(), || format!("{} is in use", self.0.display()));
    }
}

#[test]
fn the_threads_of_a_control_group_are_a_limit() {
    let Some(group) = Group::new(60) else { return };
    let server = start_limited(&format!("echo $$ >{}/cgroup.procs", group.0.display()));
    let most = is_replaced_at_capacity(&server, "pids.max is 60", 60);
    assert!((10..25).contains(&most), "{most}");
    server.stop();
}

#[test]
fn with_little_address_space_a_process_serves_what_it_can_and_survives() {
    // In 500 MB, as many as usual.
    let server = start_limited("ulimit -v 488281");
    let clients = attack(&server, 1024);
    expect_in_flight(&server, 1024);
    assert!(!server.log().contains("instead of"), "{}", server.log());
    finish(clients);
    assert_eq!(server.stop(), exited(server.first(), 0));

    let server = start_limited("ulimit -v 146484");
    let most = is_replaced_at_capacity(&server, "RLIMIT_AS is 149999616", 400);
    assert!((50..350).contains(&most), "{most}");
}

/// Sets a limit of a process while it runs, as its user.
fn limit(pid: u32, limit: &str) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), limit]);
    command.uid(fs::metadata(format!("/proc/{pid}")).unwrap().uid());
    assert!(command.status().unwrap().success());
}

/// A lack that comes while the process runs, in which it cannot hand over, and passes.
fn passes(server: &Server, lack: &str, plenty: &str, reason: &str) {
    let old = server.first();
    limit(old, lack);
    let clients = attack(server, 30);
    let line = server.expect("at capacity");
    assert!(line.contains(reason), "{line}");
    expect_at_rest(old);
    let before = (threads(old), descriptors(old));
    server.signal(Signal::SIGUSR2);
    server.expect("handover failed: ");
    expect_at_rest(old);
    assert_eq!((threads(old), descriptors(old)), before);
    limit(old, plenty);
    let successor = server.hand_over();
    finish(clients);
    assert_eq!(server.hello(), successor);
}

/// With the first limit, one connection and a handover fit, and with one less none does.
#[test]
fn a_limit_that_is_too_low_for_one_connection_and_a_handover_is_refused_with_the_least_that_is_not() {
    for with_control in [false, true] {
        let directory = Directory::new();
        let command = |most: u32| {
            let mut command = Command::new("bash");
            command.args(["-c", &format!("ulimit -n {most}; exec \"$@\""), "bash", BINARY]);
            command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(directory.join("pid"));
            command.args(with_control.then_some("--control"));
            command.args(with_control.then(|| directory.join("control"))).stdin(Stdio::null());
            command
        };
        let refusal = |most: u32| {
            let output = command(most).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{text}");
            text.lines().last().unwrap().to_owned()
        };
        let least = number_after(&refusal(12), "RLIMIT_NOFILE is 12, at least ");
        let few = least - 1;
        let expected = format!("handover: cannot serve: RLIMIT_NOFILE is {few}, at least {least} are needed");
        assert_eq!(refusal(few), expected);

        let (command, control) = (command(least), directory.join("control"));
        let server = Server::start_command(command, directory);
        let restart = || match with_control {
            true => drop(ask(&control, "restart")),
            false => server.signal(Signal::SIGUSR2),
        };
        // Such a limit would have been too low.
        let mut held = server.hold();
        limit(server.first(), &format!("--nofile={few}:{least}"));
        restart();
        let reason = server.expect("handover failed: cannot start ");
        assert!(reason.ends_with(&errno_text(Errno::EMFILE)), "{reason}");
        limit(server.first(), &format!("--nofile={least}"));
        for _ in 0..2 {
            let old = server.serving();
            restart();
            let new = server.expect_handover();
            held.finish();
            assert!(wait_for_end(old).is_none_or(|end| Some(end) == exited(old, 0)));
            wait_until(|| server.hello() == new, || server.log());
            held = server.hold();
        }
        held.finish();
    }
}

/// What the manual tells an operator to do.
#[test]
fn a_limit_that_is_raised_while_a_process_runs_is_that_of_its_successor() {
    let server = start_limited("ulimit -S -v 146484");
    capacity(&server, "RLIMIT_AS is");
    limit(server.first(), "--as=unlimited");
    server.hand_over();
    assert_eq!(server.log().matches("RLIMIT_AS is").count(), 1, "{}", server.log());
}

#[test]
fn a_lack_of_descriptors_that_comes_later_fails_a_handover_and_passes() {
    let server = start_limited("ulimit -n 64");
    passes(
        &server,
        &format!("--nofile={}:64", descriptors(server.first()) + 2),
        "--nofile=64",
        &errno_text(Errno::EMFILE),
    );
}

#[test]
fn a_lack_of_threads_that_comes_later_fails_a_handover_and_passes() {
    if !is_root() {
        return;
    }
    let directory = Directory::new();
    let mut command = limited(&directory, "ulimit -u 200");
    as_another_user(&mut command, &directory);
    let server = Server::start_command(command, directory);
    let few = threads(server.first()) + 2;
    passes(&server, &format!("--nproc={few}:200"), "--nproc=200", &errno_text(Errno::EAGAIN));
}

#[test]
fn clients_of_the_control_socket_that_say_nothing_take_no_threads_and_few_descriptors() {
    let server = Server::start_replaceable(&[]);
    let old = server.first();
    let before = (threads(old), descriptors(old));
    let control = server.directory.join("control");
    let mut silent: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&control).unwrap()).collect();
    for _ in 0..20 {
        assert_eq!(server.control("control").unwrap(), old);
    }
    let now = (threads(old), descriptors(old));
    assert!(now.0 == before.0 && now.1 <= before.1 + 8, "{now:?}, {before:?} before");
    // The others have been told why.
    let mut answer = String::new();
    silent[0].read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "error: no request came, and other clients wait\n");
    server.hand_over();
    drop(silent);
}
