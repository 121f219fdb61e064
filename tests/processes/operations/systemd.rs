//! The unit as it is delivered, under a real systemd: a user instance in namespaces of its own.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;

use crate::client;
use crate::command::{Child, Command, DIRECTIVES, Stderr};
use crate::limits::resources::ask;
use crate::load::{Kind, Load};
use crate::server::{
    BINARY, Directory, Held, install, install_script, number_after, signal_process, wait_until,
};
use crate::untested::is_installed;
use crate::untested::untested;

/// The units, and the program and the address in them.
const UNITS: [(&str, &str); 2] = [
    ("handover.service", include_str!("../../../man/handover.service")),
    ("handover.socket", include_str!("../../../man/handover.socket")),
];
const PROGRAM: &str = "/usr/local/bin/handover";
const ADDRESS: &str = "127.0.0.1:3000";

/// A file system for /run, and a control group, which are left when the service manager is.
const SCRIPT: &str = "set -e
for root in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ -e $root/cgroup.procs ]; then mkdir $root/$1; echo $$ >$root/$1/cgroup.procs; fi
done
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/systemd/inaccessible/dir /run/runtime /run/units
cd /run/systemd/inaccessible
touch reg; mkfifo fifo; mknod chr c 0 0; mknod blk b 0 0; chmod 000 *
for name in default basic shutdown exit sockets; do printf '[Unit]\\nDefaultDependencies=no\\n' >/run/units/$name.target; done
export XDG_RUNTIME_DIR=/run/runtime SYSTEMD_UNIT_PATH=/run/units
touch /run/prepared
read _ || true
/lib/systemd/systemd --user
exit $?
";

/// A service manager with the units, in which the program is one that can be replaced.
struct Manager {
    outside: Child,
    /// The first process in the namespaces.
    inside: u32,
    group: String,
    address: SocketAddr,
    /// Where all that is logged is kept.
    directory: Directory,
}

impl Manager {
    /// `None` if the system does not allow one.
    fn start() -> Option<Manager> {
        if !is_installed("/lib/systemd/systemd") || !is_installed("nsenter") {
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let group = format!("handover-test-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.args(["sh", "-c", SCRIPT, "sh", &group]).stdin(Stdio::piped()).stdout(Stdio::null());
        let directory = Directory::new();
        let mut outside = command.stderr(Stderr::file(&directory.join("log"))).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outside.id());
        let mut inside = None;
        let is_prepared = || {
            inside = fs::read_to_string(&children).ok().and_then(|children| children.trim().parse().ok());
            let is_there =
                inside.is_some_and(|pid: u32| Path::new(&format!("/proc/{pid}/root/run/prepared")).exists());
            is_there || outside.try_wait().unwrap().is_some()
        };
        wait_until(is_prepared, || "the namespaces are not prepared".to_owned());
        if outside.try_wait().unwrap().is_some() {
            outside.catch_up();
            let reason = fs::read_to_string(directory.join("log")).unwrap();
            untested(&format!("no systemd of its own is to be had: {reason}"));
            return None;
        }
        // The port has to be known before; it is free for a moment.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut manager = Manager { outside, inside: inside.unwrap(), group, address, directory };
        for (name, unit) in UNITS {
            let unit = unit.replace(PROGRAM, "/run/program").replace(ADDRESS, &address.to_string());
            fs::write(manager.path("/run/units").join(name), unit).unwrap();
        }
        fs::create_dir(manager.path("/run/units/handover.service.d")).unwrap();
        let here =
            format!("[Service]\nStandardError=append:/proc/1/fd/2\nEnvironment=RUST_LOG={DIRECTIVES}\n");
        fs::write(manager.path("/run/units/handover.service.d/here.conf"), here).unwrap();
        install(&manager.path("/run/program"));
        // It begins when it reads the end of this.
        drop(manager.outside.stdin.take());
        wait_until(
            || manager.path("/run/runtime/systemd/private").exists(),
            || "systemd does not come".to_owned(),
        );
        // As that of the system's instance, which has services of other users.
        let notify = manager.path("/run/runtime/systemd/notify");
        fs::set_permissions(notify, fs::Permissions::from_mode(0o777)).unwrap();
        Some(manager)
    }

    /// Where a file in the namespace is found.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.inside))
    }

