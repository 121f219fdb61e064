//! The mechanism: how one process hands its listening sockets over to the next.

pub(crate) mod descriptors;
pub(crate) mod ear;
pub(crate) mod link;
pub(crate) mod predecessor;
pub(crate) mod program;
pub(crate) mod spawn;
pub(crate) mod successor;
pub(crate) mod takeover;
