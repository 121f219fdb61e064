//! Log lines on standard error: time, PID, level, text. The PID is in every line, because two processes
//! share the terminal during a handover. For the journal of systemd, which has a time of its own, a priority
//! takes its place; sd-daemon(3).
//!
//! Standard error may be closed, or its reader may have stopped. Only a thread of its own writes to it, so
//! that no other thread ever waits for that; lines that it cannot keep up with are lost, and counted.

use std::env;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};
use std::panic;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, SystemTime};

use env_logger::{Builder, Target};
use log::{Level, LevelFilter};
use nix::sys::stat::fstat;

use super::settings::Settings;

/// How many lines may wait to be written.
const WAITING_LINES: usize = 1024;
/// How long the end of the process waits for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The environment variable that decides what is logged, if it is set.
const VARIABLE: &str = "RUST_LOG";
/// The log target of the library's access log.
const ACCESS_LOG: &str = "handover::access";

/// How many lines were lost since the last one that was written.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Starts logging. The log is complete once the result has been dropped.
pub(crate) fn init(settings: &Settings) -> io::Result<Flush> {
    let (queue, queued) = mpsc::sync_channel(WAITING_LINES);
    let (end, ended) = mpsc::channel();
    thread::Builder::new().name("log".to_owned()).spawn(move || write(&queued, &end))?;

    let (pid, is_journal) = (process::id(), is_journal());
    let mut builder = Builder::new();
    let directives = directives();
    if let Some(directives) = &directives {
        builder.parse_filters(directives);
    } else {
        let access = if settings.access_log { LevelFilter::Info } else { LevelFilter::Off };
        builder.filter_level(LevelFilter::Trace).filter_module(ACCESS_LOG, access);
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
        .target(Target::Pipe(Box::new(Lines(queue.clone()))))
        .init();
    set_level(settings);
    if let Some(text) = env::var_os(VARIABLE).filter(|text| directives.is_none() && !text.is_empty()) {
        log::warn!("{VARIABLE} is not understood, so --log-level decides: {}", text.display());
    }
    panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(Flush { queue, ended })
}

/// Applies the log level of the settings, unless the environment decides.
pub(crate) fn set_level(settings: &Settings) {
    if directives().is_none() {
        log::set_max_level(settings.log_level);
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
    let priority = if is_journal() { priority(Level::Error) } else { "" };
    format!("{priority}handover: {error}\n")
}

/// Whether standard error leads to the journal; systemd.exec(5).
fn is_journal() -> bool {
    let journal = env::var("JOURNAL_STREAM");
    fstat(io::stderr()).is_ok_and(|stat| journal == Ok(format!("{}:{}", stat.st_dev, stat.st_ino)))
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

/// A line to write, or the end of the log.
type Queue = SyncSender<Option<Vec<u8>>>;

struct Lines(Queue);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.0.try_send(Some(line.to_vec())) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits, when dropped, until the lines so far have been written.
pub(crate) struct Flush {
    queue: Queue,
    ended: Receiver<()>,
}

impl Flush {
    /// Writes a line as it is, behind those that have been logged.
    pub(crate) fn write(&self, line: String) {
        let _ = self.queue.try_send(Some(line.into_bytes()));
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        // A full queue is one that is not being emptied.
        if self.queue.try_send(None).is_ok() {
            let _ = self.ended.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Writes to standard error, as long as it takes. Errors are ignored: there is nowhere to report them.
fn write(queued: &Receiver<Option<Vec<u8>>>, end: &Sender<()>) {
    while let Ok(Some(mut line)) = queued.recv() {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let priority = if is_journal() { priority(Level::Warn) } else { "" };
            line.extend(format!("{priority}{} {lost} log lines were lost here\n", process::id()).bytes());
        }
        // In one piece, because another process may write there, too.
        let _ = io::stderr().write_all(&line);
    }
    let _ = end.send(());
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
