//! Tests with real processes: the command is started, gets real signals and real traffic, and its log,
//! its descriptors and its exit status are looked at.

mod asking;
mod changes;
mod client;
mod command;
mod control;
mod decision;
mod documents;
mod drain;
mod failed_successor;
mod handover;
mod held_up;
mod hostile;
mod last_words;
mod limits;
mod lines;
mod load;
mod moving;
mod operations;
mod overlap;
mod partner;
mod places;
mod program;
mod programs;
mod resources;
mod server;
mod sigpipe;
mod sockets;
mod stay;
mod strace;
mod supervised;
mod supervisors;
mod surroundings;
mod systemd;
mod takeover;
mod terminal;
