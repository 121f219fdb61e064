//! What the command, and a program that embeds the library, has to offer beside serving.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;

use handover::{Options, Request, Response};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use signal_hook::iterator::Signals;

use crate::server::{Directory, Server, exited, signal_process, wait_for_end, wait_until};

/// Where the control socket of the embedding program is to be.
const EMBEDDED: &str = "HANDOVER_TEST_EMBEDDED";

/// A program that handles SIGUSR1 itself, and goes on when `serve` has returned.
fn embed(control: &str) {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let mut own = Signals::new([Signal::SIGUSR1 as i32]).unwrap();
    thread::spawn(move || own.forever().for_each(|_| println!("embed: SIGUSR1")));
    for _ in 0..2 {
        let options = Options {
            listen: vec!["127.0.0.1:0".to_owned()],
            control: Some(control.into()),
            ..Options::default()
        };
        handover::serve(options, |_: &mut Request| Response::empty(204).boxed()).unwrap();
        println!("embed: returned");
    }
    io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn after_serve_a_signal_means_what_it_meant_before() {
    if let Ok(control) = env::var(EMBEDDED) {
        return embed(&control);
    }
    for signal in [Signal::SIGUSR2, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT] {
        let directory = Directory::new();
        let control = directory.join("control");
        let mut program = Command::new(env::current_exe().unwrap());
        program.args(["--exact", "command::after_serve_a_signal_means_what_it_meant_before", "--nocapture"]);
        program.env(EMBEDDED, &control).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = program.spawn().unwrap();
        let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut expect = |text: &str| assert!(lines.any(|line| line.contains(text)), "no {text:?}");
        for _ in 0..2 {
            wait_until(|| handover::ask(&control, "stop").is_ok(), || "no server answers".to_owned());
            expect("embed: returned");
        }
        signal_process(program.id(), Signal::SIGUSR1);
        expect("embed: SIGUSR1");
        signal_process(program.id(), Signal::SIGCHLD);
        let mut end = None;
        let has_ended = || {
            // Not at once, because a stop may come twice.
            signal_process(program.id(), signal);
            end = program.try_wait().unwrap();
            end.is_some()
        };
        wait_until(has_ended, || format!("{signal} does not end the program"));
        assert_eq!(end.and_then(|end| end.signal()), Some(signal as i32));
    }
}

#[test]
fn a_stop_that_comes_twice_kills_no_process_that_is_about_to_exit() {
    for _ in 0..10 {
        let server = Server::start_for_load(&[]);
        server.signal(Signal::SIGTERM);
        server.expect(&format!("process {} ends", server.first()));
        server.signal(Signal::SIGTERM);
        assert_eq!(wait_for_end(server.first()), exited(server.first(), 0));
    }
}
