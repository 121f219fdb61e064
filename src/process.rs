//! The story of a process: it starts, serves, hands over or stops, drains, and ends.
//!
//! [`Process::run`] is the whole of it. Every other thread only posts events, and the loop blocks on
//! nothing but their channel. So whatever happens to a process happens here, one thing after the other.

use std::os::fd::AsFd;
use std::process::{self, ExitCode};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use nix::sys::signal::Signal;
use tiny_http::ResponseBox;

use crate::connection::after;
use crate::descriptor::{self, Limit};
use crate::error::Error;
use crate::http::{self, Request};
use crate::listener::Listener;
use crate::options::Options;
use crate::pid_file::PidFile;
use crate::predecessor::Predecessor;
use crate::program::Program;
use crate::server::Server;
use crate::signals::{self, Signals};
use crate::successor::{Heard, Successor};
use crate::words::Word;

/// What a process is doing.
enum State {
    /// It accepts connections.
    Running,
    /// It accepts connections, and has started a successor that is not ready yet.
    HandingOver { successor: Successor, deadline: Instant },
    /// The successor accepts connections; this process finishes those that it has.
    Draining { successor: Successor, deadline: Instant, probation: Instant },
    /// All is finished; this process stays for the case that the successor dies.
    OnProbation { successor: Successor, deadline: Instant },
    /// Nobody follows; this process finishes the connections that it has.
    Stopping { deadline: Instant },
    /// It is over.
    Ended,
}

/// What can happen to a process.
enum Event {
    /// A signal has come.
    Signal(Signal, signals::Request),
    /// The successor may have said something.
    Successor,
    /// No connection is open any more, and none is accepted.
    Drained,
    /// The state's deadline has passed.
    Deadline,
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many requests were cut, because they were still in flight at the end of the drain or when a
    /// second stop signal came.
    pub cut: usize,
}

impl From<Outcome> for ExitCode {
    /// Success if no request was lost.
    fn from(outcome: Outcome) -> ExitCode {
        if outcome.cut == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Serves HTTP until the process has been stopped or has handed over, and its connections are finished.
///
/// `handler` is run for each request, on the thread of its connection, so on many at a time. If it panics,
/// the client gets a 500.
///
/// The process handles SIGUSR2 and SIGHUP (hand over), SIGINT, SIGTERM and SIGQUIT (stop; a second one cuts
/// what is in flight) until this returns; a SIGHUP that is ignored when it is called stays ignored. It is
/// to be called from `main`, before the working directory changes, and `main` is to return when it does:
/// requests that were cut may still be running on their threads.
///
/// # Errors
///
/// The process cannot start to serve: the address cannot be bound, descriptor 3 is not what it should be,
/// the PID file cannot be written. Nothing is left behind then, and if there is a predecessor it goes on
/// serving once this process has exited.
pub fn serve<H>(options: Options, handler: H) -> Result<Outcome, Error>
where
    H: Fn(&mut Request) -> ResponseBox + Send + Sync + 'static,
{
    let system = |attempt| move |source| Error::System { attempt, source };
    let program = Program::of_successor().map_err(system("find out which program this is"))?;

    // What was handed over is taken before anything else is opened, so that nothing else has its numbers.
    let (listener, predecessor) = if options.graceful {
        let listener = Listener::take_over(&options.listen)?;
        log::info!("listening on the existing file descriptor 3, {}", listener.address());
        (listener, Predecessor::inherited())
    } else {
        let listener = Listener::bind(&options.listen)?;
        log::info!("listening on a new file descriptor, {}", listener.address());
        (listener, None)
    };
    let descriptors = Limit::raise();
    let _reserved = descriptor::reserve().map_err(system("open /dev/null"))?;

    let (events, inbox) = mpsc::channel();
    let post = |events: &Sender<Event>| {
        let events = events.clone();
        // It fails only once the loop has ended, and then nobody wants to know.
        move |event| drop(events.send(event))
    };
    let post_signal = post(&events);
    let _signals = Signals::listen(move |signal, request| post_signal(Event::Signal(signal, request)))
        .map_err(system("handle signals"))?;

    let limits = options.limits;
    let serve = move |connection: &_| http::serve(connection, &handler, &limits);
    let post_drained = post(&events);
    let server = Server::new(listener, limits.max_connections, serve, move || post_drained(Event::Drained))
        .map_err(system("start the accept thread"))?;
    let pid_file = match &options.pid_file {
        Some(path) => {
            Some(PidFile::write(path).map_err(|source| Error::PidFile { path: path.clone(), source })?)
        }
        None => None,
    };

    let mut process =
        Process { options, program, descriptors, server, pid_file, predecessor, events, cut: 0 };
    // A process that is not ready is killed without a second thought, so it must not have a connection:
    // first it says that it is ready, then it accepts. Until then connections wait in the socket's queue.
    process.tell_predecessor(Word::Ready);
    process.server.accept();
    log::info!("process {} is ready", process::id());
    Ok(process.run(&inbox))
}

/// A process, but for its [`State`].
struct Process {
    options: Options,
    program: Program,
    descriptors: Option<Limit>,
    server: Server,
    pid_file: Option<PidFile>,
    predecessor: Option<Predecessor>,
    events: Sender<Event>,
    cut: usize,
}

impl Process {
    fn run(mut self, inbox: &Receiver<Event>) -> Outcome {
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running(next(inbox, None)),
                State::HandingOver { successor, deadline } => {
                    self.handing_over(next(inbox, Some(deadline)), successor, deadline)
                }
                State::Draining { successor, deadline, probation } => {
                    self.draining(next(inbox, Some(deadline)), successor, deadline, probation)
                }
                State::OnProbation { successor, deadline } => {
                    self.on_probation(next(inbox, Some(deadline)), successor, deadline)
                }
                State::Stopping { deadline } => self.stopping(next(inbox, Some(deadline)), deadline),
                State::Ended => return Outcome { cut: self.cut },
            };
        }
    }

