//! What cannot be tested here, which the last lines of a run say.

use std::sync::Mutex;
use std::thread;

use nix::libc;

use crate::command::Command;

static REASONS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The present test tests nothing, for this reason.
#[allow(unsafe_code)]
pub fn untested(reason: &str) {
    let mut reasons = REASONS.lock().unwrap();
    if reasons.is_empty() {
        // SAFETY: the function takes no argument, does not unwind, and stays where it is until the end.
        assert_eq!(unsafe { libc::atexit(report) }, 0);
    }
    reasons.push(format!("{}: {reason}", thread::current().name().unwrap_or("a test")));
}

extern "C" fn report() {
    if let Ok(reasons) = REASONS.lock() {
        reasons.iter().for_each(|reason| eprintln!("nothing is tested by {reason}"));
    }
}

/// Whether a program is installed. The script that checks the project installs those that are tested with.
pub fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        untested(&format!("{program} is not installed"));
    }
    found.status.success()
}
