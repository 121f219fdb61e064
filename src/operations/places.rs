//! Places in the file system that lead to the process that serves, like the PID file. Each process of a
//! handover puts something of its own there, and nobody who looks finds nothing, or half of it.

use std::path::{Path, PathBuf};
use std::{fs, io, process};

/// Makes something in a place, instead of what is there: rename(2) is atomic.
pub(crate) fn replace<T>(place: &Path, make: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let temporary = with_suffix(place, &format!(".{}", process::id()));
    // It is a leftover of a process with the same ID, or a trap; neither is written to.
    let _ = fs::remove_file(&temporary);
    let made = make(&temporary).and_then(|made| fs::rename(&temporary, place).map(|()| made));
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made
}

/// The place beside it, for a process that goes on beside its successor.
pub(crate) fn aside(place: &Path) -> PathBuf {
    with_suffix(place, ".old")
}

/// Lets the place aside lead where the place itself does.
///
/// # Errors
///
/// There is nothing, or it is not ours; see link(2).
pub(crate) fn put_aside(place: &Path) -> io::Result<()> {
    let aside = aside(place);
    let _ = fs::remove_file(&aside);
    fs::hard_link(place, aside)
}

/// Gives a place that leads to this process back to the one that is aside, or else leaves it empty.
pub(crate) fn give_back(place: &Path) {
    if fs::rename(aside(place), place).is_err() {
        let _ = fs::remove_file(place);
    }
}

fn with_suffix(place: &Path, suffix: &str) -> PathBuf {
    let mut path = place.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
