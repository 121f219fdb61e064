//! What the processes of a server have written into their traces is what the model of the protocol can do.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use crate::model::automaton::{Automaton, Event};
use crate::model::rules::TRACED;
use crate::server::{Server, exited, wait_for_end, wait_until};

/// The traces in a log, by the processes that have written them.
#[derive(Clone, Default)]
pub struct Traces(Arc<Mutex<BTreeMap<u32, Trace>>>);

#[derive(Default)]
struct Trace {
    /// It has logged that it serves.
    is_ready: bool,
    /// Some of its lines were lost, nobody knows which from here on.
    is_lost: bool,
    events: Vec<String>,
}

impl Traces {
    /// Whether the line belongs to a trace, where it is kept then.
    pub fn take(&self, line: &str) -> bool {
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut traces = self.0.lock().unwrap();
        if let Some((before, event)) = line.split_once(" DEBUG trace: ") {
            let trace = traces.entry(number(before.rsplit([' ', '>']).next())).or_default();
            if !trace.is_lost {
                trace.events.push(event.to_owned());
            }
            return true;
        }
        if let Some((pid, _)) = line.split_once(" log lines lost here: ") {
            traces.entry(number(pid.rsplit('>').next())).or_default().is_lost = true;
        } else if let Some((_, ready)) = line.split_once(" INFO  process ")
            && let Some((pid, _)) = ready.split_once(" is ready,")
        {
            traces.entry(number(Some(pid))).or_default().is_ready = true;
        }
        false
    }

    /// A process that has logged that it serves, and left no trace.
    pub fn silent(&self) -> Option<u32> {
        let traces = self.0.lock().unwrap();
        let is_silent = |trace: &Trace| trace.is_ready && !trace.is_lost && trace.events.is_empty();
        traces.iter().find(|(_, trace)| is_silent(trace)).map(|(pid, _)| *pid)
    }

    /// # Errors
    ///
    /// One of the processes cannot have done what it has written, wherever it may have been killed.
    pub fn check(&self) -> Result<(), String> {
        static AUTOMATON: LazyLock<Automaton> = LazyLock::new(|| Automaton::of(&TRACED));
        if let Some(pid) = self.silent() {
            return Err(format!("process {pid} has served, and left no trace"));
        }
        for (pid, trace) in &*self.0.lock().unwrap() {
            // A program may serve again.
            for lines in trace.events.split_inclusive(|event| event == "End") {
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
        }
        Ok(())
    }

    fn of(&self, pid: u32) -> Vec<String> {
        self.0.lock().unwrap().get(&pid).map(|trace| trace.events.clone()).unwrap_or_default()
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

#[test]
fn a_process_that_serves_and_leaves_no_trace_is_found() {
    let traces = Traces::default();
    for time in ["2026-01-01T00:00:00.000Z ", "<6>"] {
        assert!(!traces.take(&format!("{time}7 INFO  process 7 is ready, version 1, /program")));
        assert_eq!(traces.check().unwrap_err(), "process 7 has served, and left no trace");
    }
    assert!(traces.take("<7>7 DEBUG trace: Serve"));
    assert_eq!(traces.check(), Ok(()));
}

#[test]
fn what_comes_after_lost_lines_is_compared_to_nothing() {
    let traces = Traces::default();
    for line in ["7 DEBUG trace: Serve", "7 log lines lost here: 3", "7 DEBUG trace: Drain"] {
        traces.take(line);
    }
    assert_eq!((traces.check(), traces.of(7)), (Ok(()), vec!["Serve".to_owned()]));
}
