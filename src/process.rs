//! The life of a process: one function a phase, which lasts as long as the phase does and returns the next.
//!
//! |          | restart, takeover | stop            | reload    | successor ready | successor gone   | no connection left | deadline       |
//! |----------|-------------------|-----------------|-----------|-----------------|------------------|--------------------|----------------|
//! | Serve    | HandOver          | Finish          | yes       | –               | –                | –                  | –              |
//! | HandOver | refused           | kill it, Finish | yes       | go: Overlap     | Serve            | –                  | kill it, Serve |
//! | Overlap  | refused           | Drain           | yes       | –               | Serve            | –                  | –              |
//! | Drain    | refused           | Finish          | refused   | –               | take back: Serve | probation, Keep    | cut, Keep      |
//! | Finish   | refused           | cut, Keep       | refused   | –               | –                | Keep               | cut, Keep      |
//! | Keep     | passed on         | passed on       | passed on | –               | –                | –                  | –              |
//!
//! Without `--overlap` an overlap lasts until the successor says that it serves. Only a process that a
//! supervisor watches stays in Keep, and passes requests on in Drain, too; any other ends there. A stop in
//! Finish counts from half a second after the first.

mod ending;
mod overlap;

use std::os::fd::AsFd;
use std::time::Instant;
use std::{io, process};

use crate::counters::Counters;
use crate::events::{Event, Events};
use crate::handover::TRACE;
use crate::handover::handed::Handed;
use crate::handover::link::{Ancestry, Link, Mode, Word};
use crate::handover::moving::{self, Mover};
use crate::handover::named::Named;
use crate::handover::predecessor::Predecessor;
use crate::handover::program::Program;
use crate::handover::spawn::Child;
use crate::handover::state;
use crate::handover::successor::{Candidate, Progress, Successor};
use crate::operations::configuration::Configuration;
use crate::operations::keeper::Keeper;
use crate::operations::places::Places;
use crate::operations::requester::{Action, Requester};
use crate::operations::signals::{self, Signals};
use crate::operations::systemd;
use crate::operations::waiting::Waiting;
use crate::outcome::Outcome;
use crate::server::Connections;
use crate::status::State;
use crate::watch::Publisher;

/// A phase, with what only that phase needs.
enum Phase {
    /// It accepts connections.
    Serve,
    /// It accepts connections, and a candidate is getting ready.
    HandOver(Candidate, Requester),
    /// It and its successor accept connections.
    Overlap(Successor, Mode, Requester),
    /// Another process accepts connections, and this one moves its own there, or finishes them. It answers for
    /// its successor, if that is the other process.
    Drain(Option<Successor>, Option<Mover>),
    /// It finishes its connections until then, and answers for no other process.
    Finish(Instant),
    /// It stands for the processes that have succeeded it.
    Keep,
    End,
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Phase::Serve => "Serve",
            Phase::HandOver(..) => "HandOver",
            Phase::Overlap(..) => "Overlap",
            Phase::Drain(..) => "Drain",
            Phase::Finish(_) => "Finish",
            Phase::Keep => "Keep",
            Phase::End => "End",
        }
    }
}

/// What every phase needs.
pub(crate) struct Process {
    pub(crate) config: Configuration,
    pub(crate) program: Program,
    pub(crate) publisher: Publisher,
    pub(crate) connections: Connections,
    /// What the program hands on by name.
    pub(crate) named: Named,
    pub(crate) places: Places,
    pub(crate) predecessor: Option<Predecessor>,
    /// The clients that wait for its end, or for that of a handover.
    pub(crate) waiting: Waiting,
    /// What moves connections from another process to this one, and back.
    pub(crate) mover: Option<Mover>,
    /// What would move connections, if they are not to be moved. The other process sees by its end that this one has
    /// drained.
    pub(crate) unused_mover: Option<Mover>,
    pub(crate) keeper: Keeper,
    /// How many requests were cut.
    pub(crate) cut: usize,
    pub(crate) events: Events,
    /// The last to go, because until then a signal must not kill the process.
    pub(crate) _signals: Signals,
}

