//! Every process that a test starts: its trace is asked for, taken out of what it logs, and checked.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, CommandArgs, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread;

use nix::libc;

use crate::documents::examples::files;
use crate::server::{BINARY, PATIENCE, wait_until};
use crate::trace::Traces;

/// What is logged by default, and the trace.
pub const DIRECTIVES: &str = "info,handover::access=off,handover::trace=debug";

/// Why the traces of some processes are not checked.
#[derive(Clone, Copy, Debug)]
pub enum Untraced {
    /// Nobody reads standard error, which is full or closed.
    Unread,
    /// In the place of its predecessor the test says what no process says, and it never serves.
    WrongGreeting,
    /// Two servers in one process, whose traces are one.
    TwoServers,
}

/// Where standard error goes, without the traces.
pub enum Stderr {
    Null,
    /// To [`process::Child::stderr`].
    Piped,
    /// To this function, line by line.
    To(Sink),
    /// As it is, for a process whose trace is not checked.
    Direct(Stdio),
}

impl Stderr {
    pub fn file(path: &Path) -> Stderr {
        let mut file = File::create(path).unwrap();
        Stderr::To(Box::new(move |line| file.write_all(line)))
    }
}

type Sink = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// [`process::Command`], with what is used of it.
pub struct Command {
    command: process::Command,
    stderr: Option<Stderr>,
    untraced: Option<Untraced>,
}

macro_rules! as_of_std {
    ($($name:ident($($parameter:ident: $type:ty),*);)*) => {
        $(pub fn $name(&mut self, $($parameter: $type),*) -> &mut Command {
            self.command.$name($($parameter),*);
            self
        })*
    };
}

impl Command {
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        Command { command: process::Command::new(program), stderr: None, untraced: None }
    }

    as_of_std! {
        arg(argument: impl AsRef<OsStr>);
        args(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>);
        env(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>);
        env_remove(name: impl AsRef<OsStr>);
        current_dir(path: impl AsRef<Path>);
        stdin(stdin: impl Into<Stdio>);
        stdout(stdout: impl Into<Stdio>);
        process_group(group: i32);
        uid(user: u32);
        gid(group: u32);
    }

    pub fn stderr(&mut self, stderr: Stderr) -> &mut Command {
        self.stderr = Some(stderr);
        self
    }

    pub fn untraced(&mut self, reason: Untraced) -> &mut Command {
        self.untraced = Some(reason);
        self
    }

    /// Unless the test itself says what is logged, with the trace.
    fn ask_for_the_trace(&mut self) {
        let is_debug = self.get_args().any(|argument| argument == "debug");
        if !is_debug && self.command.get_envs().all(|(name, _)| name != "RUST_LOG") {
            self.env("RUST_LOG", DIRECTIVES);
        }
    }

    pub fn get_program(&self) -> &OsStr {
        self.command.get_program()
    }

    pub fn get_args(&self) -> CommandArgs<'_> {
        self.command.get_args()
    }

    pub fn spawn(&mut self) -> io::Result<Child> {
        let (mut piped, untraced) = (None, self.untraced);
        let sink: Sink = match self.stderr.take() {
            None => Box::new(|line| io::stderr().write_all(line)),
            Some(Stderr::Null) => Box::new(|_| Ok(())),
            Some(Stderr::Piped) => {
                let (theirs, mut ours) = io::pipe()?;
                piped = Some(OwnedFd::from(theirs).into());
                Box::new(move |line| ours.write_all(line))
            }
            Some(Stderr::To(sink)) => sink,
            Some(Stderr::Direct(stdio)) => {
                assert!(untraced.is_some(), "the trace cannot be read");
                let child = self.command.stderr(stdio).spawn();
                self.command.stderr(Stdio::null());
                return Ok(Child { child: child?, traced: None });
            }
        };
        let (mut child, traced) = self.traced(sink, process::Command::spawn)?;
        child.stderr = piped;
        Ok(Child { child, traced: Some(traced) })
    }

    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.spawn()?.wait()
    }

    pub fn output(&mut self) -> io::Result<Output> {
        let (sender, lines) = mpsc::channel();
        let sink = move |line: &[u8]| sender.send(line.to_vec()).map_err(io::Error::other);
        let (output, _traced) = self.traced(Box::new(sink), process::Command::output)?;
        Ok(Output { stderr: lines.iter().flatten().collect(), ..output })
    }

    fn traced<T>(
        &mut self,
        sink: Sink,
        run: fn(&mut process::Command) -> io::Result<T>,
    ) -> io::Result<(T, Traced)> {
        let (reader, writer) = io::pipe()?;
        let ((reached, is_reached), reader) = (mpsc::channel(), Arc::new(reader));
        let (traces, is_unread) = (Traces::default(), Arc::default());
        let stderr = Arc::downgrade(&reader);
        let traced = Traced { traces, stderr, is_reached, is_unread, untraced: self.untraced };
        let (taken, is_unread) = (traced.traces.clone(), Arc::clone(&traced.is_unread));
        thread::spawn(move || take(&reader, &taken, sink, &reached, &is_unread));
        self.ask_for_the_trace();
        let result = run(self.command.stderr(writer));
        // Its end comes with that of the processes.
        self.command.stderr(Stdio::null());
        Ok((result?, traced))
    }
}

