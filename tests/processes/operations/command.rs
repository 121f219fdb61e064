//! What the command, and a program that embeds the library, has to offer beside serving.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;
use std::{env, fs};

use handover::{Options, Request, Response};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use signal_hook::iterator::Signals;

use crate::client;
use crate::command::{Command, Stderr};
use crate::embedding::programs::log_to_standard_error;
use crate::server::{
    BINARY, Directory, Server, exited, install_script, number_after, signal_process, wait_for_end, wait_until,
};

/// Where the control socket of the embedding program is to be.
const EMBEDDED: &str = "HANDOVER_TEST_EMBEDDED";

/// A program that handles SIGUSR1 itself, and goes on when `serve` has returned.
fn embed(control: &str) {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    log_to_standard_error();
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
        program.args([
            "--exact",
            "operations::command::after_serve_a_signal_means_what_it_meant_before",
            "--nocapture",
        ]);
        program.env(EMBEDDED, &control).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stderr::Null);
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
fn a_text_ends_with_the_end_of_its_line() {
    let server = Server::start_for_load(&["--message", "Hi"]);
    for (path, expected) in [("/", "Hi\n"), ("/sleep?duration=1ms", "Hi\n"), ("/nowhere", "not found\n")] {
        assert_eq!(client::get(server.address, path).unwrap().body, expected.as_bytes());
    }
    let hello = format!("Hello from {}!\n", server.first());
    assert_eq!(client::get(server.address, "/hello").unwrap().body, hello.as_bytes());
}

/// What the command prints, on standard output and error, and its exit status.
fn run(arguments: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (String::from_utf8(printed).unwrap(), output.status.code())
}

#[test]
fn a_test_checks_everything_and_touches_nothing() {
    let server = Server::start_replaceable(&[]);
    let config = server.directory.join("config");
    let (pid_file, control) = (server.directory.join("pid"), server.directory.join("control"));
    let address = server.address.to_string();
    let [config, pid_file, control] = [&config, &pid_file, &control].map(|path| path.to_str().unwrap());
    let test = |content: &str| {
        fs::write(config, content).unwrap();
        let others = ["--config", config, "--pid-file", pid_file, "--control", control, "--takeover"];
        let (printed, status) = run(&[&["-t", "--listen", &address][..], &others].concat());
        (printed.replace(config, "FILE"), status)
    };
    assert_eq!(test("message = Hi"), ("ok\n".to_owned(), Some(0)));
    let expected = "handover: FILE:2: invalid value \"x\", expected true or false\n";
    assert_eq!(test("\noverlap = x"), (expected.to_owned(), Some(2)));
    let (printed, status) = run(&["--test", "--listen", "no..name:80"]);
    assert!(printed.starts_with("handover: cannot listen on no..name:80: "), "{printed}");
    assert_eq!(status, Some(2));
    server.expect_alone(server.first());
}

#[test]
fn an_address_that_is_given_twice_is_found_by_the_check_and_at_the_start() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let directory = Directory::new();
    let unix = format!("unix:{}", directory.join("socket").display());
    let [one, any, name] = ["127.0.0.1", "0.0.0.0", "localhost"].map(|host| format!("{host}:{port}"));
    let (twice, overlap) = ("it is given twice".to_owned(), "it overlaps with ".to_owned());
    for (first, second, reason) in [
        (&one, &one, twice.clone()),
        (&unix, &unix, twice.clone()),
        (&"unix:@handover".to_owned(), &"unix:@handover".to_owned(), twice.clone()),
        (&name, &one, twice),
        (&any, &one, overlap.clone() + &any),
        (&one, &any, overlap + &one),
    ] {
        let expected = format!("handover: cannot listen on {second}: {reason}\n");
        assert_eq!(run(&["-t", "--listen", first, "--listen", second]), (expected.clone(), Some(2)));
        assert_eq!(run(&["--listen", first, "--listen", second]), (expected, Some(1)));
    }
    let other = format!("127.0.0.2:{port}");
    for (first, second) in [("127.0.0.1:0", "127.0.0.1:0"), (&one, &other)] {
        assert_eq!(run(&["-t", "--listen", first, "--listen", second]), ("ok\n".to_owned(), Some(0)));
    }
}

