//! The options of the command, in one table: their names, their help, and what they set.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::settings::Settings;

/// What `--help` prints before the options; handover(1) says the same at more length.
const HELP_BEGIN: &str = "\
handover: a small HTTP server that is replaced while it runs, without losing one
request

Usage: handover [OPTIONS]

Options:
";

/// What `--help` prints behind them.
const HELP_END: &str = "  -h, --help                Print this and exit
  -V, --version             Print the version and exit

TIME is written 20s, 500ms or 1m. The file of --config has lines NAME = VALUE
with the names of these options, and comments in lines that begin with #. The
command line wins.

Signals:
  USR2, HUP        Hand over to a new process of the same name, arguments and
                   environment
  INT, TERM, QUIT  Answer what is in flight and exit; a second one, from half a
                   second later on, exits at once
  USR1             Read the configuration file again

RUST_LOG, if it is set, decides what is logged, instead of --log-level and
--access-log.
";

/// Every option but `--help` and `--version`, in the order of `--help`.
static FLAGS: &[Flag] = &[
    Flag::new("    --listen ADDR", |s, v| address(v).map(|v| s.options.listen.push(v))).help(
        "Listen on HOST:PORT (port 0 is any), unix:PATH or unix:@NAME; may be repeated [127.0.0.1:3000]",
    ),
    Flag::new("    --socket-mode MODE", |s, v| mode(v).map(|v| s.options.socket_mode = v))
        .help("Permissions of a Unix socket [0660]"),
    Flag::new("    --message TEXT", |s, v| parsed(v, "text").map(|v| s.message = v))
        .help("What /, /test and /sleep answer [Hello World]"),
    // The library finds it itself.
    Flag::argument("    --graceful", |_, v| truth(v).map(drop))
        .help("Take over the listening sockets from descriptor 3 on"),
    Flag::new("    --pid-file PATH", |s, v| path(v).map(|v| s.options.pid_file = Some(v)))
        .help("Write the process ID to PATH"),
    // Its file is read before anything is set.
    Flag::argument("    --config PATH", |_, _| Ok(())).help("Read more options from PATH; again on SIGUSR1"),
    Flag::new("    --drain-timeout TIME", |s, v| time_or_none(v).map(|v| s.options.drain_timeout = v))
        .help("Cut what is in flight TIME after a handover or stop [20s]"),
    Flag::new("    --ready-timeout TIME", |s, v| time(v).map(|v| s.options.ready_timeout = v))
        .help("Give up a successor that is not ready after TIME [10s]"),
    Flag::new("    --probation TIME", |s, v| time_or_none(v).map(|v| s.options.probation = v))
        .help("Stay for TIME after a handover, in case the successor dies [0s]"),
    Flag::new("    --overlap", |s, v| truth(v).map(|v| s.options.overlap = v))
        .help("After a handover let both processes serve until one is stopped"),
    Flag::new("    --no-move", |s, v| truth(v).map(|v| s.options.move_connections = !v))
        .help("After a handover let open connections end instead of moving them"),
    Flag::new("    --stay", |s, v| truth(v).map(|v| s.options.stay = v))
        .help("Stay, as the process that a supervisor watches, after handovers"),
    Flag::new("    --ready-fd N", |s, v| descriptor(v).map(|v| s.options.ready_fd = Some(v)))
        .help("Write a newline to descriptor N when the first process is ready"),
    Flag::new("    --control PATH", |s, v| path(v).map(|v| s.options.control = Some(v)))
        .help("Listen for requests on the Unix socket PATH"),
    Flag::argument("    --takeover", |s, v| truth(v).map(|v| s.options.takeover = v))
        .help("Take the sockets over from the process at --control, if there is one"),
    Flag::argument("-s, --signal REQUEST", |s, v| request(v).map(|v| s.request = Some(v))).help(
        "Send status, restart, reload, stop or wait to the process at --control, print its answer, and exit \
         with 0, or 1 if that is an error",
    ),
    Flag::argument("-t, --test", |s, v| truth(v).map(|v| s.test = v))
        .help("Check options, configuration file and addresses, and exit with 0, or 2 if one is wrong"),
    Flag::new("    --max-connections N", |s, v| count(v).map(|v| s.options.limits.max_connections = v))
        .help("Serve at most N connections at a time [1024]"),
    Flag::new("    --head-timeout TIME", |s, v| time(v).map(|v| s.options.limits.head_timeout = v))
        .help("Time for a whole request head [10s]"),
    Flag::new("    --idle-timeout TIME", |s, v| time(v).map(|v| s.options.limits.idle_timeout = v))
        .help("Time between two requests on a connection [75s]"),
    Flag::new("    --body-timeout TIME", |s, v| time(v).map(|v| s.options.limits.body_timeout = v))
        .help("Time for a client to send more of a request body [30s]"),
    Flag::new("    --write-timeout TIME", |s, v| time(v).map(|v| s.options.limits.write_timeout = v))
        .help("Time for a client to take more of a response [30s]"),
    Flag::new("    --min-rate BYTES", |s, v| {
        parsed(v, "a number of bytes a second").map(|v| s.options.limits.min_rate = v)
    })
    .help("Bytes a second that a client must send or take after these times [500]"),
    Flag::new("    --log-level LEVEL", |s, v| {
        parsed(v, "off, error, warn, info or debug").map(|v| s.log_level = v)
    })
    .help("Log error, warn, info, debug or nothing: off [info]"),
    Flag::new("    --access-log", |s, v| truth(v).map(|v| s.access_log = v)).help("Log each response"),
];

