//! What a process does on the side of its story: telling everybody who looks how it is, reading its
//! configuration again, passing on what it is asked for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::{io, mem, process};

use super::{Event, Process, State};
use crate::handover::link::Word;
use crate::operations::control::{Before, Control};
use crate::operations::keeper;
use crate::operations::requester::{Asker, Request};
use crate::operations::systemd;

impl Process {
    pub(super) fn pass_on_or_refuse(&self, asker: Asker, request: Request) {
        if self.stays && request != Request::TakeOver {
            self.pass_on(&asker, request);
            asker.tell("ok");
        } else {
            asker.refuse("this process has handed over and is draining");
        }
    }

    /// Whoever watches a process that stays means its successors, too.
    pub(super) fn pass_on(&self, asker: &Asker, request: Request) {
        if self.stays {
            let members = keeper::members(self.first_socket);
            log::info!("{asker}: passed on to {members:?}");
            keeper::signal(&members, asker.signal(request));
        }
    }

    /// Takes over what has changed in the configuration, as far as that is possible in place.
    pub(super) fn reload(&mut self, asker: Asker) {
        systemd::reloading();
        match self.reload_configuration() {
            Ok(()) => {
                log::info!("{asker}: configuration reloaded");
                asker.tell("ok");
            }
            Err(error) => {
                log::error!("{asker}: nothing is changed: {error}");
                asker.tell(format_args!("error: nothing is changed: {error}"));
            }
        }
        systemd::ready();
    }

    fn reload_configuration(&mut self) -> Result<(), String> {
        let mut options = self.options.clone();
        let reloaded = catch_unwind(AssertUnwindSafe(|| self.handler.reload(&mut options)));
        reloaded.unwrap_or_else(|_| Err("the handler panicked".to_owned()))?;
        for name in options.keep_what_needs_a_handover(&self.options) {
            log::warn!("a change of {name} needs a handover");
        }
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = options.limits;
        self.options = options;
        Ok(())
    }

    pub(super) fn status(&self, state: &State) -> String {
        let state = match state {
            State::Running => "running",
            State::HandingOver { .. } => "handing-over",
            State::Overlapping { .. } => "overlapping",
            State::Draining { .. } => "draining",
            State::OnProbation { .. } => "on-probation",
            State::Stopping { .. } => "stopping",
            State::Keeping { .. } => "keeping",
            State::Ended { .. } => "ended",
        };
        format!(
            "pid={} state={state} version={} uptime={}s connections={} in-flight={} generation={} executable={}",
            process::id(),
            self.options.version,
            self.started.elapsed().as_secs(),
            self.server.open(),
            self.server.in_flight(),
            self.generation,
            self.executable.display(),
        )
    }

    pub(super) fn open(&self) -> String {
        format!("open connections: {}, requests in flight: {}", self.server.open(), self.server.in_flight())
    }

    /// Waits until connections may be accepted. If they may not, the PID file is left to the process that
    /// serves, and otherwise the control socket is taken from it.
    pub(crate) fn wait_for_go(&mut self) -> io::Result<()> {
        let Some(predecessor) = &self.predecessor else { return Ok(()) };
        if let Err(error) = predecessor.wait_for_go() {
            mem::forget(self.pid_file.take());
            return Err(error);
        }
        self.open_control(if self.options.overlap { Before::Stays } else { Before::Goes });
        Ok(())
    }

    pub(crate) fn tell_predecessor(&mut self, word: Word) {
        if let Some(predecessor) = &mut self.predecessor
            && !predecessor.tell(word)
        {
            log::debug!("no predecessor is there to be told: {}", word.line());
        }
    }

    /// Tells everybody who looks that this process serves, after a successor may have told otherwise.
    pub(super) fn be_the_one_that_serves(&mut self) {
        self.aside = None;
        self.control.iter().for_each(Control::clear_aside);
        if let Some(pid_file) = &self.pid_file
            && let Err(error) = pid_file.restore()
        {
            log::error!("cannot write the PID file {}: {error}", pid_file.path().display());
        }
        self.open_control(Before::Goes);
        systemd::ready();
    }

    /// Lets everybody who looks find the predecessor, which runs beside this process, instead of it.
    pub(super) fn give_back(&mut self) {
        if let Some(pid_file) = self.pid_file.take() {
            pid_file.give_back();
        }
        self.control.iter().for_each(Control::give_back);
    }

    /// Puts this process's control socket in its place, if it is not there.
    fn open_control(&mut self, before: Before) {
        let Some(path) = &self.options.control else { return };
        if self.control.as_ref().is_some_and(Control::is_in_place) {
            return;
        }
        let events = self.events.clone();
        let ask = move |asker, request| drop(events.send(Event::Asked(asker, request)));
        match Control::start(path, before, ask) {
            Ok(control) => self.control = Some(control),
            Err(error) => log::error!("cannot listen for requests on {}: {error}", path.display()),
        }
    }
}