impl Process {
    /// Lives until the end.
    pub(crate) fn run(mut self) -> Outcome {
        let mut phase = Phase::Serve;
        loop {
            log::debug!(target: TRACE, "trace: {}", phase.name());
            phase = match phase {
                Phase::Serve => self.serve(),
                Phase::HandOver(candidate, requester) => self.hand_over(candidate, requester),
                Phase::Overlap(successor, mode, requester) => self.overlap(successor, mode, &requester),
                Phase::Drain(successor, mover) => self.drain(successor, mover),
                Phase::Finish(deadline) => self.finish(deadline),
                Phase::Keep => self.keep(),
                Phase::End => break,
            }
        }
        self.connections.keep_connections();
        log::info!("process {} ends", process::id());
        Outcome { cut: self.cut, last: self.keeper.last() }
    }

    fn serve(&mut self) -> Phase {
        loop {
            match self.next(State::Running, None, None) {
                Event::Asked(by, Action::Restart) if self.is_beside_predecessor() => {
                    by.refuse("the predecessor of this process runs beside it");
                }
                Event::Asked(by, Action::Restart) => match self.start_candidate(&by) {
                    Ok(candidate) => return Phase::HandOver(candidate, by),
                    Err(reason) => by.answer(Err(reason)),
                },
                Event::Asked(by, Action::Stop) => return self.stop(&by),
                Event::Asked(by, _) => self.config.reload(by),
                _ => {}
            }
        }
    }

    /// Starts a candidate, or adopts the requester as one.
    fn start_candidate(&mut self, by: &Requester) -> Result<Candidate, String> {
        systemd::reloading();
        let (path, timeout) = (self.program.path.display(), self.config.options.ready_timeout);
        let started = self.hand().and_then(|handed| match by {
            Requester::Candidate(connection) => {
                log::info!("{by}: handing over to the process that asks");
                Candidate::adopt(connection, handed, timeout)
            }
            _ => {
                log::info!("{by}: handing over, starting {path}");
                Candidate::start(&self.program, handed, &signals::handled(), timeout)
            }
        });
        let candidate = started.map_err(|error| {
            systemd::ready();
            self.count_failure();
            log::error!("handover failed: cannot start {path}: {error}");
            format!("cannot start {path}: {error}")
        })?;
        let how = if matches!(by, Requester::Candidate(_)) { "adopted" } else { "started" };
        log::info!("{how} successor {}", candidate.pid());
        self.keeper.started(candidate.pid());
        Ok(candidate)
    }

