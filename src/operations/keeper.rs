//! The first process under a supervisor that watches one process ID: it stays, passes signals on to the
//! processes that have succeeded it, and reports how the last of them ended.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{self, ExitStatus};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::kill;
use nix::sys::stat::fstat;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, gettid};

use crate::handover::descriptors;
use crate::handover::spawn::{Child, exit_status};
use crate::operations::requester::{Action, Requester};

/// The processes after this one: those that it has started, and, if a supervisor watches it, those that these
/// have started in turn.
#[derive(Default)]
pub(crate) struct Keeper {
    /// Children that this process does not answer for any more, and that have not ended yet.
    retired: Vec<Child>,
    line: Option<Line>,
}

impl Keeper {
    /// Makes this process stay until the last of its line has ended. It becomes the parent of orphans: a
    /// member of the line is its child when those between have ended.
    pub(crate) fn stay(&mut self, first_socket: impl AsFd, arguments: &[OsString]) -> io::Result<()> {
        set_child_subreaper(true)?;
        let socket = format!("socket:[{}]", fstat(first_socket)?.st_ino);
        let name = stat(process::id() as i32).map_or(String::new(), |stat| stat.name);
        let arguments =
            arguments.iter().fold(vec![0], |all, argument| [&all, argument.as_bytes(), &[0]].concat());
        let (started, seen) = (HashSet::new(), HashSet::new());
        self.line = Some(Line { socket, arguments, name, started, seen, last: None });
        Ok(())
    }

    /// A child that has an owner which waits for it.
    pub(crate) fn started(&mut self, pid: u32) {
        if let Some(line) = &mut self.line {
            line.started.insert(pid as i32);
        }
    }

    /// A child that has lost its owner.
    pub(crate) fn retire(&mut self, child: Option<Child>) {
        self.retired.extend(child);
    }

    /// This process serves again, so it will not end like a member of its line.
    pub(crate) fn forget(&mut self) {
        self.line.iter_mut().for_each(|line| line.last = None);
    }

    /// How the last member that has ended did.
    pub(crate) fn last(&self) -> Option<ExitStatus> {
        self.line.as_ref()?.last
    }

    /// Waits for children that have ended and have no owner.
    pub(crate) fn reap(&mut self) {
        let Keeper { retired, line } = self;
        retired.retain_mut(|child| match child.try_wait() {
            None => true,
            Some(end) => {
                line.iter_mut().for_each(|line| line.last = Some(end));
                false
            }
        });
        line.iter_mut().for_each(Line::reap);
    }

    /// Passes a request on to the line, and to a successor that is on the other end of a link and need not be
    /// of it, because a supervisor that watches this process means those; `false` if none watches it.
    pub(crate) fn pass_on(&self, by: &Requester, action: Action, successor: Option<u32>) -> bool {
        let Some(line) = &self.line else { return false };
        let mut members = line.members();
        // It is 0 if it lies in a namespace where it cannot be reached.
        let successor = successor.map(|pid| pid as i32).filter(|&pid| pid != 0 && !members.contains(&pid));
        members.extend(successor);
        let signal = by.signal(action);
        for &pid in &members {
            if let Err(error) = kill(Pid::from_raw(pid), signal) {
                log::warn!("cannot send {signal} to {pid}: {error}");
            }
        }
        log::info!("{by}: passed on to {members:?}");
        true
    }

    pub(crate) fn pass_on_or_refuse(&self, by: &Requester, action: Action) {
        if matches!(by, Requester::Candidate(_)) || !self.pass_on(by, action, None) {
            return by.refuse("this process has handed over and is draining");
        }
        by.answer(Ok("ok".to_owned()));
    }

    /// Whether this process stays for the sake of others.
    pub(crate) fn has_members(&self) -> bool {
        self.line.as_ref().is_some_and(|line| !line.is_over())
    }
}

/// What a process that stays knows of the processes that have succeeded it.
struct Line {
    /// What the first listening socket is called in /proc, by which a member is recognised.
    socket: String,
    /// The arguments of a successor as /proc has them, by which a member is recognised that listens elsewhere.
    arguments: Vec<u8>,
    /// The name of this process, by which a member is recognised that has ended before it was seen.
    name: String,
    /// Children that have an owner which waits for them.
    started: HashSet<i32>,
    /// The members that have been seen.
    seen: HashSet<i32>,
    last: Option<ExitStatus>,
}

impl Line {
    /// Waits for orphans that have ended.
    fn reap(&mut self) {
        self.seen.extend(self.members());
        let children = self.children();
        self.started.retain(|pid| children.contains(pid));
        for &pid in children.difference(&self.started) {
            let is_member = self.was_member(pid);
            let waited = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            if let Some(end) = waited.ok().and_then(exit_status).filter(|_| is_member) {
                self.last = Some(end);
            }
        }
    }

    /// Whether no member is left. One that is ending has no descriptors any more, and cannot be waited for
    /// yet.
    fn is_over(&self) -> bool {
        self.members().is_empty() && !self.children().into_iter().any(|pid| self.was_member(pid))
    }

    /// The children to wait for: those of this thread, and the members among those of the main thread, to which
    /// orphans come, and which may have children of its own. What an embedding program has started on other threads
    /// is none of ours.
    fn children(&self) -> HashSet<i32> {
        let of_main_thread = children_of(Pid::this()).filter(|&pid| self.was_member(pid));
        children_of(gettid()).chain(of_main_thread).collect()
    }

    fn was_member(&self, pid: i32) -> bool {
        self.seen.contains(&pid) || stat(pid).is_some_and(|stat| stat.name == self.name)
    }

    /// The living descendants that hold the listening socket where a successor has it, or have been started like
    /// one. Others are nothing of ours: they have been started by handlers.
    fn members(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let parents: HashMap<i32, i32> = processes.filter_map(|pid| Some((pid, stat(pid)?.parent))).collect();
        let this = process::id() as i32;
        // A parent that is missing, or 0, has ended while this was read, and is succeeded by this process.
        let is_descendant = |&pid: &i32| {
            let mut ancestors = std::iter::successors(Some(pid), |pid| parents.get(pid).copied()).skip(1);
            let last = ancestors.find(|pid| [this, 0, 1].contains(pid) || !parents.contains_key(pid));
            pid != 1 && last.is_some_and(|last| last == this || last != 1)
        };
        let others = parents.keys().copied().filter(|&pid| pid != this);
        others.filter(is_descendant).filter(|&pid| self.is_member(pid)).collect()
    }

    fn is_member(&self, pid: i32) -> bool {
        let held = fs::read_link(format!("/proc/{pid}/fd/{}", descriptors::FIRST));
        held.is_ok_and(|held| held.as_os_str() == self.socket.as_str())
            || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|all| all.ends_with(&self.arguments))
                // What any program ends with that has arguments says nothing.
                && (self.arguments.len() > 1 || stat(pid).is_some_and(|stat| stat.name == self.name))
    }
}

fn children_of(thread: Pid) -> impl Iterator<Item = i32> {
    let list = fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
    let children: Vec<i32> = list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    children.into_iter()
}

/// Some of what proc(5) says of a process.
struct Stat {
    name: String,
    parent: i32,
}

fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything.
    let (before, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let (_, name) = before.split_once('(')?;
    let (_state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    Some(Stat { name: name.to_owned(), parent })
}
