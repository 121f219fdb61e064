//! A state of a whole server, and what a process can do to it at once.

pub use super::parts::*;
use super::rules::Bounds;

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    // At any moment:
    TwoReaders,
    LostConnection,
    CutInAnother,
    LostInQueue,
    NoSocket,
    KilledWithConnections,
    KilledAfterGo,
    // When nothing happens any more, or could not come to that:
    Livelock,
    Deadlock,
    NobodyAccepts,
    SeveralAccept,
    AcceptsAfterStop,
    NoReader,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub processes: [Process; PROCESSES],
    /// By the successor, like `movings`.
    pub links: [Link; PROCESSES],
    pub movings: [Moving; PROCESSES],
    pub connections: [Connection; CONNECTIONS],
    /// What may still happen from outside.
    pub bounds: Bounds,
    /// The operator has stopped the server, not only one of two processes of an overlap.
    pub is_stopped: bool,
    /// All that would have had to serve were killed.
    pub is_killed: bool,
    pub fault: Option<Fault>,
}

impl State {
    /// One process serves.
    pub fn first(bounds: Bounds) -> State {
        let mut state = State { bounds, ..State::default() };
        let (life, at, gate) = (Life::Alive, At::Serve, Gate::Open);
        state.processes[0] = Process { life, at, gate, is_granted: true, ..Process::default() };
        state
    }

    pub fn is_alive(&self, p: usize) -> bool {
        self.processes[p].life == Life::Alive
    }

    pub fn alive(&self) -> impl Iterator<Item = usize> {
        (0..PROCESSES).filter(|&p| self.is_alive(p))
    }

    pub fn predecessor(&self, p: usize) -> Option<usize> {
        self.processes[p].predecessor.map(usize::from)
    }

    pub fn successor(&self, p: usize) -> Option<usize> {
        self.processes[p].successor.map(usize::from)
    }

    /// Whether anybody has the successor's end of the link: it, or its own candidate.
    pub fn is_held(&self, link: usize) -> bool {
        let candidate = |p: usize| self.processes[p].has_above && self.predecessor(p) == Some(link);
        self.is_alive(link) && self.processes[link].has_link || self.alive().any(candidate)
    }

    pub fn say_down(&mut self, link: usize, word: Word) -> bool {
        let is_held = self.is_held(link);
        if is_held {
            self.links[link].down.push(word);
        }
        is_held
    }

    pub fn say_up(&mut self, link: usize, word: Word) -> bool {
        let is_open = self.links[link].end == End::Open;
        if is_open {
            self.links[link].up.push(word);
        }
        is_open
    }

    /// The predecessor's end goes.
    pub fn drop_link(&mut self, link: usize) {
        self.links[link].end = End::Closed;
        self.links[link].up = Queue::default();
    }

    /// Those through which connections come, while others go through `mover`.
    pub fn arrivals(&self, p: usize) -> impl Iterator<Item = (usize, usize)> {
        let goes = move |moving: usize| self.processes[p].mover == Some(moving as u8);
        self.ends(p).filter(move |&(moving, _)| !goes(moving))
    }

    /// Which end of a socket of moves a process has.
    pub fn end_of(moving: usize, p: usize) -> usize {
        usize::from(moving == p)
    }

    /// Sends through a socket of moves from that end.
    pub fn send(&mut self, moving: usize, end: usize, message: Message) -> bool {
        let is_open = matches!(self.movings[moving].ends[1 - end], End::Open | End::Unread);
        if is_open {
            self.movings[moving].queues[1 - end].push(message);
        }
        is_open
    }

    pub fn close_moving(&mut self, moving: usize, end: usize) {
        self.movings[moving].ends[end] = End::Closed;
        self.movings[moving].keeps[end] = false;
        self.movings[moving].queues[end] = Queue::default();
    }

    /// `Mover::finish`, without the wait for the thread.
    pub fn finish_moving(&mut self, moving: usize, end: usize, shuts: bool) {
        let end = &mut self.movings[moving].ends[end];
        match end {
            End::Open if shuts => *end = End::Shut,
            End::Unread => *end = End::Closed,
            _ => {}
        }
    }

    /// The ends of sockets of moves that a process has.
    pub fn ends(&self, p: usize) -> impl Iterator<Item = (usize, usize)> {
        let is_there = move |m: usize, e: usize| self.movings[m].ends[e] != End::Closed;
        let own = (p, 1);
        let others = (0..PROCESSES).filter(move |&m| self.predecessor(m) == Some(p)).map(|m| (m, 0));
        std::iter::once(own).chain(others).filter(move |&(m, e)| is_there(m, e))
    }

    pub fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Whether no connection is open in a process, and none will be moved there.
    pub fn is_empty(&self, p: usize) -> bool {
        let expects = self.movings[p].ends[1] != End::Closed && self.processes[p].expects_arrivals;
        !expects && self.has_none(p)
    }

    pub fn has_none(&self, p: usize) -> bool {
        self.connections.iter().all(|connection| connection.holds[p] == Hold::Nothing)
    }

    pub fn is_mode_overlap(&self) -> bool {
        self.bounds.overlap
    }
}
