//! The state that a program hands on: bytes in a file that lies in memory, and that nobody can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// How many bytes it has at most.
pub(crate) const MOST: usize = 64 << 10;

/// A file with this state, which is sealed; memfd_create(2). To write it waits for nothing.
pub(crate) fn seal(state: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("handover-state", flags)?);
    file.write_all(state)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL))?;
    Ok(file.into())
}

/// The state in a file of another process, which is not believed before it has been looked at.
pub(crate) fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    // Nothing else has seals, so that to read it cannot wait either.
    let present = fcntl(&file, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_retain);
    if !present.contains(seals()) {
        return Err(io::Error::other("the state is not in a file in memory that is sealed"));
    }
    let file = File::from(file);
    let size = file.metadata()?.len();
    if size > MOST as u64 {
        return Err(io::Error::other(format!("the state has {size} bytes, and at most {MOST} are taken")));
    }
    let mut state = vec![0; size as usize];
    // The position belongs to the file, and may be anywhere.
    file.read_exact_at(&mut state, 0)?;
    Ok(state)
}

/// What keeps the content as it is.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_cannot_be_changed() {
        for state in [vec![], vec![7], vec![255; MOST]] {
            let sealed = seal(&state).unwrap();
            let mut file = File::from(sealed.try_clone().unwrap());
            assert!(file.write_all(b"x").is_err() && file.write_at(b"x", 0).is_err());
            assert!(file.set_len(1 << 20).is_err() && (file.set_len(0).is_err() || state.is_empty()));
            assert_eq!(read(sealed).unwrap(), state);
        }
    }

    #[test]
    fn what_could_be_changed_or_is_too_long_is_not_read() {
        let reason = |file: OwnedFd| read(file).unwrap_err().to_string();
        assert_eq!(
            reason(seal(&vec![0; MOST + 1]).unwrap()),
            "the state has 65537 bytes, and at most 65536 are taken"
        );
        let unsealed = memfd_create("unsealed", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let (pipe, _writer) = io::pipe().unwrap();
        for file in [unsealed, pipe.into(), File::open("/proc/self/exe").unwrap().into()] {
            assert_eq!(reason(file), "the state is not in a file in memory that is sealed");
        }
    }
}
