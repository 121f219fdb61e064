//! The servers that are compared, each as a process of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::guard;
use crate::load::{BODY, get};

/// A running server, which ends with this.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    /// From the start of the process to its first answer.
    pub first_answer: Duration,
}

impl Server {
    /// Starts a server; `command` is given the address to listen on.
    pub fn start(command: impl FnOnce(&str) -> Command) -> Server {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = command(&address.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let child = guard::spawn(&mut command);
        while get(address, "/").is_none_or(|body| body != BODY) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{command:?} does not answer");
            thread::sleep(Duration::from_micros(100));
        }
        Server { address, child, first_answer: begin.elapsed() }
    }

    /// Every process of it, for the sum of what they use: nginx has several.
    pub fn processes(&self) -> Vec<u32> {
        let this = self.child.id();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        all.filter(|&pid| pid == this || stat(pid).is_some_and(|stat| stat[1] == this.to_string())).collect()
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system time so far, in microseconds.
    pub fn cpu(&self) -> f64 {
        let ticks = |pid: u32| {
            let stat = stat(pid)?;
            Some(stat[11].parse::<f64>().unwrap() + stat[12].parse::<f64>().unwrap())
        };
        // A tick is 10 ms on every Linux that matters (sysconf(3), _SC_CLK_TCK).
        self.processes().into_iter().filter_map(ticks).sum::<f64>() * 10_000.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid as i32),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = self.child.wait();
    }
}

/// The fields behind the name, from the state on; proc(5).
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

/// Memory that a process has for itself, in KiB: shared pages count by their share.
pub fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whether a process has not ended; one that has ended but not been waited for has.
pub fn is_running(pid: u32) -> bool {
    let is_running = stat(pid).is_some_and(|stat| !matches!(&*stat[0], "Z" | "X"));
    // The main thread may be the first to end.
    is_running || fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
}

pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

pub fn handover(address: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.args(["--listen", address, "--message", BODY.trim_end(), "--max-connections", "20000"]);
    command
}

/// The naive server on tiny_http, with so many threads that receive requests: this program again.
pub fn tiny_http(address: &str, receivers: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--tiny-http", address, &receivers.to_string()]);
    command
}

/// What that program does then.
pub fn serve_tiny_http(address: &str, receivers: usize) {
    let server = std::sync::Arc::new(tiny_http::Server::http(address).unwrap());
    let receive = |server: std::sync::Arc<tiny_http::Server>| {
        move || {
            while let Ok(request) = server.recv() {
                let _ = request.respond(tiny_http::Response::from_string(BODY));
            }
        }
    };
    let receivers: Vec<_> = (0..receivers).map(|_| thread::spawn(receive(server.clone()))).collect();
    receivers.into_iter().for_each(|receiver| receiver.join().unwrap());
}

/// Go's net/http, if there is a compiler.
pub fn go(directory: &Path) -> Option<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/comparison/server.go");
    let binary = directory.join("go-server");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&binary).arg(source).env("GO111MODULE", "off");
    build.status().is_ok_and(|status| status.success()).then_some(binary)
}

/// The server that was built.
pub fn run_go(binary: &Path, address: &str) -> Command {
    let mut command = Command::new(binary);
    command.args([address, BODY]).arg(binary.with_extension("pid"));
    command
}

/// nginx, if it is installed.
pub fn nginx(directory: &Path, address: &str) -> Option<Command> {
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists())?;
    let configuration = directory.join("nginx.conf");
    let content = format!(
        "daemon off; master_process on; worker_processes auto; pid {0}/nginx.pid; error_log /dev/null;\n\
         worker_shutdown_timeout 20s; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {0}; proxy_temp_path {0};\n\
         fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0}; default_type text/plain;\n\
         server {{ listen {address} backlog=4096; location / {{ return 200 \"{BODY}\"; }} }} }}\n",
        directory.display()
    );
    fs::write(&configuration, content).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-c").arg(configuration);
    Some(command)
}
