//! Visits every state that can be reached, breadth first, so that the first fault found has the fewest steps.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use super::moving::readers;
use super::rules::{Bounds, Rule};
use super::state::{At, Fault, Gate, PROCESSES, Stage, State};
use super::steps::{By, Step, Steps};

/// What a visit has found.
pub struct Visit {
    pub states: usize,
    /// In how many nothing happens any more, unless from outside.
    pub at_rest: usize,
    pub counterexample: Option<Counterexample>,
}

/// How a fault comes about.
pub struct Counterexample {
    pub fault: Fault,
    pub steps: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counterexample { fault, steps } = self;
        write!(f, "{fault:?} after {} steps:\n  {}", steps.len(), steps.join("\n  "))
    }
}

pub fn explore(bounds: Bounds, lacking: Option<Rule>) -> Visit {
    let mut seen = Seen::default();
    seen.add(State::first(bounds), 0);
    let (mut next, mut at_rest) = (0, 0);
    // Which states can come to rest, as far as that is known, and the steps that are taken by themselves.
    let (mut rests, mut ways) = (Vec::new(), Vec::new());
    while let Some(&(state, _)) = seen.states.get(next) {
        let steps = Steps::of(&state, lacking);
        let is_at_rest = steps.iter().all(|step| step.by == By::Outside);
        at_rest += usize::from(is_at_rest);
        rests.push(is_at_rest);
        let fault = state.fault.or_else(|| if is_at_rest { fault_at_rest(&state) } else { None });
        if let Some(fault) = fault {
            let steps = seen.way_to(next, lacking);
            let counterexample = Some(Counterexample { fault, steps });
            return Visit { states: seen.states.len(), at_rest, counterexample };
        }
        for step in steps {
            let place = seen.add(step.state, next as u32);
            if step.by == By::Itself {
                ways.push((next as u32, place));
            }
        }
        next += 1;
    }
    let restless = find_restless(&mut rests, &ways);
    let counterexample =
        restless.map(|place| Counterexample { fault: Fault::Livelock, steps: seen.way_to(place, lacking) });
    Visit { states: seen.states.len(), at_rest, counterexample }
}

/// Visits every state, with the steps that are possible there.
pub fn each_state(bounds: Bounds, mut visit: impl FnMut(&State, &[Step])) {
    let mut seen = Seen::default();
    seen.add(State::first(bounds), 0);
    let mut next = 0;
    while let Some(&(state, _)) = seen.states.get(next) {
        let steps = Steps::of(&state, None);
        visit(&state, &steps);
        for step in steps {
            seen.add(step.state, next as u32);
        }
        next += 1;
    }
}

/// A state from which nothing leads to rest. The steps are in the order in which they were found, so that from the
/// last one on, most lead to what is known.
fn find_restless(rests: &mut [bool], ways: &[(u32, u32)]) -> Option<usize> {
    let mut is_settled = false;
    while !is_settled {
        is_settled = true;
        for &(from, to) in ways.iter().rev() {
            if rests[to as usize] && !rests[from as usize] {
                rests[from as usize] = true;
                is_settled = false;
            }
        }
    }
    rests.iter().position(|rests| !rests)
}

/// What must hold when nothing happens any more.
fn fault_at_rest(s: &State) -> Option<Fault> {
    let accepting: Vec<usize> = s.alive().filter(|&p| s.processes[p].gate == Gate::Open).collect();
    let is_stuck = |p: usize| match s.processes[p].at {
        At::Serve => false,
        At::Overlap => !s.is_mode_overlap(),
        _ => true,
    };
    let are_pair = |p: usize, q: usize| s.processes[p].successor == Some(q as u8);
    if s.alive().any(is_stuck) {
        return Some(Fault::Deadlock);
    }
    match accepting[..] {
        [] if s.is_stopped || s.is_killed => {}
        [] => return Some(Fault::NobodyAccepts),
        [..] if s.is_stopped => return Some(Fault::AcceptsAfterStop),
        [_] => {}
        [p, q] if s.is_mode_overlap() && (are_pair(p, q) || are_pair(q, p)) => {}
        [..] => return Some(Fault::SeveralAccept),
    }
    let is_served = |k: usize| readers(s, k).count() == 1 && readers(s, k).all(|p| accepting.contains(&p));
    let open = (0..s.connections.len()).filter(|&k| s.connections[k].stage == Stage::Open);
    open.map(is_served).any(|served| !served).then_some(Fault::NoReader)
}

/// The states that have been seen, each with the one before it.
#[derive(Default)]
struct Seen {
    states: Vec<(State, u32)>,
    /// By their hashes; if two have the same, the next one is taken.
    places: HashMap<u64, u32, BuildHasherDefault<Fold>>,
}

impl Seen {
    /// Returns its place.
    fn add(&mut self, state: State, before: u32) -> u32 {
        let mut hash = BuildHasherDefault::<Fold>::default().hash_one(state);
        while let Some(&place) = self.places.get(&hash) {
            if self.states[place as usize].0 == state {
                return place;
            }
            hash = hash.wrapping_add(1);
        }
        let place = self.states.len() as u32;
        self.places.insert(hash, place);
        self.states.push((state, before));
        place
    }

    /// The steps that lead to a state.
    fn way_to(&self, mut place: usize, lacking: Option<Rule>) -> Vec<String> {
        let mut way = Vec::new();
        while place != 0 {
            let (state, before) = self.states[place];
            place = before as usize;
            let steps = Steps::of(&self.states[place].0, lacking);
            let step = steps.into_iter().find(|step| step.state == state).expect("the step that was taken");
            way.push(match step.process {
                PROCESSES => step.what.to_owned(),
                process => format!("{process} {}", step.what),
            });
        }
        way.reverse();
        way
    }
}

/// A hash that is fast for small fields: that of rustc.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}
