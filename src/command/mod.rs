//! The parts of the command.

pub(crate) mod flags;
pub(crate) mod logging;
pub(crate) mod routes;
