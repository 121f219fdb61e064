//! Tests with real processes: the command is started, gets real signals and real traffic, and its log,
//! its descriptors and its exit status are looked at.

mod asking;
mod changes;
mod client;
mod command;
mod control;
mod decision;
mod diagnostics;
mod documents;
mod drain;
mod failed_successor;
mod handed_on;
mod handles;
mod handover;
mod held_up;
mod hostile;
mod jobs;
mod last_words;
mod limits;
mod lines;
mod load;
mod moving;
mod operations;
mod overlap;
mod own_sockets;
mod partner;
mod places;
mod program;
mod programs;
// Only what a single process does is compared here.
#[allow(dead_code)]
#[path = "../model/protocol/mod.rs"]
mod protocol;
mod python;
mod resources;
mod server;
mod sigpipe;
mod sockets;
mod stay;
mod strace;
mod streams;
mod supervised;
mod supervisors;
mod surroundings;
mod systemd;
mod takeover;
mod terminal;
mod trace;
mod untested;
