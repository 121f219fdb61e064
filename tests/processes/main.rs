//! Tests with real processes: the command is started, gets real signals and real traffic, and its log,
//! its descriptors and its exit status are looked at.

mod client;
mod control;
mod drain;
mod failed_successor;
mod handover;
mod hostile;
mod load;
mod operations;
mod program;
mod server;
mod supervised;
mod surroundings;
mod takeover;
