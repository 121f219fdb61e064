//! A server under test: the process that was started, and its successors.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, mkfifo};

use crate::client::{self, Client, Target};
use crate::command::{Command, Stderr, Traced};
use crate::trace::Traces;

/// When a test gives up. Nothing that is waited for takes anywhere near as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary that cargo has built for the tests.
pub const BINARY: &str = env!("CARGO_BIN_EXE_handover");

/// A directory that goes away with this.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("handover-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The processes that name it in their arguments, or work there.
    pub fn processes(&self) -> Vec<u32> {
        let path = self.0.to_str().unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let arguments = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let works_there = fs::read_link(entry.path().join("cwd")).is_ok_and(|at| at.starts_with(path));
            let pid = entry.file_name().to_str()?.parse().ok()?;
            (arguments.contains(path) || works_there).then_some(pid)
        });
        processes.collect()
    }

    /// Ends them, whatever they start meanwhile.
    pub fn end_processes(&self) {
        while let Some(pid) = self.processes().first() {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server, with whatever processes it consists of at the moment. They share a process group, and are
/// killed with this.
pub struct Server {
    first: u32,
    /// The first process that serves, which is another one than the first if an init has started it, and perhaps
    /// leads a group of its own.
    command: u32,
    serving: Cell<u32>,
    pub address: SocketAddr,
    log: RefCell<Log>,
    pub directory: Directory,
    traced: Traced,
}

/// The log of all processes of a server.
struct Log {
    lines: Receiver<String>,
    all: Vec<String>,
    /// Those that nobody has waited for yet. The processes write at the same time, so that a line may come
    /// before one that is waited for first.
    pending: VecDeque<String>,
}

impl Server {
    /// Starts the command on a free port. It logs each connection and each request.
    pub fn start(arguments: &[&str]) -> Server {
        let mut command = Command::new(BINARY);
        command.env("RUST_LOG", "debug").args(["--listen", "127.0.0.1:0"]).args(arguments);
        Server::start_command(command, Directory::new())
    }

    /// Starts the command on a free port, with a PID file. It logs what is usual.
    pub fn start_for_load(arguments: &[&str]) -> Server {
        let directory = Directory::new();
        let mut command = Command::new(BINARY);
        command.args(["--listen", "127.0.0.1:0", "--pid-file"]);
        command.arg(directory.join("pid")).args(arguments);
        Server::start_command(command, directory)
    }

    /// Starts the command on a free port, with a PID file. It logs each connection and each request.
    pub fn start_in_detail() -> Server {
        let directory = Directory::new();
        let mut command = Command::new(BINARY);
        command.env("RUST_LOG", "debug").args(["--listen", "127.0.0.1:0", "--pid-file"]);
        command.arg(directory.join("pid"));
        Server::start_command(command, directory)
    }

    /// Starts the command with two TCP sockets and a Unix socket, and a PID file.
    pub fn start_with_three_sockets() -> Server {
        let directory = Directory::new();
        let socket = format!("unix:{}", directory.join("socket").display());
        let mut command = Command::new(BINARY);
        command.args(["--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0", "--listen", &socket]);
        command.arg("--pid-file").arg(directory.join("pid"));
        Server::start_command(command, directory)
    }

    /// Every address of the server.
    pub fn targets(&self) -> Vec<Target> {
        let log = self.log();
        let new = log.lines().filter_map(|line| line.split_once("listening on a new file descriptor, "));
        new.map(|(_, address)| match address.strip_prefix("unix:") {
            Some(path) => Target::Unix(path.into()),
            None => Target::Network(address.parse().unwrap()),
        })
        .collect()
    }

    /// Starts a copy of the command, which can be replaced, on a free port, with a PID file and a control socket.
    pub fn start_replaceable(arguments: &[&str]) -> Server {
        Server::start_replaceable_in(Directory::new(), arguments)
    }

    /// The same in a directory where something has been prepared.
    pub fn start_replaceable_in(directory: Directory, arguments: &[&str]) -> Server {
        install(&directory.join("program"));
        let mut command = Command::new(directory.join("program"));
        command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(directory.join("pid"));
        command.arg("--control").arg(directory.join("control")).args(arguments);
        Server::start_command(command, directory)
    }

    /// Starts whatever ends up as the command, and waits until it is ready.
    pub fn start_command(mut command: Command, directory: Directory) -> Server {
        // Processes whose predecessor has exited become our children, so that we can wait for them.
        set_child_subreaper(true).unwrap();
        let (sender, lines) = mpsc::channel();
        let sink = move |line: &[u8]| {
            // The server may be gone, but not the processes that it has consisted of.
            let _ = sender.send(String::from_utf8_lossy(line).trim_end_matches('\n').to_owned());
            Ok(())
        };
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stderr::To(Box::new(sink)));
        let child = command.spawn().unwrap();
        let first = child.id();
        // Like its successors, it is waited for by its number.
        let traced = child.into_traced();
        let log = Log { lines, all: Vec::new(), pending: VecDeque::new() };
        let mut server = Server {
            first,
            command: first,
            serving: Cell::new(first),
            address: ([127, 0, 0, 1], 0).into(),
            log: RefCell::new(log),
            directory,
            traced,
        };
        let listening = server.expect("listening on ");
        server.address = listening.rsplit(' ').next().unwrap().parse().unwrap();
        server.command = number_after(&server.expect(" is ready, "), "process ");
        server.serving.set(server.command);
        // It may be killed from now on.
        server.traced.expect_begun();
        server
    }

    /// The process that was started.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// The process that accepts connections, as far as this has been told.
    pub fn serving(&self) -> u32 {
        self.serving.get()
    }

    pub fn traces(&self) -> &Traces {
        &self.traced.traces
    }

    /// Tells which process has become the one that serves.
    pub fn set_serving(&self, pid: u32) {
        self.serving.set(pid);
    }

    /// Waits for a log line that contains `text`, and returns it. No line is found twice.
    pub fn expect(&self, text: &str) -> String {
        self.expect_any(&[text])
    }

    /// Waits for a log line that contains one of these texts.
    pub fn expect_any(&self, texts: &[&str]) -> String {
        let log = &mut *self.log.borrow_mut();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_expected = |line: &String| texts.iter().any(|text| line.contains(text));
            if let Some(index) = log.pending.iter().position(is_expected) {
                return log.pending.remove(index).unwrap();
            }
            match log.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    log.all.push(line.clone());
                    log.pending.push_back(line);
                }
                Err(error) => panic!("{error} for {texts:?} in the log:\n{}", log.all.join("\n")),
            }
        }
    }

    /// The log so far.
    pub fn log(&self) -> String {
        let log = &mut *self.log.borrow_mut();
        for line in log.lines.try_iter() {
            log.all.push(line.clone());
            log.pending.push_back(line);
        }
        log.all.join("\n")
    }

    /// Sends a signal to the serving process.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.serving(), signal);
    }

    /// Sends a signal to the process that was started.
    pub fn signal_first(&self, signal: Signal) {
        signal_process(self.first, signal);
    }

    /// Hands over, and returns the successor once the handover is decided.
    pub fn hand_over(&self) -> u32 {
        self.signal(Signal::SIGUSR2);
        self.expect_handover()
    }

    /// Waits until a handover is decided, and returns the successor.
    pub fn expect_handover(&self) -> u32 {
        let line = self.expect("handed over to successor ");
        let successor = number_after(&line, "successor ");
        self.serving.set(successor);
        successor
    }

    /// Stops the serving process, and returns how it ended.
    pub fn stop(&self) -> Option<WaitStatus> {
        self.signal(Signal::SIGTERM);
        wait_for_end(self.serving())
    }

    /// The body of a response with status 200.
    pub fn get(&self, path: &str) -> String {
        let reply = client::get(self.address, path).unwrap();
        assert_eq!(reply.status, 200, "{path}");
        reply.text()
    }

    /// A connection that has been accepted, and keeps the process that has done so from ending.
    pub fn idle_client(&self) -> Client {
        let mut client = Client::connect(self.address).unwrap();
        client.get("/").unwrap();
        client
    }

    /// A request that is in flight in the serving process until its client finishes it.
    pub fn hold(&self) -> Held {
        Held::begin(self.address)
    }

    /// The program that the next successor is.
    pub fn program(&self) -> PathBuf {
        self.directory.join("program")
    }

    /// The names of the files in its directory, but for the program.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "program").collect();
        names.sort_unstable();
        names
    }

    /// The process that answers on the control socket of this name.
    pub fn control(&self, name: &str) -> io::Result<u32> {
        handover::ask(&self.directory.join(name), "status").map(|status| number_after(&status, "pid="))
    }

    /// A number that the status on the control socket says.
    pub fn status(&self, name: &str) -> u32 {
        number_after(&handover::ask(&self.directory.join("control"), "status").unwrap(), name)
    }

    /// Waits until this is the only process, which serves, and is found in every way.
    pub fn expect_alone(&self, pid: u32) {
        self.expect_processes(&[pid]);
        for _ in 0..20 {
            assert_eq!(self.hello(), pid);
        }
        assert_eq!(self.pid_file(), pid);
        assert_eq!(self.control("control").unwrap(), pid);
        self.set_serving(pid);
    }

    /// Waits until connections are refused.
    pub fn expect_refusal(&self) {
        let is_refused = || match client::get(self.address, "/hello") {
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        };
        wait_until(is_refused, || "connections are accepted".to_owned());
    }

    /// Waits until every thread of the serving process waits for something.
    pub fn expect_asleep(&self) {
        let tasks = format!("/proc/{}/task", self.serving());
        let awake = || {
            let tasks = fs::read_dir(&tasks).unwrap().flatten();
            let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
            stats.filter(|stat| !stat.rsplit(')').next().unwrap().starts_with(" S")).count()
        };
        wait_until(|| awake() == 0, || "the process does not come to rest".to_owned());
    }

    /// Waits until no connection counts as in use: as long as it does, its thread runs or is in recv(2).
    pub fn expect_idle(&self) {
        // On i386 it is a socketcall(2).
        const RECV: libc::c_long = if cfg!(target_arch = "x86") { 102 } else { libc::SYS_recvfrom };
        let tasks = format!("/proc/{}/task", self.serving());
        let is_in_use = |task: &Path| {
            let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
            let call = read("syscall");
            read("comm") == "connection\n" && (call == "running\n" || call.starts_with(&format!("{RECV} ")))
        };
        let in_use =
            || fs::read_dir(&tasks).unwrap().flatten().filter(|task| is_in_use(&task.path())).count();
        wait_until(|| in_use() == 0, || "a connection does not become idle".to_owned());
    }

    /// The PID that `/hello` tells.
    pub fn hello(&self) -> u32 {
        number_after(&self.get("/hello"), "from ")
    }

    /// The PID file's content.
    pub fn pid_file(&self) -> u32 {
        fs::read_to_string(self.directory.join("pid")).unwrap().trim().parse().unwrap()
    }

    /// Waits until these are the processes of this server.
    pub fn expect_processes(&self, expected: &[u32]) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        wait_until(|| self.processes() == expected, || format!("{:?}, not {expected:?}", self.processes()));
    }

    /// The processes of this server that have not ended; one that has ended but not been waited for has.
    pub fn processes(&self) -> Vec<u32> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may end while we look.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            let group = fields[2];
            let is_ours = [self.first, self.command].iter().any(|leader| group == leader.to_string());
            if is_ours && is_alive(pid) {
                processes.push(pid);
            }
        }
        processes.sort_unstable();
        processes
    }

    /// The child that a process has as soon as it has one.
    pub fn expect_child(&self, pid: u32) -> u32 {
        let children = format!("/proc/{pid}/task/{pid}/children");
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Without a pause: what matters are the first moments of that child.
            if let Ok(child) = fs::read_to_string(&children).unwrap().trim().parse() {
                return child;
            }
            assert!(Instant::now() < deadline, "process {pid} has no child");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The group's ID is that of its first process, which nobody else gets while the group has a member.
        if !self.processes().is_empty() {
            for leader in [self.first, self.command] {
                let _ = killpg(Pid::from_raw(leader as i32), Signal::SIGKILL);
            }
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- the end of the log of {}\n{last}", self.first);
        }
    }
}

