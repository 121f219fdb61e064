//! The settings of the command: what the configuration file and, after it, the command line set. So the
//! command line wins, and nothing takes effect before everything is understood.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use handover::Options;
use lexopt::{Arg, Parser};
use log::LevelFilter;
use nix::fcntl::OFlag;

use super::flags::{self, Flag};

/// Ten times what the routes need, unoptimized.
const STACK_SIZE: usize = 256 << 10;

const GRACEFUL: &str = "--graceful";

/// What the command line asks for.
pub(crate) enum Asked {
    /// To serve, or to send a request to the process that does.
    Run(CommandLine),
    /// To print this and nothing else.
    Print(String),
}

pub(crate) struct CommandLine(Vec<Entry>);

/// An option with its value, and where that is written, for the error if it is wrong.
pub(super) struct Entry {
    pub(super) origin: String,
    pub(super) flag: &'static Flag,
    pub(super) value: OsString,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    /// What `/` answers.
    pub(crate) message: String,
    pub(crate) log_level: LevelFilter,
    pub(crate) access_log: bool,
    /// To check all this instead of serving.
    pub(crate) test: bool,
    /// What to request from the process at the control socket, instead of serving.
    pub(crate) request: Option<String>,
}

/// Understands the command line, but for the values.
pub(crate) fn parse(mut parser: Parser) -> Result<Asked, lexopt::Error> {
    let mut entries = Vec::new();
    while let Some(argument) = parser.next()? {
        let flag = match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Asked::Print(flags::help())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Asked::Print(format!("handover {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Arg::Short('s') => Flag::named("signal"),
            Arg::Short('t') => Flag::named("test"),
            Arg::Long(name) => Flag::named(name),
            _ => None,
        };
        let Some(flag) = flag else { return Err(argument.unexpected()) };
        let value = if flag.has_value() { parser.value()? } else { "true".into() };
        entries.push(Entry { origin: format!("--{}", flag.name()), flag, value });
    }
    Ok(Asked::Run(CommandLine(entries)))
}

impl CommandLine {
    pub(crate) fn has_file(&self) -> bool {
        self.file().is_some()
    }

    fn file(&self) -> Option<&Entry> {
        self.0.iter().rfind(|entry| entry.flag.name() == "config")
    }

    /// What the configuration file, as it is now, and the command line set together. An error says where,
    /// what is wrong, and what was expected.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let mut settings = Settings::default();
        if let Some(config) = self.file() {
            let (entries, end) = read_file(config.value.as_ref())?;
            // What is wrong with a value is reported before what is wrong with a line behind it.
            settings.apply(&entries)?;
            end?;
        }
        settings.apply(&self.0)?;
        if settings.options.takeover && settings.options.control.is_none() {
            return Err("--takeover needs --control".to_owned());
        }
        Ok(settings)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            options: Options {
                stack_size: STACK_SIZE,
                arguments: Some(gracefully(env::args_os().skip(1).collect())),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Options::default()
            },
            message: "Hello World".to_owned(),
            log_level: LevelFilter::Info,
            access_log: false,
            test: false,
            request: None,
        }
    }
}

/// The arguments of a successor, with `--graceful` in them once: where it is already, or else at the end of the
/// options. It shows in the list of processes which are successors.
fn gracefully(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let end_of_options = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    if !arguments[..end_of_options].iter().any(|argument| argument == GRACEFUL) {
        arguments.insert(end_of_options, GRACEFUL.into());
    }
    arguments
}

impl Settings {
    /// Sets each; the first `listen` replaces the addresses from before, the others add to it.
    pub(super) fn apply(&mut self, entries: &[Entry]) -> Result<(), String> {
        if entries.iter().any(|entry| entry.flag.name() == "listen") {
            self.options.listen.clear();
        }
        entries.iter().try_for_each(|Entry { origin, flag, value }| {
            let error = |expected| format!("{origin}: invalid value {value:?}, expected {expected}");
            (flag.set)(self, value).map_err(error)
        })
    }
}

