//! Handovers that fail: the predecessor goes on as if nothing had happened, and says why.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::command::Command;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Server, exited, install, install_script, signal_process, wait_for_end, wait_until,
};

/// Number and kind of every descriptor, and the number of threads but those kept for further connections.
pub fn resources(pid: u32) -> (Vec<String>, usize) {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut descriptors: Vec<String> = entries
        .map(|entry| format!("{:?} {:?}", entry.file_name(), fs::read_link(entry.path()).unwrap_or_default()))
        .collect();
    descriptors.sort();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    (descriptors, names.filter(|name| name != "connection\n").count())
}

/// A server whose program is a file that can be replaced.
struct Replaceable {
    server: Server,
}

impl Replaceable {
    fn start(arguments: &[&str]) -> Replaceable {
        let directory = Directory::new();
        let program = directory.join("program");
        install(&program);
        let mut command = Command::new(program);
        command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(directory.join("pid")).args(arguments);
        Replaceable { server: Server::start_command(command, directory) }
    }

    fn program(&self) -> PathBuf {
        self.server.directory.join("program")
    }

    /// Replaces the program by a script.
    fn install_script(&self, script: &str) {
        install_script(&self.program(), script);
    }

    /// Hands over, which has to fail for this reason, without a loss and without a trace; and then, with
    /// the program as it was, has to succeed.
    fn fails(&self, reason: &str) {
        self.fails_during(reason, || ());
    }

    fn fails_during(&self, reason: &str, meanwhile: impl FnOnce()) {
        let server = &self.server;
        let pid = server.serving();
        let before = resources(pid);
        let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 2);
        server.signal(Signal::SIGUSR2);
        meanwhile();
        let line = server.expect("handover failed: ");
        assert!(line.contains(reason), "{line:?} does not give the reason {reason:?}");
        load.stop();

        assert_eq!(server.pid_file(), pid);
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap(), "");
        // The last of the connections may still be on their way out.
        wait_until(|| resources(pid) == before, || format!("{:#?}\nnot\n{before:#?}", resources(pid)));

        install(&self.program());
        let load = Load::start(server.address, &[Kind::Close, Kind::Naive], 2);
        let successor = server.hand_over();
        assert_eq!(wait_for_end(pid), exited(pid, 0));
        load.stop();
        assert_eq!(server.hello(), successor);
        assert_eq!(server.pid_file(), successor);
        server.expect_processes(&[successor]);
    }
}

#[test]
fn the_file_is_missing() {
    let replaceable = Replaceable::start(&[]);
    fs::remove_file(replaceable.server.directory.join("program")).unwrap();
    replaceable.fails("No such file or directory");
}

#[test]
fn the_file_is_not_executable() {
    let replaceable = Replaceable::start(&[]);
    let program = replaceable.server.directory.join("program");
    fs::set_permissions(program, Permissions::from_mode(0o644)).unwrap();
    replaceable.fails("Permission denied");
}

#[test]
fn the_file_is_truncated() {
    let replaceable = Replaceable::start(&[]);
    let new = replaceable.server.directory.join("new");
    install(&new);
    // In a process of its own, like the installation.
    assert!(Command::new("truncate").args(["-s", "4096"]).arg(&new).status().unwrap().success());
    fs::rename(new, replaceable.program()).unwrap();
    // The kernel may refuse to execute it, or kill it once it misses the rest.
    replaceable.fails("");
}

#[test]
fn it_exits_with_an_error() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("exit 1");
    replaceable.fails("exited with status 1 before it was ready");
}

#[test]
fn it_exits_without_an_error() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("exit 0");
    replaceable.fails("exited with status 0 before it was ready");
}

#[test]
fn it_exits_while_a_helper_keeps_the_link_open() {
    let replaceable = Replaceable::start(&[]);
    let helper = replaceable.server.directory.join("helper");
    // The helper leaves the process group, so that it is not counted among the server's processes.
    replaceable.install_script(&format!("setsid sleep 60 & echo $! > {}; exit 3", helper.display()));
    replaceable.fails("exited with status 3 before it was ready");
    let helper = fs::read_to_string(helper).unwrap().trim().parse().unwrap();
    signal_process(helper, Signal::SIGKILL);
}

#[test]
fn it_hangs() {
    let replaceable = Replaceable::start(&["--ready-timeout", "500ms"]);
    replaceable.install_script("exec sleep 60");
    replaceable.fails("was not ready within 500ms, and was killed");
}

#[test]
fn it_closes_the_link_and_hangs() {
    let replaceable = Replaceable::start(&["--ready-timeout", "500ms"]);
    replaceable.install_script("exec 4>&-; exec sleep 60");
    replaceable.fails("closed the link before it was ready, and was killed");
}

