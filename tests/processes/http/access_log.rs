//! The access log: a line for each response, which no client forges and other programs read.

use std::fs;
use std::process::Stdio;

use crate::client::Client;
use crate::command::Command;
use crate::server::{BINARY, Directory, Server};
use crate::untested::is_installed;

/// Starts the command with an access log.
fn start_with_access_log() -> Server {
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--access-log", "--log-level", "debug"]);
    Server::start_command(command, Directory::new())
}

#[test]
fn the_access_log_has_a_line_for_each_response() {
    let server = start_with_access_log();
    let mut client = Client::connect(server.address).unwrap();
    let length = client.get("/hello?x").unwrap().body.len().to_string();
    let line = server.expect(" GET /hello?x 200 ");
    let fields: Vec<&str> = line.split_whitespace().collect();
    // Time, PID, level; IP address, port, method, URL, status, bytes, milliseconds, Host, User-Agent.
    assert_eq!(fields.len(), 12, "{line}");
    assert_eq!(fields[3], "127.0.0.1", "{line}");
    assert!(fields[4].parse::<u16>().is_ok(), "{line}");
    assert_eq!(fields[5..9], ["GET", "/hello?x", "200", &length], "{line}");
    let (whole, thousandths) = fields[9].split_once('.').unwrap();
    assert!(whole.parse::<u64>().is_ok() && thousandths.len() == 3, "{line}");
    assert_eq!(fields[10..], ["\"test\"", "\"-\""], "{line}");
    client.send("nonsense\r\n\r\n").unwrap();
    let line = server.expect(" - - 400 ");
    assert!(line.ends_with(" \"-\" \"-\""), "{line}");

    let server = Server::start_for_load(&[]);
    server.get("/hello");
    server.stop();
    server.expect("ends");
    assert!(!server.log().contains("/hello"), "{}", server.log());
}

#[test]
fn no_client_forges_a_field_of_the_access_log() {
    let server = start_with_access_log();
    let agent = "a\" 200 \\x22 \t\u{e4}";
    let mut client = Client::connect(server.address).unwrap();
    client.send(format!("GET /hello HTTP/1.1\r\nHost: test\r\nUser-Agent: {agent}\r\n\r\n")).unwrap();
    let line = server.expect(" GET /hello 200 ");
    assert!(line.ends_with(r#" "test" "a\x22 200 \x5Cx22 \x09%C3%A4""#), "{line}");
}

#[test]
fn goaccess_reads_the_access_log() {
    if !is_installed("goaccess") {
        return;
    }
    let manual = include_str!("../../../man/handover.1");
    let (_, format) = manual.split_once("goaccess --log-format='").unwrap();
    let (format, _) = format.split_once('\'').unwrap();
    let server = start_with_access_log();
    let mut client = Client::connect(server.address).unwrap();
    let mut lines = String::new();
    for path in ["/hello", "/nowhere"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nUser-Agent: curl/7.88.1\r\n\r\n")).unwrap();
        client.receive().unwrap();
        lines += &format!("{}\n", server.expect(&format!(" GET {path} ")));
    }
    let (log, report) = (server.directory.join("log"), server.directory.join("report.json"));
    fs::write(&log, lines).unwrap();
    let mut command = Command::new("goaccess");
    command.arg(&log).arg("-o").arg(&report).arg(format!("--log-format={format}"));
    command.args(["--date-format=%Y-%m-%d", "--time-format=%H:%M:%S", "--no-global-config"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report = fs::read_to_string(report).unwrap().replace("\\/", "/");
    assert!(report.contains("\"valid_requests\": 2,"), "{report}");
    for expected in
        ["\"data\": \"/hello\"", "\"data\": \"/nowhere\"", "\"data\": \"curl", "\"data\": \"test\""]
    {
        assert!(report.contains(expected), "{expected} in {report}");
    }
}
