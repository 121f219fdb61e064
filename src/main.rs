//! The command: flags, logging, routes and exit status. Everything else is the library's.

mod command;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::command::flags::{self, Asked, CommandLine};
use crate::command::logging;
use crate::command::routes::Routes;

/// The exit status for a wrong flag, value or file.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command_line = match flags::parse(lexopt::Parser::from_env()) {
        Ok(Asked::Serve(command_line)) => command_line,
        Ok(Asked::Send { request, command_line }) => return ask(&request, &command_line),
        Ok(Asked::Print(text)) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(error, ExitCode::from(USAGE)),
    };
    let settings = match command_line.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(error, ExitCode::from(USAGE)),
    };
    let log = match logging::init(&settings) {
        Ok(log) => log,
        Err(error) => return fail(error, ExitCode::FAILURE),
    };
    let routes = Routes::new(command_line, &settings);
    let served = handover::serve(settings.options, routes);
    drop(log);
    match served {
        Ok(outcome) => outcome.into(),
        Err(error) => fail(error, ExitCode::FAILURE),
    }
}

/// Sends a request to the process that serves, and prints its answer.
fn ask(request: &str, command_line: &CommandLine) -> ExitCode {
    let path = match command_line.settings() {
        Ok(settings) => settings.options.control,
        Err(error) => return fail(error, ExitCode::from(USAGE)),
    };
    let Some(path) = path else { return fail("--signal needs --control", ExitCode::from(USAGE)) };
    match handover::ask(&path, request) {
        Ok(answer) => {
            print(&format!("{answer}\n"));
            ExitCode::from(u8::from(answer.starts_with("error")))
        }
        Err(error) => fail(format!("cannot ask on {}: {error}", path.display()), ExitCode::FAILURE),
    }
}

/// To standard output, where nobody may be reading: `handover --help | head -1`.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// One line on standard error, which may be closed; in one piece, because others write there, too.
fn fail(error: impl Display, status: ExitCode) -> ExitCode {
    let _ = io::stderr().write_all(format!("handover: {error}\n").as_bytes());
    status
}
