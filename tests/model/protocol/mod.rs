//! The model: `phases.rs`, `candidate.rs`, `look.rs` and `moving.rs` are the program, to be read beside
//! `src/process.rs`, `src/serve.rs` and `src/handover/`.

pub mod automaton;
mod candidate;
pub mod explore;
mod look;
mod moving;
mod parts;
mod phases;
pub mod rules;
pub mod state;
mod steps;
