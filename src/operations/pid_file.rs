//! The PID file: always complete, and only ever removed by the process it names.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

use crate::operations::places;

/// A PID file that this process has written; dropping it removes the file if it still names this process.
pub(crate) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes this process's ID, in decimal and with a newline, in place of whatever the file holds.
    pub(crate) fn write(path: &Path) -> io::Result<PidFile> {
        places::replace(path, |path| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
            writeln!(file, "{}", process::id())
        })?;
        Ok(PidFile { path: path.to_owned() })
    }

    /// Makes the file name this process again, if another has put itself in.
    pub(crate) fn restore(&self) -> io::Result<()> {
        if self.names_this_process() { Ok(()) } else { PidFile::write(&self.path).map(std::mem::forget) }
    }

    /// The same with `.old` at its end, for a process that runs beside its successor.
    pub(crate) fn aside(&self) -> io::Result<PidFile> {
        PidFile::write(&places::aside(&self.path))
    }

    /// Gives the file back to the predecessor that runs beside this process.
    pub(crate) fn give_back(self) {
        if self.names_this_process() {
            places::give_back(&self.path);
        }
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
        if !self.names_this_process() {
            return;
        }
        match fs::remove_file(&self.path) {
            // A successor that ends in the same moment has put this file in the place of its own.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove the PID file {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
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
