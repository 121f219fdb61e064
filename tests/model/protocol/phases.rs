//! The life of a process, as `src/process.rs`, `src/process/` and `src/serve.rs` have it: one function a phase.

use super::candidate::{kill_candidate, start_candidate};
use super::look::has_news;
use super::rules::Rule;
use super::state::{At, Caller, End, Fault, Gate, Hold, Life, Stage, State, Word};
use super::steps::{Steps, exit, is_anybody_entitled};

impl Steps<'_> {
    pub fn process(&mut self, p: usize) {
        let state = self.from;
        match state.processes[p].at {
            At::Prepare | At::WaitForGo | At::Inherit | At::AskAbove | At::Accept | At::SayServing => {
                self.begin(p)
            }
            At::Serve => self.serve(p),
            At::Stop => self.to(p, "says stopping", |s| stop(s, p)),
            At::Close => self.close(p),
            At::StepBack => self.to(p, "closes its sockets, and drains beside its predecessor", |s| {
                s.processes[p].gate = Gate::Closed;
                s.processes[p].expects_arrivals = false;
                let mover = (s.movings[p].ends[1] == End::Open).then_some(p as u8);
                drain(s, p, mover);
            }),
            At::HandOver | At::Progress | At::SayGo => self.hand_over(p),
            At::Overlap => self.overlap(p),
            At::News(caller, look) => self.news(p, caller, look),
            At::Drain => self.drain(p),
            At::KeepConnections => self.keep_connections(p),
            At::EndArrivals => self.end_arrivals(p),
            At::Finish => self.finish(p),
            At::End | At::Exit => self.end(p),
        }
    }

    fn serve(&mut self, p: usize) {
        let state = self.from;
        let is_free = (0..state.processes.len()).find(|&c| state.processes[c].life == Life::Absent);
        if let Some(candidate) = is_free.filter(|_| !is_beside_predecessor(state, p)) {
            if state.bounds.restarts > 0 {
                self.outside(p, "starts a candidate", |s| {
                    s.bounds.restarts -= 1;
                    start_candidate(s, p, candidate, false);
                });
            }
            if state.bounds.takeovers > 0 {
                self.outside(p, "adopts a candidate", |s| {
                    s.bounds.takeovers -= 1;
                    start_candidate(s, p, candidate, true);
                });
            }
        }
        if state.bounds.stops > 0 {
            let says = !self.lacks(Rule::SayStopping);
            self.outside(p, "is told to stop", |s| {
                s.bounds.stops -= 1;
                if says { stop(s, p) } else { begin_close(s, p) }
            });
        }
    }

    /// No process follows.
    fn close(&mut self, p: usize) {
        let accepts = !self.lacks(Rule::AcceptTheQueueAtStop);
        self.to(p, "accepts what is in the queue, and closes its sockets", |s| {
            for connection in s.connections.iter_mut().filter(|each| accepts && each.stage == Stage::Queued) {
                connection.stage = Stage::Open;
                connection.holds[p] = Hold::Idle;
            }
            s.processes[p].gate = Gate::Closed;
            s.processes[p].is_draining = true;
            s.processes[p].mover = None;
            close_idle(s, p);
        });
    }

    fn overlap(&mut self, p: usize) {
        let state = self.from;
        let successor = state.successor(p).expect("a successor");
        if state.bounds.stops > 0 {
            let look = self.look(p, Caller::GoForward);
            self.outside(p, "is told to stop, and goes forward", |s| {
                s.bounds.stops -= 1;
                s.processes[p].is_stopped = true;
                s.is_killed |= !is_anybody_entitled(s);
                look(s);
            });
        }
        if self.lacks(Rule::NeverKillAfterGo) && state.is_alive(successor) {
            self.to(p, "kills a successor that does not say that it serves", |s| {
                kill_candidate(s, successor);
            });
        }
        if has_news(state, successor) {
            self.to(p, "looks at its successor", self.look(p, Caller::Overlap));
        }
    }

    fn drain(&mut self, p: usize) {
        let state = self.from;
        let this = state.processes[p];
        if state.bounds.stops > 0 {
            self.outside(p, "is told to stop while it drains", |s| {
                s.bounds.stops -= 1;
                s.processes[p].is_stopped = true;
                // Its successor may have died, and it does not know.
                s.is_killed |= !is_anybody_entitled(s);
                let_go(s, p);
                close_idle(s, p);
            });
        }
        if state.successor(p).is_some_and(|successor| has_news(state, successor)) {
            self.to(p, "looks at its successor", self.look(p, Caller::Drain));
        }
        let shuts = !self.lacks(Rule::ShutAtTheEndOfMoves);
        let spares = !self.lacks(Rule::CutOnlyWhatIsServed);
        if !this.is_drained {
            if state.is_empty(p) {
                self.no_connection_left(p);
            } else {
                self.to(p, "cuts its connections at the deadline", |s| {
                    cut(s, p, spares);
                    end_moves(s, p, shuts);
                });
            }
        } else if this.successor.is_none() {
            self.to(p, "leaves", |s| leave(s, p));
        } else {
            let looks = !self.lacks(Rule::LookOnceMoreBeforeLeaving);
            let look = self.look(p, Caller::Leave);
            self.to(p, "is about to leave", |s| match looks {
                true => look(s),
                false => leave(s, p),
            });
        }
    }

    /// The moves have to come to an end.
    fn keep_connections(&mut self, p: usize) {
        let state = self.from;
        let moving = state.processes[p].mover.map(usize::from);
        if moving.is_none_or(|moving| state.movings[moving].ends[State::end_of(moving, p)] == End::Closed) {
            self.to(p, "has completed its drain", |s| {
                s.processes[p].mover = None;
                s.processes[p].is_drained = true;
                s.processes[p].at = At::Drain;
            });
        }
    }

    fn finish(&mut self, p: usize) {
        let state = self.from;
        let spares = !self.lacks(Rule::CutOnlyWhatIsServed);
        if state.has_none(p) {
            self.no_connection_left(p);
        } else {
            self.to(p, "cuts its connections", |s| {
                cut(s, p, spares);
                s.processes[p].at = At::End;
            });
        }
    }

    /// What is moved here in this very moment is still served.
    fn no_connection_left(&mut self, p: usize) {
        let shuts = !self.lacks(Rule::EndTheArrivalsBeforeTheDrain);
        self.to(p, "has no connection left", |s| {
            let arrivals: Vec<_> = s.arrivals(p).filter(|_| shuts).collect();
            arrivals.into_iter().for_each(|(moving, end)| s.finish_moving(moving, end, true));
            s.processes[p].at = At::EndArrivals;
        });
    }

    fn end_arrivals(&mut self, p: usize) {
        let state = self.from;
        let ends = self.lacks(Rule::EndTheArrivalsBeforeTheDrain) || state.arrivals(p).next().is_none();
        let shuts = !self.lacks(Rule::ShutAtTheEndOfMoves);
        match (state.processes[p].is_closing, ends && state.has_none(p)) {
            (_, _) if !ends => {}
            (true, is_empty) => self.to(p, "has ended the arrivals", |s| {
                s.processes[p].at = if is_empty { At::End } else { At::Finish };
            }),
            (false, true) => self.to(p, "has ended the arrivals", |s| end_moves(s, p, shuts)),
            (false, false) => self.to(p, "goes on draining", |s| s.processes[p].at = At::Drain),
        }
    }

    /// `run`, when the last phase is over.
    fn end(&mut self, p: usize) {
        let state = self.from;
        let shuts = !self.lacks(Rule::ShutAtTheEndOfMoves);
        if state.processes[p].at == At::End {
            self.to(p, "ends the moves", |s| {
                let ends: Vec<_> = s.ends(p).collect();
                ends.into_iter().for_each(|(moving, end)| s.finish_moving(moving, end, shuts));
                s.processes[p].mover = None;
                s.processes[p].has_link = false;
                s.processes[p].at = At::Exit;
            });
        } else if state.ends(p).next().is_none() {
            self.to(p, "exits", |s| exit(s, p));
        }
    }
}

