//! The successors of a process that stays for their sake: to signal them, and to see them end.

use std::fs;
use std::process::{self, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::handover::descriptors;
use crate::handover::spawn;

/// What is left of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Alive,
    Gone,
}

/// Reaps every child that has ended, and keeps how the last one did.
pub(crate) fn reap(last: &mut Option<ExitStatus>) -> Family {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return Family::Alive,
            Ok(status) => *last = spawn::end(status).or(*last),
            Err(Errno::EINTR) => {}
            Err(_) => return Family::Gone,
        }
    }
}

/// The children, and those further descendants that hold the listening socket with this inode: a successor
/// of a successor is a grandchild until its parent has ended. Other descendants are nothing of ours; they
/// have been started by handlers.
pub(crate) fn members(socket: u64) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(i32, i32)> = processes.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let this = process::id() as i32;
    let mut descendants = vec![this];
    let mut members = Vec::new();
    while let Some(ancestor) = descendants.pop() {
        for &(pid, _) in parents.iter().filter(|&&(_, parent)| parent == ancestor) {
            descendants.push(pid);
            if ancestor == this || holds(pid, socket) {
                members.push(pid);
            }
        }
    }
    members
}

/// The second field behind the name, which is in parentheses and may contain anything; proc(5).
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn holds(pid: i32, socket: u64) -> bool {
    let held = fs::read_link(format!("/proc/{pid}/fd/{}", descriptors::FIRST));
    held.is_ok_and(|held| held.as_os_str() == format!("socket:[{socket}]").as_str())
}

/// Sends a signal to each. One that has ended meanwhile is a zombie, which nobody else is mistaken for.
pub(crate) fn signal(members: &[i32], signal: Signal) {
    for &child in members {
        if let Err(error) = kill(Pid::from_raw(child), signal) {
            log::warn!("cannot send {signal} to {child}: {error}");
        }
    }
}
