//! The story of a process: it serves, hands over or stops, drains, and ends.
//!
//! [`Process::run`] is the whole of it. Every other thread only posts events, and the loop blocks on
//! nothing but their channel. So whatever happens to a process happens here, one thing after the other.
//! What it does on the side is in [`duties`].

mod duties;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{self, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use crate::deadline::after;
use crate::handover::descriptors::{Limit, Reserve};
use crate::handover::ear::Heard;
use crate::handover::link::Word;
use crate::handover::predecessor::Predecessor;
use crate::handover::program::Program;
use crate::handover::spawn::Child;
use crate::handover::successor::{End, Successor};
use crate::http::Handler;
use crate::operations::control::Control;
use crate::operations::keeper::{self, Family};
use crate::operations::pid_file::PidFile;
use crate::operations::requester::{Asker, Request};
use crate::operations::systemd;
use crate::options::{Limits, Options};
use crate::outcome::Outcome;
use crate::server::Server;
use crate::server::listener::Listener;

/// What a process is doing.
enum State {
    /// It accepts connections.
    Running,
    /// It accepts connections, and has started a successor that is not ready yet.
    HandingOver { successor: Successor, deadline: Instant, asker: Asker },
    /// Both accept connections, until an operator decides.
    Overlapping { successor: Successor },
    /// Another process accepts connections; this one finishes those that it has. If the other is a successor
    /// that it answers for, it takes its place should that die.
    Draining { successor: Option<Successor>, deadline: Instant, probation: Instant },
    /// All is finished; this process stays for the case that the successor dies.
    OnProbation { successor: Successor, deadline: Instant },
    /// Nobody follows; this process finishes the connections that it has.
    Stopping { deadline: Instant },
    /// This process is what somebody watches, and stays until the last of its successors has ended.
    Keeping { last: Option<ExitStatus> },
    /// It is over.
    Ended { last: Option<ExitStatus> },
}

/// What can happen to a process.
pub(crate) enum Event {
    /// Somebody asks for something.
    Asked(Asker, Request),
    /// A child has changed its state.
    Child,
    /// The successor may have said something.
    Successor,
    /// No connection is open any more, and none is accepted.
    Drained,
    /// The state's deadline has passed.
    Deadline,
}

impl State {
    /// Until when something has to happen.
    fn deadline(&self) -> Option<Instant> {
        match self {
            State::HandingOver { deadline, .. }
            | State::Draining { deadline, .. }
            | State::OnProbation { deadline, .. }
            | State::Stopping { deadline } => Some(*deadline),
            State::Running | State::Overlapping { .. } | State::Keeping { .. } | State::Ended { .. } => None,
        }
    }
}

/// A process, but for its [`State`].
pub(crate) struct Process {
    pub(crate) options: Options,
    pub(crate) program: Program,
    pub(crate) descriptors: Option<Limit>,
    pub(crate) reserve: Reserve,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) limits: Arc<RwLock<Limits>>,
    pub(crate) server: Server,
    /// The file beside the PID file that names this process while the successor's names that. It goes first,
    /// because the successor may still put it in the place of the other.
    pub(crate) aside: Option<PidFile>,
    pub(crate) pid_file: Option<PidFile>,
    pub(crate) predecessor: Option<Predecessor>,
    /// Whether this process is to stay when it has handed over.
    pub(crate) stays: bool,
    /// The inode of the first listening socket, by which its successors are known.
    pub(crate) first_socket: u64,
    pub(crate) control: Option<Control>,
    /// The file that this process runs.
    pub(crate) executable: PathBuf,
    pub(crate) started: Instant,
    /// How many processes there have been, with this one, if that is known.
    pub(crate) generation: u64,
    /// Successors that this process does not answer for any more, and that have not ended yet.
    pub(crate) retired: Vec<Child>,
    pub(crate) events: Sender<Event>,
    pub(crate) cut: usize,
}

impl Process {
    /// Lives until the end.
    pub(crate) fn run(mut self, inbox: &Receiver<Event>) -> Outcome {
        let mut state = State::Running;
        loop {
            if let State::Ended { last } = state {
                return Outcome { cut: self.cut, last };
            }
            let event = self.next(inbox, &state);
            state = match state {
                State::Running => self.running(event),
                State::HandingOver { successor, deadline, asker } => {
                    self.handing_over(event, successor, deadline, asker)
                }
                State::Overlapping { successor } => self.overlapping(event, successor),
                State::Draining { successor, deadline, probation } => {
                    self.draining(event, successor, deadline, probation)
                }
                State::OnProbation { successor, deadline } => self.on_probation(event, successor, deadline),
                State::Stopping { deadline } => self.stopping(event, deadline),
                State::Keeping { last } => self.keeping(event, last),
                State::Ended { .. } => state,
            };
        }
    }

