//! The protocol of a handover as a model, every interleaving of which is visited: a process stands at a step of its
//! program, at whose end something can be seen from outside, and between any two steps of all processes it may
//! be killed, an operator may ask for something, or a client may come. `phases.rs`, `candidate.rs`, `look.rs` and
//! `moving.rs` are the program, to be read beside `src/process.rs`, `src/serve.rs` and `src/handover/`.
//!
//! Time is not modelled: what is waited for until a deadline may be over at any time. A process that lives goes
//! on, though: that one stands still for the minute after which a candidate does without `go` is left out. So
//! are several sockets (`without`), the counts, the places, and `--stay`.

mod protocol;

use protocol::automaton::{Automaton, Event};
use protocol::explore::{Counterexample, explore};
use protocol::rules::{Bounds, Rule, TRACED};
use protocol::state::Fault;

const NONE: Bounds = Bounds {
    deaths: 0,
    restarts: 0,
    takeovers: 0,
    stops: 0,
    connections: 0,
    moves: false,
    refusals: false,
    overlap: false,
};
const HANDOVERS: Bounds = Bounds { deaths: 2, restarts: 3, stops: 1, ..NONE };
const TWO_DEATHS: Bounds = Bounds { deaths: 2, restarts: 2, ..NONE };
const TAKEOVERS: Bounds = Bounds { deaths: 2, restarts: 1, takeovers: 1, stops: 1, ..NONE };
const OVERLAPS: Bounds = Bounds { deaths: 1, restarts: 3, stops: 3, overlap: true, ..NONE };
const MOVES: Bounds = Bounds { deaths: 1, restarts: 2, connections: 1, moves: true, ..NONE };
const MOVES_AND_STOP: Bounds = Bounds { restarts: 1, stops: 1, connections: 2, refusals: true, ..MOVES };
const MOVES_IN_OVERLAP: Bounds = Bounds { deaths: 0, stops: 2, overlap: true, ..MOVES };
const MOVES_AT_TAKEOVER: Bounds = Bounds { restarts: 0, takeovers: 2, ..MOVES };
const ONE_CONNECTION: Bounds = Bounds { restarts: 1, stops: 1, connections: 1, deaths: 1, ..NONE };

fn expect_no_fault(bounds: Bounds) {
    let visit = explore(bounds, None);
    println!("{} states, of which {} are at rest", visit.states, visit.at_rest);
    if let Some(counterexample) = visit.counterexample {
        panic!("{counterexample}");
    }
    // Or it would be no wonder.
    assert!(visit.at_rest > 20 && visit.states > 1000);
}

#[test]
fn after_handovers_and_two_deaths_exactly_one_process_accepts() {
    expect_no_fault(HANDOVERS);
}

#[test]
fn after_takeovers_and_two_deaths_exactly_one_process_accepts() {
    expect_no_fault(TAKEOVERS);
    expect_no_fault(Bounds { restarts: 0, takeovers: 2, ..TAKEOVERS });
}

#[test]
fn an_overlap_ends_with_the_process_that_the_operator_wants() {
    expect_no_fault(OVERLAPS);
}

#[test]
fn a_connection_is_always_in_exactly_one_process_that_will_answer_it() {
    expect_no_fault(MOVES);
    expect_no_fault(MOVES_AT_TAKEOVER);
}

#[test]
fn a_connection_that_is_moved_in_the_moment_of_a_stop_is_answered() {
    expect_no_fault(MOVES_AND_STOP);
    expect_no_fault(ONE_CONNECTION);
}

#[test]
fn a_connection_is_moved_in_either_direction_at_the_end_of_an_overlap() {
    expect_no_fault(MOVES_IN_OVERLAP);
    expect_no_fault(Bounds { deaths: 1, restarts: 1, ..MOVES_IN_OVERLAP });
}

#[test]
#[ignore = "takes minutes, and gigabytes"]
fn nothing_else_comes_up_within_wider_bounds() {
    expect_no_fault(Bounds { takeovers: 2, ..TAKEOVERS });
    expect_no_fault(Bounds { restarts: 2, stops: 1, ..MOVES });
    expect_no_fault(Bounds { deaths: 1, ..MOVES_IN_OVERLAP });
    expect_no_fault(Bounds { restarts: 2, connections: 2, ..MOVES });
}

