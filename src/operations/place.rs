//! A file that leads to the process that serves: the PID file, or the control socket.
//!
//! Each process of a handover makes a file of its own under a temporary name, puts it in place when it may
//! go, and removes it when it ends. The file of its predecessor steps aside to PATH.old meanwhile, so that it
//! can go back. All of that is rename(2): there is no moment at which nothing is found, or half of something.

use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::unix_file::{UnixFile, is_left};

/// What comes between the path and the process ID in a temporary name.
const TEMPORARY: &str = ".new-";

/// By what a process recognises its own file.
#[derive(Debug)]
pub(crate) enum Mark {
    /// It holds the process ID. An operator may have written another one into it.
    ProcessId,
    /// It is this file.
    Socket(UnixFile),
}

/// A file of this process, in its place or on the way there. Dropping it removes it, wherever it is.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    mark: Mark,
    /// Where it is until it is put in place. The name cannot be foreseen, because others may write to the
    /// directory; but the next process recognises it if this one is killed.
    temporary: PathBuf,
    /// The predecessor's file, if it has stepped aside for this one.
    predecessor: Option<UnixFile>,
}

impl Place {
    /// Makes a file beside `path`.
    pub(crate) fn prepare(path: &Path, make: impl FnOnce(&Path) -> io::Result<Mark>) -> io::Result<Place> {
        clear_leftovers(path);
        let random = RandomState::new().build_hasher().finish() as u32;
        let temporary = with_suffix(path, &format!("{TEMPORARY}{}-{random:08x}", process::id()));
        let mark = make(&temporary)?;
        Ok(Place { path: path.to_owned(), mark, temporary, predecessor: None })
    }

    /// Makes a file where no other process has one.
    pub(crate) fn in_place(path: &Path, make: impl FnOnce(&Path) -> io::Result<Mark>) -> io::Result<Place> {
        let mark = make(path)?;
        Ok(Place { path: path.to_owned(), mark, temporary: path.to_owned(), predecessor: None })
    }

    /// Makes a PID file: the process ID, in decimal and with a newline.
    pub(crate) fn pid_file(path: &Path) -> io::Result<Place> {
        Place::prepare(path, |path| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
            writeln!(file, "{}", process::id()).inspect_err(|_| drop(fs::remove_file(path)))?;
            Ok(Mark::ProcessId)
        })
    }

    /// Puts it in place of the predecessor's file, which steps aside.
    pub(crate) fn succeed(&mut self) -> io::Result<()> {
        let aside = self.aside();
        let _ = fs::remove_file(&aside);
        // There need not be one.
        if fs::hard_link(&self.path, &aside).is_ok() {
            self.predecessor = UnixFile::at(&aside);
        }
        fs::rename(&self.temporary, &self.path)
    }

    /// Puts it in place where no other process is. A process that was killed may have left its own aside.
    pub(crate) fn take(&mut self) -> io::Result<()> {
        let aside = self.aside();
        let is_stale = match self.mark {
            Mark::ProcessId => read_pid(&aside).is_some_and(|pid| !is_alive(pid)),
            Mark::Socket(_) => is_left(&aside),
        };
        if is_stale {
            let _ = fs::remove_file(aside);
        }
        fs::rename(&self.temporary, &self.path)
    }

    /// Puts it back in place if a successor has taken that; whether it is there now.
    pub(crate) fn restore(&self) -> bool {
        clear_leftovers(&self.path);
        if self.is_in_place() {
            self.remove(&self.aside());
            return true;
        }
        self.is_mine(&self.aside()) && fs::rename(self.aside(), &self.path).is_ok()
    }

    /// Gives the place back to the predecessor, which accepts connections beside this process.
    pub(crate) fn give_back(&self) {
        if self.is_in_place() && self.predecessor_is_aside() {
            let _ = fs::rename(self.aside(), &self.path);
        }
    }

    /// Removes what a predecessor that has died has left aside.
    pub(crate) fn clear_aside(&mut self) {
        if self.predecessor_is_aside() {
            let _ = fs::remove_file(self.aside());
        }
        self.predecessor = None;
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn is_in_place(&self) -> bool {
        self.is_mine(&self.path)
    }

    fn predecessor_is_aside(&self) -> bool {
        self.predecessor.is_some() && UnixFile::at(&self.aside()) == self.predecessor
    }

    fn aside(&self) -> PathBuf {
        aside(&self.path)
    }

    fn is_mine(&self, path: &Path) -> bool {
        match &self.mark {
            Mark::ProcessId => read_pid(path) == Some(process::id() as i32),
            Mark::Socket(file) => UnixFile::at(path).as_ref() == Some(file),
        }
    }

    fn remove(&self, path: &Path) {
        if self.is_mine(path)
            && let Err(error) = fs::remove_file(path)
            // The other process of an overlap that ends in the same moment has renamed it.
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The one aside first, because the successor may still put it in the place of its own.
        for path in [&self.temporary, &self.aside(), &self.path] {
            self.remove(path);
        }
    }
}

/// Where the file of a predecessor is.
pub(super) fn aside(path: &Path) -> PathBuf {
    with_suffix(path, ".old")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// The content of a PID file, of which nothing is known: it may even be a FIFO.
fn read_pid(path: &Path) -> Option<i32> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut content = String::new();
    file.take(32).read_to_string(&mut content).ok()?;
    content.trim().parse().ok()
}

fn is_alive(pid: i32) -> bool {
    pid > 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Removes the temporary files beside `path` of processes that were killed before they put them in place.
fn clear_leftovers(path: &Path) {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = with_suffix(Path::new(path.file_name().unwrap_or_default()), TEMPORARY);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.as_bytes().strip_prefix(prefix.as_os_str().as_bytes());
        let rest = rest.and_then(|rest| std::str::from_utf8(rest).ok());
        let pid = rest.and_then(|rest| rest.split_once('-')?.0.parse().ok());
        if pid.is_some_and(|pid| !is_alive(pid)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_goes_with_its_process_and_only_if_it_is_its_own() {
        let directory = std::env::temp_dir().join(format!("handover-places-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("pid");
        let own = format!("{}\n", process::id());
        let left = directory.join("pid.new-2147483647-00000000");
        fs::write(&left, "").unwrap();

        let mut place = Place::pid_file(&path).unwrap();
        assert!(!path.exists() && !left.exists());
        place.take().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        // A successor takes the place, and gives it back.
        fs::rename(&path, directory.join("pid.old")).unwrap();
        fs::write(&path, "1\n").unwrap();
        assert!(place.restore());
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        fs::write(&path, "1\n").unwrap();
        assert!(!place.restore());
        drop(place);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");

        drop(Place::pid_file(&path).unwrap());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no temporary file is left");
        fs::remove_dir_all(&directory).unwrap();
    }
}