    fn running(&mut self, event: Event) -> State {
        match event {
            Event::Asked(asker, Request::Restart | Request::TakeOver) => return self.find_successor(asker),
            Event::Asked(asker, Request::Stop) => return self.stop(asker),
            Event::Asked(asker, _) => self.reload(asker),
            Event::Child | Event::Successor | Event::Drained | Event::Deadline => {}
        }
        State::Running
    }

    /// Starts a successor, or takes the asker for it, if he has come to take over.
    fn find_successor(&mut self, mut asker: Asker) -> State {
        if self.is_overlapped() {
            asker.refuse("the predecessor of this process runs beside it");
            return State::Running;
        }
        systemd::reloading();
        let sockets: Vec<_> = self.server.listeners().iter().map(Listener::as_fd).collect();
        let events = self.events.clone();
        let report = move || drop(events.send(Event::Successor));
        let path = self.program.path.display();
        let found = match asker.take_connection() {
            Some(connection) => {
                log::info!("{asker}: handing over to the process that asks");
                Successor::adopt(connection, &sockets, report)
            }
            None => {
                log::info!("{asker}: handing over, starting {path}");
                Successor::start(&self.program, &sockets, &mut self.reserve, self.descriptors, report)
            }
        };
        match found {
            Ok(successor) => {
                log::info!("started successor {}", successor.pid());
                State::HandingOver { successor, deadline: after(self.options.ready_timeout), asker }
            }
            Err(error) => {
                systemd::ready();
                log::error!("handover failed: cannot start {path}: {error}");
                asker.tell(format_args!("error: cannot start {path}: {error}"));
                State::Running
            }
        }
    }

    fn handing_over(
        &mut self,
        event: Event,
        mut successor: Successor,
        deadline: Instant,
        asker: Asker,
    ) -> State {
        let reason = match &event {
            Event::Asked(by, Request::Stop) => Some(format!("was not ready when {by} came")),
            Event::Asked(..) => None,
            Event::Deadline => {
                let timeout = humantime::format_duration(self.options.ready_timeout);
                Some(format!("was not ready within {timeout}"))
            }
            Event::Child | Event::Successor | Event::Drained => match successor.hear() {
                Some(Heard::Word(word)) if word.is_ready() => return self.succeeded(event, successor, asker),
                Some(Heard::Word(word)) => {
                    Some(format!("said {:?} before {:?}", word.line(), Word::Ready.line()))
                }
                Some(Heard::Nonsense(line)) => {
                    Some(format!("said {line:?} instead of {:?}", Word::Ready.line()))
                }
                Some(Heard::End) => Some(String::new()),
                None if successor.has_ended() => Some(String::new()),
                None => None,
            },
        };
        let Some(reason) = reason else {
            match event {
                Event::Asked(by, Request::Restart | Request::TakeOver) => {
                    by.refuse(format_args!("successor {} is being started", successor.pid()));
                }
                Event::Asked(by, _) => self.reload(by),
                _ => {}
            }
            return State::HandingOver { successor, deadline, asker };
        };
        match self.give_up(successor, &reason) {
            Err(ready) => self.succeeded(event, ready, asker),
            Ok(failure) => {
                asker.tell(format_args!("error: {failure}"));
                self.running(event)
            }
        }
    }

    /// Ends a handover that has failed, and leaves everything as it was before; the failure in words. Or
    /// finds that the successor has just become ready, and returns it. Without a `reason`, it has ended or
    /// has closed the pipe.
    fn give_up(&mut self, successor: Successor, reason: &str) -> Result<String, Successor> {
        let pid = successor.pid();
        let failure = match (successor.end_unless_ready()?, reason) {
            (End::Left, "") => "has left before it was ready".to_owned(),
            (End::Killed, "") => "closed its pipe before it was ready, and was killed".to_owned(),
            (end, "") => format!("{end} before it was ready"),
            (end, reason) => format!("{reason}, and {end}"),
        };
        self.be_the_one_that_serves();
        log::error!("handover failed: successor {pid} {failure}");
        Ok(format!("successor {pid} {failure}"))
    }

    /// The successor is ready. `event` is what has brought the news, and may mean something to the next
    /// state as well.
    fn succeeded(&mut self, event: Event, successor: Successor, asker: Asker) -> State {
        let pid = successor.pid();
        successor.let_go_on();
        let state = self.hand_over_or_overlap(event, successor);
        asker.tell(format_args!("ok {pid}"));
        state
    }

