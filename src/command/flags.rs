//! The command line and the configuration file, understood.
//!
//! Both set the same things by the same names. The file is taken first and the command line second, so the
//! command line wins. Nothing is set before everything is understood.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use handover::Options;
use lexopt::{Arg, Parser, ValueExt};
use log::LevelFilter;

/// What `--help` prints; handover(1) says the same at more length.
const HELP: &str = "\
handover: a small HTTP server that is replaced while it runs, without losing one request

Usage: handover [OPTIONS]

Options:
      --listen ADDR            Listen on HOST:PORT (port 0 is any), unix:PATH or unix:@NAME;
                               may be repeated [127.0.0.1:3000]
      --socket-mode MODE       Permissions of a Unix socket [0660]
      --message TEXT           What /, /test and /sleep answer [Hello World]
      --graceful               Take over the listening sockets from descriptor 3 on
      --pid-file PATH          Write the process ID to PATH
      --config PATH            Read more options from PATH; again on SIGUSR1
      --drain-timeout TIME     Cut what is in flight TIME after a handover or stop [20s]
      --ready-timeout TIME     Give up a successor that is not ready after TIME [10s]
      --probation TIME         Stay so long after a handover, in case the successor dies [0s]
      --overlap                After a handover let both processes serve until one is stopped
      --stay                   Stay, as the process that a supervisor watches, after handovers
      --ready-fd N             Write a newline to descriptor N when the first process is ready
      --control PATH           Listen for requests on the Unix socket PATH
      --takeover               Take the sockets over from the process at --control, if there is one
  -s, --signal REQUEST         Send status, restart, reload or stop to the process at --control,
                               print its answer, and exit with 0, or 1 if that is an error
      --max-connections N      Serve at most N connections at a time [1024]
      --head-timeout TIME      Time for a whole request head [10s]
      --idle-timeout TIME      Time between two requests on a connection [75s]
      --body-timeout TIME      Time for a client to send more of a request body [30s]
      --write-timeout TIME     Time for a client to take more of a response [30s]
      --log-level LEVEL        Log error, warn, info, debug or nothing: off [info]
      --access-log             Log each response
  -h, --help                   Print this and exit
  -V, --version                Print the version and exit

TIME is written 20s, 500ms or 1m. The file of --config has lines NAME = VALUE with the names
of these options, and comments in lines that begin with #. The command line wins.

Signals:
  USR2, HUP        Hand over to a new process of the same name, arguments and environment
  INT, TERM, QUIT  Answer what is in flight and exit; a second one exits at once
  USR1             Read the configuration file again

RUST_LOG, if it is set, decides what is logged, instead of --log-level and --access-log.
";

/// What the command line asks for.
pub(crate) enum Asked {
    /// To serve like this.
    Serve(CommandLine),
    /// To ask the process at the control socket.
    Send { request: String, command_line: CommandLine },
    /// To print this and nothing else.
    Print(String),
}

/// A command line: what it sets, and the file that sets more.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandLine {
    entries: Vec<Entry>,
    config: Option<PathBuf>,
}

/// Everything that can be set.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What is the library's.
    pub(crate) options: Options,
    /// What `/` answers.
    pub(crate) message: String,
    pub(crate) log_level: LevelFilter,
    pub(crate) access_log: bool,
}

/// One thing that is set.
#[derive(Clone, Debug)]
struct Entry {
    name: &'static str,
    value: OsString,
}

/// The options that have a value.
const WITH_VALUE: [&str; 17] = [
    "listen",
    "socket-mode",
    "message",
    "pid-file",
    "drain-timeout",
    "ready-timeout",
    "probation",
    "max-connections",
    "head-timeout",
    "idle-timeout",
    "body-timeout",
    "write-timeout",
    "log-level",
    "ready-fd",
    "control",
    "signal",
    "config",
];

/// The options that are there or not; in the file they have the value `true` or `false`.
const WITHOUT_VALUE: [&str; 5] = ["graceful", "takeover", "overlap", "stay", "access-log"];

/// Those that make sense on the command line only.
const NOT_IN_FILE: [&str; 4] = ["graceful", "takeover", "config", "signal"];

