//! The command line, understood.

use std::time::Duration;

use handover::Options;
use lexopt::{Arg, Parser, ValueExt};

/// What `--help` prints; handover(1) says the same at more length.
const HELP: &str = "\
handover: a small HTTP server that is replaced while it runs, without losing one request

Usage: handover [OPTIONS]

Options:
      --listen ADDR            Listen on HOST:PORT; port 0 is any [127.0.0.1:3000]
      --message TEXT           What / and /test answer [Hello World]
      --graceful               Take over the listening socket at descriptor 3
      --pid-file PATH          Write the process ID to PATH
      --drain-timeout TIME     Cut what is in flight TIME after a handover or stop [20s]
      --ready-timeout TIME     Give up a successor that is not ready after TIME [10s]
      --probation TIME         Stay so long after a handover, in case the successor dies [0s]
      --max-connections N      Serve at most N connections at a time [1024]
      --head-timeout TIME      Time for a whole request head [10s]
      --idle-timeout TIME      Time between two requests on a connection [75s]
      --body-timeout TIME      Time for a client to send more of a request body [30s]
      --write-timeout TIME     Time for a client to take more of a response [30s]
  -h, --help                   Print this and exit
  -V, --version                Print the version and exit

TIME is written 20s, 500ms or 1m.

Signals:
  USR2, HUP        Hand over to a new process of the same name, arguments and environment
  INT, TERM, QUIT  Answer what is in flight and exit; a second one exits at once

RUST_LOG sets what is logged to standard error: error, warn, info (the default), debug.
";

/// What the command line asks for.
pub(crate) enum Asked {
    /// To serve like this.
    ToServe(Flags),
    /// To print this and nothing else.
    ToPrint(String),
}

/// The flags.
pub(crate) struct Flags {
    /// Those that are the library's.
    pub(crate) options: Options,
    /// What `/` answers.
    pub(crate) message: String,
}

/// Understands the command line.
pub(crate) fn parse(mut parser: Parser) -> Result<Asked, lexopt::Error> {
    let mut options = Options::default();
    let mut limits = options.limits;
    let mut message = "Hello World".to_owned();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("listen") => options.listen = value(&mut parser, "--listen", address)?,
            Arg::Long("message") => message = parser.value()?.string()?,
            Arg::Long("graceful") => options.graceful = true,
            Arg::Long("pid-file") => options.pid_file = Some(parser.value()?.into()),
            Arg::Long("drain-timeout") => options.drain_timeout = duration(&mut parser, "--drain-timeout")?,
            Arg::Long("ready-timeout") => options.ready_timeout = duration(&mut parser, "--ready-timeout")?,
            Arg::Long("probation") => options.probation = duration(&mut parser, "--probation")?,
            Arg::Long("max-connections") => {
                limits.max_connections = value(&mut parser, "--max-connections", count)?;
            }
            Arg::Long("head-timeout") => limits.head_timeout = duration(&mut parser, "--head-timeout")?,
            Arg::Long("idle-timeout") => limits.idle_timeout = duration(&mut parser, "--idle-timeout")?,
            Arg::Long("body-timeout") => limits.body_timeout = duration(&mut parser, "--body-timeout")?,
            Arg::Long("write-timeout") => limits.write_timeout = duration(&mut parser, "--write-timeout")?,
            Arg::Short('h') | Arg::Long("help") => return Ok(Asked::ToPrint(HELP.to_owned())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Asked::ToPrint(format!("handover {}\n", env!("CARGO_PKG_VERSION"))));
            }
            _ => return Err(argument.unexpected()),
        }
    }
    options.limits = limits;
    Ok(Asked::ToServe(Flags { options, message }))
}

/// The value of a flag; the error names the flag, the value and what was expected.
fn value<T>(
    parser: &mut Parser,
    flag: &str,
    understand: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<T, lexopt::Error> {
    let value = parser.value()?.string()?;
    understand(&value)
        .map_err(|expected| format!("invalid value {value:?} for {flag}: expected {expected}").into())
}

fn duration(parser: &mut Parser, flag: &str) -> Result<Duration, lexopt::Error> {
    value(parser, flag, |value| {
        humantime::parse_duration(value).map_err(|_| "a time such as 20s, 500ms or 1m")
    })
}

fn count(value: &str) -> Result<usize, &'static str> {
    value.parse().ok().filter(|&count| count > 0).ok_or("a number greater than 0")
}

fn address(value: &str) -> Result<String, &'static str> {
    match value.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(value.to_owned()),
        _ => Err("HOST:PORT, such as 127.0.0.1:3000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Flags, String> {
        match parse(Parser::from_args(arguments)) {
            Ok(Asked::ToServe(flags)) => Ok(flags),
            Ok(Asked::ToPrint(text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn defaults() {
        let flags = parsed(&[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(flags.message, "Hello World");
        assert_eq!(flags.options.listen, "127.0.0.1:3000");
        assert!(!flags.options.graceful);
    }

    #[test]
    fn every_flag_is_in_the_help() {
        for line in include_str!("flags.rs").lines() {
            if let Some(flag) =
                line.trim().strip_prefix("Arg::Long(\"").and_then(|rest| rest.split('"').next())
            {
                assert!(HELP.contains(&format!("--{flag} ")), "--{flag} is not in the help");
            }
        }
    }

    #[test]
    fn errors_name_the_flag_and_what_was_expected() {
        let error = |arguments: &[&str]| parsed(arguments).err().expect("an error");
        assert_eq!(
            error(&["--drain-timeout", "soon"]),
            "invalid value \"soon\" for --drain-timeout: expected a time such as 20s, 500ms or 1m"
        );
        assert_eq!(
            error(&["--listen", "3000"]),
            "invalid value \"3000\" for --listen: expected HOST:PORT, such as 127.0.0.1:3000"
        );
        assert_eq!(error(&["--listen"]), "missing argument for option '--listen'");
        assert_eq!(error(&["--liste", "x"]), "invalid option '--liste'");
        assert_eq!(error(&["3000"]), "unexpected argument \"3000\"");
    }
}
