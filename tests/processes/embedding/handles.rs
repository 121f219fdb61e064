//! Handles: a program stops, replaces and looks at its servers itself.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use handover::{
    Handle, Handler, Options, Request, Response, ResponseBox, Server as Bound, State, report_failure,
};
use nix::sys::signal::Signal;

use crate::client::{self, Client};
use crate::embedding::programs::{install_program, start};
use crate::server::{exited, install_script, signal_process, wait_for_end, wait_until};

/// An embedding program that answers what comes of requests to itself.
pub fn run_one(options: Options) -> ExitCode {
    let server = Bound::bind(options).unwrap();
    let handle = server.handle();
    match fs::read_to_string("journal").as_deref() {
        Ok("fail") => {
            report_failure("a table is missing");
            drop(server);
        }
        Ok("drop") => return ExitCode::FAILURE,
        _ => return server.serve(One(handle)).unwrap().into(),
    }
    assert_eq!(handle.status().state, State::Ended);
    // It should exit, and does not.
    thread::sleep(Duration::from_secs(60));
    ExitCode::FAILURE
}

struct One(Handle);

impl Handler for One {
    fn handle(&self, request: &mut Request) -> ResponseBox {
        answer(request, &self.0)
    }

    /// Asks for what it does itself, if it is told to.
    fn reload(&self, _: &mut Options) -> Result<(), String> {
        match fs::read_to_string("journal").as_deref() {
            Ok("reload") => self.0.reload().map_err(|error| error.to_string()),
            _ => Ok(()),
        }
    }
}

/// Another one: two servers, of which only the first has a control socket.
pub fn run(options: Options) -> ExitCode {
    let other = Options { control: None, ..options.clone() };
    let servers = [options, other].map(|options| Bound::bind(options).unwrap());
    let threads = servers.map(|server| {
        let handle = server.handle();
        assert_eq!((handle.status().state, server.addresses().len()), (State::Starting, 1));
        let stays = handle.clone();
        let thread =
            thread::spawn(move || server.serve(move |request: &mut Request| answer(request, &handle)));
        (stays, thread)
    });
    for (handle, thread) in threads {
        assert_eq!(thread.join().unwrap().unwrap().cut, 0);
        assert_eq!(handle.status().state, State::Ended);
        assert!(handle.wait_until(Duration::MAX, |status| status.state.serves()).is_none());
        assert!(handle.restart().unwrap_err().to_string().ends_with("the server has ended"));
    }
    ExitCode::SUCCESS
}

fn answer(request: &mut Request, handle: &Handle) -> ResponseBox {
    let done =
        |result: Result<(), handover::Error>| result.map_or_else(|error| error.to_string(), |()| "ok".into());
    let text = match request.url() {
        "/status" => handle.status().to_string(),
        "/reload" => done(handle.reload()),
        "/restart" => done(handle.restart()),
        "/stop" => {
            handle.stop();
            handle.wait_until(Duration::MAX, |status| !status.state.serves()).unwrap().to_string()
        }
        _ => {
            let mut body = String::new();
            request.as_reader().read_to_string(&mut body).unwrap();
            body
        }
    };
    Response::from_string(text).boxed()
}

#[test]
fn two_servers_in_one_process_have_a_handle_each_and_share_its_signals() {
    let server = start("two", "");
    server.expect("is ready");
    let listening = server.log();
    let addresses = listening.lines().filter_map(|line| Some(line.split_once("descriptor, ")?.1));
    let addresses: Vec<std::net::SocketAddr> = addresses.map(|address| address.parse().unwrap()).collect();
    let [first, second] = addresses[..] else { panic!("{listening}") };
    assert!(client::get(first, "/status").unwrap().text().contains(" state=running "));
    let reason = "cannot reload: nothing is changed: the program has nothing to reload";
    assert_eq!(client::get(first, "/reload").unwrap().text(), reason);
    // Its own ends with its last response.
    let status = client::get(second, "/stop").unwrap().text();
    assert!(status.contains(" state=stopping ") && status.contains(" in-flight=1 "), "{status}");
    server.expect("ends");
    assert!(client::get(second, "/status").is_err());
    // When the other one no longer waits for signals, they still are for the first.
    let tasks = format!("/proc/{}/task", server.first());
    let signal_threads = || {
        let tasks = fs::read_dir(&tasks).unwrap().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name == "signals\n").count()
    };
    wait_until(|| signal_threads() == 1, || "its thread does not end".to_owned());
    let mut client = Client::connect(first).unwrap();
    let head = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    client.send(head).unwrap();
    assert_eq!(client.receive_head().unwrap().status, 100);
    signal_process(server.first(), Signal::SIGTERM);
    server.expect("SIGTERM: stopping");
    client.send("hi").unwrap();
    assert_eq!(client.receive().unwrap().text(), "hi");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
}

#[test]
fn a_program_replaces_itself_and_learns_why_that_has_failed() {
    let server = start("one", "");
    let first = server.first();
    install_script(&server.program(), "exit 1");
    let answer = server.get("/restart");
    let expected = "cannot hand over: successor ";
    assert!(
        answer.starts_with(expected) && answer.ends_with("exited with status 1 before it was ready"),
        "{answer}"
    );
    install_program(&server.program());
    let mut client = Client::connect(server.address).unwrap();
    assert_eq!(client.get("/restart").unwrap().text(), "ok");
    let successor = server.expect_handover();
    assert_eq!(wait_for_end(first), exited(first, 0));
    assert!(client.get("/status").unwrap().text().starts_with(&format!("pid={successor} state=running ")));
    assert_eq!(server.stop(), exited(successor, 0));
}

#[test]
fn a_program_that_gives_up_before_it_serves_leaves_its_predecessor_as_it_was() {
    let server = start("one", "ready-timeout=3600000");
    // It need not exit if it says why.
    let said = "closed the link before it was ready, and was killed by SIGKILL: a table is missing";
    for (how, expected) in [("fail", said), ("drop", "exited with status 101 before it was ready")] {
        fs::write(server.directory.join("journal"), how).unwrap();
        let answer = server.get("/restart");
        assert!(answer.ends_with(expected), "{answer}");
        server.expect_processes(&[server.first()]);
    }
    assert_eq!(server.stop(), exited(server.first(), 0));
}

#[test]
fn a_reload_that_asks_for_itself_is_refused() {
    let server = start("one", "");
    assert_eq!(server.get("/reload"), "ok");
    fs::write(server.directory.join("journal"), "reload").unwrap();
    let reason = "refused, this reload asks for it itself";
    assert_eq!(server.get("/reload"), format!("cannot reload: nothing is changed: cannot reload: {reason}"));
    fs::remove_file(server.directory.join("journal")).unwrap();
    assert_eq!(server.get("/reload"), "ok");
}

#[test]
fn a_process_that_stays_waits_for_its_successors_on_whichever_thread_it_serves() {
    // As each of these programs, it does on another one than the main thread.
    let server = start("hello", "stay");
    let first = server.first();
    let successors = [(); 4].map(|()| server.hand_over());
    server.expect(&format!("process {first} stays"));
    for pid in &successors[..3] {
        let stat = format!("/proc/{pid}/stat");
        wait_until(|| !Path::new(&stat).exists(), || fs::read_to_string(&stat).unwrap_or_default());
    }
    signal_process(first, Signal::SIGTERM);
    assert_eq!(wait_for_end(first), exited(first, 0));
}
