//! `cargo bench`: this server beside others, in turn, several rounds in one run; medians and spread. With `--` and
//! names of its parts, such as `cargo bench -- connections`, it is only these.
//!
//! Ratios within a run mean something, single figures do not: the load shares the machine with the server.

mod connections;
mod guard;
mod load;
mod servers;

use std::net::TcpStream;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guard::Guard;
use crate::load::Measured;
use crate::servers::{Server, memory, threads};

const ROUNDS: usize = 5;
const DURATION: Duration = Duration::from_millis(1200);

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, flag, directory] = &arguments[..]
        && flag == "--guard"
    {
        return guard::watch(directory.as_ref());
    }
    if let [_, flag, address, receivers] = &arguments[..]
        && flag == "--tiny-http"
    {
        return servers::serve_tiny_http(address, receivers.parse().unwrap());
    }
    // With cargo, too.
    set_pdeathsig(Signal::SIGKILL).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let guard = Guard::start();
    let parts: [(&str, &dyn Fn()); 5] = [
        ("throughput", &|| throughput(&guard.directory)),
        ("handovers", &handovers),
        ("connections", &|| connections::compare(&guard.directory)),
        ("starts", &starts),
        ("sizes", &|| sizes(hard)),
    ];
    let is_named = |name: &str| arguments[1..].iter().any(|argument| argument == name);
    let are_some_named = parts.iter().any(|(name, _)| is_named(name));
    let wanted = parts.iter().filter(|(name, _)| !are_some_named || is_named(name));
    wanted.for_each(|(_, part)| part());
}

/// The median, and how far the others are from it.
struct Figure(Vec<f64>);

impl Figure {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn most(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    fn spread(&self) -> String {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        format!("{:.1} ({least:.1}-{:.1})", self.median(), self.most())
    }
}

/// The number of receivers with which tiny_http does best for so many connections.
fn best_receivers(connections: usize) -> usize {
    let rate = |&receivers: &usize| {
        let server = Server::start(|address| servers::tiny_http(address, receivers));
        load::run(server.address, connections, false, Duration::from_millis(500)).rate() as u64
    };
    [1, 2, 4, 16, 64].into_iter().max_by_key(rate).unwrap()
}

fn throughput(directory: &std::path::Path) {
    let receivers = best_receivers(32);
    let mut running = vec![
        ("handover".to_owned(), Server::start(servers::handover)),
        (
            format!("tiny_http, receivers: {receivers}"),
            Server::start(|address| servers::tiny_http(address, receivers)),
        ),
    ];
    if let Some(binary) = servers::go(directory) {
        let server = Server::start(|address| servers::run_go(&binary, address));
        running.push(("Go net/http".to_owned(), server));
    }
    if servers::nginx(directory, "127.0.0.1:1").is_some() {
        let server = Server::start(|address| servers::nginx(directory, address).unwrap());
        running.push(("nginx".to_owned(), server));
    }

    println!(
        "\n| connections | server | thousand requests/s | CPU us/request | p50 us | p99 us | p99.9 us |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (setting, connections, close) in [
        ("4, kept alive", 4, false),
        ("32, kept alive", 32, false),
        ("256, kept alive", 256, false),
        ("32, one for each request", 32, true),
    ] {
        let mut rounds: Vec<Vec<(Measured, f64)>> = running.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for ((_, server), rounds) in running.iter().zip(&mut rounds) {
                let before = server.cpu();
                let measured = load::run(server.address, connections, close, DURATION);
                let cpu = (server.cpu() - before) / measured.requests as f64;
                rounds.push((measured, cpu));
            }
        }
        for ((name, _), rounds) in running.iter().zip(&rounds) {
            let figure = |value: &dyn Fn(&(Measured, f64)) -> f64| Figure(rounds.iter().map(value).collect());
            println!(
                "| {setting} | {name} | {} | {} | {:.0} | {:.0} | {:.0} |",
                figure(&|(measured, _)| measured.rate() / 1000.0).spread(),
                figure(&|&(_, cpu)| cpu).spread(),
                figure(&|(measured, _)| measured.per_mille(500)).median(),
                figure(&|(measured, _)| measured.per_mille(990)).median(),
                figure(&|(measured, _)| measured.per_mille(999)).median(),
            );
        }
    }
}

/// The PID that serves.
fn serving(server: &Server) -> u32 {
    let hello = load::get(server.address, "/hello").unwrap_or_default();
    hello.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
}

/// Hands over from `pid`; how long it takes until a new connection is answered by another process.
fn hand_over(server: &Server, pid: u32) -> (u32, Duration) {
    let begin = Instant::now();
    kill(Pid::from_raw(pid as i32), Signal::SIGUSR2).unwrap();
    loop {
        let now = serving(server);
        if now != pid && now != 0 {
            return (now, begin.elapsed());
        }
    }
}

