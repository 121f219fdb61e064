//! Programs that embed the library: the examples, and those that only a test needs.
//!
//! The test binary itself is each of them, so that they are built whenever the tests are: the environment names
//! the program, and its options. A new one is a function in [`PROGRAMS`].

use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{self, ExitCode, Termination};
use std::time::Duration;
use std::{env, fs};

use handover::Options;

use crate::client::Client;
use crate::command::{Command, Untraced};
use crate::load::{Kind, Load};
use crate::server::{Directory, Server, exited, install_script, wait_for_end};
use crate::untested::is_installed;

#[path = "../../../examples/guests.rs"]
#[allow(dead_code)]
mod guests;
#[path = "../../../examples/hello.rs"]
#[allow(dead_code)]
mod hello;
#[path = "../../../examples/job.rs"]
#[allow(dead_code)]
mod job;
#[path = "../../../examples/lines.rs"]
#[allow(dead_code)]
mod lines;
#[path = "../../../examples/udp.rs"]
#[allow(dead_code)]
mod udp;

type Run = fn(Options) -> ExitCode;

const PROGRAMS: &[(&str, Run)] = &[
    ("hello", |options| hello::run(options).report()),
    ("deadline", crate::connections::streams::run),
    ("events", crate::embedding::jobs::run_events),
    ("flush", crate::embedding::jobs::run_flush),
    ("guests", |options| guests::run(options).report()),
    ("job", |options| job::run(options).report()),
    ("last", crate::embedding::jobs::run_last),
    ("lines", |options| lines::run(options).report()),
    ("lock", crate::protocol::handed_on::run),
    ("one", crate::embedding::handles::run_one),
    ("own", crate::embedding::own_sockets::run),
    ("sigpipe", crate::operations::sigpipe::run),
    ("two", crate::embedding::handles::run),
    ("udp", |options| udp::run(options).report()),
];

/// The variable that names the program.
const PROGRAM: &str = "HANDOVER_TEST_PROGRAM";
/// The variable with its options; see [`options`].
const OPTIONS: &str = "HANDOVER_TEST_OPTIONS";

/// No test, but the programs.
#[test]
#[ignore = "other tests start it"]
fn embedding_program() -> ExitCode {
    log_to_standard_error();
    let name = env::var(PROGRAM).expect(PROGRAM);
    let (_, run) = PROGRAMS.iter().find(|(known, _)| *known == name).expect("a known program");
    run(options(&env::var(OPTIONS).unwrap_or_default()))
}

/// Options from words such as `stay` and `control=/path`.
fn options(words: &str) -> Options {
    let mut options = Options { listen: vec!["127.0.0.1:0".to_owned()], ..Options::default() };
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let milliseconds = || Duration::from_millis(value.parse().unwrap());
        match name {
            "control" => options.control = Some(value.into()),
            "drain-timeout" => options.drain_timeout = milliseconds(),
            "listen" => options.listen = value.split_terminator(',').map(str::to_owned).collect(),
            "max-connections" => options.limits.max_connections = value.parse().unwrap(),
            "no-move" => options.move_connections = false,
            "other-successor" => {
                options.program = Some(Path::new(&env::var("directory").unwrap()).join("other"));
                options.arguments = Some(["an argument", "--"].map(Into::into).to_vec());
            }
            "overlap" => options.overlap = true,
            "pid-file" => options.pid_file = Some(Path::new(&env::var("directory").unwrap()).join("pid")),
            "probation" => options.probation = milliseconds(),
            "ready-fd" => options.ready_fd = Some(value.parse().unwrap()),
            "ready-timeout" => options.ready_timeout = milliseconds(),
            "stay" => options.stay = true,
            "takeover" => options.takeover = true,
            "unix" => {
                let path = Path::new(&env::var("directory").unwrap()).join("socket");
                options.listen.push(format!("unix:{}", path.display()));
            }
            _ => panic!("no option is called {name:?}"),
        }
    }
    options
}

/// Starts logging, without which a program leaves no trace.
pub fn log_to_standard_error() {
    log::set_logger(&StandardError).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
}

/// Logs as the command does, without the time and the responses.
struct StandardError;

