//! System calls that take longer, fail or kill, by strace(1): for windows that are a few microseconds wide.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, Stdio};

use nix::libc;

use crate::command::{Child, Command, Stderr};
use crate::server::{BINARY, wait_until};
use crate::untested::is_installed;

/// Those that wait for one of several things.
pub const WAITS: &str = "?poll,?ppoll,?select,?pselect6,?epoll_wait,?epoll_pwait,?epoll_pwait2";
/// Those that say something to another process.
pub const SENDS: &str = "?write,?writev,?sendto,?sendmsg";
/// Those that change a directory.
pub const FILES: &str = "?link,?linkat,?rename,?renameat,?renameat2,?unlink,?unlinkat,?bind";
/// Those that ask how a child has ended.
pub const REAPS: &str = "?wait4,?waitid";

/// Each of several calls, because strace counts how often each of them has been made.
pub fn each(calls: &str) -> impl Iterator<Item = &str> {
    calls.split(',')
}

/// Whose system calls are meant.
#[derive(Clone, Copy)]
pub enum Threads {
    Main,
    /// All, also those that are started, but not what other programs do that are executed.
    All,
}

/// A process whose system calls are tampered with, until this is dropped.
pub struct Tampering {
    strace: Child,
    /// Kept open, because strace writes there now and then.
    _messages: BufReader<ChildStderr>,
}

impl Tampering {
    /// Does something, as strace's `inject` has it, with `calls`; `None` if there is no strace.
    pub fn begin(pid: u32, threads: Threads, calls: &str, injection: &str) -> Option<Tampering> {
        if !is_installed("strace") {
            return None;
        }
        let mut command = Command::new("strace");
        if let Threads::All = threads {
            command.args(["-f", "-b", "execve"]);
        }
        command.args(["-o", "/dev/null", "-e"]).arg(format!("trace={calls}"));
        command.arg("-e").arg(format!("inject={calls}:{injection}")).arg("-p").arg(pid.to_string());
        let mut strace = command.stdin(Stdio::null()).stderr(Stderr::Piped).spawn().unwrap();
        let mut messages = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        messages.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Some(Tampering { strace, _messages: messages })
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // It is released by the end of its tracer.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The command, with something done to the calls of its main thread; `None` if there is no strace. It has the
/// process ID that it would have without.
pub fn tampered(calls: &str, injection: &str) -> Option<String> {
    let strace = format!("strace -DD -o /dev/null -e trace={calls} -e inject={calls}:{injection}");
    is_installed("strace").then(|| format!("{strace} {BINARY}"))
}

/// Waits until the main thread of a process is in one of these system calls.
pub fn expect_in_call(pid: u32, calls: &[libc::c_long]) {
    let call = || fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let is_in_call = || calls.iter().any(|number| call().starts_with(&format!("{number} ")));
    wait_until(is_in_call, || format!("process {pid} is in {}, not in one of {calls:?}", call()));
}