/// Divides what is written to standard error into traces and the rest.
fn take(stderr: &PipeReader, traces: &Traces, mut sink: Sink, reached: &Sender<()>, is_unread: &AtomicBool) {
    let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
    while stderr.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if line.ends_with(MARK) {
            let _ = reached.send(());
        } else if !traces.take(String::from_utf8_lossy(&line).trim_end()) && sink(&line).is_err() {
            // The processes are to notice it, too.
            return is_unread.store(true, Ordering::Relaxed);
        }
        line.clear();
    }
}

/// A line behind all that has been written.
const MARK: &[u8] = b"\0so far\n";

/// The traces of the processes that a command consists of, which are checked with the end of this.
pub struct Traced {
    pub traces: Traces,
    /// Until nobody writes there any more.
    stderr: Weak<PipeReader>,
    is_reached: Receiver<()>,
    is_unread: Arc<AtomicBool>,
    untraced: Option<Untraced>,
}

impl Traced {
    /// Waits until all is taken that has been written.
    fn catch_up(&self) {
        let Some(stderr) = self.stderr.upgrade() else { return };
        let path = format!("/proc/self/fd/{}", stderr.as_raw_fd());
        let writer = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path);
        // It cannot be written if what is piped is not read.
        if writer.and_then(|mut writer| writer.write_all(MARK)).is_ok() {
            let _ = self.is_reached.recv_timeout(PATIENCE);
        }
    }

    /// Waits until each process that serves has begun its trace.
    pub fn expect_begun(&self) {
        let has_begun = || self.stderr.strong_count() == 0 || self.traces.silent().is_none();
        wait_until(has_begun, || format!("process {:?} leaves no trace", self.traces.silent()));
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.untraced.is_none() && !thread::panicking() {
            self.catch_up();
            assert!(!self.is_unread.load(Ordering::Relaxed), "a trace can be read no longer");
            self.expect_begun();
            if let Err(complaint) = self.traces.check() {
                panic!("{complaint}");
            }
        }
    }
}

/// [`process::Child`], with the traces of what it consists of.
pub struct Child {
    child: process::Child,
    traced: Option<Traced>,
}

impl Child {
    pub fn wait_with_output(self) -> io::Result<Output> {
        let Child { child, traced: _traced } = self;
        child.wait_with_output()
    }

    /// Waits until all that has been written to standard error has gone where it goes.
    pub fn catch_up(&self) {
        self.traced.iter().for_each(Traced::catch_up);
    }

    /// Lets go of it, but not of the traces.
    pub fn into_traced(self) -> Traced {
        self.traced.expect("a process that is traced")
    }
}

impl Deref for Child {
    type Target = process::Child;

    fn deref(&self) -> &process::Child {
        &self.child
    }
}

impl DerefMut for Child {
    fn deref_mut(&mut self) -> &mut process::Child {
        &mut self.child
    }
}

/// A child that is killed with this.
pub struct Started(pub Child);

impl Started {
    /// Waits for its end, and returns its exit status.
    pub fn status(&mut self) -> Option<i32> {
        let has_ended = || self.0.try_wait().unwrap().is_some();
        wait_until(has_ended, || "it does not end".to_owned());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[should_panic(expected = "has served, and left no trace")]
fn a_test_of_a_process_that_leaves_no_trace_fails() {
    let mut command = Command::new(BINARY);
    command.env("RUST_LOG", "info").args(["--listen", "127.0.0.1:0"]).stderr(Stderr::Piped);
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains(" is ready, ")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(log.next(), None);
}

/// The sources in which a shell leads standard error elsewhere, and what becomes of the trace there.
const ELSEWHERE: [(&str, &str); 4] = [
    ("documents/examples.rs", "it is taken out of what the terminal of a reader shows"),
    ("operations/terminal.rs", "it is led to standard error of script(1), and taken there"),
    ("partner.rs", "there is none, because the candidate is refused"),
    ("protocol/handed_on.rs", "there is none, because it is ls(1)"),
];

#[test]
fn no_process_of_a_test_is_started_without_its_trace_being_checked() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processes");
    let leads_elsewhere = |text: &str| {
        text.match_indices("2>")
            .any(|(index, _)| !text[..index].ends_with(|before: char| before.is_alphanumeric()))
    };
    let mut elsewhere = Vec::new();
    for path in files(&tests).iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let (name, text) =
            (path.strip_prefix(&tests).unwrap().to_str().unwrap(), fs::read_to_string(path).unwrap());
        if name == "command.rs" {
            continue;
        }
        for statement in text.split(';') {
            let is_of_std = statement.contains("process::")
                && statement.contains("Command")
                && !statement.contains("CommandExt");
            assert!(!is_of_std, "{name} does not use crate::command:{statement}");
        }
        if leads_elsewhere(&text) {
            elsewhere.push(name.to_owned());
        }
    }
    elsewhere.sort_unstable();
    assert_eq!(elsewhere, ELSEWHERE.map(|(name, _)| name));
}
