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

/// The argument that tells a process to take over descriptor 3 instead of binding.
const GRACEFUL: &str = "--graceful";

/// The variable that tells a process that a predecessor has started it. It is of no use to its own children, which
/// inherit it with the environment, so a link has to lie behind the sockets as well.
pub(crate) const VARIABLE: &str = "HANDOVER";

/// Whether [`GRACEFUL`] is among the arguments of this process: before `--`, behind which there are no options.
pub(crate) fn is_graceful() -> bool {
    env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == GRACEFUL)
}

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
    /// The successor of this process: this program as it was invoked, unless another one or other arguments are
    /// given.
    ///
    /// To be called before the working directory changes, because the name may be relative to it.
    pub(crate) fn of_successor(
        program: Option<&Path>,
        arguments: Option<&[OsString]>,
    ) -> io::Result<Program> {
        let mut own = env::args_os();
        let name = own.next().unwrap_or_default();
        let (path, name) = match (program, found_by_name(&name).filter(|path| is_running(path))) {
            (Some(program), _) => (env::current_dir()?.join(program), program.into()),
            (None, Some(path)) => (path, name),
            (None, None) => (env::current_exe()?, name),
        };
        let arguments = arguments.map_or_else(|| own.collect(), <[OsString]>::to_vec);
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