/// Understands the command line.
pub(crate) fn parse(mut parser: Parser) -> Result<Asked, lexopt::Error> {
    let mut command_line = CommandLine::default();
    let mut request = None;
    while let Some(argument) = parser.next()? {
        let name = match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Asked::Print(HELP.to_owned())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Asked::Print(format!("handover {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Arg::Short('s') => Some("signal"),
            Arg::Long(name) => known(name),
            _ => None,
        };
        let Some(name) = name else { return Err(argument.unexpected()) };
        let value = if WITHOUT_VALUE.contains(&name) { "true".into() } else { parser.value()? };
        if name == "config" {
            command_line.config = Some(value.into());
        } else if name == "signal" {
            request = Some(value.string()?);
        } else {
            let entry = Entry { name, value };
            Settings::default().set(&entry).map_err(|error| format!("--{name}: {error}"))?;
            command_line.entries.push(entry);
        }
    }
    Ok(match request {
        Some(request) => Asked::Send { request, command_line },
        None => Asked::Serve(command_line),
    })
}

fn known(name: &str) -> Option<&'static str> {
    WITH_VALUE.into_iter().chain(WITHOUT_VALUE).find(|known| *known == name)
}

impl CommandLine {
    /// What the configuration file, as it is now, and the command line set together.
    ///
    /// # Errors
    ///
    /// `PATH:LINE: what is wrong`, or why the file cannot be read.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let mut settings = Settings::default();
        if let Some(path) = &self.config {
            settings.set_from_file(path)?;
        }
        settings.set_all(&self.entries).map_err(|(_, error)| error)?;
        if settings.options.takeover && settings.options.control.is_none() {
            return Err("--takeover needs --control".to_owned());
        }
        Ok(settings)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            options: Options::default(),
            message: "Hello World".to_owned(),
            log_level: LevelFilter::Info,
            access_log: false,
        }
    }
}

impl Settings {
    fn set_from_file(&mut self, path: &Path) -> Result<(), String> {
        let content =
            fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let complain = |line: usize, error: String| format!("{}:{line}: {error}", path.display());
        let mut entries = Vec::new();
        let mut lines = Vec::new();
        for (line, text) in (1..).zip(content.lines()) {
            if let Some(entry) = understand(text).map_err(|error| complain(line, error))? {
                entries.push(entry);
                lines.push(line);
            }
        }
        self.set_all(&entries).map_err(|(index, error)| complain(lines[index], error))
    }

    /// Sets each; the first `listen` replaces what was to be listened on before, the others add to it. The
    /// error comes with the index of the entry.
    fn set_all(&mut self, entries: &[Entry]) -> Result<(), (usize, String)> {
        if entries.iter().any(|entry| entry.name == "listen") {
            self.options.listen.clear();
        }
        for (index, entry) in entries.iter().enumerate() {
            self.set(entry).map_err(|error| (index, error))?;
        }
        Ok(())
    }

    fn set(&mut self, entry: &Entry) -> Result<(), String> {
        let Entry { name, value } = entry;
        // A path need not be text.
        let path = match *name {
            "pid-file" => Some(&mut self.options.pid_file),
            "control" => Some(&mut self.options.control),
            _ => None,
        };
        if let Some(path) = path {
            *path = Some(value.into());
            return Ok(());
        }
        let limits = &mut self.options.limits;
        let value = value.clone().string().map_err(|error| error.to_string())?;
        let invalid = |expected: &str| format!("invalid value {value:?}, expected {expected}");
        let duration =
            || humantime::parse_duration(&value).map_err(|_| invalid("a time such as 20s, 500ms or 1m"));
        let truth = || value.parse::<bool>().map_err(|_| invalid("true or false"));
        match *name {
            "listen" if is_address(&value) => self.options.listen.push(value),
            "listen" => return Err(invalid("HOST:PORT, unix:PATH or unix:@NAME")),
            "socket-mode" => match u32::from_str_radix(&value, 8) {
                Ok(mode) if mode <= 0o777 => self.options.socket_mode = mode,
                _ => return Err(invalid("permissions such as 0660")),
            },
            "message" => self.message = value,
            "graceful" => self.options.graceful = truth()?,
            "takeover" => self.options.takeover = truth()?,
            "overlap" => self.options.overlap = truth()?,
            "stay" => self.options.stay = truth()?,
            "ready-fd" => match value.parse() {
                Ok(number) if number > 2 => self.options.ready_fd = Some(number),
                _ => return Err(invalid("the number of a descriptor greater than 2")),
            },
            "access-log" => self.access_log = truth()?,
            "drain-timeout" => self.options.drain_timeout = duration()?,
            "ready-timeout" => self.options.ready_timeout = duration()?,
            "probation" => self.options.probation = duration()?,
            "max-connections" => match value.parse() {
                Ok(count) if count > 0 => limits.max_connections = count,
                _ => return Err(invalid("a number greater than 0")),
            },
            "head-timeout" => limits.head_timeout = duration()?,
            "idle-timeout" => limits.idle_timeout = duration()?,
            "body-timeout" => limits.body_timeout = duration()?,
            "write-timeout" => limits.write_timeout = duration()?,
            "log-level" => {
                self.log_level = value.parse().map_err(|_| invalid("off, error, warn, info or debug"))?;
            }
            _ => return Err(format!("unknown option {name:?}")),
        }
        Ok(())
    }
}

