//! The phases in which a process does not accept connections any more.

use std::process;
use std::time::{Duration, Instant};

use super::{Phase, Process};
use crate::deadline::after;
use crate::events::Event;
use crate::handover::link::Word;
use crate::handover::moving::Mover;
use crate::handover::named::Named;
use crate::handover::successor::{End, News, Successor};
use crate::operations::requester::{Action, Requester};
use crate::operations::systemd;
use crate::server::listener::Origin;
use crate::status::State;

/// Until then a second stop is the first one, which has come twice: to this process, and to its group, or from
/// the process that stays.
const SAME_STOP: Duration = Duration::from_millis(500);

impl Process {
    pub(super) fn stop(&mut self, by: &Requester) -> Phase {
        let is_beside_predecessor = self.is_beside_predecessor();
        if is_beside_predecessor {
            // Before the predecessor reads the word, because then it looks into these places.
            self.places.give_back();
        }
        // If it cannot be said, the predecessor has been told to stop at the same time.
        if !(self.say(&Word::Stopping) && is_beside_predecessor) {
            return self.close(by);
        }
        log::info!("{by}: the predecessor of this process goes on alone");
        self.connections.expect_no_arrivals();
        self.connections.close_listeners(|_, listener| *listener.origin() == Origin::New);
        by.answer(Ok("ok".to_owned()));
        Phase::Drain(None, self.mover.take())
    }

    /// No process follows.
    pub(super) fn close(&mut self, by: &Requester) -> Phase {
        systemd::stopping();
        let deadline = self.begin_drain();
        self.connections.close();
        log::info!("{by}: stopping, {}", self.connections);
        by.answer(Ok("ok".to_owned()));
        self.connections.close_idle();
        Phase::Finish(deadline)
    }

    pub(super) fn finish(&mut self, deadline: Instant) -> Phase {
        let begin = Instant::now();
        self.connections.expect_no_arrivals();
        self.publish(State::Stopping);
        self.waiting.answer(State::Stopping, 0);
        while !self.is_drained() {
            match self.next(State::Stopping, Some(deadline), None) {
                Event::Asked(by, Action::Stop) if begin.elapsed() < SAME_STOP => {
                    by.answer(Ok("ok".to_owned()))
                }
                Event::Asked(by, Action::Stop) => {
                    self.keeper.pass_on(&by, Action::Stop, None);
                    self.cut(&format!("{by} again"));
                    by.answer(Ok("ok".to_owned()));
                    break;
                }
                Event::Asked(by, _) => by.refuse("this process is stopping"),
                Event::Deadline => {
                    self.cut("the drain deadline has passed");
                    break;
                }
                _ => {}
            }
        }
        Phase::Keep
    }

    pub(super) fn keep(&mut self) -> Phase {
        // What they have waited for here is over.
        self.waiting.answer(State::Ended, 0);
        if self.keeper.has_members() {
            log::info!("process {} stays until the last of its successors has ended", process::id());
            self.places.withdraw();
            // A lock, for instance, is for its successors to keep.
            self.named = Named::default();
        }
        while self.keeper.has_members() {
            if let Event::Asked(by, action) = self.next(State::Keeping, None, None) {
                self.keeper.pass_on_or_refuse(&by, action);
            }
        }
        // The signal for the last one may not have come yet.
        self.keeper.reap();
        Phase::End
    }

