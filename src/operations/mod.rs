//! The operator's and the supervisor's side: requests and where they come from, and where a process is found.

pub(crate) mod control;
pub(crate) mod keeper;
pub(crate) mod pid_file;
pub(crate) mod places;
pub(crate) mod requester;
pub(crate) mod signals;
pub(crate) mod systemd;
