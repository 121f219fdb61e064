//! Which program a successor is: whatever the predecessor was invoked as leads to now.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::command::Command;
use crate::embedding::programs;
use crate::server::{
    BINARY, Directory, Server, exited, install, install_script, signal_process, wait_for_end,
};
use crate::untested::untested;

fn executable(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// Two releases, and a symbolic link to the first.
fn releases() -> Directory {
    let directory = Directory::new();
    for release in ["1", "2"] {
        let release = directory.join("releases").join(release);
        fs::create_dir_all(&release).unwrap();
        install(&release.join("main"));
    }
    symlink("releases/1/main", directory.join("current_main")).unwrap();
    directory
}

/// What `ln -snf` does.
fn relink(directory: &Directory, target: &str, link: &str) {
    assert!(Command::new("ln").arg("-snf").arg(target).arg(directory.join(link)).status().unwrap().success());
}

/// Hands over by a signal to the process in the PID file.
fn hand_over(server: &Server) -> u32 {
    let old = server.pid_file();
    signal_process(old, Signal::SIGHUP);
    let new = server.expect_handover();
    assert_eq!(server.pid_file(), new);
    assert_eq!(wait_for_end(old), exited(old, 0));
    assert_eq!(server.hello(), new);
    new
}

fn goes_forward_and_back(command: Command, directory: Directory) {
    let server = Server::start_command(command, directory);
    let release = |release: &str| server.directory.path().join("releases").join(release).join("main");
    let origin = fs::read_link(format!("/proc/{}/cwd", server.first())).unwrap();
    assert_eq!(executable(server.first()), release("1"));
    for target in ["2", "1", "2"] {
        relink(&server.directory, &format!("releases/{target}/main"), "current_main");
        let pid = hand_over(&server);
        assert_eq!(executable(pid), release(target));
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), origin);
    }
}

fn arguments(command: &mut Command, directory: &Directory) {
    command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(directory.join("pid"));
}

/// A script that puts an empty directory over /proc, and then runs this.
fn without_proc(command: &str) -> Option<String> {
    let script = |command: &str| {
        format!("exec unshare --mount sh -c 'mount -t tmpfs none /proc && exec \"$@\"' sh {command}")
    };
    let probe = Command::new("sh").args(["-c", &script("true")]).output();
    let is_allowed = probe.is_ok_and(|output| output.status.success());
    if !is_allowed {
        untested("unshare --mount is not allowed");
    }
    is_allowed.then(|| script(command))
}

#[test]
fn a_candidate_that_does_not_find_out_which_program_it_is_gives_the_reason() {
    let server = Server::start_replaceable(&[]);
    let Some(script) = without_proc(&format!("{BINARY} \"$@\"")) else { return };
    install_script(&server.program(), &script);
    let answer = handover::ask(&server.directory.join("control"), "restart").unwrap();
    let reason = "exited with status 1 before it was ready: cannot find out which program this is: ";
    assert!(answer.contains(reason), "{answer}");
    assert_eq!(server.hello(), server.first());
}

#[test]
fn a_process_that_does_not_know_its_file_names_none_when_it_is_ready() {
    let server = programs::start("hello", "other-successor");
    let own = "--ignored --exact embedding::programs::embedding_program --nocapture";
    let Some(script) = without_proc(&format!("{} {own}", server.program().display())) else { return };
    install_script(&server.directory.join("other"), &script);
    let new = server.hand_over();
    let line = server.expect(&format!("process {new} is ready"));
    assert!(line.ends_with(" is ready"), "{line}");
    assert_eq!(server.hello(), new);
}

#[test]
fn a_symbolic_link_is_followed_when_invoked_by_an_absolute_path() {
    let directory = releases();
    let mut command = Command::new(directory.join("current_main"));
    arguments(&mut command, &directory);
    goes_forward_and_back(command, directory);
}

#[test]
fn a_symbolic_link_is_followed_when_invoked_by_a_relative_path() {
    let directory = releases();
    let mut command = Command::new("./current_main");
    command.current_dir(directory.path());
    arguments(&mut command, &directory);
    goes_forward_and_back(command, directory);
}

#[test]
fn a_symbolic_link_is_followed_when_invoked_by_name() {
    let directory = releases();
    let mut command = Command::new("sh");
    command.args(["-c", "exec current_main \"$@\"", "sh"]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", directory.path().display()));
    arguments(&mut command, &directory);
    goes_forward_and_back(command, directory);
}

#[test]
fn a_false_name_does_not_mislead() {
    // As by `exec -a`: the name leads nowhere, or to another program.
    for name in ["nowhere", "/bin/true"] {
        let directory = releases();
        let mut command = Command::new("bash");
        let script = format!("exec -a {name} \"$@\"");
        command.args(["-c", &script, "bash"]).arg(directory.join("current_main"));
        arguments(&mut command, &directory);
        let server = Server::start_command(command, directory);
        let pid = hand_over(&server);
        assert_eq!(executable(pid), server.directory.path().join("releases/1/main"));
    }
}

#[test]
fn a_replaced_file_is_the_new_one() {
    let directory = Directory::new();
    let program = directory.join("program");
    install(&program);
    let mut command = Command::new(&program);
    arguments(&mut command, &directory);
    let server = Server::start_command(command, directory);
    for _ in 0..2 {
        install(&program);
        let old = executable(server.serving());
        assert!(old.to_string_lossy().ends_with(" (deleted)"), "{old:?}");
        let pid = hand_over(&server);
        assert_eq!(executable(pid), program);
    }
}
