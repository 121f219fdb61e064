//! The command: options, logging, routes and exit status. Everything else is in the library.

mod command;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::command::logging;
use crate::command::routes::Routes;
use crate::command::settings::{self, Asked};

/// The exit status for a wrong option, value or configuration file.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command_line = match settings::parse(lexopt::Parser::from_env()) {
        Ok(Asked::Run(command_line)) => command_line,
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
    if let Some(request) = &settings.request {
        return ask(request, settings.options.control.as_deref());
    }
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

/// Sends a request to the process at the control socket, and prints its answer.
fn ask(request: &str, control: Option<&Path>) -> ExitCode {
    let Some(path) = control else { return fail("--signal needs --control", ExitCode::from(USAGE)) };
    match handover::ask(path, request) {
        Ok(answer) => {
            print(&format!("{answer}\n"));
            ExitCode::from(u8::from(answer.starts_with("error")))
        }
        Err(error) => fail(format!("cannot ask on {}: {error}", path.display()), ExitCode::FAILURE),
    }
}

/// Prints to standard output, which may be closed already: `handover --help | head -1`.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Prints one line to standard error, which may be closed; in one piece, because other processes may write
/// there at the same time.
fn fail(error: impl Display, status: ExitCode) -> ExitCode {
    let _ = io::stderr().write_all(format!("handover: {error}\n").as_bytes());
    status
}
