//! A candidate, as `src/serve.rs` and `src/handover/predecessor.rs` have it, and the phase in which its predecessor waits
//! for it.

use super::look::has_news;
use super::phases::retire;
use super::rules::Rule;
use super::state::{At, End, Fault, Gate, Hold, Life, Process, Queue, State, Word};
use super::steps::{Steps, end, exit};

impl Steps<'_> {
    /// How a candidate begins.
    pub fn begin(&mut self, p: usize) {
        let state = self.from;
        let predecessor = state.predecessor(p).expect("a predecessor");
        let link = &state.links[p];
        let says_above = state.processes[p].has_above && !self.lacks(Rule::SayHandedOverAbove);
        let inherit = if says_above { At::Inherit } else { At::Accept };
        match state.processes[p].at {
            At::Prepare => {
                let early = self.lacks(Rule::WaitForGo);
                self.to(p, "says ready", |s| {
                    s.say_up(p, Word::Ready);
                    s.processes[p].at = At::WaitForGo;
                    if early {
                        s.processes[p].gate = Gate::Open;
                    }
                });
            }
            At::WaitForGo => match link.down.first() {
                Some(Word::No) => self.to(p, "hears no, and leaves", |s| exit(s, p)),
                Some(_) => self.to(p, "hears go", |s| {
                    s.links[p].down.pop();
                    s.processes[p].at = inherit;
                }),
                None if link.end == End::Closed => {
                    self.to(p, "hears the end of its predecessor", |s| s.processes[p].at = inherit);
                }
                None => {}
            },
            At::Inherit => {
                let asks = !self.lacks(Rule::AskAboveWhetherToServe);
                self.to(p, "says handed over, for its predecessor", |s| {
                    let is_said = s.say_up(predecessor, Word::HandedOver);
                    s.processes[p].at = if is_said || !asks { At::Accept } else { At::AskAbove };
                });
            }
            At::AskAbove => match state.links[predecessor].down.first() {
                Some(Word::No) => self.to(p, "hears no above, and leaves", |s| exit(s, p)),
                Some(_) => self.to(p, "hears another word above", |s| {
                    s.links[predecessor].down.pop();
                }),
                None if state.links[predecessor].end == End::Closed => {
                    self.to(p, "hears the end above", |s| s.processes[p].at = At::Accept);
                }
                None => {}
            },
            At::Accept => self.accept(p),
            _ => self.to(p, "says serving", |s| {
                s.say_up(p, Word::Serving);
                s.processes[p].at = At::Serve;
            }),
        }
    }

    /// `go` of `src/serve.rs`.
    fn accept(&mut self, p: usize) {
        let state = self.from;
        let accept = |moves: bool| {
            move |s: &mut State| {
                s.processes[p].has_above = false;
                s.processes[p].gate = Gate::Open;
                s.processes[p].at = At::SayServing;
                s.processes[p].expects_arrivals = moves && s.bounds.moves;
                match moves {
                    true if s.bounds.moves => s.movings[p].ends[1] = End::Open,
                    _ => s.close_moving(p, 1),
                }
            }
        };
        self.to(p, "accepts", accept(true));
        if state.bounds.refusals {
            self.to(p, "accepts, and no connection is moved to it", accept(false));
        }
    }

    pub fn hand_over(&mut self, p: usize) {
        let state = self.from;
        let this = state.processes[p];
        let candidate = state.successor(p).expect("a candidate");
        match this.at {
            At::HandOver => {
                if state.bounds.stops > 0 && !this.is_to_stop {
                    let kills = !self.lacks(Rule::KillTheCandidateAtStop);
                    self.outside(p, "is told to stop while a candidate starts", |s| {
                        s.bounds.stops -= 1;
                        s.processes[p].is_to_stop = true;
                        match kills {
                            true => give_up(s, p, candidate),
                            false => fail(s, p, candidate),
                        }
                    });
                }
                if !this.has_given_up {
                    self.to(p, "finds that its candidate is not ready in time", |s| give_up(s, p, candidate));
                }
                if has_news(state, candidate) {
                    self.to(p, "looks at its candidate", |s| look_at_candidate(s, p, candidate));
                }
            }
            At::Progress => self.to(p, "hears the candidate", |s| {
                let ended = !s.is_held(candidate);
                let is_ready = s.links[candidate].up.contains(Word::Ready);
                s.links[candidate].up = Queue::default();
                let has_left = s.processes[candidate].is_stranger && (ended || this.has_given_up);
                if this.exited || has_left {
                    fail(s, p, candidate);
                } else if is_ready && !this.has_given_up && !ended {
                    s.processes[p].at = At::SayGo;
                } else {
                    s.processes[p].at = At::HandOver;
                }
            }),
            _ => self.to(p, "says go", |s| match s.say_down(candidate, Word::Go) {
                true => {
                    s.processes[candidate].is_granted = true;
                    s.processes[p].at = At::Overlap;
                }
                false => s.processes[p].at = At::HandOver,
            }),
        }
    }
}

pub fn start_candidate(s: &mut State, p: usize, candidate: usize, is_stranger: bool) {
    s.processes[candidate] = Process {
        life: Life::Alive,
        gate: Gate::Shut,
        predecessor: Some(p as u8),
        has_link: true,
        has_above: s.processes[p].has_link,
        is_stranger,
        ..Process::default()
    };
    s.links[candidate].end = End::Open;
    if s.bounds.moves {
        s.movings[candidate].ends = [End::Open, End::Unread];
    }
    s.processes[p].successor = Some(candidate as u8);
    s.processes[p].at = At::HandOver;
}

/// `Candidate::kill`.
fn give_up(s: &mut State, p: usize, candidate: usize) {
    if !s.processes[p].has_given_up {
        s.processes[p].has_given_up = true;
        match s.processes[candidate].is_stranger {
            true => drop(s.say_down(candidate, Word::No)),
            false => kill_candidate(s, candidate),
        }
    }
    look_at_candidate(s, p, candidate);
}

/// The begin of `Candidate::progress`: whether it has exited.
fn look_at_candidate(s: &mut State, p: usize, candidate: usize) {
    let Process { life, is_stranger, .. } = s.processes[candidate];
    s.processes[p].exited = life == Life::Waitable && !is_stranger;
    s.processes[p].at = At::Progress;
}

pub fn kill_candidate(s: &mut State, candidate: usize) {
    if s.processes[candidate].life != Life::Alive {
        return;
    }
    if s.processes[candidate].is_granted {
        s.fail(Fault::KilledAfterGo);
    }
    if s.connections.iter().any(|connection| connection.holds[candidate] != Hold::Nothing) {
        s.fail(Fault::KilledWithConnections);
    }
    end(s, candidate);
}

/// The handover has failed.
fn fail(s: &mut State, p: usize, candidate: usize) {
    s.finish_moving(candidate, 0, true);
    retire(s, p);
    let this = &mut s.processes[p];
    (this.has_given_up, this.exited) = (false, false);
    this.at = if this.is_to_stop { At::Stop } else { At::Serve };
    this.is_to_stop = false;
}