    fn running(&mut self, event: Event) -> State {
        match event {
            Event::Signal(signal, signals::Request::Restart) => self.start_successor(signal),
            Event::Signal(signal, signals::Request::Stop) => self.stop(signal),
            _ => State::Running,
        }
    }

    fn start_successor(&mut self, signal: Signal) -> State {
        log::info!("{signal}: handing over, starting {}", self.program.path.display());
        let Some(listener) = self.server.listener() else {
            return State::Running;
        };
        let events = self.events.clone();
        let report = move || drop(events.send(Event::Successor));
        match Successor::start(&self.program, listener.as_fd(), self.descriptors, report) {
            Ok(successor) => {
                log::info!("started successor {}", successor.pid());
                State::HandingOver { successor, deadline: after(self.options.ready_timeout) }
            }
            Err(error) => {
                log::error!("handover failed: cannot start {}: {error}", self.program.path.display());
                State::Running
            }
        }
    }

    fn handing_over(&mut self, event: Event, mut successor: Successor, deadline: Instant) -> State {
        match event {
            Event::Signal(signal, signals::Request::Restart) => {
                log::warn!("{signal}: refused, successor {} is being started", successor.pid());
                State::HandingOver { successor, deadline }
            }
            Event::Signal(signal, signals::Request::Stop) => {
                let reason = format!("was not ready when {signal} came");
                match self.give_up(successor, reason) {
                    None => self.stop(signal),
                    Some(ready) => self.hand_over(event, ready),
                }
            }
            Event::Deadline => {
                let timeout = humantime::format_duration(self.options.ready_timeout);
                match self.give_up(successor, format!("was not ready within {timeout}")) {
                    None => State::Running,
                    Some(ready) => self.hand_over(event, ready),
                }
            }
            Event::Signal(_, signals::Request::Child) | Event::Successor | Event::Drained => {
                let reason = match successor.hear() {
                    Some(Heard::Word(Word::Ready)) => return self.hand_over(event, successor),
                    Some(Heard::Word(word)) => {
                        format!("said {:?} before {:?}", word.line(), Word::Ready.line())
                    }
                    Some(Heard::Nonsense(line)) => {
                        format!("said {line:?} instead of {:?}", Word::Ready.line())
                    }
                    Some(Heard::End) => "closed descriptor 4 before it was ready".to_owned(),
                    None if successor.has_ended() => "ended before it was ready".to_owned(),
                    None => {
                        return State::HandingOver { successor, deadline };
                    }
                };
                match self.give_up(successor, reason) {
                    None => State::Running,
                    Some(ready) => self.hand_over(event, ready),
                }
            }
        }
    }

    /// Ends a handover that has failed, and leaves everything as it was before; or finds that the successor
    /// has just become ready, and returns it.
    fn give_up(&mut self, successor: Successor, reason: String) -> Option<Successor> {
        let pid = successor.pid();
        match successor.end_unless_ready() {
            Err(ready) => return Some(ready),
            Ok(end) => log::error!("handover failed: successor {pid} {reason}; it {end}"),
        }
        self.restore_pid_file();
        None
    }

    /// The successor is ready: from here on it is the one that accepts connections. `event` is what has
    /// brought the news, and may mean something to a draining process as well.
    fn hand_over(&mut self, event: Event, successor: Successor) -> State {
        self.server.drain();
        self.tell_predecessor(Word::HandedOver);
        log::info!("handed over to successor {}; draining, {}", successor.pid(), self.open());
        let deadline = after(self.options.drain_timeout);
        self.draining(event, successor, deadline, after(self.options.probation))
    }

