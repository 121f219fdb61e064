//! Log lines on standard error: time, PID, level, text. The PID is in every line, because two processes
//! share the terminal during a handover.

use std::io::Write;
use std::process;
use std::time::SystemTime;

use env_logger::{Builder, Env};

/// Starts to log what `RUST_LOG` asks for, or what is worth knowing about a healthy process.
pub(crate) fn init() {
    let pid = process::id();
    Builder::from_env(Env::default().default_filter_or("info"))
        .format(move |line, record| {
            let time = humantime::format_rfc3339_millis(SystemTime::now());
            writeln!(line, "{time} {pid} {:<5} {}", record.level(), record.args())
        })
        .init();
}
