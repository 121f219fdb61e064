//! A test in the place of one of the two processes of a handover, on the other end of the real one's sockets.
//! It needs no more than what the documentation of the protocol says.

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::net::{self, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recvmsg,
    sendmsg, shutdown, socketpair,
};

use crate::command::{Child, Command, Stderr, Untraced};
use crate::server::{BINARY, Directory, Server};

const GREETING: &[u8] = b"handover 1\n";

/// One end of the socket through which connections are moved.
pub struct Moving(OwnedFd);

impl Moving {
    /// Sends a message.
    pub fn say(&self, message: &str, connection: Option<&dyn AsRawFd>) -> nix::Result<()> {
        send(
            &self.0,
            message.as_bytes(),
            &connection.map(|connection| connection.as_raw_fd()).into_iter().collect::<Vec<_>>(),
        )
    }

    /// The next message, which is empty at the end.
    pub fn hear(&self) -> (String, Option<OwnedFd>) {
        let mut buffer = [0; 8192];
        let (count, mut descriptors) = receive(&self.0, &mut buffer);
        (String::from_utf8(buffer[..count].to_vec()).unwrap(), descriptors.pop())
    }

    /// Takes no more messages.
    pub fn close_for_messages(&self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Read).unwrap();
    }
}

fn send(socket: &impl AsRawFd, bytes: &[u8], descriptors: &[RawFd]) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

