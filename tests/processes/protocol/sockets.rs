//! The listening sockets and their files: which of them a handover passes on, opens and closes, and who removes
//! the file of a Unix socket.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::client;
use crate::command::{Child, Command, Stderr};
use crate::server::{BINARY, Directory, Server, exited, is_alive, number_after, wait_for_end};

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// A command that listens on TCP first, where the tests ask for what they expect, and then on these addresses.
fn command(directory: &Directory, addresses: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--control"]).arg(directory.join("control"));
    for address in addresses {
        command.args(["--listen", address]);
    }
    command
}

/// A process that takes over from a server.
fn take_over(server: &Server, addresses: &[&str]) -> Server {
    let mut command = Command::new(BINARY);
    command.args(["--takeover", "--listen", &server.address.to_string(), "--control"]);
    command.arg(server.directory.join("control"));
    for address in addresses {
        command.args(["--listen", address]);
    }
    let taker = Server::start_command(command, Directory::new());
    assert_eq!(server.expect_handover(), taker.first());
    taker
}

/// Hands over, and waits for the end of the predecessor, so that we are told how its successor ends.
fn hand_over(server: &Server) {
    let old = server.serving();
    server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
}

/// Puts the socket of another server in this place, and the file from there aside, so that its inode is not given to
/// the next one.
fn replace(path: &Path) -> UnixListener {
    fs::rename(path, path.with_extension("before")).unwrap();
    UnixListener::bind(path).unwrap()
}

#[test]
fn a_socket_of_another_server_that_has_taken_the_path_is_left_alone_by_every_successor() {
    let directory = Directory::new();
    let path = directory.join("socket");
    let server = Server::start_command(command(&directory, &[&unix(&path)]), directory);
    let other = replace(&path);
    hand_over(&server);
    let taker = take_over(&server, &[&unix(&path)]);
    hand_over(&taker);
    assert_eq!(taker.stop(), exited(taker.serving(), 0));
    UnixStream::connect(&path).unwrap();
    other.accept().unwrap();
}

#[test]
fn the_file_that_the_first_process_has_made_is_removed_by_the_last() {
    let directory = Directory::new();
    let (one, two) = (directory.join("one"), directory.join("two"));
    let addresses = [unix(&one), "127.0.0.2:0".to_owned(), unix(&two)];
    let addresses = addresses.each_ref().map(String::as_str);
    let server = Server::start_command(command(&directory, &addresses), directory);
    let log = server.log();
    let bound = log.lines().filter_map(|line| line.split_once("new file descriptor, "));
    let bound: Vec<&str> = bound.map(|(_, address)| address).collect();
    hand_over(&server);
    let taker = take_over(&server, &bound[1..]);
    hand_over(&taker);
    for path in [&one, &two] {
        let hello = client::get(path.clone(), "/hello").unwrap().text();
        assert_eq!(hello, format!("Hello from {}!", taker.serving()));
    }
    assert_eq!(taker.stop(), exited(taker.serving(), 0));
    assert!(!one.exists() && !two.exists());
}

/// A server with a Unix socket at descriptor 3 that a service manager has bound.
struct Activated {
    first: Child,
    serving: u32,
}

impl Activated {
    fn start(path: &Path, script: &str, arguments: &[&str]) -> Activated {
        // Processes whose predecessor has ended become our children.
        set_child_subreaper(true).unwrap();
        let mut command = Command::new("sh");
        let script = format!("exec 3<&0 0</dev/null; {script} exec \"$@\"");
        command.args(["-c", &script, "sh", BINARY, "--listen", &unix(path)]).args(arguments);
        command.stdin(Stdio::from(OwnedFd::from(UnixListener::bind(path).unwrap())));
        let first = command.process_group(0).stdout(Stdio::null()).stderr(Stderr::Null).spawn().unwrap();
        Activated { serving: first.id(), first }
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        if is_alive(self.serving) {
            let _ = killpg(Pid::from_raw(self.first.id() as i32), Signal::SIGKILL);
        }
    }
}