pub(super) struct Flag {
    /// As `--help` prints it: `-s, `, or as many spaces, and `--NAME VALUE`.
    usage: &'static str,
    help: &'static str,
    pub(super) in_file: bool,
    pub(super) set: Set,
}

/// Sets an option to a value; or else what the value should be.
type Set = fn(&mut Settings, &OsStr) -> Result<(), Expected>;
type Expected = &'static str;

impl Flag {
    const fn new(usage: &'static str, set: Set) -> Flag {
        Flag { usage, help: "", in_file: true, set }
    }

    /// An option that makes sense on the command line only.
    const fn argument(usage: &'static str, set: Set) -> Flag {
        Flag { in_file: false, ..Flag::new(usage, set) }
    }

    const fn help(self, help: &'static str) -> Flag {
        Flag { help, ..self }
    }

    pub(super) fn named(name: &str) -> Option<&'static Flag> {
        FLAGS.iter().find(|flag| flag.name() == name)
    }

    pub(super) fn name(&self) -> &'static str {
        self.usage[6..].split(' ').next().unwrap_or_default()
    }

    pub(super) fn has_value(&self) -> bool {
        self.usage[6..].contains(' ')
    }
}

fn parsed<T: FromStr>(value: &OsStr, expected: Expected) -> Result<T, Expected> {
    value.to_str().and_then(|text| text.parse().ok()).ok_or(expected)
}

fn truth(value: &OsStr) -> Result<bool, Expected> {
    parsed(value, "true or false")
}

fn time(value: &OsStr) -> Result<Duration, Expected> {
    let expected = "a time greater than 0, such as 20s, 500ms or 1m";
    time_or_none(value).ok().filter(|time| !time.is_zero()).ok_or(expected)
}

fn time_or_none(value: &OsStr) -> Result<Duration, Expected> {
    parsed(value, "a time such as 20s, 500ms, 1m or 0s").map(|time: humantime::Duration| *time)
}

fn count(value: &OsStr) -> Result<usize, Expected> {
    parsed(value, "a number greater than 0").map(NonZeroUsize::get)
}

fn request(value: &OsStr) -> Result<String, Expected> {
    let is_known = |text: &String| ["status", "restart", "reload", "stop", "wait"].contains(&text.as_str());
    let expected = "status, restart, reload, stop or wait";
    parsed(value, expected).and_then(|text| if is_known(&text) { Ok(text) } else { Err(expected) })
}

/// A path need not be text.
fn path(value: &OsStr) -> Result<PathBuf, Expected> {
    if value.is_empty() { Err("a path") } else { Ok(value.into()) }
}

fn descriptor(value: &OsStr) -> Result<i32, Expected> {
    let expected = "the number of a descriptor greater than 2";
    parsed(value, expected).and_then(|number| if number > 2 { Ok(number) } else { Err(expected) })
}

fn mode(value: &OsStr) -> Result<u32, Expected> {
    let mode = value.to_str().and_then(|text| u32::from_str_radix(text, 8).ok());
    mode.filter(|mode| *mode <= 0o777).ok_or("permissions such as 0660")
}

fn address(value: &OsStr) -> Result<String, Expected> {
    let is_address = |text: &&str| match (text.strip_prefix("unix:"), text.rsplit_once(':')) {
        (Some(name), _) => !name.is_empty() && name != "@",
        (None, Some((host, port))) => !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok(),
        (None, None) => false,
    };
    let text = value.to_str().filter(is_address).ok_or("HOST:PORT, unix:PATH or unix:@NAME")?;
    Ok(text.to_owned())
}

/// What `--help` prints, in lines of at most 80 columns.
pub(super) fn help() -> String {
    let mut help = HELP_BEGIN.to_owned();
    for flag in FLAGS {
        let mut line = format!("  {:26}", flag.usage);
        for word in flag.help.split(' ') {
            if line.len() + word.len() > 80 {
                help += line.trim_end();
                line = format!("\n{:28}", "");
            }
            line += &format!("{word} ");
        }
        help += &format!("{}\n", line.trim_end());
    }
    help + HELP_END
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::settings::Entry;

    #[test]
    fn every_option_is_in_the_manual_and_its_default_in_the_help() {
        let manual = include_str!("../../man/handover.1");
        for flag in FLAGS {
            let name = flag.name();
            let item = |line: &str| line.starts_with(".It Fl ") && line.contains(&format!("Fl -{name}"));
            assert!(manual.lines().any(item), "--{name} is not in the manual");
            if let Some((_, default)) = flag.help.rsplit_once('[') {
                let mut settings = Settings::default();
                let (origin, value) = (name.to_owned(), default.trim_end_matches(']').into());
                settings.apply(&[Entry { origin, flag, value }]).unwrap();
                assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::default()));
            }
        }
        assert!(help().lines().all(|line| line.len() <= 80), "{}", help());
    }
}
