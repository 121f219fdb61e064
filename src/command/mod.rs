//! The parts of the command.

mod flags;
pub(crate) mod logging;
pub(crate) mod routes;
pub(crate) mod settings;
