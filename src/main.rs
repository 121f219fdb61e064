//! The command: options, logging, routes and exit status. Everything else is in the library.

mod command;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::command::logging;
use crate::command::routes::Routes;
use crate::command::settings::{self, Asked, CommandLine, Settings};

/// The exit status for a wrong option, value or configuration file.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command_line = match settings::parse(lexopt::Parser::from_env()) {
        Ok(Asked::Run(command_line)) => command_line,
        Ok(Asked::Print(text)) => return print(&text, 0),
        Err(error) => return refuse(error),
    };
    match command_line.settings() {
        Ok(Settings { test: true, options, .. }) => match options.check() {
            Ok(()) => print("ok\n", 0),
            Err(error) => fail(error, USAGE),
        },
        Ok(Settings { request: Some(request), options, .. }) => match options.control {
            Some(path) => ask(&path, &request),
            None => fail("--signal needs --control", USAGE),
        },
        Ok(settings) => serve(command_line, settings),
        Err(error) => refuse(error),
    }
}

/// Sends a request to the process at the control socket, and prints its answer.
fn ask(path: &Path, request: &str) -> ExitCode {
    match handover::ask(path, request) {
        Ok(answer) => print(&format!("{answer}\n"), u8::from(answer.starts_with("error"))),
        Err(error) => fail(error, 1),
    }
}

fn serve(command_line: CommandLine, settings: Settings) -> ExitCode {
    let log = match logging::init(&settings) {
        Ok(log) => log,
        Err(error) => {
            handover::report_failure(&error);
            return fail(error, 1);
        }
    };
    let routes = Routes::new(command_line, &settings);
    match handover::serve(settings.options, routes) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            // Nobody may be reading standard error any more, which is no reason to stay.
            let _ = log.writer().write_all(logging::last_line(error).as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The command line or the configuration is wrong.
fn refuse(error: impl Display) -> ExitCode {
    handover::report_failure(&error);
    fail(error, USAGE)
}

/// Prints to standard output, which may be closed already: `handover --help | head -1`.
fn print(text: &str, status: u8) -> ExitCode {
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(status)
}

/// Prints one line to standard error, which may be closed; in one piece, because other processes may write
/// there at the same time.
fn fail(error: impl Display, status: u8) -> ExitCode {
    let _ = io::stderr().write_all(logging::last_line(error).as_bytes());
    ExitCode::from(status)
}