    pub(super) fn drain(&mut self, mut successor: Option<Successor>, mover: Option<Mover>) -> Phase {
        let (used, unused) = match self.config.options.move_connections {
            true => (mover, None),
            false => (None, mover),
        };
        self.unused_mover = unused;
        let mut drain = Some(self.begin_drain());
        self.connections.drain(used);
        // Not before the last connection has been accepted.
        self.publish(State::Draining);
        match successor.as_ref().map(Successor::pid) {
            Some(pid) => log::info!("handed over to successor {pid}; draining, {}", self.connections),
            None => log::info!("draining, {}", self.connections),
        }
        let probation = after(self.config.options.probation);
        loop {
            let now = Instant::now();
            let is_probation = successor.is_some() && now < probation;
            if drain.is_some_and(|deadline| self.is_drained() || now >= deadline) {
                drain = None;
                if !self.is_drained() {
                    self.cut("the drain deadline has passed");
                }
                // What was cut is reported to the other process.
                self.connections.keep_connections();
                self.unused_mover = None;
                if self.connections.moved() > 0 {
                    log::info!("drained, moved={}", self.connections.moved());
                }
                if let Some(pid) = successor.as_ref().map(Successor::pid).filter(|_| is_probation) {
                    log::info!("every connection is finished; staying in case successor {pid} dies");
                }
            }
            let Some(deadline) = drain.or(is_probation.then_some(probation)) else {
                return self.leave(successor);
            };
            let link = successor.as_ref().map(Successor::link);
            match self.next(State::Draining, Some(deadline), link) {
                Event::Asked(by, Action::Stop) => {
                    self.keeper.pass_on(&by, Action::Stop, successor.as_ref().map(Successor::pid));
                    self.let_go(&mut successor);
                    log::info!("{by}: closing idle connections, {}", self.connections);
                    self.connections.close_idle();
                    by.answer(Ok("ok".to_owned()));
                    return Phase::Finish(deadline);
                }
                Event::Asked(by, action) => self.keeper.pass_on_or_refuse(&by, action),
                _ => {}
            }
            match successor.as_mut().and_then(|successor| Some((successor.pid(), successor.news()?))) {
                Some((pid, News::Leaving(word))) => {
                    log::info!("successor {pid} says: {word}");
                    if self.let_go(&mut successor) > 0 {
                        drain = Some(self.begin_drain());
                    }
                }
                Some((pid, News::Died(end))) => return self.take_back(successor, pid, end),
                _ => {}
            }
        }
    }

    /// Returns when the drain ends.
    fn begin_drain(&self) -> Instant {
        let deadline = after(self.config.options.drain_timeout);
        self.connections.set_deadline(Some(deadline));
        deadline
    }

    /// The last look at the successor: after it, the process ends, or answers those that have waited for
    /// nobody else.
    fn leave(&mut self, mut successor: Option<Successor>) -> Phase {
        match successor.as_mut().and_then(|successor| Some((successor.pid(), successor.last_news()?))) {
            Some((pid, News::Died(end))) => self.take_back(successor, pid, end),
            _ if self.let_go(&mut successor) > 0 => Phase::Drain(None, None),
            _ => Phase::Keep,
        }
    }

    /// This process does not answer for its successor any more: it will not have to take its place. Returns how
    /// many connections it has accepted at the sockets on which its successor does not listen.
    fn let_go(&mut self, successor: &mut Option<Successor>) -> usize {
        let Some(successor) = successor.take() else { return 0 };
        let accepted = self.connections.close_listeners(|index, _| successor.without().contains(&index));
        self.keeper.retire(successor.retire());
        accepted
    }

    /// No process accepts connections; but the listening sockets are still here.
    fn take_back(&mut self, successor: Option<Successor>, pid: u32, end: End) -> Phase {
        let phase = self.serve_on(successor.and_then(Successor::retire));
        self.count_failure();
        self.connections.set_socket_mode(self.config.options.socket_mode);
        let lost = match self.connections.moved() {
            0 => String::new(),
            count => format!("; what had been moved to it has ended with it, moved={count}"),
        };
        log::error!("successor {pid} {end}; accepting connections again{lost}");
        phase
    }

    /// Whether no connection is open or will be moved here, and the program holds this process no longer. What
    /// it is doing is published before, so that the program either knows that or holds it in time. What is moved
    /// here in that very moment is still to be served, or stays where it is.
    fn is_drained(&mut self) -> bool {
        let is_drained = self.connections.is_empty() && self.publisher.holds() == 0;
        is_drained && {
            self.mover = None;
            self.connections.is_empty()
        }
    }

    fn cut(&mut self, reason: &str) {
        match self.publisher.holds() {
            0 => {}
            holds => log::warn!("{reason}: no longer waiting for the program, holds={holds}"),
        }
        if self.connections.open() == 0 {
            return;
        }
        let connections = self.connections.to_string();
        let cut = self.connections.cut();
        log::warn!("{reason}: cutting what is in flight, {connections} lost={cut}");
        self.cut += cut;
    }
}
