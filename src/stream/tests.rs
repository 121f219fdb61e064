//! Streams as their function and their client see them, in one process or two that are in this one.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::*;
use crate::deadline::after;
use crate::handover::moving::{self, Mover};
use crate::server::Connections;
use crate::server::listener::Listener;
use crate::service::Service;
use crate::{Request, ResponseBox};

/// Serves what is spoken by this function, on a free port.
fn start(limits: &Arc<Mutex<Limits>>, service: Service) -> (Connections, SocketAddr) {
    let listeners = Listener::bind_all(&["127.0.0.1:0".to_owned()], 0).unwrap();
    let Address::Network(address) = *listeners[0].address() else { panic!("{}", listeners[0].address()) };
    let (limits, Service { protocol, serve, .. }) = (Arc::clone(limits), service);
    let mut server = Connections::new(listeners, 1, limits, 1 << 20, protocol, serve, || ()).unwrap();
    server.accept();
    (server, address)
}

fn streams(
    limits: Limits,
    function: impl Fn(&mut Stream) -> io::Result<()> + Send + Sync + 'static,
) -> (Connections, SocketAddr) {
    let limits = Arc::new(Mutex::new(limits));
    start(&limits, Service::streams(&limits, "", function))
}

/// The same with a name for the protocol.
fn named(
    protocol: &str,
    function: impl Fn(&mut Stream) -> io::Result<()> + Send + Sync + 'static,
) -> (Connections, SocketAddr) {
    let limits = Arc::default();
    start(&limits, Service::streams(&limits, protocol, function))
}

fn connect(address: SocketAddr) -> io::BufReader<TcpStream> {
    let client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    io::BufReader::new(client)
}

fn send(client: &mut io::BufReader<TcpStream>, text: &str) {
    client.get_mut().write_all(text.as_bytes()).unwrap();
}