impl log::Log for StandardError {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        match metadata.level() {
            log::Level::Debug => metadata.target() == "handover::trace",
            _ => metadata.target() != "handover::access",
        }
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {:<5} {}\n", process::id(), record.level(), record.args());
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts a program with a control socket and these options, and waits until it is ready.
pub fn start(program: &str, options: &str) -> Server {
    start_by("", program, options)
}

/// The same by way of a shell that runs a script before. `$directory` is that of the server.
pub fn start_by(script: &str, program: &str, options: &str) -> Server {
    let directory = Directory::new();
    install_program(&directory.join("program"));
    Server::start_command(command(script, program, options, &directory), directory)
}

/// Starts a program that takes over from this server, whose first process was that of `first`.
pub fn take_over(server: &Server, first: &Server, program: &str) -> Server {
    let options = format!("takeover listen={}", first.address);
    let taker = command("", program, &options, &first.directory);
    let taker = Server::start_command(taker, Directory::new());
    server.expect(&format!("handed over to successor {}", taker.first()));
    taker
}

fn command(script: &str, program: &str, options: &str, directory: &Directory) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{script} exec \"$@\""), "sh"]).arg(directory.join("program"));
    command.args(["--ignored", "--exact", "embedding::programs::embedding_program", "--nocapture"]);
    let control = directory.join("control");
    command.env(OPTIONS, format!("control={} {options}", control.display()));
    command.env(PROGRAM, program);
    if program == "two" {
        command.untraced(Untraced::TwoServers);
    }
    command.env("directory", directory.path()).current_dir(directory.path());
    command
}

/// Puts the programs in the place of whatever program is there, in one step.
pub fn install_program(path: &Path) {
    let link = path.with_extension("new");
    symlink(env::current_exe().unwrap(), &link).unwrap();
    fs::rename(link, path).unwrap();
}

#[test]
fn a_program_says_which_program_its_successor_is_and_with_which_arguments() {
    let server = start("hello", "other-successor");
    let [program, arguments] = ["program", "arguments"].map(|name| server.directory.join(name));
    let own = "--ignored --exact embedding::programs::embedding_program --nocapture";
    let script =
        format!("printf '%s;' \"$0\" \"$@\" >{}; exec {} {own}", arguments.display(), program.display());
    let other = server.directory.join("other");
    install_script(&other, &script);
    for _ in 0..2 {
        let old = server.serving();
        let new = server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
        assert_eq!(server.hello(), new);
        let called = fs::read_to_string(&arguments).unwrap();
        assert_eq!(called, format!("{};an argument;--;", other.display()));
        fs::remove_file(&arguments).unwrap();
    }
}

#[test]
fn what_a_predecessor_has_said_in_the_environment_is_not_believed_without_its_link() {
    if !is_installed("python3") {
        return;
    }
    // As in what a handler of a successor starts. Behind the second, there is a socket, but no link.
    let sockets = "python3 -c 'import os, socket, sys; s = socket.socket(); s.listen(); \
                   os.dup2(s.fileno(), 3); os.set_inheritable(3, True); os.execv(sys.argv[1], sys.argv[1:])'";
    for script in ["HANDOVER=1", &format!("exec env HANDOVER=1 {sockets} \"$@\";")] {
        let server = start_by(script, "hello", "");
        assert!(server.log().contains("listening on a new file descriptor"), "{}", server.log());
        assert_eq!(server.hello(), server.first());
        // The variable is not there twice.
        let successor = server.hand_over();
        let environment = fs::read(format!("/proc/{successor}/environ")).unwrap();
        let variables = environment.split(|&byte| byte == 0);
        assert_eq!(variables.filter(|variable| variable.starts_with(b"HANDOVER=")).count(), 1);
    }
}

#[test]
fn the_smallest_program_is_replaced_under_load_and_nothing_is_lost() {
    let server = start("hello", "");
    let load = Load::start(server.address, &[Kind::Close, Kind::KeepAlive, Kind::Naive], 4);
    let mut client = Client::connect(server.address).unwrap();
    for _ in 0..5 {
        let old = server.serving();
        assert_eq!(client.get("/").unwrap().text(), format!("Hello from {old}!"));
        let new = server.hand_over();
        assert_eq!(wait_for_end(old), exited(old, 0));
        // On the same connection.
        assert_eq!(client.get("/").unwrap().text(), format!("Hello from {new}!"));
    }
    // One that fails changes nothing.
    install_script(&server.program(), "exit 1");
    let old = server.serving();
    let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
    assert!(answer.ends_with("exited with status 1 before it was ready"), "{answer}");
    install_program(&server.program());
    assert_eq!(server.hello(), old);
    let last = server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    load.stop();
    assert_eq!(server.stop(), exited(last, 0));
}
