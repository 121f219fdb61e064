//! Tests with real processes: the command is started, gets real signals and real traffic, and its log,
//! its descriptors and its exit status are looked at.

mod client;
mod command;
mod load;
mod partner;
// Only what a single process does is compared here.
#[allow(dead_code)]
#[path = "../model/protocol/mod.rs"]
mod model;
mod server;
mod strace;
mod trace;
mod untested;

/// The life of a process: each phase of it, and each way from one to the next.
mod life {
    mod decision;
    mod drain;
    pub mod failed_successor;
    mod handover;
    mod last_words;
    mod lines;
    pub mod overlap;
    mod stay;
}

/// The protocol: what is handed over, to which program, and what the other side may be.
mod protocol {
    mod changes;
    pub mod handed_on;
    mod program;
    mod python;
    mod sockets;
    mod takeover;
}

/// Connections live on.
mod connections {
    mod moving;
    pub mod streams;
}

/// Neither clients nor shortages hold a process beyond its limits.
mod limits {
    mod clients;
    mod held_up;
    mod hostile;
    pub mod resources;
}

/// What is answered, and what is logged of that.
mod http {
    mod access_log;
    mod answers;
}

/// Requests, signals, files, supervisors, and what an operator sees.
mod operations {
    mod asking;
    mod command;
    pub mod configuration;
    mod control;
    mod listening;
    mod places;
    pub mod sigpipe;
    mod supervised;
    mod supervisors;
    mod surroundings;
    mod systemd;
    mod terminal;
    mod waiting;
}

/// Programs that embed the library.
mod embedding {
    mod guests;
    pub mod handles;
    pub mod jobs;
    pub mod own_sockets;
    pub mod programs;
}

/// What the documents say is so.
mod documents {
    mod diagnostics;
    pub mod examples;
    mod rust;
    mod wrapper;
}