/// What breaks without each of the rules, in a run within these bounds.
const NEEDED: [(Rule, Bounds, Fault); 26] = [
    (Rule::WaitForGo, ONE_CONNECTION, Fault::KilledWithConnections),
    (Rule::NeverKillAfterGo, HANDOVERS, Fault::KilledAfterGo),
    (Rule::SayHandedOverAbove, TWO_DEATHS, Fault::SeveralAccept),
    (Rule::AskAboveWhetherToServe, TWO_DEATHS, Fault::SeveralAccept),
    (Rule::SayNoAtTakeBack, TWO_DEATHS, Fault::SeveralAccept),
    (Rule::CloseForWordsAtTakeBack, TWO_DEATHS, Fault::SeveralAccept),
    (Rule::LookForTheEndBeforeTheWords, HANDOVERS, Fault::AcceptsAfterStop),
    (Rule::LookOnceMoreBeforeLeaving, TWO_DEATHS, Fault::NoSocket),
    (Rule::LookOnceMoreBeforeGoingForward, OVERLAPS, Fault::NoSocket),
    (Rule::HearTheVeryLastWord, OVERLAPS, Fault::NoSocket),
    (Rule::HandedOverIsNoStop, HANDOVERS, Fault::AcceptsAfterStop),
    (Rule::SayStopping, HANDOVERS, Fault::AcceptsAfterStop),
    (Rule::SayStoppingFromAnOverlap, HANDOVERS, Fault::AcceptsAfterStop),
    (Rule::KillTheCandidateAtStop, HANDOVERS, Fault::AcceptsAfterStop),
    (Rule::AcceptTheQueueAtStop, ONE_CONNECTION, Fault::LostInQueue),
    (Rule::CloseAfterTheAcknowledgement, MOVES_AND_STOP, Fault::LostConnection),
    (Rule::ReadAfterTheAcknowledgement, MOVES, Fault::TwoReaders),
    (Rule::ResumeWhatWasRefused, MOVES_AND_STOP, Fault::LostConnection),
    (Rule::ShutAtAnswerTimeout, MOVES, Fault::TwoReaders),
    (Rule::ShutAtTheEndOfMoves, MOVES, Fault::Deadlock),
    (Rule::SayKept, MOVES, Fault::TwoReaders),
    (Rule::DropTheUnacknowledgedAtKept, MOVES, Fault::TwoReaders),
    (Rule::ServeTheUnacknowledgedAtDeath, MOVES, Fault::LostConnection),
    (Rule::DropTheUnacknowledgedAtTheEndOfMoves, MOVES, Fault::TwoReaders),
    (Rule::CutOnlyWhatIsServed, MOVES, Fault::CutInAnother),
    (Rule::EndTheArrivalsBeforeTheDrain, MOVES_IN_OVERLAP, Fault::LostConnection),
];

#[test]
fn each_rule_of_the_protocol_is_needed() {
    for (rule, bounds, expected) in NEEDED {
        let Some(Counterexample { fault, steps }) = explore(bounds, Some(rule)).counterexample else {
            panic!("{rule:?} is not needed");
        };
        println!("without {rule:?}: {fault:?} after {} steps", steps.len());
        assert_eq!(fault, expected, "{rule:?}:\n{}", Counterexample { fault, steps });
    }
}

#[test]
fn what_one_process_does_is_known_from_a_few_processes() {
    let (few, many) = (
        Automaton::of(&TRACED),
        Automaton::of(&[HANDOVERS, TAKEOVERS, OVERLAPS, Bounds { deaths: 1, stops: 2, restarts: 2, ..NONE }]),
    );
    let beyond = many.beyond(&few);
    assert!(beyond.is_empty(), "{beyond:?}");
}

#[test]
fn a_trace_is_accepted_as_far_as_the_model_can_leave_it() {
    let automaton = Automaton::of(&TRACED);
    let accept = |trace: &str| {
        let events: Vec<Event> = trace.split(", ").filter_map(Event::from_line).collect();
        automaton.accept(&events)
    };
    for trace in [
        "",
        "Serve",
        "Serve, Finish, Keep, End",
        "Serve, HandOver, hears ready, says go 2 accepted=1, Overlap, hears serving, Drain, Keep, End",
        "Serve, HandOver, hears ready, says go 2, Overlap, hears serving, Drain, says no it takes back, Serve",
        "says without 1, says ready, hears go 3, says handed over, says serving, Serve, says stopping, Finish",
        "says ready to overlap, hears go 2, says serving, Serve, says stopping, Drain, Keep, End",
    ] {
        assert_eq!(accept(trace), Ok(()), "{trace}");
    }
    for (trace, count) in [
        // It accepts before it may.
        ("says ready, says serving, Serve", 1),
        ("Serve, Overlap", 1),
        ("Serve, HandOver, says go 2, Overlap", 2),
        // Its predecessor takes back.
        ("says ready, hears no, Serve", 2),
        // It takes back without a look.
        (
            "Serve, HandOver, hears ready, says go 2, Overlap, hears serving, Drain, hears handed over, Serve",
            8,
        ),
        // Downwards before upwards.
        ("says ready, hears go 3, says serving, says handed over", 3),
        ("Serve, Finish, Serve", 2),
        ("Finish", 0),
    ] {
        assert_eq!(accept(trace), Err(count), "{trace}");
    }
}