    fn hand(&self) -> io::Result<Handed<'_>> {
        let (ours, moving) = moving::pair()?;
        let state = self.publisher.handed_on_state();
        let listeners = self.connections.listeners().iter();
        Ok(Handed {
            sockets: listeners.map(|listener| (listener.as_fd(), listener.file())).collect(),
            mover: Mover::start(
                ours,
                self.connections.arrivals(false, !self.config.options.move_connections),
            )?,
            moving,
            above: self.predecessor.as_ref().map(Predecessor::link),
            named: &self.named,
            state: state.as_deref().map(state::seal).transpose()?,
        })
    }

    /// Until the candidate is told to go it can be killed, and nothing has changed.
    fn hand_over(&mut self, mut candidate: Candidate, requester: Requester) -> Phase {
        let pid = candidate.pid();
        let mut stop = None;
        let (failure, child) = loop {
            match self.next(State::HandingOver, Some(candidate.deadline()), Some(candidate.link())) {
                Event::Asked(by, Action::Restart) => {
                    by.refuse(format_args!("successor {pid} is being started"))
                }
                Event::Asked(by, Action::Stop) => {
                    candidate.kill(Some(format!("was not ready when {by} came")));
                    stop = Some(by);
                }
                Event::Asked(by, _) => self.config.reload(by),
                Event::Deadline => candidate.kill(None),
                _ => {}
            }
            match candidate.progress() {
                Progress::Starting => {}
                Progress::Ready(mode) => match candidate.go(self.ancestry_of_successor()) {
                    Ok(successor) => return Phase::Overlap(successor, mode, requester),
                    Err(ended) => candidate = *ended,
                },
                Progress::Failed(failure, child) => break (failure, child),
            }
        };
        let phase = self.serve_on(child);
        self.count_failure();
        log::error!("handover failed: successor {pid} {failure}");
        requester.answer(Err(format!("successor {pid} {failure}")));
        stop.map_or(phase, |by| self.stop(&by))
    }

    /// What a successor goes on with, which will have begun to serve then.
    fn ancestry_of_successor(&self) -> Ancestry {
        let mut counts = self.connections.counts();
        counts.handovers += 1;
        Ancestry { generation: self.publisher.generation() + 1, counts }
    }

    fn count_handover(&self) {
        self.connections.count(Counters { handovers: 1, ..Counters::default() });
        self.publisher.publish(|published| published.handover = Some(Instant::now()));
    }

    fn count_failure(&self) {
        self.connections.count(Counters { handovers_failed: 1, ..Counters::default() });
    }

    /// Everything is as it was before the successor, which may have left a child to wait for.
    fn serve_on(&mut self, child: Option<Child>) -> Phase {
        self.keeper.retire(child);
        self.keeper.reap();
        self.keeper.forget();
        self.unused_mover = None;
        self.publish(State::Running);
        self.connections.accept();
        self.places.restore();
        systemd::ready();
        Phase::Serve
    }

    /// Waits for the next event, and deals with those that mean the same in every phase.
    fn next(&mut self, state: State, deadline: Option<Instant>, successor: Option<&Link>) -> Event {
        loop {
            if self.predecessor.as_mut().is_some_and(|predecessor| !predecessor.is_there()) {
                self.predecessor = None;
                // A successor that was told to go puts this process there instead.
                if matches!(state, State::Running | State::HandingOver) {
                    self.places.clear_aside();
                }
            }
            self.waiting.answer(state, self.publish(state));
            let predecessor = self.predecessor.as_ref().map(Predecessor::link);
            match self.events.next(deadline, [successor, predecessor], self.waiting.clients()) {
                Event::Asked(by, Action::Status) => by.answer(Ok(self.publisher.status().to_string())),
                Event::Asked(Requester::Waiting(client), _) => self.waiting.add(client),
                Event::Left => self.waiting.forget_those_that_have_left(),
                Event::Reloaded(reading) => {
                    self.config.apply(reading);
                    let version = &self.config.options.version;
                    self.publisher.publish(|published| published.version.clone_from(version));
                    self.connections.report_capacity();
                    if state.serves() {
                        systemd::ready();
                    }
                }
                Event::Child => {
                    self.keeper.reap();
                    return Event::Child;
                }
                event => return event,
            }
        }
    }

    /// Publishes what this process does, and how many predecessors are there, which it returns.
    fn publish(&self, state: State) -> usize {
        let connections = &self.connections;
        let predecessors = usize::from(self.predecessor.is_some() || connections.expects_arrivals());
        let is_done = !state.serves() && connections.is_empty();
        self.publisher.publish(|published| {
            (published.state, published.predecessors, published.is_done) = (state, predecessors, is_done);
        });
        predecessors
    }

    fn say(&self, word: &Word) -> bool {
        self.predecessor.as_ref().is_some_and(|predecessor| predecessor.say(word))
    }

    /// Whether the predecessor accepts connections, too.
    fn is_beside_predecessor(&mut self) -> bool {
        self.config.options.overlap && self.predecessor.as_mut().is_some_and(Predecessor::is_there)
    }
}
