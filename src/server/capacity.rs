//! How many connections the limits of the process and of the system allow. That is known before they are
//! reached, and leaves room for a handover: at a limit it is the handover that would fail, and memory that is
//! refused aborts the process.

use std::fmt;
use std::fs;
use std::iter;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// The descriptors of a process beside its connections and listening sockets: its own, those of a handover,
/// and those of the clients of the control socket.
const DESCRIPTORS: u64 = 36;
/// The descriptors that a process opens beside its listening sockets, with one for a connection.
const OWN: usize = 8;
/// Those of a control socket, with one for a client.
const CONTROL: usize = 4;
/// Both ends of the two sockets of a handover, and the duplicates of two for the child. musl's posix_spawn(3) has a
/// pipe, too.
const HANDOVER: usize = if cfg!(target_env = "musl") { 8 } else { 6 };
/// The threads of a process beside those of its connections, with one for a reload, and those that move
/// connections.
const THREADS: u64 = 8;
/// The mappings, and the bytes, that a process needs beside those that it has at the start.
const MAPPINGS: u64 = 256;
const MEMORY: u64 = 32 << 20;
/// The mappings of a thread: its stack, the one for signals, and a guard page of each.
const MAPPINGS_OF_A_THREAD: u64 = 4;
/// The bytes that a connection takes beside its stack: these guard pages, and its buffers.
const MEMORY_OF_A_CONNECTION: u64 = 64 << 10;

/// The most connections, and the limit that allows no more.
pub(super) struct Capacity {
    pub(super) connections: usize,
    limit: Limit,
}

struct Limit {
    name: &'static str,
    value: u64,
    /// What is taken of it by other things than connections.
    others: u64,
    /// What a connection takes of it.
    each: u64,
}

impl Capacity {
    /// The least that one of the limits allows, for this number of descriptors that are handed over and this stack
    /// of a connection's thread.
    pub(super) fn measure(handed: usize, stack: usize) -> Option<Capacity> {
        let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
        let mapped = fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count()) as u64;
        let limit =
            |name, value: Option<u64>, others, each| Some(Limit { name, value: value?, others, each });
        // The threads of all processes count: this one, one that drains, and a candidate.
        let threads = |name, value| limit(name, value, 3 * THREADS, 2);
        let limits = [
            // A handover duplicates them.
            limit("RLIMIT_NOFILE", own(Resource::RLIMIT_NOFILE), open + DESCRIPTORS + handed as u64, 1),
            limit(
                "RLIMIT_AS",
                own(Resource::RLIMIT_AS),
                memory() + MEMORY,
                stack as u64 + MEMORY_OF_A_CONNECTION,
            ),
            limit(
                "vm.max_map_count",
                number("/proc/sys/vm/max_map_count"),
                mapped + MAPPINGS,
                MAPPINGS_OF_A_THREAD,
            ),
            threads("RLIMIT_NPROC", own(Resource::RLIMIT_NPROC)),
            threads("pids.max", pids_max()),
            threads("kernel.pid_max", number("/proc/sys/kernel/pid_max")),
            threads("kernel.threads-max", number("/proc/sys/kernel/threads-max")),
        ];
        let capacities = limits.into_iter().flatten().map(|limit| (limit.connections(), limit));
        let (connections, limit) = capacities.min_by_key(|&(connections, _)| connections)?;
        Some(Capacity { connections, limit })
    }
}

/// Checks that the limit of descriptors, of which `any` is one, leaves room for a connection and for a handover of
/// this number of them. Of those that are open now, `spare` will be closed by then.
pub(crate) fn check(
    any: BorrowedFd<'_>,
    handed: usize,
    has_control: bool,
    spare: usize,
) -> Result<(), String> {
    let control = if has_control { CONTROL } else { 0 };
    let needed = (OWN + HANDOVER + handed + control).saturating_sub(spare);
    let duplicates = iter::repeat_with(|| any.try_clone_to_owned()).map_while(Result::ok).take(needed);
    let missing = (needed - duplicates.collect::<Vec<_>>().len()) as u64;
    match own(Resource::RLIMIT_NOFILE) {
        Some(limit) if missing > 0 => {
            Err(format!("RLIMIT_NOFILE is {limit}, at least {} are needed", limit + missing))
        }
        _ => Ok(()),
    }
}

impl Limit {
    /// One connection at least, and some of it is left for handlers.
    fn connections(&self) -> usize {
        let left = (self.value - self.value / 16).saturating_sub(self.others);
        usize::try_from(left / self.each).unwrap_or(usize::MAX).max(1)
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.limit.name, self.limit.value)
    }
}

// On some targets it has 32 bits.
#[allow(clippy::unnecessary_cast)]
fn own(resource: Resource) -> Option<u64> {
    let (soft, _) = getrlimit(resource).ok()?;
    (soft != RLIM_INFINITY).then_some(soft as u64)
}

/// The number in a file, if there is one: `max` is none.
fn number(path: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How many bytes of address space this process has.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size =
        status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")?.trim().parse().ok());
    size.map_or(0, |kilobytes: u64| kilobytes << 10)
}

/// The least number of threads that a control group allows in which this process is, or one above it; see
/// cgroups(7).
fn pids_max() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => return None,
        };
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        groups.filter_map(|group| number(Path::new(root).join(group).join("pids.max"))).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::Limit;

    #[test]
    fn what_is_no_connection_and_a_sixteenth_are_left() {
        let connections = |value, others, each| Limit { name: "", value, others, each }.connections();
        assert_eq!(connections(1600, 100, 1), 1400);
        assert_eq!(connections(1600, 100, 4), 350);
        assert_eq!(connections(20, 100, 2), 1);
    }
}
