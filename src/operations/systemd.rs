//! What a service manager tells a process, and is notified of: the protocols of sd_listen_fds(3) and
//! sd_notify(3).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;

use nix::time::{ClockId, clock_gettime};

/// How many sockets the service manager has opened for this very process.
pub(crate) fn sockets() -> Option<usize> {
    if meant_for()? != process::id().to_string() {
        return None;
    }
    env::var("LISTEN_FDS").ok()?.parse().ok().filter(|&count| count > 0)
}

/// The process ID that the sockets from descriptor 3 on are meant for, if the environment says so.
pub(crate) fn meant_for() -> Option<String> {
    env::var("LISTEN_PID").ok()
}

/// Whether a service manager watches this process, if it has started it.
pub(crate) fn is_there() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// This process serves. It is not the main process, if it is a successor: systemd 252 kills at once what it has not
/// started itself.
pub(crate) fn ready() {
    notify("READY=1\n");
}

/// A reload or a handover is under way; `ready` follows, from the process that serves then. By the time
/// systemd tells this reload from one before.
pub(crate) fn reloading() {
    // It fails for a clock that does not exist only.
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
    let microseconds = i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
}

/// The service ends with this process.
pub(crate) fn stopping() {
    notify("STOPPING=1\n");
}

/// Sends the notification if there is a service manager, and never waits for one that does not read.
fn notify(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<usize> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    };
    if let Err(error) = send() {
        log::warn!("cannot notify the service manager at {}: {error}", name.display());
    }
}
