//! What can happen next: a step of a process, or something from outside.

use super::rules::Rule;
use super::state::{
    At, CONNECTIONS, Caller, Connection, End, Fault, Gate, Hold, Life, Link, Look, Message, Moving, News,
    PROCESSES, Process, Queue, Stage, State, Word,
};

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A process: it will be taken if nothing else is.
    Itself,
    /// The operator, a client, or a death: it may be taken or not.
    Outside,
}

/// A step that is possible.
pub struct Step {
    pub by: By,
    pub process: usize,
    pub what: &'static str,
    pub state: State,
}

/// The steps that are possible in a state.
pub struct Steps<'a> {
    pub from: &'a State,
    lacking: Option<Rule>,
    pub to: Vec<Step>,
}

impl Steps<'_> {
    pub fn of(state: &State, lacking: Option<Rule>) -> Vec<Step> {
        let mut steps = Steps { from: state, lacking, to: Vec::with_capacity(16) };
        for p in state.alive() {
            steps.process(p);
            steps.connections(p);
            steps.moves(p);
            steps.death(p);
        }
        for p in (0..PROCESSES).filter(|&p| state.processes[p].life == Life::Ended) {
            steps.to(p, "can be waited for", |s| {
                s.processes[p].life = Life::Waitable;
                s.is_killed |= !is_anybody_entitled(s);
            });
        }
        steps.client();
        steps.to
    }

    pub fn lacks(&self, rule: Rule) -> bool {
        self.lacking == Some(rule)
    }

    fn add(&mut self, by: By, process: usize, what: &'static str, change: impl FnOnce(&mut State)) {
        let mut state = *self.from;
        change(&mut state);
        settle(&mut state);
        // A way to where nothing has changed leads nowhere.
        if state != *self.from {
            self.to.push(Step { by, process, what, state });
        }
    }

    pub fn to(&mut self, process: usize, what: &'static str, change: impl FnOnce(&mut State)) {
        self.add(By::Itself, process, what, change);
    }

    pub fn outside(&mut self, process: usize, what: &'static str, change: impl FnOnce(&mut State)) {
        self.add(By::Outside, process, what, change);
    }

    fn death(&mut self, p: usize) {
        if self.from.bounds.deaths > 0 {
            self.outside(p, "is killed", |s| {
                s.bounds.deaths -= 1;
                die(s, p);
            });
        }
    }

    fn client(&mut self) {
        let is_refused = self.from.alive().all(|p| self.from.processes[p].gate == Gate::Closed);
        let next = (0..CONNECTIONS).find(|&k| self.from.connections[k].stage == Stage::Outside);
        if let Some(k) = next.filter(|_| self.from.bounds.connections > 0 && !is_refused) {
            self.outside(PROCESSES, "a client connects", |s| {
                s.bounds.connections -= 1;
                s.connections[k].stage = Stage::Queued;
                s.connections[k].is_in_time = !s.is_stopped;
            });
        }
    }
}

/// A process is killed, or fails by itself, which nobody could help.
fn die(s: &mut State, p: usize) {
    // It was about to stop the server.
    let goes_forward = matches!(s.processes[p].at, At::News(Caller::GoForward, _));
    let is_succeeded = s.successor(p).is_some_and(|q| s.is_alive(q) && !s.processes[q].is_stopped);
    s.is_killed |= s.processes[p].is_to_stop || goes_forward && !is_succeeded;
    end(s, p);
    for k in 0..CONNECTIONS {
        let is_there = |hold: &Hold| !matches!(hold, Hold::Nothing | Hold::Moving(_));
        let connection = &mut s.connections[k];
        if connection.stage == Stage::Open && !connection.holds.iter().any(is_there) {
            connection.is_bereft = true;
        }
    }
    s.is_killed |= !is_anybody_entitled(s);
}

pub fn is_anybody_entitled(s: &State) -> bool {
    (0..PROCESSES).any(|p| is_entitled(s, p))
}

/// Whether a process has to see to it that connections are accepted, if nobody else does.
fn is_entitled(s: &State, p: usize) -> bool {
    let process = &s.processes[p];
    if process.life != Life::Alive || process.is_stopped {
        return false;
    }
    match process.at {
        At::Prepare | At::WaitForGo | At::Inherit | At::AskAbove => {
            let above = s.predecessor(p).filter(|_| process.has_above);
            let is_told_no = |link: usize| s.links[link].down.contains(Word::No);
            !is_told_no(p) && !above.is_some_and(is_told_no)
        }
        At::Accept | At::SayServing | At::Serve | At::HandOver | At::Progress | At::SayGo => true,
        At::Overlap | At::News(Caller::Overlap, _) => s.is_mode_overlap() || answers_for_successor(s, p),
        At::News(Caller::Drain | Caller::Leave, Look::SayNo) => true,
        At::News(Caller::Drain, _) | At::Drain | At::EndArrivals | At::KeepConnections => {
            answers_for_successor(s, p)
        }
        // After its last look it cannot know.
        At::News(Caller::Leave, Look::LastClose) => process.news == News::Died,
        At::News(Caller::Leave, look) if look != Look::LastWords => {
            let is_stranger = s.successor(p).is_some_and(|successor| s.processes[successor].is_stranger);
            let looks = if is_stranger { look == Look::Words } else { process.exited };
            (look == Look::Exit || looks) && answers_for_successor(s, p)
        }
        At::News(..) | At::Stop | At::Close | At::StepBack | At::Finish | At::End | At::Exit => false,
    }
}

