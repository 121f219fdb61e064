//! The PID file: always complete, and only ever removed by the process it names.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

/// A PID file that this process has written; dropping it removes the file if it still names this process.
pub(crate) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes this process's ID, in decimal and with a newline, in place of whatever the file holds.
    pub(crate) fn write(path: &Path) -> io::Result<PidFile> {
        replace(path, &format!("{}\n", process::id()))?;
        Ok(PidFile { path: path.to_owned() })
    }

    /// Makes the file name this process again, if another has put itself in.
    pub(crate) fn restore(&self) -> io::Result<()> {
        if self.names_this_process() { Ok(()) } else { PidFile::write(&self.path).map(std::mem::forget) }
    }

    /// The same with `.old` at its end, for a process that runs beside its successor.
    pub(crate) fn aside(&self) -> io::Result<PidFile> {
        let mut path = self.path.clone().into_os_string();
        path.push(".old");
        PidFile::write(Path::new(&path))
    }

    /// The path as it was asked for.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn names_this_process(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|content| content.trim() == process::id().to_string())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.names_this_process()
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the PID file {}: {error}", self.path.display());
        }
    }
}

/// Replaces the file in one step, so that no reader ever finds half a number: rename(2) is atomic.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}", process::id()));
    let temporary = path.with_file_name(temporary);
    let written = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name that is there already is a leftover or a trap; neither is written through.
fn write_new(path: &Path, content: &str) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_this_process_and_goes_with_it() {
        let directory = std::env::temp_dir().join(format!("handover-pid-file-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("pid");

        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        drop(file);
        assert!(!path.exists());

        let file = PidFile::write(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        file.restore().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n", "another process's file stays");

        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no temporary file is left");
        fs::remove_dir_all(&directory).unwrap();
    }
}