/// The entries of a configuration file, whose lines are empty, comments, or `NAME = VALUE`, up to the first line
/// that is none of these, and what is wrong with that.
fn read_file(path: &Path) -> Result<(Vec<Entry>, Result<(), String>), String> {
    let content = read_regular(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(content.lines().map(str::trim)) {
        let origin = format!("{}:{number}", path.display());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match entry(line, origin) {
            Ok(entry) => entries.push(entry),
            error => return Ok((entries, error.map(drop))),
        }
    }
    Ok((entries, Ok(())))
}

fn entry(line: &str, origin: String) -> Result<Entry, String> {
    let Some((name, value)) = line.split_once('=').map(|(name, value)| (name.trim(), value.trim())) else {
        return Err(format!("{origin}: expected NAME = VALUE"));
    };
    match Flag::named(name) {
        Some(flag) if flag.in_file => Ok(Entry { origin, flag, value: value.into() }),
        Some(_) => Err(format!("{origin}: {name:?} is for the command line only")),
        None => Err(format!("{origin}: unknown option {name:?}")),
    }
}

/// Without waiting: opening a FIFO, or reading from a device, could take for ever.
fn read_regular(path: &Path) -> io::Result<String> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    io::read_to_string(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn settings(arguments: &[&str]) -> Result<Settings, String> {
        match parse(Parser::from_args(arguments)).map_err(|error| error.to_string())? {
            Asked::Run(command_line) => command_line.settings(),
            Asked::Print(text) => Err(text),
        }
    }

    /// The same with a configuration file.
    fn with_file(content: &str, arguments: &[&str]) -> Result<Settings, String> {
        let path = std::env::temp_dir().join(format!("handover-config-{}-{content:p}", std::process::id()));
        fs::write(&path, content).unwrap();
        let settings = settings(&[&["--config", path.to_str().unwrap()], arguments].concat());
        fs::remove_file(&path).unwrap();
        settings.map_err(|error| error.replace(path.to_str().unwrap(), "FILE"))
    }

    #[test]
    fn errors_name_the_option_or_the_line_and_what_was_expected() {
        let error = |arguments: &[&str]| settings(arguments).expect_err("an error");
        let expected = "--socket-mode: invalid value \"rw\", expected permissions such as 0660";
        assert_eq!(error(&["--socket-mode", "rw"]), expected);
        assert_eq!(error(&["--listen"]), "missing argument for option '--listen'");
        assert_eq!(error(&["--liste", "x"]), "invalid option '--liste'");
        assert_eq!(error(&["--overlap=yes"]), "unexpected argument for option '--overlap': \"yes\"");
        assert_eq!(error(&["3000"]), "unexpected argument \"3000\"");

        let error = |content: &str| with_file(content, &[]).expect_err("an error");
        assert_eq!(error("\nmessage"), "FILE:2: expected NAME = VALUE");
        assert_eq!(error("nonsense = 1"), "FILE:1: unknown option \"nonsense\"");
        assert_eq!(error("#\n#\ngraceful = true"), "FILE:3: \"graceful\" is for the command line only");
        let expected = "FILE:3: invalid value \"0\", expected a number greater than 0";
        assert_eq!(error("message = a\n\nmax-connections = 0"), expected);
        assert_eq!(error("overlap = yes"), "FILE:1: invalid value \"yes\", expected true or false");
        // The first in the file, of whatever kind.
        assert_eq!(error("overlap = yes\nnonsense = 1"), error("overlap = yes"));
        assert_eq!(error("nonsense = 1\noverlap = yes"), error("nonsense = 1"));

        let fifo = std::env::temp_dir().join(format!("handover-fifo-{}", std::process::id()));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for path in [fifo.to_str().unwrap(), "/dev/null", "/"] {
            let error = settings(&["--config", path]).expect_err("an error");
            assert_eq!(error, format!("cannot read {path}: it is not a regular file"));
        }
        fs::remove_file(&fifo).unwrap();
    }

    fn after(arguments: &[&str]) -> Vec<String> {
        let arguments = gracefully(arguments.iter().map(Into::into).collect());
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn graceful_is_added_once() {
        assert_eq!(after(&[]), ["--graceful"]);
        assert_eq!(after(&["--message", "Hi"]), ["--message", "Hi", "--graceful"]);
        assert_eq!(after(&["--graceful", "--message", "Hi"]), ["--graceful", "--message", "Hi"]);
    }

    #[test]
    fn graceful_stays_an_option() {
        assert_eq!(after(&["-v", "--", "file"]), ["-v", "--graceful", "--", "file"]);
        assert_eq!(after(&["--", "--graceful"]), ["--graceful", "--", "--graceful"]);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "# a comment\n\nmessage = from = file # with a sharp\nlisten=127.0.0.1:1\n \
                    listen = unix:/run/x \noverlap = true\ndrain-timeout = 1m";
        let settings = with_file(file, &["--drain-timeout", "2m"]).unwrap();
        assert_eq!(settings.message, "from = file # with a sharp");
        assert_eq!(settings.options.listen, ["127.0.0.1:1", "unix:/run/x"]);
        assert!(settings.options.overlap);
        assert_eq!(settings.options.drain_timeout, Duration::from_secs(120));

        let settings = with_file(file, &["--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!(settings.options.listen, ["127.0.0.1:2"]);
    }
}
