//! The script of the manual, which runs something before it executes the server.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::server::{
    BINARY, Server, exited, install_script, is_alive, number_after, signal_process, wait_until,
};

/// The script after its first line, with these programs in the places of its own.
fn script(migration: &Path) -> String {
    let manual = include_str!("../../../man/handover.1");
    let (_, rest) = manual.split_once("\n#!/bin/sh -e\n").unwrap();
    let script = rest.split("\n.Ed\n").next().unwrap();
    assert!(script.contains("migrate ") && script.contains("exec /usr/local/bin/handover.2 "), "{script}");
    let script = script.replace("migrate ", &format!("{} ", migration.display()));
    script.replace("/usr/local/bin/handover.2", BINARY)
}

#[test]
fn what_a_script_runs_before_the_server_keeps_no_address_in_use_when_it_outlives_the_script() {
    let server = Server::start_replaceable(&[]);
    let [migration, pid] = ["migration", "migration.pid"].map(|name| server.directory.join(name));
    install_script(&migration, &format!("echo PID $$ >{}; exec sleep 60", pid.display()));
    install_script(&server.program(), &script(&migration));
    server.signal(Signal::SIGUSR2);
    let read = || fs::read_to_string(&pid).unwrap_or_default();
    wait_until(|| read().ends_with('\n'), || "the script runs nothing".to_owned());
    let migration = number_after(&read(), "PID ");
    signal_process(server.expect_child(server.first()), Signal::SIGKILL);
    server.expect("handover failed: ");
    assert_eq!(server.stop(), exited(server.first(), 0));

    TcpListener::bind(server.address).unwrap();
    assert!(is_alive(migration));
}