    fn hand_over_or_overlap(&mut self, event: Event, successor: Successor) -> State {
        if successor.said() != Some(Word::ReadyToOverlap) {
            return self.hand_over(event, successor);
        }
        if let Some(pid_file) = &self.pid_file {
            match pid_file.aside() {
                Ok(aside) => self.aside = Some(aside),
                Err(error) => log::error!("cannot write {}.old: {error}", pid_file.path().display()),
            }
        }
        log::info!("both this process and successor {} accept connections", successor.pid());
        self.overlapping(event, successor)
    }

    fn overlapping(&mut self, event: Event, mut successor: Successor) -> State {
        match event {
            Event::Asked(asker, Request::Restart | Request::TakeOver) => {
                asker.refuse(format_args!("successor {} runs beside this process", successor.pid()));
            }
            Event::Asked(asker, Request::Stop) => {
                log::info!("{asker}: successor {} goes on alone", successor.pid());
                asker.tell("ok");
                self.tell_predecessor(Word::HandedOver);
                self.retired.extend(successor.retire());
                return self.drain_for_another();
            }
            Event::Asked(asker, _) => self.reload(asker),
            Event::Child | Event::Successor => {
                let died = has_died(&mut successor);
                if died || successor.said() == Some(Word::Stopping) {
                    return self.go_back(successor);
                }
            }
            Event::Drained | Event::Deadline => {}
        }
        State::Overlapping { successor }
    }

    /// The successor has been told to stop, or has died: this process goes on as if it had never been.
    fn go_back(&mut self, successor: Successor) -> State {
        let pid = successor.pid();
        self.retired.extend(successor.retire());
        self.be_the_one_that_serves();
        log::info!("successor {pid} is leaving; this process goes on alone");
        State::Running
    }

    /// From here on the successor is the one that accepts connections.
    fn hand_over(&mut self, event: Event, successor: Successor) -> State {
        self.tell_predecessor(Word::HandedOver);
        let (deadline, probation) = self.drain();
        log::info!("handed over to successor {}; draining, {}", successor.pid(), self.open());
        self.draining(event, Some(successor), deadline, probation)
    }

    /// Stops accepting connections; until when those that are open may last, and the probation.
    fn drain(&mut self) -> (Instant, Instant) {
        self.server.drain();
        (after(self.options.drain_timeout), after(self.options.probation))
    }

    /// Another process accepts connections, which this one does not answer for.
    fn drain_for_another(&mut self) -> State {
        let (deadline, probation) = self.drain();
        self.server.close_listeners();
        log::info!("draining, {}", self.open());
        State::Draining { successor: None, deadline, probation }
    }

    fn draining(
        &mut self,
        event: Event,
        mut successor: Option<Successor>,
        deadline: Instant,
        probation: Instant,
    ) -> State {
        match event {
            Event::Asked(asker, Request::Stop) => {
                self.pass_on(&asker, Request::Stop);
                log::info!("{asker}: closing idle connections, {}", self.open());
                asker.tell("ok");
                self.server.close_idle();
                return State::Stopping { deadline };
            }
            Event::Child | Event::Successor => {
                if let Some(died) = successor.take_if(has_died) {
                    return self.take_back(died);
                }
                // It has handed over, or was told to stop: its place will not have to be taken.
                if let Some(left) = successor.take_if(|successor| successor.said() != Some(Word::Ready)) {
                    self.retired.extend(left.retire());
                    self.server.close_listeners();
                }
            }
            Event::Asked(asker, request) => self.pass_on_or_refuse(asker, request),
            Event::Drained if self.server.open() > 0 => {}
            Event::Drained => return self.stay(successor, probation),
            Event::Deadline => {
                self.cut("the drain deadline has passed");
                return self.stay(successor, probation);
            }
        }
        State::Draining { successor, deadline, probation }
    }

    /// Nothing is left to finish, but the successor may be too young to be left alone.
    fn stay(&mut self, successor: Option<Successor>, probation: Instant) -> State {
        match successor {
            Some(successor) if Instant::now() < probation => {
                let pid = successor.pid();
                log::info!("every connection is finished; staying in case successor {pid} dies");
                State::OnProbation { successor, deadline: probation }
            }
            _ => self.leave(),
        }
    }