fn until(condition: impl Fn() -> bool) {
    let deadline = after(Duration::from_secs(60));
    while !condition() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

fn line(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

/// Answers each line with this name and how many have come before, in all processes, which is its state: that is
/// so large, and of bytes of every kind.
fn counts(name: &'static str, size: usize) -> impl Fn(&mut Stream) -> io::Result<()> {
    move |stream| {
        let mut count = stream.state().map_or(0, |state| state[0]);
        let mut state: Vec<u8> = (0..=u8::MAX).rev().cycle().take(size).collect();
        assert!(stream.state().is_none_or(|moved| moved[1..] == state[1..]));
        loop {
            state[0] = count;
            match stream.wait(&state)? {
                Next::Input => {
                    let line = line(stream);
                    write!(stream, "{name} {count} {line}")?;
                }
                _ => return Ok(()),
            }
            count += 1;
        }
    }
}

/// Drains one server and moves its connections to another.
fn hand_over(from: &mut Connections, to: &Connections) -> Mover {
    let (ours, theirs) = moving::pair().unwrap();
    let arrivals = Mover::start(theirs, to.arrivals(true, false)).unwrap();
    from.drain(Some(Mover::start(ours, from.arrivals(false, false)).unwrap()));
    arrivals
}

#[test]
fn a_connection_moves_with_up_to_4_kib_of_state() {
    let (mut first, address) = named("a b\n", counts("first", LARGEST_STATE));
    let (second, _) = named("a b\n", counts("second", LARGEST_STATE));
    let mut clients: Vec<_> = (0..50).map(|_| connect(address)).collect();
    for client in &mut clients {
        send(client, "hello\n");
        assert_eq!(line(client), "first 0 hello\n");
    }
    let _arrivals = hand_over(&mut first, &second);
    for client in &mut clients {
        send(client, "hel");
        send(client, "lo\n");
        // The first line may have been due when the drain began.
        let answer = line(client);
        assert!(answer == "second 1 hello\n" || answer == "first 1 hello\n", "{answer}");
        send(client, "again\n");
        assert_eq!(line(client), "second 2 again\n");
    }
    until(|| first.open() == 0);
    assert_eq!((second.open(), second.counts().moved), (50, 50));
}

#[test]
fn more_state_is_refused_and_the_connection_goes_on() {
    let (_server, address) = streams(Limits::default(), |stream| {
        let error = stream.wait(&[0; LARGEST_STATE + 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        writeln!(stream, "{error}")?;
        assert_eq!(stream.wait(&[0; LARGEST_STATE])?, Next::Input);
        let line = line(stream);
        stream.write_all(line.as_bytes())
    });
    let mut client = connect(address);
    assert_eq!(line(&mut client), "the state has 4097 bytes, more than 4096\n");
    send(&mut client, "hello\n");
    assert_eq!(line(&mut client), "hello\n");
}

#[test]
fn a_connection_stays_and_is_served_if_the_other_process_speaks_something_else() {
    let http = |handler: fn(&mut Request) -> ResponseBox| {
        let limits = Arc::default();
        start(&limits, Service::http(&limits, handler))
    };
    let answer: fn(&mut Request) -> ResponseBox = |_| crate::Response::from_string("hello\n").boxed();
    let other = |name| named(name, counts("second", 1));
    for (second, _) in [http(answer), other("line"), other("lines/2"), other("")] {
        let (mut first, address) = named("lines", counts("first", 1));
        let mut client = connect(address);
        send(&mut client, "1\n");
        assert_eq!(line(&mut client), "first 0 1\n");
        let _arrivals = hand_over(&mut first, &second);
        for count in 1..4 {
            send(&mut client, "more\n");
            assert_eq!(line(&mut client), format!("first {count} more\n"));
        }
        assert_eq!((first.open(), second.open()), (1, 0));
    }
    // Nor does HTTP go to what speaks something else.
    let (mut first, address) = http(answer);
    let (second, _) = other("");
    let mut client = connect(address);
    let mut arrivals = None;
    for _ in 0..2 {
        send(&mut client, "GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        while line(&mut client) != "hello\n" {}
        arrivals.get_or_insert_with(|| hand_over(&mut first, &second));
    }
    assert_eq!(second.counts().moved, 0);
}

/// A server whose function waits, answers each line, and reports what else it has waited for.
fn reporting(limits: Limits) -> (Connections, SocketAddr, Receiver<io::Result<Next>>) {
    let (report, reports) = mpsc::channel();
    let (server, address) = streams(limits, move |stream| {
        loop {
            match stream.wait(b"") {
                Ok(Next::Input) => {
                    let line = line(stream);
                    stream.write_all(line.as_bytes())?;
                }
                next => {
                    let _ = stream.write_all(b"bye\n");
                    report.send(next).unwrap();
                    return Ok(());
                }
            }
        }
    });
    (server, address, reports)
}

#[test]
fn the_function_learns_why_there_is_no_more_input_and_can_say_goodbye() {
    let patient = Limits::default();
    let impatient = Limits { idle_timeout: Duration::from_millis(100), ..patient };
    let narrow = Limits { max_connections: 1, ..patient };
    for (limits, end) in [(patient, "client"), (impatient, ""), (narrow, "capacity"), (patient, "stop")] {
        let (mut server, address, reports) = reporting(limits);
        let mut client = connect(address);
        send(&mut client, "hello\n");
        assert_eq!(line(&mut client), "hello\n");
        let mut others = Vec::new();
        match end {
            "client" => client.get_ref().shutdown(Shutdown::Write).unwrap(),
            "capacity" => others.push(connect(address)),
            "stop" => {
                server.close();
                server.close_idle();
            }
            _ => {}
        }
        assert_eq!(io::read_to_string(client).unwrap(), "bye\n", "{end}");
        assert_eq!(reports.recv().unwrap().unwrap(), Next::End);
    }
}

#[test]
fn a_stop_answers_what_has_come_and_ends_a_client_that_never_pauses() {
    let (mut server, address, reports) = reporting(Limits::default());
    let mut client = connect(address);
    send(&mut client, "half a ");
    until(|| server.counts().requests > 0);
    server.close();
    server.close_idle();
    assert_eq!(server.in_flight(), 1);
    send(&mut client, "line\nand one that has come\nand ");
    assert_eq!(line(&mut client), "half a line\n");
    // It does not end before it has sent that.
    let mut writer = client.get_ref().try_clone().unwrap();
    let flood = thread::spawn(move || while writer.write_all(b"more and more\n").is_ok() {});
    assert_eq!(reports.recv().unwrap().unwrap(), Next::End);
    let _ = client.get_ref().shutdown(Shutdown::Both);
    flood.join().unwrap();
}

#[test]
fn what_is_cut_fails_and_does_not_look_like_the_end_of_the_input() {
    let (report, reports) = mpsc::channel();
    let (mut server, address) = streams(Limits::default(), move |stream| {
        assert_eq!(stream.wait(b"")?, Next::Input);
        let read = io::read_to_string(&mut *stream);
        report.send((read, stream.write_all(b"!").and_then(|()| stream.flush()), stream.wait(b""))).unwrap();
        Ok(())
    });
    let mut client = connect(address);
    send(&mut client, "the beginning");
    until(|| server.counts().requests > 0);
    server.drain(None);
    assert_eq!(server.cut(), 1);
    let (read, written, next) = reports.recv().unwrap();
    let kinds = [read.unwrap_err(), written.unwrap_err(), next.unwrap_err()].map(|error| error.kind());
    assert_eq!(kinds, [ErrorKind::ConnectionAborted; 3]);
    assert_eq!(server.counts().lost, 1);
}

#[test]
fn what_has_been_moved_cannot_be_read_or_written_any_more() {
    let (report, reports) = mpsc::channel();
    let (mut first, address) = streams(Limits::default(), move |stream| {
        let next = stream.wait(&[0])?;
        let read = stream.read(&mut [0]).unwrap_err();
        let written = stream.write_all(b"!").and_then(|()| stream.flush()).unwrap_err();
        report.send((next, stream.wait(&[0])?, read.kind(), written.kind())).unwrap();
        Ok(())
    });
    let (second, _) = streams(Limits::default(), counts("second", 1));
    let mut client = connect(address);
    until(|| first.open() > 0);
    let _arrivals = hand_over(&mut first, &second);
    let gone = ErrorKind::NotConnected;
    assert_eq!(reports.recv().unwrap(), (Next::Moved, Next::Moved, gone, gone));
    send(&mut client, "hello\n");
    client.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(io::read_to_string(client).unwrap(), "second 0 hello\n");
}

#[test]
fn the_time_for_which_a_connection_has_been_at_rest_goes_on_where_it_has_been_moved_to() {
    let (server, address, reports) = reporting(Limits::default());
    let (ours, theirs) = moving::pair().unwrap();
    let _arrivals = Mover::start(theirs, server.arrivals(true, false)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for milliseconds in [0, 80_000] {
        let mut client = connect(listener.local_addr().unwrap());
        let (socket, peer) = listener.accept().unwrap();
        let message = format!("move 7 stream: used {milliseconds} {peer} {address}\n");
        let (bytes, numbers) = ([io::IoSlice::new(message.as_bytes())], [socket.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(ours.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        drop(socket);
        if milliseconds == 0 {
            send(&mut client, "hello\n");
            assert_eq!(line(&mut client), "hello\n");
        } else {
            assert_eq!(line(&mut client), "bye\n");
            assert_eq!(reports.recv().unwrap().unwrap(), Next::End);
        }
    }
}

#[test]
fn a_client_that_is_slow_between_two_waits_is_not_waited_for_any_longer() {
    let short = Duration::from_millis(200);
    let limits = Limits { body_timeout: short, write_timeout: short, ..Limits::default() };
    let (report, reports) = mpsc::channel();
    let (_server, address) = streams(limits, move |stream| {
        assert_eq!(stream.wait(b"")?, Next::Input);
        let failed = match line(stream).as_str() {
            "read\n" => stream.read_line(&mut String::new()).map(drop),
            _ => stream.write_all(&[b'!'; 32 << 20]),
        };
        report.send(failed.unwrap_err().kind()).unwrap();
        Ok(())
    });
    for what in ["read\nhalf a li", "write\n"] {
        let mut client = connect(address);
        send(&mut client, what);
        assert_eq!(reports.recv().unwrap(), ErrorKind::TimedOut, "{what}");
    }
}

#[test]
fn what_is_written_is_sent_before_anything_is_waited_for() {
    let (_server, address) = streams(Limits::default(), |stream| {
        write!(stream, "name? ")?;
        assert_eq!(stream.wait(b"")?, Next::Input);
        let name = line(stream);
        write!(stream, "age? ")?;
        let mut age = [0; 2];
        stream.read_exact(&mut age)?;
        stream.write_all(&vec![b'.'; 100_000])?;
        write!(stream, "{} is {}", name.trim_end(), String::from_utf8_lossy(&age))
    });
    let mut client = connect(address);
    for (question, answer) in [("name? ", "Ada\n"), ("age? ", "36 and more")] {
        let mut asked = vec![0; question.len()];
        client.read_exact(&mut asked).unwrap();
        assert_eq!(asked, question.as_bytes());
        send(&mut client, answer);
    }
    assert_eq!(io::read_to_string(client).unwrap(), ".".repeat(100_000) + "Ada is 36");
}

#[test]
fn what_is_written_arrives_although_the_client_has_sent_what_nothing_reads() {
    let (report, reports) = mpsc::channel();
    let (server, address) = streams(Limits::default(), move |stream| {
        assert_eq!(stream.wait(b"")?, Next::Input);
        stream.read_exact(&mut [0])?;
        stream.write_all(&vec![b'.'; 1 << 18])?;
        report.send(()).unwrap();
        Ok(())
    });
    let mut client = connect(address);
    send(&mut client, &"hello".repeat(1000));
    // The client reads only when all of it lies in the sockets.
    reports.recv().unwrap();
    until(|| server.in_flight() == 0);
    assert_eq!(io::read_to_string(client).unwrap().len(), 1 << 18);
}

#[test]
fn each_input_counts_as_a_request_and_a_panic_costs_one_connection() {
    let (server, address) = streams(Limits::default(), |stream| {
        while stream.wait(b"")? == Next::Input {
            let line = line(stream);
            assert_ne!(line, "panic\n", "as it should be");
            stream.write_all(line.as_bytes())?;
        }
        Ok(())
    });
    let mut clients = [connect(address), connect(address)];
    for text in ["a\n", "b\n"] {
        for client in &mut clients {
            send(client, text);
            assert_eq!(line(client), text);
        }
    }
    let [mut first, mut second] = clients;
    send(&mut first, "panic\n");
    assert_eq!(line(&mut first), "");
    send(&mut second, "c\n");
    assert_eq!(line(&mut second), "c\n");
    until(|| server.open() == 1);
    assert_eq!((server.counts().accepted, server.counts().requests), (2, 6));
}
