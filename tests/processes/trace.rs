//! What the processes of a server have written into their traces is what the model of the protocol can do.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use crate::model::automaton::{Automaton, Event};
use crate::model::rules::TRACED;
use crate::server::{Server, exited, wait_for_end, wait_until};

/// What is logged by default, and the trace.
const DIRECTIVES: &str = "info,handover::access=off,handover::trace=debug";

/// The lines of a log that are none of the operator's, by the processes that have written them.
#[derive(Clone, Default)]
pub struct Traces(Arc<Mutex<BTreeMap<u32, Vec<String>>>>);

impl Traces {
    /// Has a trace written, unless the test has its own wishes for what is logged.
    pub fn ask_for(command: &mut Command) {
        let wishes = ["--log-level", "--access-log"];
        let has_wishes = command.get_args().any(|argument| wishes.iter().any(|wish| argument == *wish));
        if !has_wishes && command.get_envs().all(|(name, _)| name != "RUST_LOG") {
            command.env("RUST_LOG", DIRECTIVES);
        }
    }

    /// Whether the line belongs to a trace, where it is kept then.
    pub fn take(&self, line: &str) -> bool {
        let mut traces = self.0.lock().unwrap();
        if let Some((before, event)) = line.split_once(" DEBUG trace: ") {
            let pid = before.rsplit([' ', '>']).next().and_then(|pid| pid.parse().ok());
            traces.entry(pid.unwrap_or(0)).or_default().push(event.to_owned());
            return true;
        }
        if line.ends_with(" log lines were lost here") {
            // Nobody knows whose.
            traces.clear();
        }
        false
    }

    /// # Errors
    ///
    /// One of the processes cannot have done what it has written, wherever it may have been killed.
    pub fn check(&self) -> Result<(), String> {
        static AUTOMATON: LazyLock<Automaton> = LazyLock::new(|| Automaton::of(&TRACED));
        for (pid, lines) in &*self.0.lock().unwrap() {
            let events = lines.iter().filter_map(|line| Some((line, Event::from_line(line)?)));
            let mut events: Vec<(&String, Event)> = events.collect();
            // A drain that goes on with other connections is another phase.
            events.dedup_by_key(|(_, event)| *event);
            let (written, events): (Vec<&String>, Vec<Event>) = events.into_iter().unzip();
            AUTOMATON.accept(&events).map_err(|count| {
                let trace = lines.join("\n");
                format!(
                    "the model does not know {:?} in the trace of process {pid}:\n{trace}",
                    written[count]
                )
            })?;
        }
        Ok(())
    }

    fn of(&self, pid: u32) -> Vec<String> {
        self.0.lock().unwrap().get(&pid).cloned().unwrap_or_default()
    }
}

#[test]
fn each_process_leaves_a_trace_that_the_model_knows() {
    let server = Server::start_replaceable(&[]);
    let old = server.first();
    let new = server.hand_over();
    assert_eq!(wait_for_end(old), exited(old, 0));
    server.stop();
    let words = |pid| -> Vec<String> {
        let first_two = |line: &String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        server.traces().of(pid).iter().map(first_two).collect()
    };
    wait_until(|| words(new).last().is_some_and(|last| last == "End"), || format!("{:?}", words(new)));
    let expected =
        ["Serve", "HandOver", "hears ready", "says go", "Overlap", "hears serving", "Drain", "Keep", "End"];
    assert_eq!(words(old), expected);
    assert_eq!(words(new), ["says ready", "hears go", "says serving", "Serve", "Finish", "Keep", "End"]);
}

#[test]
fn a_trace_that_the_model_does_not_know_is_found() {
    let traces = Traces::default();
    for event in ["says ready", "hears no", "Serve"] {
        assert!(traces.take(&format!("2026-01-01T00:00:00.000Z 7 DEBUG trace: {event}")));
        assert!(!traces.take("2026-01-01T00:00:00.000Z 7 INFO  another line"));
    }
    let complaint = traces.check().unwrap_err();
    assert!(
        complaint.starts_with("the model does not know \"Serve\" in the trace of process 7:"),
        "{complaint}"
    );
}
