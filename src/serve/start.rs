//! From the listening sockets to the first connection: what is opened, in which order, and when it may go.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::process;
use std::sync::Arc;
use std::time::Instant;

use super::{Server, is_started_by, sockets};
use crate::error::Error;
use crate::events::{Event, Events};
use crate::handover::descriptors;
use crate::handover::link::{Ancestry, Mode, Word};
use crate::handover::moving::Mover;
use crate::handover::predecessor::Predecessor;
use crate::operations::configuration::Configuration;
use crate::operations::keeper::Keeper;
use crate::operations::places::Places;
use crate::operations::ready_fd::ReadyFd;
use crate::operations::requester::Requester;
use crate::operations::signals::{Meaning, Signals};
use crate::operations::systemd;
use crate::operations::waiting::Waiting;
use crate::process::Process;
use crate::server::Connections;
use crate::server::capacity;
use crate::server::listener::Given;
use crate::service::Service;
use crate::status::{State, Status};

impl Server {
    /// Does everything until connections are accepted.
    pub(super) fn start(
        mut self,
        predecessor: &mut Option<Predecessor>,
        service: Service,
    ) -> Result<Process, Error> {
        sockets::check(&self.listeners, &self.unwanted, predecessor)?;
        descriptors::raise_limit();
        self.check_descriptors(predecessor).map_err(|reason| Error::new("serve", reason))?;
        let mut keeper = Keeper::default();
        let stays = self.options.stay || process::id() == 1 || systemd::is_there();
        if stays && !is_started_by(predecessor) {
            let stayed = keeper.stay(&self.listeners[0], &self.program.arguments);
            stayed.map_err(|error| Error::new("become the parent of orphans", error))?;
        }
        let (unwanted, new_files) = (mem::take(&mut self.unwanted), mem::take(&mut self.new_files));
        let ready_fd = self.ready_fd.take();
        let before = predecessor.as_ref().map(Predecessor::pid);
        let mut process = self.prepare(before, keeper, service)?;
        go(&mut process, predecessor, unwanted)?;
        new_files.keep();
        ready_fd.into_iter().for_each(ReadyFd::report);
        let Status { version, executable, .. } = process.publisher.status();
        let version = if version.is_empty() { version } else { format!(", version {version}") };
        let executable = executable.display().to_string();
        let executable = if executable.is_empty() { executable } else { format!(", {executable}") };
        log::info!("process {} is ready{version}{executable}", process::id());
        Ok(process)
    }

    /// Checks that this process will be able to hand over.
    fn check_descriptors(&self, predecessor: &Option<Predecessor>) -> Result<(), String> {
        // A file for the state, and its duplicate.
        let state = if self.publisher.handed_on_state().is_some() { 2 } else { 0 };
        let handed = self.listeners.len() + self.named.len() + state;
        let of_predecessor = predecessor.as_ref().map_or(0, Predecessor::descriptors);
        let spare =
            of_predecessor + self.unwanted.len() + self.inherited.len() + self.ready_fd.iter().count();
        capacity::check(self.listeners[0].as_fd(), handed, self.options.control.is_some(), spare)
    }

    /// Opens everything else that this process needs.
    fn prepare(self, predecessor: Option<i32>, keeper: Keeper, service: Service) -> Result<Process, Error> {
        let Server { options, program, listeners, named, limits, events, publisher, .. } = self;
        let Service { protocol, serve, reload } = service;
        descriptors::share_arena_if_limited();

        let signals = signals(&events).map_err(|error| Error::new("handle signals", error))?;
        let poster = events.poster();
        let on_empty = move || poster.post(Event::Drained);
        let handed = listeners.len() + named.len();
        let (current, stack_size) = (Arc::clone(&limits), options.stack_size);
        let connections = Connections::new(listeners, handed, current, stack_size, protocol, serve, on_empty)
            .map_err(|error| Error::new("start the accept thread", error))?;
        publisher.set_usage(connections.usage());
        let poster = events.poster();
        let ask = move |requester, action| poster.post(Event::Asked(requester, action));
        let places = Places::prepare(&options, predecessor, Arc::new(ask))?;
        let poster = events.poster();
        let report = move |reading| poster.post(Event::Reloaded(reading));
        Ok(Process {
            config: Configuration::new(options, limits, reload, Arc::new(report)),
            program,
            publisher,
            connections,
            named,
            places,
            predecessor: None,
            waiting: Waiting::default(),
            mover: None,
            unused_mover: None,
            keeper,
            cut: 0,
            events,
            _signals: signals,
        })
    }
}

fn signals(events: &Events) -> io::Result<Signals> {
    let poster = events.poster();
    Signals::listen(move |signal, meaning| {
        poster.post(match meaning {
            Meaning::Asked(action) => Event::Asked(Requester::Signal(signal), action),
            Meaning::Child => Event::Child,
        });
    })
}

/// Waits until connections may be accepted, and accepts them. A candidate is killed without a second thought,
/// so it must not have one: until then they wait in the queues of the sockets.
fn go(process: &mut Process, predecessor: &mut Option<Predecessor>, unwanted: Given) -> Result<(), Error> {
    if let Some(predecessor) = predecessor {
        let mode = if process.config.options.overlap { Mode::Overlap } else { Mode::Alone };
        let ancestry = predecessor.wait_for_go(mode, unwanted.iter().map(|&(index, _)| index));
        let ancestry = ancestry.map_err(|reason| Error::new("succeed the predecessor", reason))?;
        process.connections.set_socket_mode(process.config.options.socket_mode);
        if ancestry.is_none() {
            // Nobody else is there any more to do it.
            unwanted.iter().for_each(|(_, listener)| listener.remove_file());
        }
        let Ancestry { generation, counts } = ancestry.unwrap_or_else(Ancestry::unknown);
        process.publisher.publish(|published| {
            (published.generation, published.handover) = (generation, Some(Instant::now()));
        });
        process.connections.count(counts);
        // Without a thread for it, the predecessor keeps its connections.
        let are_refused = !process.config.options.move_connections;
        let start = |socket| Mover::start(socket, process.connections.arrivals(true, are_refused)).ok();
        process.mover = predecessor.moving().and_then(start);
        process.mover.iter().for_each(|mover| mover.is_known(counts));
    }
    // Before a client can ask for it.
    process.publisher.publish(|published| {
        (published.state, published.predecessors) = (State::Running, usize::from(predecessor.is_some()));
    });
    process.connections.accept();
    for (_, listener) in &unwanted {
        log::info!("no longer listening on {}", listener.address());
    }
    process.places.take();
    systemd::ready();
    if let Some(predecessor) = predecessor {
        predecessor.say(&Word::Serving);
    }
    Ok(())
}