/// A line of the configuration file: nothing, a comment, or `NAME = VALUE`.
fn understand(line: &str) -> Result<Option<Entry>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, value) = line.split_once('=').ok_or("expected NAME = VALUE")?;
    let name = name.trim();
    match known(name) {
        Some(known) if NOT_IN_FILE.contains(&known) => Err(format!("{name:?} is for the command line only")),
        Some(name) => Ok(Some(Entry { name, value: value.trim().into() })),
        None => Err(format!("unknown option {name:?}")),
    }
}

fn is_address(text: &str) -> bool {
    match (text.strip_prefix("unix:"), text.rsplit_once(':')) {
        (Some(name), _) => !name.is_empty() && name != "@",
        (None, Some((host, port))) => !host.is_empty() && port.parse::<u16>().is_ok(),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(arguments: &[&str]) -> Result<Settings, String> {
        match parse(Parser::from_args(arguments)) {
            Ok(Asked::Serve(command_line)) => command_line.settings(),
            Ok(Asked::Print(text) | Asked::Send { request: text, .. }) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The same with a configuration file.
    fn with_file(content: &str, arguments: &[&str]) -> Result<Settings, String> {
        let path = std::env::temp_dir().join(format!("handover-config-{}-{content:p}", std::process::id()));
        fs::write(&path, content).unwrap();
        let arguments = [&["--config", path.to_str().unwrap()], arguments].concat();
        let settings = settings(&arguments);
        fs::remove_file(&path).unwrap();
        settings.map_err(|error| error.replace(path.to_str().unwrap(), "FILE"))
    }

    #[test]
    fn defaults() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.message, "Hello World");
        assert_eq!(settings.options, Options::default());
    }

    #[test]
    fn every_option_is_in_the_help_and_in_the_manual() {
        let manual = include_str!("../../man/handover.1");
        for name in WITH_VALUE.into_iter().chain(WITHOUT_VALUE) {
            assert!(HELP.contains(&format!(" --{name} ")), "--{name} is not in the help");
            let item = |line: &str| line.starts_with(".It Fl ") && line.contains(&format!("Fl -{name}"));
            assert!(manual.lines().any(item), "--{name} is not in the manual");
        }
    }

    #[test]
    fn errors_name_the_option_and_what_was_expected() {
        let error = |arguments: &[&str]| settings(arguments).expect_err("an error");
        assert_eq!(
            error(&["--drain-timeout", "soon"]),
            "--drain-timeout: invalid value \"soon\", expected a time such as 20s, 500ms or 1m"
        );
        assert_eq!(
            error(&["--listen", "3000"]),
            "--listen: invalid value \"3000\", expected HOST:PORT, unix:PATH or unix:@NAME"
        );
        assert_eq!(
            error(&["--socket-mode", "rw"]),
            "--socket-mode: invalid value \"rw\", expected permissions such as 0660"
        );
        assert_eq!(error(&["--listen"]), "missing argument for option '--listen'");
        assert_eq!(error(&["--liste", "x"]), "invalid option '--liste'");
        assert_eq!(error(&["--overlap=yes"]), "unexpected argument for option '--overlap': \"yes\"");
        assert_eq!(error(&["3000"]), "unexpected argument \"3000\"");
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

    #[test]
    fn an_error_in_the_file_is_reported_with_its_line() {
        let error = |content: &str| with_file(content, &[]).expect_err("an error");
        assert_eq!(error("\nmessage"), "FILE:2: expected NAME = VALUE");
        assert_eq!(error("nonsense = 1"), "FILE:1: unknown option \"nonsense\"");
        assert_eq!(error("#\n#\ngraceful = true"), "FILE:3: \"graceful\" is for the command line only");
        assert_eq!(
            error("message = a\n\nmax-connections = 0"),
            "FILE:3: invalid value \"0\", expected a number greater than 0"
        );
        assert_eq!(error("overlap = yes"), "FILE:1: invalid value \"yes\", expected true or false");
        let missing = settings(&["--config", "/nonexistent"]).expect_err("an error");
        assert_eq!(missing, "cannot read /nonexistent: No such file or directory (os error 2)");
    }
}