/// A server whose processes are killed with this, whichever generation they are.
struct Generations {
    server: Server,
    serving: u32,
}

impl Generations {
    fn start() -> Generations {
        let server = Server::start(servers::handover);
        let serving = server.pid();
        Generations { server, serving }
    }

    fn hand_over(&mut self) -> f64 {
        let (serving, time) = hand_over(&self.server, self.serving);
        self.serving = serving;
        time.as_secs_f64() * 1000.0
    }
}

impl Drop for Generations {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.serving as i32), Signal::SIGKILL);
    }
}

fn handovers() {
    println!("\n| 32 kept alive | p50 us | p99 us | p99.9 us | slowest ms | lost |");
    println!("|---|---|---|---|---|---|");
    let mut generations = Generations::start();
    let address = generations.server.address;
    let print = |name: &str, measured: Vec<Measured>| {
        let figure = |value: &dyn Fn(&Measured) -> f64| Figure(measured.iter().map(value).collect()).median();
        let slowest = measured.iter().map(|measured| measured.per_mille(1000)).fold(0.0, f64::max) / 1000.0;
        let lost: u64 = measured.iter().map(|measured| measured.lost).sum();
        println!(
            "| {name} | {:.0} | {:.0} | {:.0} | {slowest:.1} | {lost} |",
            figure(&|measured| measured.per_mille(500)),
            figure(&|measured| measured.per_mille(990)),
            figure(&|measured| measured.per_mille(999)),
        );
    };
    let (mut without, mut with, mut under_load) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(load::run(address, 32, false, Duration::from_secs(3)));
        let load = thread::spawn(move || load::run(address, 32, false, Duration::from_secs(3)));
        while !load.is_finished() {
            thread::sleep(Duration::from_millis(300));
            under_load.push(generations.hand_over());
        }
        with.push(load.join().unwrap());
    }
    print("no handover", without);
    print("a handover every 300 ms", with);

    let idle = |connections: usize| {
        let mut generations = Generations::start();
        let open: Vec<TcpStream> = (0..connections).map(|_| kept_alive(&generations)).collect();
        let first = generations.hand_over();
        let times = (0..10).map(|_| generations.hand_over()).chain([first]).collect();
        drop(open);
        (first, Figure(times))
    };
    println!("\n| signal to first answer of the successor | ms |\n|---|---|");
    println!("| idle | {} |", idle(0).1.spread());
    println!("| 32 connections under load | {} |", Figure(under_load).spread());
    let of_many = |connections: usize| Figure((0..5).map(|_| idle(connections).0).collect()).spread();
    println!("| 1 idle connection | {} |", of_many(1));
    println!("| 5000 idle connections | {} |", of_many(5000));
}

/// A connection that has had an answer, and is idle.
fn kept_alive(generations: &Generations) -> TcpStream {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(generations.server.address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").unwrap();
    let _ = stream.read(&mut [0; 512]).unwrap();
    stream
}

fn starts() {
    println!("\n| start to first answer | ms |\n|---|---|");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        ours.push(Server::start(servers::handover).first_answer.as_secs_f64() * 1000.0);
        let tiny_http = Server::start(|address| servers::tiny_http(address, 4));
        theirs.push(tiny_http.first_answer.as_secs_f64() * 1000.0);
    }
    println!("| handover | {} |", Figure(ours).spread());
    println!("| tiny_http, receivers: 4 | {} |", Figure(theirs).spread());
}

fn sizes(descriptors: rlim_t) {
    println!("\n| size | |\n|---|---|");
    let binary = fs::metadata(env!("CARGO_BIN_EXE_handover")).unwrap().len();
    println!("| stripped binary | {} KiB |", binary / 1024);
    let generations = Generations::start();
    let pid = generations.serving;
    let idle = memory(pid);
    println!("| idle: memory (PSS), threads | {idle} KiB, {} |", threads(pid));
    let tiny_http = Server::start(|address| servers::tiny_http(address, 4));
    println!(
        "| idle tiny_http, receivers: 4 | {} KiB, {} |",
        memory(tiny_http.pid()),
        threads(tiny_http.pid())
    );
    let mut open = Vec::new();
    for count in [1000, 10_000] {
        if count as rlim_t + 100 > descriptors {
            println!("| {count} idle connections | more than the descriptors that may be had here |");
            continue;
        }
        while open.len() < count {
            open.push(kept_alive(&generations));
        }
        let each = (memory(pid) - idle) as f64 / count as f64;
        println!("| memory for each of {count} idle connections | {each:.1} KiB |");
    }
}
