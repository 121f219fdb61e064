//! Listening sockets that a program makes itself.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use handover::{Error, Options, Outcome, Request, Response, Server as Bound, report_failure};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockopt, listen, setsockopt, socket,
    sockopt,
};

use crate::client::{self, Target};
use crate::embedding::programs::{start, start_by, take_over};
use crate::load::{Kind, Load};
use crate::server::{Server, exited, freeze, signal_process, thaw, wait_for_end};
use crate::untested::is_installed;

/// The option that the program sets.
const SEGMENT: u32 = 1000;

/// An embedding program that opens its sockets itself. The file `journal` says what is different.
pub fn run(options: Options) -> ExitCode {
    match serve(options) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            report_failure(&error);
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<Outcome, Error> {
    let address = options.listen.first().cloned().unwrap_or("127.0.0.1:0".to_owned());
    let difference = fs::read_to_string("journal").unwrap_or_default();
    let mut server = Bound::bind(Options { listen: Vec::new(), ..options })?;
    let other = || TcpListener::bind("127.0.0.2:0");
    match &*difference {
        "another address" => server.listen_on("127.0.0.3:0", other)?,
        "a failure" => {
            server.listen_on("127.0.0.3:0", || Err::<TcpListener, _>(io::Error::other("no time")))?
        }
        "no socket" => server.listen_on("127.0.0.3:0", || fs::File::open("/dev/null"))?,
        "not listening" => server.listen_on("127.0.0.3:0", bound)?,
        "none" => return server.serve(|_: &mut Request| Response::from_string("").boxed()),
        _ => {}
    }
    server.listen_on(&address, open)?;
    let path = PathBuf::from(env::var("directory").unwrap()).join("own");
    let address = format!("unix:{}", path.display());
    match &*difference {
        "no Unix socket" => {}
        "abstract" => {
            let address = SocketAddr::from_abstract_name(path.as_os_str().as_bytes()).unwrap();
            let name = format!("unix:@{}", path.display());
            server.listen_on(&name, || UnixListener::bind_addr(&address))?;
        }
        "opened before" => {
            let opened = UnixListener::bind(&path).unwrap();
            server.listen_on(&address, || Ok(opened))?;
        }
        _ => server.listen_on(&address, || UnixListener::bind(&path))?,
    }
    let addresses = server.addresses().len();
    server.serve(move |_: &mut Request| {
        Response::from_string(format!("{} of {addresses}", std::process::id())).boxed()
    })
}

/// A socket with an option of its own, and a queue that is as short as can be.
fn open() -> io::Result<OwnedFd> {
    let own = bound()?;
    listen(&own, Backlog::new(1).unwrap())?;
    Ok(own)
}

fn bound() -> io::Result<OwnedFd> {
    let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&own, sockopt::ReuseAddr, &true)?;
    setsockopt(&own, sockopt::TcpMaxSeg, &SEGMENT)?;
    bind(own.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    Ok(own)
}

/// Whether the socket that is listened on is the one that the program has made.
fn is_own(server: &Server) -> bool {
    let connection = TcpStream::connect(server.address).unwrap();
    getsockopt(&connection, sockopt::TcpMaxSeg).unwrap() <= SEGMENT
}

fn targets(server: &Server) -> [Target; 2] {
    [server.address.into(), server.directory.join("own").into()]
}

/// Hands over; then the successor alone answers at each of its sockets.
fn expect_handover(server: &Server) {
    let old = server.serving();
    let new = server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    for target in targets(server) {
        assert_eq!(client::get(target, "/").unwrap().text(), format!("{new} of 2"));
    }
}

#[test]
fn sockets_that_a_program_has_made_are_handed_over_like_others() {
    let server = start("own", "listen=");
    let path = server.directory.join("own");
    let load = Load::start_all(&targets(&server), &[Kind::Close, Kind::KeepAlive, Kind::Naive], 1);
    for _ in 0..20 {
        expect_handover(&server);
        assert!(is_own(&server));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    }
    let mut takers: Vec<Server> = Vec::new();
    for _ in 0..3 {
        takers.push(take_over(takers.last().unwrap_or(&server), &server, "own"));
        assert!(is_own(&server));
    }
    load.stop();
    let last = takers.last().unwrap();
    for target in targets(&server) {
        assert_eq!(client::get(target, "/").unwrap().text(), format!("{} of 2", last.first()));
    }
    assert_eq!(last.stop(), exited(last.first(), 0));
    assert!(!path.exists());
    server.expect_refusal();
}

#[test]
fn sockets_that_a_program_has_made_are_handed_over_beside_a_process_that_stays() {
    let server = start("own", "listen= stay");
    let load = Load::start_all(&targets(&server), &[Kind::Close, Kind::KeepAlive, Kind::Naive], 1);
    for _ in 0..5 {
        let old = server.serving();
        let new = server.hand_over();
        server.expect_any(&[&format!("process {old} stays"), &format!("process {old} ends")]);
        for target in targets(&server) {
            assert_eq!(client::get(target, "/").unwrap().text(), format!("{new} of 2"));
        }
        assert!(is_own(&server));
    }
    load.stop();
    let first = server.first();
    signal_process(first, Signal::SIGTERM);
    assert_eq!(wait_for_end(first), exited(first, 0));
    assert!(!server.directory.join("own").exists());
    server.expect_refusal();
}

#[test]
fn an_abstract_socket_that_a_program_has_made_is_handed_over() {
    let server = start_by("printf abstract >journal;", "own", "listen=");
    let name = server.directory.join("own");
    let address = SocketAddr::from_abstract_name(name.as_os_str().as_bytes()).unwrap();
    // A client that waits in its queue is served by the next process.
    let mut waiting: Option<UnixStream> = None;
    for _ in 0..3 {
        let old = server.serving();
        server.signal(Signal::SIGUSR2);
        freeze(old);
        let client = UnixStream::connect_addr(&address).unwrap();
        thaw(old);
        let new = server.expect_handover();
        assert_eq!(wait_for_end(old), exited(old, 0));
        if let Some(client) = &mut waiting {
            assert_eq!(ask(client), format!("{new} of 2"));
        }
        waiting = Some(client);
    }
    assert_eq!(server.stop(), exited(server.serving(), 0));
    UnixListener::bind_addr(&address).unwrap();
}

/// What is answered on a connection that goes on.
fn ask(mut client: &UnixStream) -> String {
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut reply = vec![0; 4096];
    let mut length = 0;
    while !String::from_utf8_lossy(&reply[..length]).ends_with(" of 2") {
        let read = client.read(&mut reply[length..]).unwrap();
        assert!(read > 0, "the connection has ended");
        length += read;
    }
    let reply = String::from_utf8_lossy(&reply[..length]);
    reply.rsplit("\r\n").next().unwrap().to_owned()
}

#[test]
fn a_socket_of_a_service_manager_is_one_that_a_program_need_not_make() {
    if !is_installed("python3") {
        return;
    }
    // The service manager knows of the TCP socket only.
    let manager = "exec env LISTEN_FDS=1 python3 -c 'import os, socket, sys; s = socket.socket(); \
                   s.bind((\"127.0.0.1\", 0)); s.listen(); os.dup2(s.fileno(), 3); os.set_inheritable(3, True); \
                   os.environ[\"LISTEN_PID\"] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])'";
    let server = start_by(&format!("{manager} \"$@\";"), "own", "listen=");
    let log = server.log();
    assert!(log.contains("listening on the existing file descriptor 3, 127.0.0.1:"), "{log}");
    assert!(log.contains("listening on a new file descriptor, unix:"), "{log}");
    let load = Load::start_all(&targets(&server), &[Kind::Close, Kind::KeepAlive, Kind::Naive], 1);
    for _ in 0..5 {
        expect_handover(&server);
        assert!(!is_own(&server));
    }
    load.stop();
    assert_eq!(server.stop(), exited(server.serving(), 0));
    assert!(!server.directory.join("own").exists());
}

#[test]
fn the_queue_of_a_socket_that_a_program_has_made_is_as_long_as_that_of_others() {
    let server = start("own", "listen=");
    freeze(server.first());
    let connect = |_| TcpStream::connect_timeout(&server.address, Duration::from_secs(10)).unwrap();
    let waiting: Vec<TcpStream> = (0..100).map(connect).collect();
    thaw(server.first());
    assert_eq!(server.get("/"), format!("{} of 2", server.first()));
    drop(waiting);
}

#[test]
fn a_socket_that_a_successor_does_not_ask_for_is_closed_when_it_serves() {
    let server = start("own", "listen=");
    let path = server.directory.join("own");
    fs::write(server.directory.join("journal"), "no Unix socket").unwrap();
    let old = server.serving();
    server.hand_over();
    server.expect("no longer listening on unix:");
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert!(!path.exists());
    assert_eq!(server.get("/"), format!("{} of 1", server.serving()));
    // It is made again if it is missing.
    fs::remove_file(server.directory.join("journal")).unwrap();
    server.hand_over();
    assert_eq!(client::get(path, "/").unwrap().text(), format!("{} of 2", server.serving()));
}

#[test]
fn a_socket_that_a_program_has_from_elsewhere_keeps_its_file() {
    let server = start("own", "listen=");
    let path = server.directory.join("own");
    fs::write(server.directory.join("journal"), "no Unix socket").unwrap();
    server.hand_over();
    wait_for_end(server.first());
    fs::write(server.directory.join("journal"), "opened before").unwrap();
    let old = server.serving();
    server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    fs::remove_file(server.directory.join("journal")).unwrap();
    let old = server.serving();
    server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode(), mode);
    UnixStream::connect(&path).unwrap();
    assert_eq!(server.stop(), exited(server.serving(), 0));
    assert!(path.exists());
}

#[test]
fn a_socket_that_is_not_what_it_should_be_fails_the_handover_with_the_reason() {
    let server = start("own", "listen=");
    for (difference, reason) in [
        ("another address", "cannot listen on 127.0.0.3:0: the program's socket listens on 127.0.0.2:"),
        ("a failure", "cannot listen on 127.0.0.3:0: no time"),
        ("no socket", "cannot listen on 127.0.0.3:0: it is not a socket"),
        ("not listening", "cannot listen on 127.0.0.3:0: it is not listening"),
        ("none", "cannot listen: there is no address to listen on"),
    ] {
        fs::write(server.directory.join("journal"), difference).unwrap();
        let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
        assert!(answer.contains(&format!("before it was ready: {reason}")), "{answer}");
        assert_eq!(server.get("/"), format!("{} of 2", server.first()));
    }
    assert_eq!(server.stop(), exited(server.first(), 0));
    assert!(!server.directory.join("own").exists());
}
