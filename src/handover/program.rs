//! Which program a successor is: the one this process was invoked as, not the file it happens to run.
//!
//! A deploy replaces the file (`mv new path`) or the symbolic link to its directory
//! (`ln -snf releases/2 current`). /proc/self/exe, and with it `std::env::current_exe`, keeps naming the
//! old file, and after a replacement ends in " (deleted)". The name the program was called by leads to
//! what is there now.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::descriptors;

/// The flag that tells a process to take over descriptor 3 instead of binding.
pub(crate) const GRACEFUL: &str = "--graceful";

/// A program with its arguments, as execve(2) takes them.
#[derive(Debug)]
pub(crate) struct Program {
    /// The file to execute.
    pub(crate) path: PathBuf,
    /// The name it is called by: passed on, so that the next generation can look it up again.
    pub(crate) name: OsString,
    /// The arguments after the name.
    pub(crate) arguments: Vec<OsString>,
    /// The numbers of inherited descriptors that are not passed on. To find them at each handover would take
    /// 5 to 8 ms with 5,000 connections, so it is done once.
    pub(crate) keep_back: Vec<RawFd>,
}

impl Program {
    /// The successor of this process: this program as it was invoked, with `--graceful` once.
    ///
    /// To be called before the working directory changes, because the name may be relative to it.
    pub(crate) fn of_successor() -> io::Result<Program> {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        let path = match found_by_name(&name).filter(|path| is_running(path)) {
            Some(path) => path,
            None => env::current_exe()?,
        };
        let arguments = gracefully(arguments.collect());
        Ok(Program { path, name, arguments, keep_back: descriptors::others_inherited() })
    }
}

/// Where a shell finds a program that is called by `name`, as an absolute path with symbolic links kept.
fn found_by_name(name: &OsStr) -> Option<PathBuf> {
    let directory = env::current_dir().ok()?;
    if name.as_bytes().contains(&b'/') {
        return Some(directory.join(name));
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|entry| directory.join(entry).join(name)).find(|path| path.is_file())
}

/// Whether `path` leads to the file that this process runs.
fn is_running(path: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
    match (identity(path), identity(Path::new("/proc/self/exe"))) {
        (Ok(named), Ok(running)) => named == running,
        _ => false,
    }
}

/// The arguments with `--graceful` in them once: where it is already, or else at the end of the options.
fn gracefully(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let end_of_options = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    if !arguments[..end_of_options].iter().any(|argument| argument == GRACEFUL) {
        arguments.insert(end_of_options, GRACEFUL.into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::gracefully;

    fn after(arguments: &[&str]) -> Vec<String> {
        let arguments = gracefully(arguments.iter().map(Into::into).collect());
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn graceful_is_added_once() {
        assert_eq!(after(&[]), ["--graceful"]);
        assert_eq!(after(&["--message", "Hi"]), ["--message", "Hi", "--graceful"]);
        assert_eq!(after(&["--graceful", "--message", "Hi"]), ["--graceful", "--message", "Hi"]);
    }

    #[test]
    fn graceful_stays_an_option() {
        assert_eq!(after(&["-v", "--", "file"]), ["-v", "--graceful", "--", "file"]);
        assert_eq!(after(&["--", "--graceful"]), ["--graceful", "--", "--graceful"]);
    }
}
