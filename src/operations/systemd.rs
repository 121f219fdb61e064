//! What a service manager tells a process, and is told: systemd's protocols, which others speak as well.

use std::env;
use std::process;

use sd_notify::NotifyState;

/// How many sockets the service manager has opened for this very process (sd_listen_fds(3)).
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

/// This process serves, and is the one to watch.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::MainPid(process::id())]);
}

/// A reload or a handover is under way; `ready` follows, from whichever process serves then. The time is
/// what lets systemd tell this reload from one before (sd_notify(3), MONOTONIC_USEC).
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("cannot read the monotonic clock: {error}"),
    }
}

/// The service ends with this process.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Nothing is told if NOTIFY_SOCKET is not set.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify the service manager: {error}");
    }
}
