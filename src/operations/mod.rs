//! The operator's and the supervisor's side: what is asked of a process and by whom, and where it is found.

pub(crate) mod asker;
pub(crate) mod clients;
pub(crate) mod configuration;
pub(crate) mod control;
pub(crate) mod keeper;
mod place;
pub(crate) mod places;
pub(crate) mod ready_fd;
pub(crate) mod requester;
pub(crate) mod signals;
pub(crate) mod systemd;
pub(crate) mod waiting;
