//! Nothing is left behind, however the comparison ends: a process of its own waits for that.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The process group of every server, which its successors inherit.
static GROUP: OnceLock<i32> = OnceLock::new();

/// The process that leads the group, and a directory that goes with it. Its standard input ends when this is
/// dropped, or when the process that has it is killed.
pub struct Guard {
    process: Child,
    input: Option<ChildStdin>,
    pub directory: PathBuf,
}

impl Guard {
    pub fn start() -> Guard {
        let directory = env::temp_dir().join(format!("handover-comparison-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg("--guard").arg(&directory).process_group(0).stdin(Stdio::piped());
        let mut process = command.spawn().unwrap();
        GROUP.set(process.id() as i32).unwrap();
        Guard { input: process.stdin.take(), process, directory }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
    }
}

/// Starts a server in the group.
pub fn spawn(command: &mut Command) -> Child {
    command.process_group(*GROUP.get().unwrap()).spawn().unwrap()
}

/// What the process does that leads the group: it waits for the end, and then ends all of them and itself.
pub fn watch(directory: &Path) {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let _ = fs::remove_dir_all(directory);
    let _ = killpg(Pid::from_raw(process::id() as i32), Signal::SIGKILL);
}
