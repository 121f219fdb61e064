//! In a terminal, with a shell that controls jobs: what Ctrl-C does, and what closing the terminal does.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;

use crate::client;
use crate::command::{Child, Command, Stderr};
use crate::server::{
    BINARY, Directory, expect_at_rest, expect_dead, number_after, signal_process, wait_until,
};
use crate::untested::is_installed;

const CTRL_C: &str = "\x03";
const PROMPT: &str = "what next? ";

/// A terminal, as script(1) makes it, with a shell in which the command runs, and logs to a file.
struct Terminal {
    directory: Directory,
    script: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// A terminal for each shell in which the command has been started in this way.
    fn with_each_shell(before: &str, arguments: &str, then: fn(Terminal)) {
        if !is_installed("script") {
            return;
        }
        for shell in ["sh", "bash --norc"].into_iter().filter(|shell| is_installed(shell)) {
            then(Terminal::start(shell, &format!("{before} {BINARY} {arguments}")));
        }
    }

    fn start(shell: &str, command: &str) -> Terminal {
        let directory = Directory::new();
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &format!("exec {shell} -i"), "/dev/null"]);
        script.current_dir(directory.path()).env_remove("ENV").stderr(Stderr::file(&directory.join("log")));
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut output, shown) = (script.stdout.take().unwrap(), Arc::clone(&screen));
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                *shown.lock().unwrap() += &String::from_utf8_lossy(&piece[..length]);
            }
        });
        // Standard error of script(1), which is not the terminal.
        let log = format!("/proc/{}/fd/2", script.id());
        let mut terminal = Terminal { keyboard: script.stdin.take().unwrap(), script, directory, screen };
        // As it is typed, it is no prompt.
        terminal.press(&format!("PS1='{}''{}'\n", &PROMPT[..4], &PROMPT[4..]));
        terminal.expect_prompts(1);
        terminal.press(&format!("{command} --listen 127.0.0.1:0 --pid-file pid 2>>{log}\n"));
        terminal.expect_in_log("is ready");
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the shell has shown so many prompts.
    fn expect_prompts(&self, count: usize) {
        let screen = || self.screen.lock().unwrap().clone();
        wait_until(|| screen().matches(PROMPT).count() >= count, || format!("{}\n{}", screen(), self.log()));
    }

    /// Closes the terminal, and waits until the shell has ended, and has passed on what it passes on.
    fn close(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.script.id());
        let shell = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        self.script.kill().unwrap();
        self.script.wait().unwrap();
        expect_dead(shell);
    }

    fn log(&self) -> String {
        self.script.catch_up();
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    fn expect_in_log(&self, text: &str) {
        wait_until(|| self.log().contains(text), || format!("no {text:?}:\n{}", self.log()));
    }

    fn hello(&self) -> u32 {
        let log = self.log();
        let address: SocketAddr =
            log.lines().find_map(|line| line.split_once("descriptor, ")).unwrap().1.parse().unwrap();
        number_after(&client::get(address, "/hello").unwrap().text(), "from ")
    }

    /// The process in the PID file.
    fn pid(&self) -> u32 {
        fs::read_to_string(self.directory.join("pid")).unwrap().trim().parse().unwrap()
    }

    /// Hands over, and waits until the process before says how it goes on.
    fn hand_over(&self, then: &str) -> u32 {
        let before = self.pid();
        signal_process(before, Signal::SIGUSR2);
        self.expect_in_log(&format!("process {before} {then}"));
        self.pid()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
        self.directory.end_processes();
    }
}

#[test]
fn the_prompt_returns_after_a_handover_and_ctrl_c_does_not_reach_the_server() {
    Terminal::with_each_shell("", "", |mut terminal| {
        let successor = terminal.hand_over("ends");
        terminal.expect_prompts(2);
        terminal.press(CTRL_C);
        terminal.expect_prompts(3);
        expect_at_rest(successor);
        assert_eq!(terminal.hello(), successor);
        assert!(!terminal.log().contains("SIGINT"), "{}", terminal.log());
        terminal.press("kill -INT $(cat pid)\n");
        expect_dead(successor);
    });
}

#[test]
fn ctrl_c_stops_a_server_that_stays_before_a_handover_and_after_it() {
    Terminal::with_each_shell("", "--stay", |mut terminal| {
        let watched = terminal.pid();
        let successor = terminal.hand_over("stays until");
        assert_eq!(terminal.hello(), successor);
        terminal.press(CTRL_C);
        expect_dead(successor);
        expect_dead(watched);
        terminal.expect_prompts(2);
    });
    Terminal::with_each_shell("", "", |mut terminal| {
        let pid = terminal.pid();
        terminal.press(CTRL_C);
        expect_dead(pid);
        terminal.expect_prompts(2);
    });
}

#[test]
fn to_close_the_terminal_is_a_handover() {
    Terminal::with_each_shell("", "", |mut terminal| {
        let pid = terminal.pid();
        terminal.close();
        terminal.expect_in_log(&format!("process {pid} ends"));
        assert!(terminal.log().contains("SIGHUP: handing over"), "{}", terminal.log());
        assert_ne!(terminal.hello(), pid);
    });
}

#[test]
fn to_close_the_terminal_does_nothing_under_nohup_or_setsid() {
    for before in ["nohup", "setsid"] {
        Terminal::with_each_shell(before, "", |mut terminal| {
            let pid = terminal.hand_over("ends");
            terminal.close();
            expect_at_rest(pid);
            assert_eq!(terminal.hello(), pid);
            assert!(!terminal.log().contains("SIGHUP"), "{}", terminal.log());
        });
    }
}