/// A request in flight.
pub struct Held {
    client: Client,
}

impl Held {
    pub fn begin(target: impl Into<Target>) -> Held {
        let mut client = Client::connect(target).unwrap();
        let head = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        client.send(head).unwrap();
        // The handler reads the body now.
        assert_eq!(client.receive_head().unwrap().status, 100);
        Held { client }
    }

    /// Sends the body, so that it can be answered.
    pub fn release(&mut self) {
        self.client.send("hi").unwrap();
    }

    pub fn finish(mut self) {
        self.release();
        self.expect_answer();
    }

    pub fn expect_answer(mut self) {
        assert_eq!(self.client.receive().unwrap().text(), "hi");
    }
}

/// A FIFO at which a shell script waits.
pub struct Gate(PathBuf);

impl Gate {
    pub fn new(directory: &Directory) -> Gate {
        Gate::at(directory.join("gate"))
    }

    pub fn at(path: PathBuf) -> Gate {
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        Gate(path)
    }

    /// The command that waits in a shell script.
    pub fn wait(&self) -> String {
        format!("read _ <'{}'", self.0.display())
    }

    /// Waits until a script has come here. It goes on when the result is dropped.
    pub fn expect_waiting(&self) -> File {
        let mut gate = None;
        let open = || File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&self.0);
        let is_waited_at = || {
            gate = open().ok();
            gate.is_some()
        };
        wait_until(is_waited_at, || "no script comes to the gate".to_owned());
        gate.unwrap()
    }
}

