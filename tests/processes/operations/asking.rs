//! The client's side of the control socket: nothing is waited for that shows no sign of life, and nothing is sent to
//! a process of another user.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{fs, io};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, listen, socket};

use crate::command::{Child, Command, Stderr};
use crate::server::{
    BINARY, Directory, Gate, Server, exited, freeze, install, install_script, thaw, wait_for_end, wait_until,
};
use crate::untested::untested;

/// A command that is about to give up.
struct Waiting(Child);

impl Waiting {
    fn start(arguments: &[&str], control: &Path) -> Waiting {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--control").arg(control);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stderr::Piped);
        Waiting(command.spawn().unwrap())
    }

    /// Waits until it has failed, and returns its last words.
    fn expect_failure(mut self) -> String {
        wait_until(|| self.0.try_wait().unwrap().is_some(), || "it waits on".to_owned());
        assert_eq!(self.0.wait().unwrap().code(), Some(1));
        let error = io::read_to_string(self.0.stderr.take().unwrap()).unwrap();
        error.lines().last().unwrap().to_owned()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A listening socket in whose queue there is no room.
struct Full {
    path: PathBuf,
    _listener: UnixListener,
    _clients: Vec<OwnedFd>,
}

impl Full {
    fn new(directory: &Directory) -> Full {
        let path = directory.join("full");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut clients = Vec::new();
        loop {
            let client =
                socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
            match connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()) {
                Ok(()) => clients.push(client),
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    return Full { path, _listener: listener, _clients: clients };
                }
            }
        }
    }
}

/// A handover may take as long as its limit allows, and reading the configuration as long as the disk.
#[test]
fn what_takes_long_is_waited_for_and_a_process_that_shows_no_sign_of_life_is_not() {
    let directory = Directory::new();
    let gate = Gate::new(&directory);
    let slow = Server::start_replaceable_in(directory, &["--ready-timeout", "1m"]);
    install_script(&slow.program(), &format!("{}; exec {BINARY} \"$@\"", gate.wait()));
    let mut patient = Waiting::start(&["-s", "restart"], &slow.directory.join("control"));
    let waiting = gate.expect_waiting();

    let directory = Directory::new();
    let full = Full::new(&directory);
    let server = Server::start_replaceable(&[]);
    let (pid, control) = (server.first(), server.directory.join("control"));
    freeze(pid);
    let listen = server.address.to_string();
    let takeover = ["--takeover", "--listen", &listen];
    let asked = ["status", "restart", "reload", "stop"];
    let asked = asked.map(|request| Waiting::start(&["-s", request], &control));
    let taker = Waiting::start(&takeover, &control);
    let queued = Waiting::start(&["-s", "status"], &full.path);
    let queued_taker = Waiting::start(&takeover, &full.path);

    let silent = format!("process {pid} has not answered within 5 s");
    for asked in asked {
        let expected = format!("handover: cannot ask on {}: {silent}", control.display());
        assert_eq!(asked.expect_failure(), expected);
    }
    let expected = format!("handover: cannot take over from the process at {}: {silent}", control.display());
    assert_eq!(taker.expect_failure(), expected);
    let path = full.path.display();
    let full = "there has been no room in its queue for 5 s";
    assert_eq!(queued.expect_failure(), format!("handover: cannot ask on {path}: {full}"));
    let expected = format!("handover: cannot take over from the process at {path}: {full}");
    assert_eq!(queued_taker.expect_failure(), expected);
    // When it goes on, it finds the requests, and no client that waits for the answers.
    thaw(pid);
    assert_eq!(wait_for_end(pid), exited(pid, 0));

    assert!(patient.0.try_wait().unwrap().is_none());
    drop(waiting);
    let new = slow.expect_handover();
    assert_eq!(patient.0.wait().unwrap().code(), Some(0));
    let answer = io::read_to_string(patient.0.stdout.take().unwrap()).unwrap();
    assert_eq!(answer, format!("ok {new}\n"));
}

#[test]
fn a_start_on_a_socket_with_a_full_queue_fails_at_once() {
    let directory = Directory::new();
    let full = Full::new(&directory);
    let path = full.path.display().to_string();
    for arguments in
        [["--listen", &format!("unix:{path}")].as_slice(), &["--listen", "127.0.0.1:0", "--control", &path]]
    {
        let output = Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.ends_with(": Address already in use (os error 98)\n"), "{text}");
    }
}

#[test]
fn nothing_is_sent_to_a_process_of_another_user_and_nothing_taken_from_it() {
    const NOBODY: u32 = 65534;
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        untested("only root can start a process of another user");
        return;
    }
    // A directory that others may write to.
    let directory = Directory::new();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = directory.join("program");
    install(&program);
    let control = directory.join("control");
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--control"]).arg(&control).uid(NOBODY).gid(NOBODY);
    let foreign = Server::start_command(command, directory);
    let pid = foreign.first();
    let reason = format!(
        "process {pid} listens there, whose user {NOBODY} is neither root nor that of this process; ask it as \
         that user, with runuser(1)"
    );
    let expected = format!("handover: cannot ask on {}: {reason}", control.display());
    for request in ["status", "stop", "restart"] {
        assert_eq!(Waiting::start(&["-s", request], &control).expect_failure(), expected);
    }
    let error = handover::ask(&control, "stop").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let listen = foreign.address.to_string();
    let taker = Waiting::start(&["--takeover", "--listen", &listen], &control);
    let expected = format!("handover: cannot take over from the process at {}: {reason}", control.display());
    assert_eq!(taker.expect_failure(), expected);
    assert_eq!(foreign.hello(), pid);
    assert!(!foreign.log().contains("control"), "{}", foreign.log());

    // Its own user may, and so may anybody ask a process of root.
    let mut command = Command::new(&program);
    let output =
        command.args(["-s", "stop", "--control"]).arg(&control).uid(NOBODY).gid(NOBODY).output().unwrap();
    assert_eq!(output.stdout, b"ok\n");
    assert_eq!(wait_for_end(pid), exited(pid, 0));
}