    fn systemctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside.to_string(), "--mount", "--pid", "systemctl", "--user"]);
        command.args(arguments).env("XDG_RUNTIME_DIR", "/run/runtime").output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) {
        let output = self.systemctl(arguments);
        let status = || self.property("ExecMainStatus");
        assert!(output.status.success(), "{arguments:?}: {output:?}, {}\n{}", status(), self.log());
    }

    fn property(&self, name: &str) -> String {
        let output = self.systemctl(&["show", "--value", "--property", name, "handover.service"]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn log(&self) -> String {
        self.outside.catch_up();
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// The serving process, as it is known in its namespace.
    fn hello(&self) -> u32 {
        number_after(&client::get(self.address, "/hello").unwrap().text(), "from ")
    }

    /// The same, as it is known here.
    fn serving(&self) -> u32 {
        let pid = self.hello().to_string();
        let is_it = |path: &PathBuf| {
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            numbers.split_whitespace().last() == Some(&pid) && self.is_inside(path)
        };
        let found = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(is_it).unwrap();
        found.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    /// How many processes there are of the service.
    fn servers(&self) -> usize {
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let is_one =
            |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "program\n");
        processes.filter(|path| is_one(path) && self.is_inside(path)).count()
    }

    fn is_inside(&self, process: &Path) -> bool {
        let namespace = |process: &Path| fs::read_link(process.join("ns/pid")).ok();
        namespace(process) == namespace(Path::new(&format!("/proc/{}", self.inside)))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        for root in ["systemd/", "unified/", ""] {
            let group = PathBuf::from(format!("/sys/fs/cgroup/{root}{}", self.group));
            wait_until(
                || !group.exists() || remove_group(&group).is_ok(),
                || format!("{} is in use", group.display()),
            );
        }
    }
}

/// Removes a control group with those in it: of what is in its directory, only these can be removed.
fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_group(&entry.path())?;
    }
    fs::remove_dir(group)
}

#[test]
fn systemd_reloads_the_unit_under_load_and_is_told_if_that_fails() {
    let Some(manager) = Manager::start() else { return };
    manager.succeed(&["start", "handover.service"]);
    let (watched, mut before) = (manager.property("MainPID"), manager.hello());
    let load = Load::start(manager.address, &Kind::ALL, 1);
    for _ in 0..3 {
        manager.succeed(&["reload", "handover.service"]);
        assert_ne!(manager.hello(), before);
        before = manager.hello();
        let control = manager.path("/run/runtime/handover/control");
        assert_eq!(number_after(&ask(&control, "status"), "pid="), before);
        let pid_file = fs::read_to_string(manager.path("/run/runtime/handover/pid")).unwrap();
        assert_eq!(pid_file, format!("{before}\n"));
    }
    install_script(&manager.path("/run/program"), "exit 1");
    assert!(!manager.systemctl(&["reload", "handover.service"]).status.success());
    assert_eq!(manager.hello(), before);
    // The program that asks is broken, too; one that is not gets the reason.
    let switch = "case \"$*\" in *--signal*) exec /run/good \"$@\";; esac; exit 1";
    install(&manager.path("/run/good"));
    install_script(&manager.path("/run/program"), switch);
    assert!(!manager.systemctl(&["reload", "handover.service"]).status.success());
    assert!(manager.log().contains("handover failed: successor "), "{}", manager.log());
    assert_eq!((manager.hello(), manager.property("ActiveState").as_str()), (before, "active"));
    install(&manager.path("/run/program"));
    manager.succeed(&["reload", "handover.service"]);
    load.stop();
    assert_ne!(manager.hello(), before);
    assert_eq!((manager.property("MainPID"), manager.property("SubState").as_str()), (watched, "running"));
}

#[test]
fn systemd_stops_the_unit_after_any_number_of_reloads_and_loses_nothing() {
    let Some(manager) = Manager::start() else { return };
    for reloads in [0, 1, 3] {
        manager.succeed(&["start", "handover.service"]);
        for _ in 0..reloads {
            manager.succeed(&["reload", "handover.service"]);
        }
        let held = Held::begin(manager.address);
        let stops = manager.log().matches("SIGTERM: stopping").count();
        manager.succeed(&["stop", "--no-block", "handover.service"]);
        wait_until(|| manager.log().matches("SIGTERM: stopping").count() > stops, || manager.log());
        held.finish();
        wait_until(|| manager.property("ActiveState") == "inactive", || manager.property("ActiveState"));
        assert_eq!(manager.property("Result"), "success");
        assert!(!manager.log().contains("cutting"), "{}", manager.log());
        assert!(!manager.path("/run/runtime/handover").exists());
    }
}

#[test]
fn systemd_starts_the_unit_again_if_its_serving_process_is_killed() {
    let Some(manager) = Manager::start() else { return };
    manager.succeed(&["start", "handover.service"]);
    for reloads in [0, 1, 2] {
        for _ in 0..reloads {
            manager.succeed(&["reload", "handover.service"]);
        }
        let before = manager.hello();
        // Until then one of those before it would take back.
        let is_alone = || manager.log().matches("stays until").count() == reloads && manager.servers() <= 2;
        wait_until(is_alone, || manager.log());
        signal_process(manager.serving(), Signal::SIGKILL);
        // Its socket is there all the time.
        assert_ne!(manager.hello(), before);
        wait_until(|| manager.property("SubState") == "running", || manager.property("SubState"));
        assert_eq!(manager.property("MainPID"), manager.hello().to_string());
    }
    let before = manager.hello();
    manager.succeed(&["restart", "handover.service"]);
    assert_ne!(manager.hello(), before);
}

#[test]
fn the_units_are_verified_without_a_word() {
    if !is_installed("systemd-analyze") {
        return;
    }
    let directory = Directory::new();
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").env("SYSTEMD_UNIT_PATH", format!("{}:", directory.path().display()));
    for (name, unit) in UNITS {
        fs::write(directory.join(name), unit.replace(PROGRAM, BINARY)).unwrap();
        command.arg(directory.join(name));
    }
    let output = command.env_remove("RUST_LOG").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
}
