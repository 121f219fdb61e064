//! Open connections and how they are moved, as `src/handover/moving.rs` and `src/server/connection/` have it.

use super::rules::Rule;
use super::state::{CONNECTIONS, End, Gate, Hold, Message, Moving, PROCESSES, Stage, State};
use super::steps::Steps;

impl Steps<'_> {
    /// The accept thread, and the threads of the connections.
    pub fn connections(&mut self, p: usize) {
        let state = self.from;
        let this = state.processes[p];
        for k in 0..CONNECTIONS {
            let connection = &state.connections[k];
            if connection.stage == Stage::Queued && this.gate == Gate::Open {
                self.to(p, "accepts a connection", |s| {
                    s.connections[k].stage = Stage::Open;
                    s.connections[k].holds[p] = Hold::Idle;
                });
            }
            match connection.holds[p] {
                Hold::Idle => {
                    self.outside(p, "gets a request", |s| s.connections[k].holds[p] = Hold::InFlight);
                    if let Some(moving) = this.mover {
                        self.move_away(p, k, usize::from(moving));
                    }
                    if this.is_closing {
                        self.to(p, "closes an idle connection", |s| s.connections[k].stage = Stage::Over);
                    }
                }
                Hold::InFlight => {
                    let is_last = this.is_draining && this.mover.is_none();
                    self.to(p, "answers a request", |s| match is_last {
                        true => s.connections[k].stage = Stage::Over,
                        false => s.connections[k].holds[p] = Hold::Idle,
                    });
                }
                _ => {}
            }
        }
    }

    /// `Mover::send`.
    fn move_away(&mut self, p: usize, k: usize, moving: usize) {
        let end = State::end_of(moving, p);
        let mut sent = *self.from;
        if self.from.movings[moving].ends[end] == End::Closed
            || !sent.send(moving, end, Message::Move(k as u8))
        {
            return;
        }
        let waits = !self.lacks(Rule::CloseAfterTheAcknowledgement);
        self.to(p, "moves a connection", |s| {
            s.send(moving, end, Message::Move(k as u8));
            s.connections[k].holds[p] = if waits { Hold::Moving(moving as u8) } else { Hold::Nothing };
        });
    }

    /// The threads that receive, one for each socket of moves of which the process has an end.
    pub fn moves(&mut self, p: usize) {
        for (moving, end) in self.from.ends(p).collect::<Vec<_>>() {
            let state = &self.from.movings[moving];
            if state.keeps[end] {
                self.to(p, "keeps what was not acknowledged", |s| {
                    for connection in &mut s.connections {
                        if connection.holds[p] == Hold::Moving(moving as u8) {
                            connection.holds[p] = Hold::Idle;
                        }
                    }
                    s.close_moving(moving, end);
                });
            } else if state.ends[end] != End::Unread {
                self.receive(p, moving, end);
            }
        }
    }

    fn receive(&mut self, p: usize, moving: usize, end: usize) {
        let state = self.from;
        let sent = |hold: &Hold| *hold == Hold::Moving(moving as u8);
        if state.movings[moving].ends[end] == End::Open
            && state.connections.iter().any(|connection| sent(&connection.holds[p]))
        {
            let shuts = !self.lacks(Rule::ShutAtAnswerTimeout);
            self.to(p, "waits for no further answer", |s| match shuts {
                true => s.finish_moving(moving, end, true),
                false => {
                    let mine = s.connections.iter_mut().map(|connection| &mut connection.holds[p]);
                    mine.filter(|hold| sent(hold)).for_each(|hold| *hold = Hold::Idle);
                }
            });
        }
        match state.movings[moving].queues[end].first() {
            Some(Message::Move(k)) => self.take_in(p, moving, end, usize::from(k)),
            Some(Message::Took(k)) => self.to(p, "hears took", |s| {
                s.movings[moving].queues[end].pop();
                let hold = &mut s.connections[usize::from(k)].holds[p];
                if sent(hold) {
                    *hold = Hold::Nothing;
                }
            }),
            Some(Message::Refused(k)) => {
                let resumes = !self.lacks(Rule::ResumeWhatWasRefused);
                self.to(p, "hears refused", |s| {
                    s.movings[moving].queues[end].pop();
                    let hold = &mut s.connections[usize::from(k)].holds[p];
                    if sent(hold) {
                        *hold = if resumes { Hold::Idle } else { Hold::Nothing };
                    }
                });
            }
            Some(Message::Kept) => {
                let drops = !self.lacks(Rule::DropTheUnacknowledgedAtKept);
                self.keep(p, moving, end, "hears kept, and keeps", !drops);
            }
            None if self.is_ended(moving, end) => {
                let is_own = state.movings[moving].ends[end] == End::Shut;
                let serves = match is_own {
                    true => self.lacks(Rule::DropTheUnacknowledgedAtTheEndOfMoves),
                    false => !self.lacks(Rule::ServeTheUnacknowledgedAtDeath),
                };
                self.keep(p, moving, end, "hears the end of the moves, and keeps", serves);
            }
            None => {}
        }
    }

    fn is_ended(&self, moving: usize, end: usize) -> bool {
        let ends = self.from.movings[moving].ends;
        ends[end] == End::Shut || ends[1 - end] == End::Closed
    }

    fn take_in(&mut self, p: usize, moving: usize, end: usize, k: usize) {
        let early = self.lacks(Rule::ReadAfterTheAcknowledgement);
        self.to(p, "takes a connection", |s| {
            s.movings[moving].queues[end].pop();
            let is_said = s.send(moving, end, Message::Took(k as u8));
            let hold = if is_said || early { Hold::Idle } else { Hold::Unacknowledged(moving as u8) };
            s.connections[k].holds[p] = hold;
        });
        if self.from.bounds.refusals {
            self.to(p, "refuses a connection", |s| {
                s.movings[moving].queues[end].pop();
                s.send(moving, end, Message::Refused(k as u8));
            });
        }
    }

    /// No answer will come any more.
    fn keep(&mut self, p: usize, moving: usize, end: usize, what: &'static str, serves: bool) {
        let Moving { ends, queues, .. } = self.from.movings[moving];
        // After that the other process may die all the same.
        let was_over = ends[end] == End::Shut || queues[end].contains(Message::Kept);
        let says = !self.lacks(Rule::SayKept);
        self.to(p, what, |s| {
            s.movings[moving].queues[end].pop();
            let other_is_gone = s.movings[moving].ends[1 - end] == End::Closed;
            for connection in &mut s.connections {
                if connection.holds[p] == Hold::Unacknowledged(moving as u8) {
                    connection.holds[p] = if serves { Hold::Idle } else { Hold::Nothing };
                    connection.is_bereft |= was_over && other_is_gone;
                }
            }
            if says {
                s.send(moving, end, Message::Kept);
            }
            s.movings[moving].keeps[end] = true;
        });
    }
}

/// Whether a process reads from a connection.
pub fn readers(state: &State, k: usize) -> impl Iterator<Item = usize> {
    (0..PROCESSES).filter(move |&p| matches!(state.connections[k].holds[p], Hold::Idle | Hold::InFlight))
}