/// Waits until a process has no signal to handle, and each of its threads waits for something.
pub fn expect_at_rest(pid: u32) {
    let is_at_rest = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        statuses.all(|status| {
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            let is_empty = |set: &str| set.bytes().all(|digit| digit == b'0');
            field("State:").starts_with('S') && is_empty(field("SigPnd:")) && is_empty(field("ShdPnd:"))
        })
    };
    wait_until(is_at_rest, || format!("process {pid} does not come to rest"));
}

/// Stops a process, and waits until every thread of it stands still.
pub fn freeze(pid: u32) {
    signal_process(pid, Signal::SIGSTOP);
    let stands_still = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z', 'X'])))
    };
    wait_until(stands_still, || format!("process {pid} does not stop"));
}

/// Lets it go on.
pub fn thaw(pid: u32) {
    signal_process(pid, Signal::SIGCONT);
}

/// Whether a process has not ended; one that has ended but not been waited for has.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_running = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
    // The main thread may be the first to end; then the process still has its descriptors.
    is_running || fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
}

/// Waits until a process has ended, even if its parent has not waited for it.
pub fn expect_dead(pid: u32) {
    wait_until(|| !is_alive(pid), || format!("process {pid} does not end"));
}

/// Puts the command in the place of whatever program is there, in one step.
pub fn install(program: &Path) {
    in_place("cp \"$2\" \"$1.new\" && mv \"$1.new\" \"$1\"", program, BINARY);
}

