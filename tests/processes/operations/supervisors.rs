//! Under supervisord and s6 as they are, with the settings that the README gives.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;

use crate::client;
use crate::command::{Child, Command, Stderr};
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Gate, Held, install_script, number_after, signal_process, wait_until,
};
use crate::untested::is_installed;

/// A supervisor with the command as its one service, which logs to a file.
struct Supervisor {
    directory: Directory,
    process: Child,
    kind: Supervises,
}

#[derive(Clone, Copy)]
enum Supervises {
    Supervisord,
    S6,
}

impl Supervisor {
    /// Supervisord with these settings of the service as well; `None` if it is not installed.
    fn supervisord(settings: &str) -> Option<Supervisor> {
        if !is_installed("supervisord") {
            return None;
        }
        let directory = Directory::new();
        let path = directory.path().display();
        let configuration = format!(
            "[supervisord]\nnodaemon=true\nlogfile={path}/supervisord.log\npidfile={path}/supervisord.pid\n\
             [unix_http_server]\nfile={path}/socket\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{path}/socket\n\
             [program:handover]\nstderr_logfile=/dev/stderr\nstderr_logfile_maxbytes=0\nstopwaitsecs=25\n{settings}\n\
             command={BINARY} --stay --listen 127.0.0.1:0 --pid-file {path}/pid\n"
        );
        fs::write(directory.join("configuration"), configuration).unwrap();
        let mut command = Command::new("supervisord");
        command.arg("-c").arg(directory.join("configuration"));
        let supervisor = Supervisor::start(command, directory, Supervises::Supervisord);
        supervisor.expect_in_log("is ready", 1);
        Some(supervisor)
    }

    /// S6 with a service whose first act is this; `None` if it is not installed.
    fn s6(first: &str) -> Option<Supervisor> {
        if !is_installed("s6-svscan") {
            return None;
        }
        let directory = Directory::new();
        let service = directory.join("services/handover");
        fs::create_dir_all(&service).unwrap();
        fs::write(service.join("notification-fd"), "3\n").unwrap();
        let path = directory.path().display();
        let program = format!("{BINARY} --stay --ready-fd 3 --listen 127.0.0.1:0 --pid-file {path}/pid");
        install_script(&service.join("run"), &format!("{first}\nexec {program}"));
        let mut command = Command::new("s6-svscan");
        command.arg(directory.join("services"));
        Some(Supervisor::start(command, directory, Supervises::S6))
    }

    fn start(mut command: Command, directory: Directory, kind: Supervises) -> Supervisor {
        let said = File::create(directory.join("said")).unwrap();
        command.stdin(Stdio::null()).stdout(said).stderr(Stderr::file(&directory.join("log")));
        Supervisor { process: command.spawn().unwrap(), directory, kind }
    }

