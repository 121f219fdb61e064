//! The command: flags, logging, routes and exit status. Everything else is the library's.

mod command;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::command::flags::{self, Asked};
use crate::command::{logging, routes};

/// The exit status for a wrong flag or value.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let flags = match flags::parse(lexopt::Parser::from_env()) {
        Ok(Asked::ToServe(flags)) => flags,
        Ok(Asked::ToPrint(text)) => {
            // Nobody may be reading: `handover --help | head -1`.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error, ExitCode::from(USAGE)),
    };
    let log = match logging::init() {
        Ok(log) => log,
        Err(error) => return fail(&error, ExitCode::FAILURE),
    };
    let message = flags.message;
    let served = handover::serve(flags.options, move |request| routes::answer(request, &message));
    drop(log);
    match served {
        Ok(outcome) => outcome.into(),
        Err(error) => fail(&error, ExitCode::FAILURE),
    }
}

/// One line on standard error, which may be closed; in one piece, because others write there, too.
fn fail(error: &dyn std::error::Error, status: ExitCode) -> ExitCode {
    let _ = io::stderr().write_all(format!("handover: {error}\n").as_bytes());
    status
}