    fn on_probation(&mut self, event: Event, mut successor: Successor, deadline: Instant) -> State {
        match event {
            Event::Asked(asker, Request::Stop) => {
                self.pass_on(&asker, Request::Stop);
                log::info!("{asker}: stopping");
                asker.tell("ok");
                return self.leave();
            }
            Event::Child | Event::Successor => {
                if has_died(&mut successor) {
                    return self.take_back(successor);
                }
                // It has handed over, or was told to stop: its place will not have to be taken.
                if successor.said() != Some(Word::Ready) {
                    return self.leave();
                }
            }
            Event::Asked(asker, request) => self.pass_on_or_refuse(asker, request),
            Event::Drained => {}
            Event::Deadline => return self.leave(),
        }
        State::OnProbation { successor, deadline }
    }

    /// The successor has died, and nobody accepts connections; but the listening socket is still here.
    fn take_back(&mut self, successor: Successor) -> State {
        let pid = successor.pid();
        self.server.accept();
        self.be_the_one_that_serves();
        self.tell_predecessor(Word::Ready);
        log::error!("successor {pid} {}; accepting connections again", successor.reap());
        State::Running
    }

    fn stop(&mut self, asker: Asker) -> State {
        let overlapped = self.is_overlapped();
        if overlapped {
            // Before it hears so, because then it puts itself in these places if it is not there.
            self.give_back();
        }
        self.tell_predecessor(Word::Stopping);
        if overlapped {
            log::info!("{asker}: the predecessor of this process goes on alone");
            asker.tell("ok");
            return self.drain_for_another();
        }
        systemd::stopping();
        self.server.remove_socket_files();
        self.server.close();
        log::info!("{asker}: stopping, {}", self.open());
        asker.tell("ok");
        self.server.close_idle();
        State::Stopping { deadline: after(self.options.drain_timeout) }
    }

    /// Whether the predecessor of this process still accepts connections beside it.
    fn is_overlapped(&self) -> bool {
        self.options.overlap && self.predecessor.as_ref().is_some_and(Predecessor::is_there)
    }

    fn stopping(&mut self, event: Event, deadline: Instant) -> State {
        match event {
            Event::Asked(asker, Request::Stop) => {
                self.pass_on(&asker, Request::Stop);
                self.cut(&format!("{asker} again"));
                asker.tell("ok");
                return self.leave();
            }
            Event::Drained if self.server.open() == 0 => return self.leave(),
            Event::Deadline => {
                self.cut("the drain deadline has passed");
                return self.leave();
            }
            Event::Asked(asker, _) => asker.refuse("this process is stopping"),
            _ => {}
        }
        State::Stopping { deadline }
    }

    fn cut(&mut self, reason: &str) {
        let cut = self.server.in_flight();
        log::warn!("{reason}: cutting {cut} requests in flight, {}", self.open());
        self.server.cut();
        self.cut += cut;
    }

    fn end(&self) -> State {
        log::info!("process {} ends", process::id());
        State::Ended { last: None }
    }

    /// Nothing is left to do here, but to be there for the successors, if that is wanted.
    fn leave(&mut self) -> State {
        let mut last = None;
        if !self.stays || keeper::reap(&mut last) == Family::Gone {
            return self.end();
        }
        log::info!("process {} stays until the last of its successors has ended", process::id());
        self.server.close_listeners();
        self.aside = None;
        State::Keeping { last }
    }

    fn keeping(&mut self, event: Event, mut last: Option<ExitStatus>) -> State {
        if let Event::Asked(asker, request) = event {
            self.pass_on_or_refuse(asker, request);
        }
        if keeper::reap(&mut last) == Family::Alive {
            return State::Keeping { last };
        }
        log::info!("process {} ends, as the last of its successors has", process::id());
        State::Ended { last }
    }

    /// Waits for the next event that may mean a change, at most until the state's deadline.
    fn next(&mut self, inbox: &Receiver<Event>, state: &State) -> Event {
        loop {
            let received = match state.deadline() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match received {
                Ok(Event::Asked(asker, Request::Status)) => asker.tell(self.status(state)),
                Ok(event) => {
                    if matches!(event, Event::Child) {
                        self.retired.retain_mut(|child| child.try_wait().is_none());
                    }
                    return event;
                }
                Err(RecvTimeoutError::Timeout) => return Event::Deadline,
                Err(RecvTimeoutError::Disconnected) => unreachable!("the process itself holds a sender"),
            }
        }
    }
}

/// Whether the successor has ended, having neither handed over nor been told to stop.
fn has_died(successor: &mut Successor) -> bool {
    while let Some(Heard::Word(word)) = successor.hear() {
        log::info!("successor {} says: {}", successor.pid(), word.line());
    }
    successor.has_ended() && successor.said().is_some_and(Word::is_ready)
}