/// Puts a shell script there.
pub fn install_script(program: &Path, script: &str) {
    let write =
        "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1.new\" && chmod 755 \"$1.new\" && mv \"$1.new\" \"$1\"";
    in_place(write, program, script);
}

/// By a process of its own: a child that another test forks meanwhile cannot inherit a descriptor that is
/// open for writing to the program, which would keep it from being executed.
fn in_place(command: &str, program: &Path, argument: &str) {
    let status = Command::new("sh").args(["-c", command, "sh"]).arg(program).arg(argument).status();
    assert!(status.unwrap().success());
}

/// What the C library says of an error.
pub fn errno_text(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

/// Sends a signal to a process that must be there.
pub fn signal_process(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// Waits for the end of a process. How it ended is only told to its parent: to its predecessor, while that
/// lives, and else to us.
pub fn wait_for_end(pid: u32) -> Option<WaitStatus> {
    let mut end = None;
    let ended = || match waitpid(Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => false,
        Ok(status) => {
            end = Some(status);
            true
        }
        Err(_) => !Path::new(&format!("/proc/{pid}")).exists(),
    };
    wait_until(ended, || format!("process {pid} does not end"));
    end
}

/// Waits for something that does not announce itself.
pub fn wait_until(mut condition: impl FnMut() -> bool, complaint: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{}", complaint());
        thread::sleep(Duration::from_millis(2));
    }
}

/// An end with an exit status, for comparison.
pub fn exited(pid: u32, status: i32) -> Option<WaitStatus> {
    Some(WaitStatus::Exited(Pid::from_raw(pid as i32), status))
}

/// The number behind `before` in `text`.
pub fn number_after(text: &str, before: &str) -> u32 {
    let (_, after) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text:?}"));
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after {before:?} in {text:?}"))
}
