//! The clients of the control socket that wait for the end of a handover.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::requester::Requester;
use crate::deadline::{hangup, poll_until};
use crate::status::State;

/// How many there may be, so that they leave a handover the descriptors that it needs.
const MOST: usize = 8;

#[derive(Default)]
pub(crate) struct Waiting(Vec<UnixStream>);

impl Waiting {
    pub(crate) fn add(&mut self, client: UnixStream) {
        if self.0.len() == MOST {
            return Requester::Waiting(client).refuse(format_args!("{MOST} other clients wait"));
        }
        self.0.push(client);
    }

    pub(crate) fn clients(&self) -> &[UnixStream] {
        &self.0
    }

    /// Answers them if there is nothing to wait for: no handover is under way, and nothing drains.
    pub(crate) fn answer(&mut self, state: State, predecessors: usize) {
        let answer = match (state, predecessors) {
            (State::Stopping, _) => Err("refused, this process does not serve".to_owned()),
            (State::Running, 0) | (State::Keeping | State::Ended, _) => Ok("ok".to_owned()),
            _ => return,
        };
        self.0.drain(..).for_each(|client| Requester::Waiting(client).answer(answer.clone()));
    }

    pub(crate) fn forget_those_that_have_left(&mut self) {
        self.0.retain(|client| !poll_until(&mut [hangup(client)], Some(Instant::now())));
    }
}