#[test]
fn the_socket_of_a_service_manager_is_left_in_its_place() {
    let directory = Directory::new();
    let (path, control) = (directory.join("socket"), directory.join("control"));
    for (script, argument) in [("export LISTEN_PID=$$ LISTEN_FDS=1;", "--no-move"), ("", "--graceful")] {
        for handovers in 0..3 {
            let mut server =
                Activated::start(&path, script, &[argument, "--control", control.to_str().unwrap()]);
            let hello = client::get(path.clone(), "/hello").unwrap().text();
            assert_eq!(hello, format!("Hello from {}!", server.serving));
            for _ in 0..handovers {
                let answer = handover::ask(&control, "restart").unwrap();
                assert_eq!(wait_for_end(server.serving), exited(server.serving, 0));
                server.serving = number_after(&answer, "ok ");
            }
            assert_eq!(handover::ask(&control, "stop").unwrap(), "ok");
            assert_eq!(wait_for_end(server.serving), exited(server.serving, 0));
            fs::remove_file(&path).unwrap();
        }
    }
}

/// A server whose control socket has a path of so many bytes, with a name of so many; or what it says instead of
/// starting.
fn with_control_path(bytes: usize, name: usize) -> Result<(Server, PathBuf), String> {
    let directory = Directory::new();
    let padding =
        (bytes - name).checked_sub(directory.path().as_os_str().len() + 2).expect("a short directory");
    let inner = directory.join(&"d".repeat(padding));
    fs::create_dir_all(&inner).unwrap();
    let control = inner.join("n".repeat(name));
    assert_eq!(control.as_os_str().len(), bytes + usize::from(padding == 0));
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--control"]).arg(&control);
    let refused = bytes > 103 || name > 64;
    if !refused {
        return Ok((Server::start_command(command, directory), control));
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    Err(String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_socket_whose_path_is_long_can_be_handed_over_or_is_refused_at_the_start() {
    for (bytes, name) in [(86, 1), (87, 1), (101, 1), (102, 30), (103, 1), (103, 50), (100, 64)] {
        let (server, control) = with_control_path(bytes, name).unwrap();
        let aside = PathBuf::from(format!("{}.old", control.display()));
        for _ in 0..2 {
            let old = server.serving();
            let held = server.hold();
            let answer = handover::ask(&control, "restart").unwrap();
            server.set_serving(number_after(&answer, "ok "));
            for (path, pid) in [(&control, server.serving()), (&aside, old)] {
                assert!(handover::ask(path, "status").unwrap().starts_with(&format!("pid={pid} ")));
            }
            held.finish();
            assert_eq!(wait_for_end(old), exited(old, 0));
        }
        server.stop();
        assert_eq!(fs::read_dir(control.parent().unwrap()).unwrap().count(), 0, "{bytes} {name}");
    }
    // The address of a socket that is listened on is the same in each process.
    let directory = Directory::new();
    let longest = directory.join(&"n".repeat(106 - directory.path().as_os_str().len()));
    let server = Server::start_command(command(&directory, &[&unix(&longest)]), directory);
    server.hand_over();
    assert_eq!(client::get(longest.clone(), "/").unwrap().status, 200);
    server.stop();
    assert!(!longest.exists());
    let listen = format!("{}n", unix(&longest));
    let output = Command::new(BINARY).args(["--listen", &listen]).stdin(Stdio::null()).output().unwrap();
    let expected =
        format!("handover: cannot listen on {listen}: the path of a Unix socket has at most 107 bytes\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);

    for (bytes, name) in [(104, 1), (107, 30), (108, 1), (100, 65)] {
        let text = with_control_path(bytes, name).err().unwrap();
        let reason = "the path of a control socket has at most 103 bytes, and its last part 64\n";
        assert!(text.contains("cannot listen for requests on /") && text.ends_with(reason), "{text}");
    }
}