fn answers_for_successor(s: &State, p: usize) -> bool {
    s.successor(p).is_some_and(|successor| {
        let words = &s.links[successor].up;
        // The death of one that is no child shows when its candidate has left, too, which is about to.
        let shows = !s.processes[successor].is_stranger || !s.is_held(successor);
        !s.is_alive(successor)
            && shows
            && !words.contains(Word::HandedOver)
            && !words.contains(Word::Stopping)
    })
}

/// Every descriptor of a process is closed.
pub fn end(s: &mut State, p: usize) {
    for (moving, end) in s.ends(p).collect::<Vec<_>>() {
        s.close_moving(moving, end);
    }
    if let Some(successor) = s.processes[p].successor {
        s.drop_link(usize::from(successor));
    }
    let Process { predecessor, is_stranger, .. } = s.processes[p];
    let life = if is_stranger { Life::Waitable } else { Life::Ended };
    s.processes[p] = Process { life, predecessor, is_stranger, ..Process::default() };
    s.connections.iter_mut().for_each(|connection| connection.holds[p] = Hold::Nothing);
}

/// What follows at once from what has happened.
fn settle(s: &mut State) {
    for k in 0..CONNECTIONS {
        settle_connection(s, k);
    }
    for p in 0..PROCESSES {
        if s.processes[p].life == Life::Absent {
            continue;
        }
        let is_candidate =
            matches!(s.processes[p].at, At::Prepare | At::WaitForGo | At::Inherit | At::AskAbove);
        if s.links[p].end == End::Closed && (!is_candidate || !s.is_alive(p)) {
            s.processes[p].has_link = false;
        }
        if !s.is_held(p) {
            s.links[p].down = Queue::default();
        }
        let is_of_use = s.links[p].end != End::Closed || s.movings[p] != Moving::default() || s.is_held(p);
        if !s.is_alive(p) && !is_of_use {
            s.is_killed |= s.processes[p].life == Life::Ended && !is_anybody_entitled(s);
            s.processes[p] = Process::default();
            s.links[p] = Link::default();
        }
    }
    // Until its end can be known, a process has died no earlier than now.
    let is_dying = s.processes.iter().any(|process| process.life == Life::Ended);
    let has_sockets = is_dying || s.alive().any(|p| s.processes[p].gate != Gate::Closed);
    if !has_sockets && !s.is_stopped && !s.is_killed {
        s.fail(Fault::NoSocket);
    }
    if s.is_stopped && s.alive().next().is_none() || s.is_killed && s.alive().next().is_none() {
        // Nothing more can happen.
        s.connections = Default::default();
    }
}

fn settle_connection(s: &mut State, k: usize) {
    let Connection { stage, holds, is_in_time, is_bereft } = s.connections[k];
    match stage {
        Stage::Outside => {}
        Stage::Queued => {
            if s.alive().all(|p| s.processes[p].gate == Gate::Closed) {
                if is_in_time && !s.is_killed {
                    s.fail(Fault::LostInQueue);
                }
                s.connections[k].stage = Stage::Over;
            }
        }
        Stage::Open => {
            let readers = holds.iter().filter(|hold| matches!(hold, Hold::Idle | Hold::InFlight)).count();
            if readers > 1 {
                s.fail(Fault::TwoReaders);
            }
            let message = Message::Move(k as u8);
            let mut queues = s.movings.iter().flat_map(|moving| &moving.queues);
            if holds == [Hold::Nothing; PROCESSES] && !queues.any(|queue| queue.contains(message)) {
                if !is_bereft {
                    s.fail(Fault::LostConnection);
                }
                s.connections[k].stage = Stage::Over;
            }
        }
        Stage::Over => {
            s.connections[k].holds = Default::default();
        }
    }
}

/// The process ends by itself.
pub fn exit(s: &mut State, p: usize) {
    let excused = s.processes[p].is_late || s.processes[p].is_closing;
    for connection in s.connections.iter_mut().filter(|_| excused) {
        if matches!(connection.holds[p], Hold::Idle | Hold::InFlight) {
            connection.stage = Stage::Over;
        }
    }
    end(s, p);
}
