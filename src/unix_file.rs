//! The files of Unix sockets: binding, replacing what a killed process has left, and telling them apart.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// The longest path of a Unix socket, in bytes.
pub(crate) const LONGEST_PATH: usize = 107;

/// The identity of a file, by its device and inode: its path may lead to another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnixFile {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl UnixFile {
    pub(crate) fn at(path: &Path) -> Option<UnixFile> {
        fs::symlink_metadata(path).ok().map(|file| UnixFile::of(&file))
    }

    fn of(file: &Metadata) -> UnixFile {
        UnixFile { device: file.dev(), inode: file.ino() }
    }

    /// Removes the file at this path, if it is this one.
    pub(crate) fn remove(self, path: &Path) {
        if UnixFile::at(path) == Some(self)
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("cannot remove the socket {}: {error}", path.display());
        }
    }

    /// Sets the permissions of the file at this path, if it is this one.
    pub(crate) fn set_mode(self, path: &Path, mode: u32) -> io::Result<()> {
        let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        if UnixFile::of(&file.metadata()?) != self {
            return Ok(());
        }
        // Not by the path, which may lead to another file by now.
        fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), Permissions::from_mode(mode))
    }

    /// Listens on a path, with these permissions. A socket that [is left](is_left) there is replaced; the
    /// error is `AddrInUse` if there is anything else, or if another process is about to listen there.
    pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, UnixFile)> {
        locked(path, || UnixFile::bind_locked(path, mode))
    }

    fn bind_locked(path: &Path, mode: u32) -> io::Result<(UnixListener, UnixFile)> {
        if is_left(path) {
            fs::remove_file(path)?;
        }
        let socket = new_socket(SockFlag::empty())?;
        // On Linux the file gets the permissions of the descriptor, less those of the umask, so there is no
        // moment with more of them than wanted.
        fchmod(&socket, Mode::from_bits_truncate(mode))?;
        bind_to(&socket, path)?;
        let file = fs::set_permissions(path, Permissions::from_mode(mode))
            .and_then(|()| Ok(listen(&socket, Backlog::MAXALLOWABLE)?))
            .and_then(|()| fs::symlink_metadata(path))
            .inspect_err(|_| drop(fs::remove_file(path)))?;
        Ok((socket.into(), UnixFile::of(&file)))
    }
}

pub(crate) fn new_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)
}

/// Binds a socket to a path. A path that is too long for an address is reached by way of its directory.
fn bind_to(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok(bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let directory = File::open(directory)?;
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok(bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?)
}

/// Whether there is a socket that refuses connections: a process that was killed has left it behind.
pub(crate) fn is_left(path: &Path) -> bool {
    // Whatever is no socket refuses connections, too.
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && connect_at_once(path).is_err_and(|errno| errno == Errno::ECONNREFUSED)
}

/// Connects to a socket, but does not wait for room in the queue of one that is alive.
pub(crate) fn connect_at_once(path: &Path) -> nix::Result<OwnedFd> {
    let socket = new_socket(SockFlag::SOCK_NONBLOCK)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Keeps other starters away from a path meanwhile: between bind(2) and listen(2) a socket looks like a stale
/// one.
fn locked<T>(socket: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".handover-lock");
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().write(true).create(true).mode(0o600).custom_flags(flags).open(&path)?;
    let taken = UnixFile::of(&file.metadata()?);
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    // The one that had it before may have removed the file in the meantime.
    if lock.is_err() || UnixFile::at(path.as_ref()) != Some(taken) {
        return Err(Errno::EADDRINUSE.into());
    }
    let result = work();
    let _ = fs::remove_file(&path);
    result
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;
    use std::{env, process, thread};

    use super::*;

    fn in_directory(name: &str, test: impl FnOnce(&Path)) {
        let directory = env::temp_dir().join(format!("handover-{name}-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        test(&directory.join("socket"));
        let left = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["socket"]);
        fs::remove_dir_all(&directory).unwrap();
    }

    fn is_in_use(bound: io::Result<(UnixListener, UnixFile)>) -> bool {
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        in_directory("stale", |path| {
            for mode in [0o600, 0o660, 0o777] {
                let (socket, file) = UnixFile::bind(path, mode).unwrap();
                assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
                listen(&socket, Backlog::new(0).unwrap()).unwrap();
                // The first attempt finds room in its queue, and leaves none to the second.
                assert!(is_in_use(UnixFile::bind(path, mode)));
                assert!(is_in_use(UnixFile::bind(path, mode)));
                assert_eq!(UnixFile::at(path), Some(file));
                drop(socket);
            }
            fs::remove_file(path).unwrap();
            fs::write(path, "precious").unwrap();
            assert!(is_in_use(UnixFile::bind(path, 0o600)));
            assert_eq!(fs::read_to_string(path).unwrap(), "precious");
        });
    }

    #[test]
    fn of_many_starters_on_a_stale_socket_one_gets_it() {
        in_directory("starters", |path| {
            for _ in 0..100 {
                let together = Barrier::new(4);
                let start = || {
                    together.wait();
                    UnixFile::bind(path, 0o600)
                };
                let bound = thread::scope(|scope| {
                    [(); 4].map(|()| scope.spawn(start)).map(|starter| starter.join().unwrap())
                });
                let (bound, refused): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
                assert_eq!(bound.len(), 1);
                assert!(refused.into_iter().all(is_in_use));
                // It is the one that is found.
                UnixStream::connect(path).unwrap();
                bound[0].as_ref().unwrap().0.accept().unwrap();
            }
        });
    }
}