#[test]
fn it_says_something_else() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("echo hello >&4; exec sleep 60");
    replaceable.fails("said \"hello\" instead of \"ready\", and was killed");
}

#[test]
fn it_says_too_much() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("head -c 100000 /dev/zero >&4; exec sleep 60");
    replaceable.fails("instead of \"ready\", and was killed");
}

#[test]
fn it_says_half_a_word() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("printf ready >&4");
    replaceable.fails("said \"ready\" instead of \"ready\"");
}

#[test]
fn it_is_killed_by_a_signal() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("kill -SEGV $$");
    replaceable.fails("was killed by SIGSEGV before it was ready");
}

#[test]
fn it_is_killed_by_somebody_else() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("exec sleep 60");
    let server = &replaceable.server;
    replaceable.fails_during("was killed by SIGKILL before it was ready", || {
        server.expect("started successor");
        signal_process(server.expect_child(server.first()), Signal::SIGKILL);
    });
}

#[test]
fn it_is_asked_for_an_address_of_another_machine() {
    let replaceable = Replaceable::start(&[]);
    let good = replaceable.server.directory.join("good");
    install(&good);
    replaceable.install_script(&format!("exec {} --graceful --listen 192.0.2.1:1", good.display()));
    replaceable.fails("exited with status 1");
    replaceable.server.expect("cannot listen on 192.0.2.1:1: Cannot assign requested address (os error 99)");
}

#[test]
fn its_flags_are_wrong() {
    let replaceable = Replaceable::start(&[]);
    let good = replaceable.server.directory.join("good");
    install(&good);
    replaceable.install_script(&format!("exec {} --graceful --no-such-flag", good.display()));
    replaceable.fails("exited with status 2");
    replaceable.server.expect("handover: invalid option '--no-such-flag'");
}

#[test]
fn its_pid_file_cannot_be_written() {
    let directory = Directory::new();
    let run = directory.join("run");
    fs::create_dir(&run).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(run.join("pid"));
    let server = Server::start_command(command, directory);

    let load = Load::start(server.address, &Kind::ALL, 1);
    fs::rename(&run, server.directory.join("elsewhere")).unwrap();
    server.signal(Signal::SIGUSR2);
    server.expect("cannot write the PID file");
    let line = server.expect("handover failed: ");
    assert!(line.contains("exited with status 1"), "{line}");
    assert_eq!(server.hello(), server.first());
    fs::create_dir(&run).unwrap();
    let successor = server.hand_over();
    load.stop();
    assert_eq!(fs::read_to_string(run.join("pid")).unwrap(), format!("{successor}\n"));
}

#[test]
fn a_stop_ends_an_unready_successor_first() {
    let replaceable = Replaceable::start(&[]);
    replaceable.install_script("exec sleep 60");
    let server = &replaceable.server;
    let mut client = Client::connect(server.address).unwrap();
    client.send("GET /sleep?duration=500ms HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    server.signal(Signal::SIGUSR2);
    server.expect("started successor");
    let successor = server.expect_child(server.first());
    server.signal(Signal::SIGTERM);
    server.expect(&format!("successor {successor} was not ready when SIGTERM came, and was killed"));
    assert_eq!(server.processes(), [server.first()]);
    assert_eq!(client.receive().unwrap().status, 200);
    drop(client);
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn a_restart_and_a_stop_at_the_same_time_lose_nothing() {
    // However the two race, a connection is answered by the process that has accepted it.
    for _ in 0..30 {
        let server = Server::start_for_load(&[]);
        // Without it the predecessor may have ended before its child is seen.
        let held = server.hold();
        let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(server.address).unwrap()).collect();
        for client in &mut clients {
            client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n").unwrap();
        }
        server.signal(Signal::SIGUSR2);
        server.expect_child(server.first());
        server.signal(Signal::SIGTERM);
        for client in &mut clients {
            client.send("hi").unwrap();
            assert_eq!(client.receive().unwrap().text(), "hi");
        }
        drop(clients);
        held.finish();
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
        // Either the successor was ready, and serves, or it is gone.
        match server.processes()[..] {
            [] => drop(server.expect("and was killed")),
            [successor] => assert_eq!(server.hello(), successor),
            ref several => panic!("{several:?}"),
        }
    }
}

#[test]
fn the_file_is_still_being_written() {
    let replaceable = Replaceable::start(&[]);
    let program = replaceable.server.directory.join("program");
    install(&program);
    let writing = File::options().append(true).open(program).unwrap();
    replaceable.fails("Text file busy");
    drop(writing);
}