    fn draining(
        &mut self,
        event: Event,
        mut successor: Successor,
        deadline: Instant,
        probation: Instant,
    ) -> State {
        match event {
            Event::Signal(signal, signals::Request::Restart) => {
                self.refuse_after_handover(signal, &successor)
            }
            Event::Signal(signal, signals::Request::Stop) => {
                log::info!("{signal}: closing idle connections, {}", self.open());
                self.server.close_idle();
                return State::Stopping { deadline };
            }
            Event::Signal(_, signals::Request::Child) | Event::Successor => {
                if self.has_died(&mut successor) {
                    return self.take_back(successor);
                }
            }
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
    fn stay(&mut self, successor: Successor, probation: Instant) -> State {
        if Instant::now() >= probation {
            return self.end();
        }
        log::info!("every connection is finished; staying in case successor {} dies", successor.pid());
        State::OnProbation { successor, deadline: probation }
    }

    fn on_probation(&mut self, event: Event, mut successor: Successor, deadline: Instant) -> State {
        match event {
            Event::Signal(signal, signals::Request::Restart) => {
                self.refuse_after_handover(signal, &successor)
            }
            Event::Signal(signal, signals::Request::Stop) => {
                log::info!("{signal}: stopping");
                return self.end();
            }
            Event::Signal(_, signals::Request::Child) | Event::Successor => {
                if self.has_died(&mut successor) {
                    return self.take_back(successor);
                }
                // It has handed over, or was told to stop, and needs no predecessor any more.
                if successor.said() != Some(Word::Ready) {
                    return self.end();
                }
            }
            Event::Drained => {}
            Event::Deadline => return self.end(),
        }
        State::OnProbation { successor, deadline }
    }

    /// Whether the successor has ended, having neither handed over nor been told to stop.
    fn has_died(&self, successor: &mut Successor) -> bool {
        while let Some(Heard::Word(word)) = successor.hear() {
            log::info!("successor {} says: {}", successor.pid(), word.line());
        }
        successor.has_ended() && successor.said() == Some(Word::Ready)
    }

    fn refuse_after_handover(&self, signal: Signal, successor: &Successor) {
        log::warn!("{signal}: refused, this process has handed over to {}", successor.pid());
    }

    /// The successor has died, and nobody accepts connections; but the listening socket is still here.
    fn take_back(&mut self, successor: Successor) -> State {
        let pid = successor.pid();
        self.server.accept();
        self.restore_pid_file();
        self.tell_predecessor(Word::Ready);
        log::error!("successor {pid} {}; accepting connections again", successor.reap());
        State::Running
    }

    fn stop(&mut self, signal: Signal) -> State {
        self.tell_predecessor(Word::Stopping);
        self.server.close();
        log::info!("{signal}: stopping, {}", self.open());
        self.server.close_idle();
        State::Stopping { deadline: after(self.options.drain_timeout) }
    }

    fn stopping(&mut self, event: Event, deadline: Instant) -> State {
        match event {
            Event::Signal(signal, signals::Request::Restart) => {
                log::warn!("{signal}: refused, this process is stopping");
            }
            Event::Signal(signal, signals::Request::Stop) => {
                self.cut(&format!("{signal} again"));
                return self.end();
            }
            Event::Drained if self.server.open() == 0 => return self.end(),
            Event::Deadline => {
                self.cut("the drain deadline has passed");
                return self.end();
            }
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
        State::Ended
    }

    fn open(&self) -> String {
        format!("open connections: {}, requests in flight: {}", self.server.open(), self.server.in_flight())
    }

    fn tell_predecessor(&mut self, word: Word) {
        if let Some(predecessor) = &mut self.predecessor
            && !predecessor.tell(word)
        {
            log::debug!("no predecessor is there to be told: {}", word.line());
        }
    }

    fn restore_pid_file(&self) {
        if let Some(pid_file) = &self.pid_file
            && let Err(error) = pid_file.restore()
        {
            log::error!("cannot write the PID file {}: {error}", pid_file.path().display());
        }
    }
}

/// Waits for the next event, at most until the deadline.
fn next(inbox: &Receiver<Event>, deadline: Option<Instant>) -> Event {
    let received = match deadline {
        None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(deadline) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
    };
    match received {
        Ok(event) => event,
        Err(RecvTimeoutError::Timeout) => Event::Deadline,
        Err(RecvTimeoutError::Disconnected) => unreachable!("the process itself holds a sender"),
    }
}
