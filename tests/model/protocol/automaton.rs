//! What one process can be seen to do in the model, to which the trace of a real one is compared.

use std::collections::HashSet;
use std::fmt;

use super::explore::each_state;
use super::rules::Bounds;
use super::state::{At, Caller, End, Life, Look, News, PROCESSES, State, Word};
use super::steps::Step;

/// What a process writes into its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    Enters(&'static str),
    Says(Word),
    Hears(Word),
}

const PHASES: [&str; 7] = ["Serve", "HandOver", "Overlap", "Drain", "Finish", "Keep", "End"];

const WORDS: [(&str, Word); 6] = [
    ("go", Word::Go),
    ("no", Word::No),
    ("ready", Word::Ready),
    ("serving", Word::Serving),
    ("handed over", Word::HandedOver),
    ("stopping", Word::Stopping),
];

impl Event {
    /// From what a process has written; `None` if the model does without it.
    pub fn from_line(line: &str) -> Option<Event> {
        let word = |text: &str| {
            let is_it = |name: &str| {
                text.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            };
            WORDS.iter().find(|(name, _)| is_it(name)).map(|(_, word)| *word)
        };
        match line.split_once(' ') {
            Some(("says", text)) => word(text).map(Event::Says),
            Some(("hears", text)) => word(text).map(Event::Hears),
            _ => PHASES.into_iter().find(|phase| *phase == line).map(Event::Enters),
        }
    }
}

/// Where a process is, as far as that shows in what it says and hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    at: At,
    /// Its predecessor has its end of the link.
    has_predecessor: bool,
    has_successor: bool,
    news: News,
}

impl Place {
    const CANDIDATE: Place = Place { at: At::Prepare, has_predecessor: true, ..Place::FIRST };
    const FIRST: Place =
        Place { at: At::Serve, has_predecessor: false, has_successor: false, news: News::None };
    const GONE: Place = Place { at: At::Exit, ..Place::FIRST };
}

/// A step of a process, with the words that are said and heard in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Edge {
    from: Place,
    words: Vec<Event>,
    to: Place,
}

/// Every step that a process takes in the model.
pub struct Automaton(HashSet<Edge>);

impl Automaton {
    pub fn of(bounds: &[Bounds]) -> Automaton {
        let mut edges = HashSet::new();
        for bounds in bounds {
            each_state(*bounds, |state, steps| {
                edges.extend(steps.iter().flat_map(|step| edges_of(state, step)))
            });
        }
        Automaton(edges)
    }

    /// What was seen in these bounds and not in others.
    pub fn beyond(&self, other: &Automaton) -> Automaton {
        Automaton(self.0.difference(&other.0).cloned().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a process could have left this trace, which may end at any time.
    ///
    /// # Errors
    ///
    /// How many of its events could be.
    pub fn accept(&self, trace: &[Event]) -> Result<(), usize> {
        let mut reached = vec![(Place::CANDIDATE, "", 0)];
        if trace.first() == Some(&Event::Enters("Serve")) {
            reached.push((Place::FIRST, "Serve", 1));
        }
        let mut seen: HashSet<_> = reached.iter().copied().collect();
        let mut most = 0;
        while let Some((from, phase, place)) = reached.pop() {
            // That may end at any time.
            let left = Place { has_predecessor: false, ..from };
            if seen.insert((left, phase, place)) {
                reached.push((left, phase, place));
            }
            for edge in self.0.iter().filter(|edge| edge.from == from) {
                let next = phase_of(edge.to.at).unwrap_or(phase);
                let enters = (next != phase).then_some(Event::Enters(next));
                let events = edge.words.iter().copied().chain(enters);
                let count =
                    events.clone().zip(&trace[place..]).take_while(|(event, seen)| event == *seen).count();
                most = most.max(place + count);
                if most == trace.len() {
                    return Ok(());
                }
                if count == events.count() && seen.insert((edge.to, next, place + count)) {
                    reached.push((edge.to, next, place + count));
                }
            }
        }
        if trace.is_empty() { Ok(()) } else { Err(most) }
    }
}

fn edges_of(state: &State, step: &Step) -> Vec<Edge> {
    let p = step.process;
    let is_alive = |state: &State| p < PROCESSES && state.processes[p].life == Life::Alive;
    if !is_alive(state) || step.what == "is killed" {
        return Vec::new();
    }
    let place = |state: &State| Place {
        at: state.processes[p].at,
        has_predecessor: state.links[p].end != End::Closed,
        has_successor: state.processes[p].successor.is_some(),
        news: state.processes[p].news,
    };
    let from = place(state);
    let to = if is_alive(&step.state) { place(&step.state) } else { Place::GONE };
    let mut edges = vec![Edge { from, words: words(state, p, &step.state), to }];
    if let At::News(_, Look::SayNo) = from.at {
        // Whatever else has a copy of the end of one that has died can still hear it.
        edges.push(Edge { from, words: vec![Event::Says(Word::No)], to });
    }
    edges.retain(|edge| edge.from != edge.to || !edge.words.is_empty());
    edges
}

/// What a process says and hears in a step.
fn words(state: &State, p: usize, after: &State) -> Vec<Event> {
    let says = |word| vec![Event::Says(word)];
    let hears = |word: Option<Word>| word.into_iter().map(Event::Hears).collect();
    let predecessor = |state: &State| state.predecessor(p).unwrap_or(p);
    let successor = state.successor(p).unwrap_or(p);
    let up = &state.links[successor].up;
    match state.processes[p].at {
        At::Prepare => says(Word::Ready),
        At::WaitForGo => hears(state.links[p].down.first()),
        At::Inherit if after.processes[p].at == At::Accept => says(Word::HandedOver),
        At::AskAbove => hears(state.links[predecessor(state)].down.first()),
        At::SayServing if state.links[p].end != End::Closed => says(Word::Serving),
        At::Serve | At::Stop if !state.processes[p].is_stopped || state.processes[p].at == At::Stop => {
            let has_said = after.links[p].up.contains(Word::Stopping);
            if has_said { says(Word::Stopping) } else { Vec::new() }
        }
        At::HandOver if after.links[successor].down.contains(Word::No) => says(Word::No),
        At::Progress => up.iter().map(Event::Hears).collect(),
        At::SayGo if after.processes[p].at == At::Overlap => says(Word::Go),
        At::News(_, Look::Words) => hears(up.first()),
        At::News(_, Look::LastWords) => {
            let serving = up.iter().take_while(|word| *word == Word::Serving).count();
            up.iter().take(serving + 1).map(Event::Hears).collect()
        }
        _ => Vec::new(),
    }
}

/// The phase that begins there, or lasts.
fn phase_of(at: At) -> Option<&'static str> {
    match at {
        At::Serve => Some("Serve"),
        At::HandOver | At::Progress | At::SayGo => Some("HandOver"),
        At::Overlap | At::News(Caller::Overlap | Caller::GoForward, _) => Some("Overlap"),
        At::Drain | At::KeepConnections | At::News(Caller::Drain | Caller::Leave, _) => Some("Drain"),
        At::Finish => Some("Finish"),
        At::End => Some("Keep"),
        At::Exit => Some("End"),
        _ => None,
    }
}

impl fmt::Debug for Automaton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|edge| writeln!(f, "{edge:?}"))
    }
}
