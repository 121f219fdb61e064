//! The responses of the server itself, to requests that are refused.

use std::error::Error;
use std::fmt;

use tiny_http::{Response, ResponseBox, StatusCode};

/// A response to a request that no handler sees, with the reason in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: u16,
    reason: &'static str,
}

pub(crate) const INTERNAL_ERROR: Refusal = Refusal::new(500, "the server failed to handle the request");

impl Refusal {
    pub(crate) const fn new(status: u16, reason: &'static str) -> Refusal {
        Refusal { status, reason }
    }

    pub(crate) fn response(&self) -> ResponseBox {
        Response::from_string(format!("{self}\n")).with_status_code(self.status).boxed()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = StatusCode(self.status);
        write!(f, "{} {}: {}", self.status, status.default_reason_phrase(), self.reason)
    }
}

impl Error for Refusal {}