#[allow(unsafe_code)]
fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> (usize, Vec<OwnedFd>) {
    let mut space = cmsg_space!([RawFd; 16]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            message => break message.unwrap(),
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: recvmsg(2) has just opened them for this process.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    (message.bytes, descriptors)
}

/// The successor of a real process.
pub struct Successor {
    link: BufReader<UnixStream>,
    pub moving: Moving,
    /// While it is open, the predecessor could be asked again.
    _sockets: Vec<OwnedFd>,
}

impl Successor {
    /// Takes over through the control socket, and says that it serves.
    pub fn take_over(control: &Path) -> Successor {
        let mut successor = Successor::go(control, "ready");
        successor.say("serving");
        successor
    }

    /// Takes over through the control socket, where it says that it is ready, and is told to go.
    pub fn go(control: &Path, ready: &str) -> Successor {
        let mut link = UnixStream::connect(control).unwrap();
        link.write_all(b"takeover\n").unwrap();
        let mut greeting = [0; GREETING.len()];
        let (count, mut sockets) = receive(&link, &mut greeting);
        assert_eq!(&greeting[..count], GREETING);
        writeln!(link, "{ready}").unwrap();
        let mut link = BufReader::new(link);
        let mut line = String::new();
        link.read_line(&mut line).unwrap();
        if line == "above\n" {
            // The link above is of no interest.
            drop(sockets.pop());
            line.clear();
            link.read_line(&mut line).unwrap();
        }
        assert!(line.starts_with("go ") && line.contains(" accepted="), "{line}");
        let moving = Moving(sockets.pop().unwrap());
        Successor { link, moving, _sockets: sockets }
    }

    /// Says one word, or several, a line each.
    pub fn say(&mut self, words: &str) {
        writeln!(self.link.get_mut(), "{words}").unwrap();
    }

    /// Ends without a last word.
    pub fn die(self) {
        self.link.get_ref().shutdown(net::Shutdown::Both).unwrap();
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // Its place will not have to be taken.
        let _ = self.link.get_mut().write_all(b"stopping\n");
    }
}

/// The predecessor of a real process, which has taken over from it and has been told to go.
pub struct Predecessor {
    pub server: Server,
    pub moving: Moving,
    pub link: UnixStream,
}

impl Predecessor {
    pub fn start() -> Predecessor {
        Predecessor::start_with(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same with this socket.
    pub fn start_with(listener: TcpListener) -> Predecessor {
        let directory = Directory::new();
        let control = UnixListener::bind(directory.join("control")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut command = Command::new(BINARY);
        command.env("RUST_LOG", "debug").args(["--listen", &address, "--takeover", "--control"]);
        command.arg(directory.join("control"));
        let hand_over = std::thread::spawn(move || {
            let (mut link, _) = control.accept().unwrap();
            let mut line = [0; "takeover\n".len()];
            link.read_exact(&mut line).unwrap();
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
            send(&link, GREETING, &[listener.as_raw_fd(), theirs.as_raw_fd()]).unwrap();
            let mut ready = [0; "ready\n".len()];
            link.read_exact(&mut ready).unwrap();
            assert_eq!(&ready, b"ready\n");
            link.write_all(b"go 2\n").unwrap();
            let mut serving = [0; "serving\n".len()];
            link.read_exact(&mut serving).unwrap();
            (link, Moving(ours))
        });
        let server = Server::start_command(command, directory);
        let (link, moving) = hand_over.join().unwrap();
        Predecessor { server, moving, link }
    }
}

/// What has come of a greeting: what the process has said on the link, and on standard error.
pub struct Greeted {
    pub said: String,
    pub reason: String,
}

/// Greets a real process, which asks to take over, with these lines behind the first, and these descriptors behind
/// the socket through which connections are moved. If it becomes ready it is told to leave.
pub fn greet_by_request(lines: &[u8], others: &[&OwnedFd]) -> Greeted {
    let directory = Directory::new();
    let control = UnixListener::bind(directory.join("control")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = command(&listener, &["--takeover", "--control"]);
    command.arg(directory.join("control")).stderr(Stderr::Piped).untraced(Untraced::WrongGreeting);
    let process = command.spawn().unwrap();
    let (mut link, _) = control.accept().unwrap();
    let mut request = [0; "takeover\n".len()];
    link.read_exact(&mut request).unwrap();
    let (_ours, theirs) = pair(SockType::SeqPacket);
    let others = others.iter().map(|other| other.as_raw_fd());
    let descriptors: Vec<RawFd> =
        [listener.as_raw_fd(), theirs.as_raw_fd()].into_iter().chain(others).collect();
    send(&link, &[GREETING, lines].concat(), &descriptors).unwrap();
    drop(theirs);
    expect_end(process, link)
}

/// The same for a process that finds it all from descriptor 3 on, but nothing to move connections.
pub fn greet_by_inheritance(lines: &[u8], other: Option<&OwnedFd>) -> Greeted {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[GREETING, lines].concat()).unwrap();
    let (script, other) = match other {
        Some(other) => ("5<&2", Stdio::from(other.try_clone().unwrap())),
        None => ("5<&-", Stdio::null()),
    };
    // Standard input, output and error are what Command passes on as it is.
    let script = format!("exec 3<&0 4<&1 {script} 0</dev/null 1>/dev/null 2>\"$0\"; exec \"$@\"");
    let directory = Directory::new();
    let command = command(&listener, &["--graceful"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .arg(directory.join("error"))
        .arg(command.get_program())
        .args(command.get_args());
    shell
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stderr::Direct(other))
        .untraced(Untraced::WrongGreeting);
    let process = shell.spawn().unwrap();
    // It has the other end of the link.
    drop(shell);
    let said = expect_end(process, ours).said;
    Greeted { said, reason: fs::read_to_string(directory.join("error")).unwrap() }
}

fn command(listener: &TcpListener, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--listen", &listener.local_addr().unwrap().to_string()]).args(arguments);
    command
}

pub fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// Waits until a process has ended, which is told to leave if it becomes ready.
fn expect_end(process: Child, link: UnixStream) -> Greeted {
    let (mut link, mut said) = (BufReader::new(link), String::new());
    link.read_line(&mut said).unwrap();
    if said == "ready\n" {
        link.get_mut().write_all(b"no test\n").unwrap();
    }
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    Greeted { said, reason: String::from_utf8(output.stderr).unwrap() }
}