/// The link to the successor goes with what is known of it.
pub fn retire(s: &mut State, p: usize) {
    if let Some(successor) = s.processes[p].successor.take() {
        s.drop_link(usize::from(successor));
    }
}

fn is_beside_predecessor(s: &State, p: usize) -> bool {
    s.is_mode_overlap() && s.processes[p].has_link
}

/// The operator means the server, unless this process is beside its predecessor.
pub fn begin_close(s: &mut State, p: usize) {
    s.is_stopped = true;
    s.processes[p].is_stopped = true;
    s.processes[p].at = At::Close;
}

fn stop(s: &mut State, p: usize) {
    s.processes[p].is_stopped = true;
    let is_beside = is_beside_predecessor(s, p);
    let is_said = s.processes[p].has_link && s.say_up(p, Word::Stopping);
    match is_said && is_beside {
        true => s.processes[p].at = At::StepBack,
        false => begin_close(s, p),
    }
}

/// The begin of `finish`.
fn close_idle(s: &mut State, p: usize) {
    let this = &mut s.processes[p];
    (this.is_closing, this.expects_arrivals, this.at) = (true, false, At::Finish);
}

/// The begin of `drain`.
pub fn drain(s: &mut State, p: usize, mover: Option<u8>) {
    let this = &mut s.processes[p];
    if this.gate == Gate::Open {
        this.gate = Gate::Shut;
    }
    (this.is_draining, this.mover, this.at) = (true, mover, At::Drain);
}

fn end_moves(s: &mut State, p: usize, shuts: bool) {
    if let Some(moving) = s.processes[p].mover.map(usize::from) {
        s.finish_moving(moving, State::end_of(moving, p), shuts);
    }
    s.processes[p].at = At::KeepConnections;
}

pub fn let_go(s: &mut State, p: usize) {
    if s.processes[p].successor.is_some() {
        s.processes[p].gate = Gate::Closed;
        retire(s, p);
    }
}

pub fn leave(s: &mut State, p: usize) {
    let_go(s, p);
    s.processes[p].at = At::End;
}

pub fn take_back(s: &mut State, p: usize) {
    retire(s, p);
    if let Some(moving) = s.processes[p].mover.take().map(usize::from) {
        s.finish_moving(moving, State::end_of(moving, p), true);
    }
    let this = &mut s.processes[p];
    (this.is_draining, this.is_drained, this.is_late) = (false, false, false);
    (this.gate, this.at) = (Gate::Open, At::Serve);
}

/// Ends every connection, unless it may be another process's already.
fn cut(s: &mut State, p: usize, spares: bool) {
    s.processes[p].is_late = true;
    for k in 0..s.connections.len() {
        let connection = &mut s.connections[k];
        match connection.holds[p] {
            Hold::Nothing | Hold::Moving(_) => {}
            Hold::Unacknowledged(_) if spares => {}
            Hold::Unacknowledged(_) => s.fail(Fault::CutInAnother),
            Hold::Idle | Hold::InFlight => connection.stage = Stage::Over,
        }
    }
}