    /// Runs a program of s6 on the service.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let service = self.directory.join("services/handover");
        let output = Command::new(program).args(arguments).arg(service).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        output
    }

    /// What asks supervisord.
    fn supervisorctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("supervisorctl");
        command.arg("-c").arg(self.directory.join("configuration")).args(arguments);
        command
    }

    /// The process that it watches.
    fn watched(&self) -> u32 {
        let text = match self.kind {
            Supervises::Supervisord => {
                let children = format!("/proc/{0}/task/{0}/children", self.process.id());
                fs::read_to_string(children).unwrap()
            }
            Supervises::S6 => {
                // Until it knows that, it may not say which process it has started.
                self.run("s6-svwait", &["-U", "-t", "20000"]);
                String::from_utf8(self.run("s6-svstat", &["-o", "pid"]).stdout).unwrap()
            }
        };
        text.trim().parse().unwrap_or_else(|_| panic!("{text}\n{}", self.log()))
    }

    fn hand_over(&self) {
        let count = self.log().matches("handed over to successor").count();
        match self.kind {
            Supervises::Supervisord => {
                let output = self.supervisorctl(&["signal", "HUP", "handover"]).output().unwrap();
                assert!(output.status.success(), "{output:?}");
            }
            Supervises::S6 => drop(self.run("s6-svc", &["-h"])),
        }
        self.expect_in_log("handed over to successor", count + 1);
    }

    /// Begins to stop the service; the result ends when that is done.
    fn stop(&self) -> Child {
        let mut command = match self.kind {
            Supervises::Supervisord => self.supervisorctl(&["stop", "handover"]),
            Supervises::S6 => {
                let mut command = Command::new("s6-svc");
                command.args(["-wD", "-T", "25000", "-d"]).arg(self.directory.join("services/handover"));
                command
            }
        };
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    fn log(&self) -> String {
        self.process.catch_up();
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// Waits until a text has been logged so many times.
    fn expect_in_log(&self, text: &str, times: usize) {
        let said = || fs::read_to_string(self.directory.join("said")).unwrap();
        wait_until(
            || self.log().matches(text).count() >= times,
            || format!("no {text:?}, {times} times: {}\n{}", self.log(), said()),
        );
    }

    /// Where the service listens since it was started last.
    fn address(&self) -> SocketAddr {
        let log = self.log();
        let line = log.lines().rfind(|line| line.contains("listening on a new file descriptor, ")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn serving(&self) -> u32 {
        number_after(&client::get(self.address(), "/hello").unwrap().text(), "from ")
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.directory.end_processes();
    }
}

/// It sees one process, which is replaced under load and then stopped, with a request in flight in that process
/// and in its successor, which are answered.
fn is_replaced_and_stopped(supervisor: Supervisor) {
    let (watched, address) = (supervisor.watched(), supervisor.address());
    assert_eq!(watched, supervisor.serving());
    let load = Load::start(address, &Kind::ALL, 1);
    supervisor.hand_over();
    load.stop();
    assert_ne!(watched, supervisor.serving());
    assert_eq!(watched, supervisor.watched());
    let held = Held::begin(address);
    supervisor.hand_over();
    let other = Held::begin(address);
    let mut stop = supervisor.stop();
    supervisor.expect_in_log("SIGTERM: stopping", 1);
    supervisor.expect_in_log("SIGTERM: passed on to", 1);
    held.finish();
    other.finish();
    assert!(stop.wait().unwrap().success());
    assert!(client::get(address, "/").is_err());
    assert!(!supervisor.log().contains("cutting"), "{}", supervisor.log());
    if let Supervises::Supervisord = supervisor.kind {
        let log = fs::read_to_string(supervisor.directory.join("supervisord.log")).unwrap();
        assert!(log.contains("stopped: handover (exit status 0)") && !log.contains("killing"), "{log}");
    }
}

/// It starts the service anew if the process is killed that serves, whether that is the watched one or a successor.
fn is_started_again(supervisor: Supervisor) {
    for handovers in [0, 1] {
        let watched = supervisor.watched();
        let ready = supervisor.log().matches("is ready").count();
        if handovers > 0 {
            supervisor.hand_over();
            // Until then it would take back.
            supervisor.expect_in_log(&format!("process {watched} stays"), 1);
        }
        supervisor.expect_in_log("is ready", ready + handovers);
        signal_process(supervisor.serving(), Signal::SIGKILL);
        supervisor.expect_in_log("is ready", ready + handovers + 1);
        assert_ne!(supervisor.watched(), watched);
        assert_eq!(supervisor.watched(), supervisor.serving());
    }
}

#[test]
fn supervisord_sees_one_process_and_its_stop_loses_nothing() {
    Supervisor::supervisord("").into_iter().for_each(is_replaced_and_stopped);
}

#[test]
fn supervisord_that_stops_the_whole_group_loses_nothing() {
    Supervisor::supervisord("stopasgroup=true").into_iter().for_each(is_replaced_and_stopped);
}

#[test]
fn supervisord_starts_it_again_if_the_serving_process_is_killed() {
    Supervisor::supervisord("").into_iter().for_each(is_started_again);
}

#[test]
fn s6_sees_one_process_and_its_stop_loses_nothing() {
    let Some(supervisor) = Supervisor::s6("") else { return };
    supervisor.expect_in_log("is ready", 1);
    is_replaced_and_stopped(supervisor);
}

#[test]
fn s6_starts_it_again_if_the_serving_process_is_killed() {
    let Some(supervisor) = Supervisor::s6("") else { return };
    supervisor.expect_in_log("is ready", 1);
    is_started_again(supervisor);
}

#[test]
fn s6_knows_that_it_is_ready_and_that_it_still_is_after_a_handover() {
    let gates = Directory::new();
    let gate = Gate::new(&gates);
    let Some(supervisor) = Supervisor::s6(&gate.wait()) else { return };
    let status = || String::from_utf8(supervisor.run("s6-svstat", &["-o", "up,ready"]).stdout).unwrap();
    let opened = gate.expect_waiting();
    wait_until(|| status() == "true false\n", status);
    drop(opened);
    // This waits until it is ready.
    let watched = supervisor.watched();
    supervisor.expect_in_log("is ready", 1);
    assert_eq!(supervisor.serving(), watched);
    supervisor.hand_over();
    assert_eq!(status(), "true true\n");
    assert_ne!(supervisor.serving(), supervisor.watched());
    assert_eq!(watched, supervisor.watched());
}