#[test]
fn a_restart_is_answered_with_what_is_wrong_with_the_settings() {
    let directory = Directory::new();
    let config = directory.join("config");
    fs::write(&config, "").unwrap();
    let server = Server::start_replaceable_in(directory, &["--config", config.to_str().unwrap()]);
    let restart = || {
        let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
        let successor = number_after(&answer, "successor ");
        let beginning = format!("error: successor {successor} exited with status 2 before it was ready: ");
        answer.strip_prefix(&beginning).unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    fs::write(&config, "# wrong\nnonsense = 1").unwrap();
    assert_eq!(restart(), format!("{}:2: unknown option \"nonsense\"", config.display()));
    fs::write(&config, "").unwrap();
    install_script(&server.program(), &format!("exec {BINARY} \"$@\" --nonsense"));
    assert_eq!(restart(), "invalid option '--nonsense'");
    assert_eq!(server.hello(), server.first());
}

#[test]
fn a_wait_lasts_as_long_as_the_predecessor() {
    let server = Server::start_replaceable(&[]);
    let control = server.directory.join("control");
    let ask = |request: &str| run(&["-s", request, "--control", control.to_str().unwrap()]);
    assert_eq!(ask("wait"), ("ok\n".to_owned(), Some(0)));
    let held = server.hold();
    let successor = server.hand_over();
    assert!(ask("status").0.contains(" predecessors=1 "));
    let descriptors = || fs::read_dir(format!("/proc/{successor}/fd")).unwrap().count();
    let before = descriptors();
    let wait = || {
        let mut client = UnixStream::connect(&control).unwrap();
        client.write_all(b"wait\n").unwrap();
        client
    };
    let clients: Vec<UnixStream> = (0..5).map(|_| wait()).collect();
    // One that closes its sending side only still waits.
    let patient = wait();
    patient.shutdown(Shutdown::Write).unwrap();
    wait_until(|| descriptors() == before + 6, || format!("{} descriptors", descriptors()));
    // It looks at them in the same moment as at this request.
    assert!(ask("status").0.contains(" predecessors=1 "));
    drop(clients);
    wait_until(|| descriptors() == before + 1, || format!("{} descriptors", descriptors()));
    held.finish();
    assert_eq!(io::read_to_string(patient).unwrap(), "ok\n");
    assert_eq!(ask("wait"), ("ok\n".to_owned(), Some(0)));
    assert!(ask("status").0.contains(" predecessors=0 "));
    server.expect_processes(&[successor]);
}

#[test]
fn what_cannot_work_is_refused() {
    for (arguments, expected) in [
        (["--idle-timeout", "0s"], "a time greater than 0, such as 20s, 500ms or 1m"),
        (["--ready-timeout", "0s"], "a time greater than 0, such as 20s, 500ms or 1m"),
        (["--drain-timeout", "soon"], "a time such as 20s, 500ms, 1m or 0s"),
        (["--control", ""], "a path"),
        (["--pid-file", ""], "a path"),
        (["--signal", "resart"], "status, restart, reload, stop or wait"),
    ] {
        let [flag, value] = arguments;
        let expected = format!("handover: {flag}: invalid value {value:?}, expected {expected}\n");
        assert_eq!(run(&["-t", flag, value]), (expected, Some(2)));
    }
    assert_eq!(run(&["-t", "--drain-timeout", "0s", "--probation", "0s"]), ("ok\n".to_owned(), Some(0)));
}

#[test]
fn a_drain_timeout_of_0s_cuts_at_once() {
    let server = Server::start_for_load(&["--drain-timeout", "0s"]);
    let held = server.hold();
    server.signal(Signal::SIGTERM);
    server
        .expect("the drain deadline has passed: cutting what is in flight, connections=1 in-flight=1 lost=1");
    assert_eq!(wait_for_end(server.first()), exited(server.first(), 1));
    drop(held);
}

#[test]
fn a_variable_that_is_not_understood_silences_nothing() {
    let log = |value: &str| {
        let mut command = Command::new(BINARY);
        command.env("RUST_LOG", value).args(["--listen", "127.0.0.1:0", "--log-level", "debug"]);
        let server = Server::start_command(command, Directory::new());
        server.get("/");
        server.expect("GET /");
        server.log()
    };
    for value in ["verbose", "handover=loud", "=info", "info/a/b", "\u{1b}"] {
        let log = log(value);
        assert!(log.contains(" WARN  RUST_LOG is not understood, so --log-level decides: "), "{log}");
    }
    for value in ["", "debug", "warn,handover=debug", "handover", "debug/e"] {
        assert!(!log(value).contains("RUST_LOG"), "{value}");
    }
}

/// The journal is told by the device and the inode of the socket that it reads.
#[test]
fn the_journal_gets_priorities_and_no_time() {
    let directory = Directory::new();
    let script = "JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr) exec \"$@\"";
    let mut command = Command::new("sh");
    command.args([
        "-c",
        script,
        "sh",
        BINARY,
        "--listen",
        "127.0.0.1:0",
        "--log-level",
        "debug",
        "--pid-file",
    ]);
    command.arg(directory.join("pid"));
    let server = Server::start_command(command, directory);
    let successor = server.hand_over();
    server.get("/");
    server.expect("GET /");
    server.stop();
    server.expect(&format!("process {successor} ends"));
    for line in server.log().lines() {
        let (priority, rest) = line.split_at(3);
        let (pid, level) = rest.split_once(' ').unwrap();
        assert!(pid.parse::<u32>().is_ok(), "{line}");
        let expected = match level.split(' ').next().unwrap() {
            "ERROR" => "<3>",
            "WARN" => "<4>",
            "INFO" => "<6>",
            "DEBUG" => "<7>",
            _ => panic!("{line}"),
        };
        assert_eq!(priority, expected, "{line}");
    }
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", BINARY, "--listen", "nowhere"]);
    let output = command.output().unwrap();
    assert!(output.stderr.starts_with(b"<3>handover: --listen: invalid value"), "{output:?}");
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
