//! Standard error as a log needs it: no thread but one of its own ever waits until something is written.

use std::env;
use std::io::{self, Write};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use nix::sys::stat::fstat;

/// How many lines may wait to be written.
const WAITING_LINES: usize = 1024;
/// How long the end of the log waits for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How many lines were lost since the last one that was written.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Standard error for a log: writing to it neither blocks nor fails, even if the terminal is stopped, or the
/// reader of the pipe hangs or has gone.
///
/// A request must not wait for the reader of a log, and neither must a handover. So a thread of its own writes
/// what waits in a queue, and while the queue is full, at 1024 lines, lines are lost; a line behind them says
/// how many. Dropping this waits until what is in the queue has been written, a second at most, so it is to be
/// kept in `main` until [`serve`](crate::serve) has returned.
///
/// ```
/// let stderr = handover::NonBlockingStderr::start()?;
/// # #[cfg(feature = "command")]
/// env_logger::Builder::new()
///     .filter_level(log::LevelFilter::Info)
///     .target(env_logger::Target::Pipe(Box::new(stderr.writer())))
///     .init();
/// # #[cfg(feature = "command")]
/// std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
/// # #[cfg(feature = "command")]
/// assert!(log::log_enabled!(log::Level::Info));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Without such a hook, the message of a panic is written to standard error directly, and waits.
pub struct NonBlockingStderr {
    queue: Queue,
    ended: Receiver<()>,
}

/// A line to write, or the end of the log.
type Queue = SyncSender<Option<Vec<u8>>>;

impl NonBlockingStderr {
    /// Starts the thread that writes.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn start() -> io::Result<NonBlockingStderr> {
        let (queue, queued) = mpsc::sync_channel(WAITING_LINES);
        let (end, ended) = mpsc::channel();
        thread::Builder::new().name("log".to_owned()).spawn(move || write(&queued, &end))?;
        Ok(NonBlockingStderr { queue, ended })
    }

    /// What a logger writes to. Each write is to be a line with its end, as those of env_logger and
    /// tracing-subscriber are. Flushing it does nothing.
    pub fn writer(&self) -> impl Write + Clone + Send + Sync + 'static {
        Lines(self.queue.clone())
    }

    /// Whether standard error leads to systemd's journal, as `JOURNAL_STREAM` says. There a line needs no time, and
    /// may begin with a priority, such as `<3>` for an error; see sd-daemon(3).
    pub fn is_journal() -> bool {
        let journal = env::var("JOURNAL_STREAM");
        fstat(io::stderr()).is_ok_and(|stat| journal == Ok(format!("{}:{}", stat.st_dev, stat.st_ino)))
    }
}

impl Drop for NonBlockingStderr {
    fn drop(&mut self) {
        // A full queue is one that is not being emptied.
        if self.queue.try_send(None).is_ok() {
            let _ = self.ended.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

#[derive(Clone)]
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

/// Writes to standard error, as long as it takes. Errors are ignored: there is nowhere to report them.
fn write(queued: &Receiver<Option<Vec<u8>>>, end: &Sender<()>) {
    while let Ok(Some(mut line)) = queued.recv() {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let priority = if NonBlockingStderr::is_journal() { "<4>" } else { "" };
            line.extend(format!("{priority}{} log lines lost here: {lost}\n", process::id()).bytes());
        }
        // In one piece, because another process may write there, too.
        let _ = io::stderr().write_all(&line);
    }
    let _ = end.send(());
}
