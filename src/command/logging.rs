//! Log lines on standard error: time, PID, level, text. The PID is in every line, because two processes
//! share the terminal during a handover. For the journal of systemd, which has a time of its own, a priority
//! takes its place; sd-daemon(3).

use std::env;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};
use std::panic;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use env_logger::{Builder, Target};
use handover::NonBlockingStderr;
use log::{Level, LevelFilter, Log, Metadata, Record};

use super::settings::Settings;

/// The environment variable that decides what is logged, if it is set.
const VARIABLE: &str = "RUST_LOG";
/// The log target of the library's access log.
const ACCESS_LOG: &str = "handover::access";

/// Whether responses are logged, unless the environment decides.
static RESPONSES: AtomicBool = AtomicBool::new(true);

/// The logger, with an access log that can be switched on and off.
struct Switched(env_logger::Logger);

impl Switched {
    fn is_on(metadata: &Metadata<'_>) -> bool {
        metadata.target() != ACCESS_LOG || RESPONSES.load(Ordering::Relaxed)
    }
}

impl Log for Switched {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Switched::is_on(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if Switched::is_on(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Starts logging. The log is complete once the result has been dropped.
pub(crate) fn init(settings: &Settings) -> io::Result<NonBlockingStderr> {
    let stderr = NonBlockingStderr::start()?;
    let (pid, is_journal) = (process::id(), NonBlockingStderr::is_journal());
    let mut builder = Builder::new();
    let directives = directives();
    if let Some(directives) = &directives {
        builder.parse_filters(directives);
    } else {
        builder.filter_level(LevelFilter::Trace);
    }
    builder
        .format(move |line, record| {
            let level = record.level();
            match is_journal {
                true => write!(line, "{}", priority(level))?,
                false => write!(line, "{} ", humantime::format_rfc3339_millis(SystemTime::now()))?,
            }
            writeln!(line, "{pid} {level:<5} {}", Escaped(record.args()))
        })
        .target(Target::Pipe(Box::new(stderr.writer())));
    let logger = builder.build();
    log::set_max_level(logger.filter());
    log::set_boxed_logger(Box::new(Switched(logger))).map_err(io::Error::other)?;
    apply(settings);
    if let Some(text) = env::var_os(VARIABLE).filter(|text| directives.is_none() && !text.is_empty()) {
        log::warn!("{VARIABLE} is not understood, so --log-level decides: {}", text.display());
    }
    panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(stderr)
}

/// Applies what the settings say is to be logged, unless the environment decides.
pub(crate) fn apply(settings: &Settings) {
    if directives().is_none() {
        log::set_max_level(settings.log_level);
        RESPONSES.store(settings.access_log, Ordering::Relaxed);
    }
}

/// What the environment says is to be logged, if that can be understood.
fn directives() -> Option<String> {
    let text = env::var(VARIABLE).ok().filter(|text| !text.is_empty())?;
    // What follows a slash, lines have to contain.
    let is_understood = text.split('/').next()?.split(',').all(is_directive) && text.matches('/').count() < 2;
    is_understood.then_some(text)
}

/// LEVEL, TARGET=LEVEL, or a target of the library: a level that is misspelled would be that of another
/// program, and nothing would be logged.
fn is_directive(text: &str) -> bool {
    let is_level = |text: &str| text.trim().parse::<LevelFilter>().is_ok();
    match text.split_once('=') {
        Some((target, level)) => !target.trim().is_empty() && is_level(level),
        None => is_level(text) || text.trim().starts_with("handover"),
    }
}

/// The line that says why the command fails, as it is printed.
pub(crate) fn last_line(error: impl Display) -> String {
    let priority = if NonBlockingStderr::is_journal() { priority(Level::Error) } else { "" };
    format!("{priority}handover: {error}\n")
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// A text, parts of which may be a client's, without the characters that end a line, change its direction or
/// drive a terminal.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_string().chars().try_for_each(|character| match character {
            '\t' => f.write_char('\t'),
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                write!(f, "{}", character.escape_unicode())
            }
            _ if character.is_control() => write!(f, "{}", character.escape_default()),
            _ => f.write_char(character),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Escaped;

    #[test]
    fn a_line_has_no_characters_that_end_it_or_drive_a_terminal() {
        let text = "a\t\u{e9}\"\n\r\x1b[2J\x7f\u{9b}\u{85}\u{2028}\u{202e}\u{2066}";
        let expected = r"\n\r\u{1b}[2J\u{7f}\u{9b}\u{85}\u{2028}\u{202e}\u{2066}";
        assert_eq!(Escaped(text).to_string(), format!("a\t\u{e9}\"{expected}"));
    }
}
