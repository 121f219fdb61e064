//! HTTP/1.1 and 1.0 on one connection: read a request, run the handler, write the response, again.
//!
//! The bytes are taken in by [`input`], a request's head is understood by [`head`], its body decoded by
//! [`body`]; [`request`] is what a [`handler`] sees of both, and [`response`] writes what it returns. The only
//! thing this module is told about the process is whether it is draining: then a response says
//! `Connection: close`, and the connection is closed after it.

mod body;
mod handler;
mod head;
mod input;
mod request;
mod response;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use log::Level;

pub use self::handler::Handler;
pub use self::request::Request;

use self::head::{Framing, Head, Refusal};
use self::input::Input;
use self::response::{Answer, Written};
use crate::deadline::{after, later};
use crate::options::Limits;
use crate::server::connection::Connection;

/// The log target of the access log.
const ACCESS_LOG: &str = "handover::access";
/// The time for a client to close its side of a connection after its last response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of a body that a handler has left unread is skipped to keep the connection.
const SKIP_LIMIT: u64 = 256 * 1024;

/// Serves the requests of one connection until it ends, each within the limits at its time.
pub(crate) fn serve(connection: &Arc<Connection>, handler: &dyn Handler, limits: &RwLock<Limits>) {
    let current = || *limits.read().unwrap_or_else(PoisonError::into_inner);
    let mut input = Input::new(Arc::clone(connection), current());
    let mut patience = input.limits().head_timeout;
    loop {
        match input.wait_for_request(patience) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return log::debug!("{}: {error}", connection.peer()),
        }
        input.set_limits(current());
        match connection.in_flight(|| exchange(input, handler)) {
            Ok(Then::Next(rest)) => input = rest,
            Ok(Then::Linger) => return connection.linger(after(LINGER_TIMEOUT)),
            Ok(Then::Close) => return,
            Err(error) => return log::debug!("{}: {error}", connection.peer()),
        }
        patience = input.limits().idle_timeout;
    }
}

/// What comes after a response.
enum Then {
    /// The next request, at the beginning of this.
    Next(Input),
    /// The end of the connection, when the client has got the response.
    Linger,
    /// The end of the connection: the client has asked for it, and sends nothing more (RFC 9112 section 9.6).
    Close,
}

/// Reads one request and answers it; an error if there is nobody to answer, or no way to go on.
fn exchange(mut input: Input, handler: &dyn Handler) -> io::Result<Then> {
    let begin = Instant::now();
    let connection = Arc::clone(input.connection());
    let patience = input.limits().write_timeout;
    let refuse = |refusal: Refusal| {
        log::debug!("{}: {refusal}", connection.peer());
        let written = Answer::to_nothing(patience).write(&connection, refusal.response())?;
        log_access(&connection, "- -", written, begin);
        Ok(Then::Linger)
    };

    let deadline = later(begin, input.limits().head_timeout);
    let head = match Head::read(&mut input, deadline)? {
        Ok(head) => head,
        Err(refusal) => return refuse(refusal),
    };
    log::debug!("{}: {} {}", connection.peer(), head.method, head.url);
    let answer = Answer::to(&head, patience);
    let keep_alive = head.keep_alive;
    let mut request = Request::new(head, input);
    if let Some(refusal) = request.begin() {
        return refuse(refusal);
    }
    let response = catch_unwind(AssertUnwindSafe(|| handler.handle(&mut request)));
    let (head, mut body) = request.into_parts();
    let what = format_args!("{} {}", head.method, head.url);

    let Ok(response) = response else {
        log::error!("the handler panicked on {what}");
        let written = answer.last().write(&connection, Refusal::internal_error().response())?;
        log_access(&connection, what, written, begin);
        return Ok(Then::Linger);
    };
    // What the handler made of half a body is not an answer to the request.
    if let Some(refusal) = body.refusal() {
        return refuse(refusal);
    }
    let last =
        !keep_alive || !body.can_be_skipped(SKIP_LIMIT) || (connection.is_ending() && !body.has_successor());
    let answer = if last { answer.last() } else { answer };
    let written = answer.write(&connection, response)?;
    log_access(&connection, what, written, begin);
    if last || !written.complete {
        let closed_by_client = !keep_alive && head.framing == Framing::Length(0) && !body.has_successor();
        return Ok(if closed_by_client { Then::Close } else { Then::Linger });
    }
    match body.skip(SKIP_LIMIT) {
        Ok(true) => Ok(Then::Next(body.into_input())),
        _ => Ok(Then::Linger),
    }
}

/// One line for each response, if anybody wants it: peer, method, URL, status, bytes of the body, duration.
fn log_access(connection: &Connection, what: impl fmt::Display, written: Written, begin: Instant) {
    // The clock is not read for nothing.
    if log::log_enabled!(target: ACCESS_LOG, Level::Info) {
        let Written { status, bytes, .. } = written;
        log::info!(target: ACCESS_LOG, "{} {what} {status} {bytes} {:?}", connection.peer(), begin.elapsed());
    }
}
