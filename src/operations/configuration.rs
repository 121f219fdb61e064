//! The options of a process, which can be read again beside its loop: the configuration may lie on a disk
//! that does not answer.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use super::requester::Requester;
use super::systemd;
use crate::lock::lock;
use crate::options::{Limits, Options};

/// How many requests may wait for the next reading, because each may have a client with a descriptor.
const MOST_WAITING: usize = 8;

/// Changes the options to what the configuration says now, or reports what is wrong with it.
pub(crate) type Read = dyn Fn(&mut Options) -> Result<(), String> + Send + Sync;

/// What reading has resulted in.
pub(crate) type Reading = Result<Box<Options>, String>;

/// The present options. There is at most one reading at a time. What is requested meanwhile is read again
/// afterwards, because the file may have changed since it was opened.
pub(crate) struct Configuration {
    pub(crate) options: Options,
    /// Those for the connections.
    limits: Arc<Mutex<Limits>>,
    read: Arc<Read>,
    report: Arc<dyn Fn(Reading) + Send + Sync>,
    /// The thread of the last reading.
    reader: Option<ThreadId>,
    running: Vec<Requester>,
    next: Vec<Requester>,
}

impl Configuration {
    /// `report` is called at the end of each reading.
    pub(crate) fn new(
        options: Options,
        limits: Arc<Mutex<Limits>>,
        read: Arc<Read>,
        report: Arc<dyn Fn(Reading) + Send + Sync>,
    ) -> Configuration {
        Configuration { options, limits, read, report, reader: None, running: Vec::new(), next: Vec::new() }
    }

    pub(crate) fn reload(&mut self, by: Requester) {
        if matches!(by, Requester::Program(_, thread) if self.reader == Some(thread)) {
            return by.refuse("this reload asks for it itself");
        }
        if self.next.len() == MOST_WAITING {
            return by.refuse(format_args!("{MOST_WAITING} requests for it wait"));
        }
        systemd::reloading();
        self.next.push(by);
        self.start();
    }

    fn start(&mut self) {
        if !self.running.is_empty() || self.next.is_empty() {
            return;
        }
        self.running = mem::take(&mut self.next);
        let (read, report) = (Arc::clone(&self.read), Arc::clone(&self.report));
        let mut options = Box::new(self.options.clone());
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(|| read(&mut options)));
            report(result.unwrap_or_else(|_| Err("the handler panicked".to_owned())).map(|()| options));
        };
        match thread::Builder::new().name("reload".to_owned()).spawn(work) {
            Ok(reader) => self.reader = Some(reader.thread().id()),
            Err(error) => self.apply(Err(format!("no thread can be started: {error}"))),
        }
    }

    /// Applies what has been read, answers the requests for it, and reads again if that has been requested.
    pub(crate) fn apply(&mut self, reading: Reading) {
        let result = reading.map(|mut options| {
            let mut answer = vec!["ok".to_owned()];
            for (name, needed) in options.keep_what_needs_a_handover(&self.options) {
                log::warn!("a change of {name} needs a {needed}");
                let but = if answer.len() == 1 { "but" } else { "and" };
                answer.push(format!("{but} a change of {name} needs a {needed}"));
            }
            *lock(&self.limits) = options.limits;
            self.options = *options;
            answer.join(", ")
        });
        for by in mem::take(&mut self.running) {
            match &result {
                Ok(_) => log::info!("{by}: configuration reloaded"),
                Err(error) => log::error!("{by}: nothing is changed: {error}"),
            }
            by.answer(result.clone().map_err(|error| format!("nothing is changed: {error}")));
        }
        self.start();
    }
}
