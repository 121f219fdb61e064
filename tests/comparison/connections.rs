//! What becomes of open connections when a server is replaced while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{Load, Measured, Pace};
use crate::servers::{self, Server, is_running};
use crate::{DURATION, Figure, ROUNDS};

const BUSY: usize = 100;
const IDLE: usize = 900;

/// After each of these another one of the idle connections is used: each once or twice in all.
const PAUSE: Duration = Duration::from_millis(25);

/// From one signal to the next, unless the predecessor is still there.
const PERIOD: Duration = Duration::from_millis(200);

/// When to give up.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn compare(directory: &Path) {
    let replaceable = || [Some(handover(directory)), go(directory), nginx(directory)].into_iter().flatten();
    println!(
        "\n| {IDLE} idle and {BUSY} busy, kept alive; without and with handovers | handovers | connects | lost \
         | thousand requests/s | p50 us | p99.9 us | slowest ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let times: Vec<_> = replaceable().map(|server| (server.name, server.measure())).collect();
    println!("\n| signal to exit of the predecessor | ms |\n|---|---|");
    for idle in [32, 5000] {
        println!("| handover, {idle} idle | {} |", handover(directory).of_idle(idle).spread());
    }
    for (name, times) in times {
        println!("| {name}, {IDLE} idle and {BUSY} busy | {} |", times.spread());
    }
}

/// A server that can be replaced.
struct Replaceable {
    name: &'static str,
    server: Server,
    pid_file: PathBuf,
    /// In each round.
    handovers: usize,
    /// What ends the predecessor when the successor is there, if not that alone.
    end: Option<Signal>,
}

fn handover(directory: &Path) -> Replaceable {
    let pid_file = directory.join("handover.pid");
    let server = Server::start(|address| {
        let mut command = servers::handover(address);
        command.arg("--pid-file").arg(&pid_file);
        command
    });
    Replaceable { name: "handover", server, pid_file, handovers: 40, end: None }
}

fn go(directory: &Path) -> Option<Replaceable> {
    let binary = servers::go(directory)?;
    let server = Server::start(|address| servers::run_go(&binary, address));
    let pid_file = binary.with_extension("pid");
    Some(Replaceable { name: "Go net/http", server, pid_file, handovers: 4, end: None })
}

fn nginx(directory: &Path) -> Option<Replaceable> {
    servers::nginx(directory, "127.0.0.1:1")?;
    let pid_file = directory.join("nginx.pid");
    let _ = fs::remove_file(&pid_file);
    // It takes the signal only when the process that has started it has ended.
    let server = Server::start(|address| {
        let nginx = servers::nginx(directory, address).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$@\" & while ! [ -s \"$0\" ]; do sleep 0.01; done"]).arg(&pid_file);
        shell.arg(nginx.get_program()).args(nginx.get_args());
        shell
    });
    Some(Replaceable { name: "nginx", server, pid_file, handovers: 4, end: Some(Signal::SIGQUIT) })
}

impl Replaceable {
    /// Prints a line, and returns the times until the exit of the predecessor.
    fn measure(&self) -> Figure {
        let mut idle = self.connect(IDLE);
        let mut busy = self.connect(BUSY);
        let (mut without, mut with, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let is_over = AtomicBool::new(false);
        let idle_lost = thread::scope(|scope| {
            let asking =
                scope.spawn(|| idle.run(Pace::InTurn(PAUSE), || is_over.load(Ordering::Relaxed)).lost);
            for _ in 0..ROUNDS {
                let begin = Instant::now();
                without.push(busy.run(Pace::Busy, || begin.elapsed() >= DURATION));
                let handovers = scope.spawn(|| self.hand_over(self.handovers));
                with.push(busy.run(Pace::Busy, || handovers.is_finished()));
                times.extend(handovers.join().unwrap());
            }
            is_over.store(true, Ordering::Relaxed);
            asking.join().unwrap()
        });
        let lost = idle_lost + without.iter().chain(&with).map(|measured| measured.lost).sum::<u64>();
        let both = |value: &dyn Fn(&Measured) -> f64, choice: &dyn Fn(Figure) -> f64, digits: usize| {
            let [without, with] =
                [&without, &with].map(|all| choice(Figure(all.iter().map(value).collect())));
            format!("{without:.digits$}, {with:.digits$}")
        };
        println!(
            "| {} | {} | {} | {lost} | {} | {} | {} | {} |",
            self.name,
            times.len(),
            idle.connects + busy.connects,
            both(&|measured| measured.rate() / 1000.0, &|figure| figure.median(), 1),
            both(&|measured| measured.per_mille(500), &|figure| figure.median(), 0),
            both(&|measured| measured.per_mille(999), &|figure| figure.median(), 0),
            both(&|measured| measured.per_mille(1000) / 1000.0, &|figure| figure.most(), 1),
        );
        Figure(times)
    }

    /// The times until the exit of the predecessor with so many idle connections, and no others.
    fn of_idle(&self, connections: usize) -> Figure {
        let load = self.connect(connections);
        let times = self.hand_over(2 * ROUNDS);
        assert_eq!(load.connects, connections);
        Figure(times)
    }

    /// Connections on which a request has been answered.
    fn connect(&self, count: usize) -> Load {
        let mut load = Load::new(self.server.address, count, false);
        load.run(Pace::Busy, || true);
        load
    }

    /// The times from the signal to the exit of the predecessor, in milliseconds.
    fn hand_over(&self, times: usize) -> Vec<f64> {
        let hand_over = |_| {
            let (begin, old) = (Instant::now(), self.pid().unwrap());
            signal(old, Signal::SIGUSR2);
            wait_until(|| self.pid().is_some_and(|pid| pid != old));
            self.end.iter().for_each(|&end| signal(old, end));
            wait_until(|| !is_running(old));
            let time = begin.elapsed();
            thread::sleep(PERIOD.saturating_sub(time));
            time.as_secs_f64() * 1000.0
        };
        (0..times).map(hand_over).collect()
    }

    /// The process that serves, if one is in place.
    fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }
}

impl Drop for Replaceable {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::SIGTERM);
            wait_until(|| !is_running(pid));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

fn wait_until(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "a process does not end");
        thread::sleep(Duration::from_micros(500));
    }
}
