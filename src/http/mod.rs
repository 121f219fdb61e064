//! HTTP/1.1 and 1.0 on one connection: read a request, run the handler, write the response, and again.
//!
//! [`input`] buffers what has been read, [`head`] parses the head of a request and [`target`] what it is for,
//! [`body`] decodes its body, [`request`] is what a [`handler`] sees of these, [`response`] writes what the
//! handler returns, and [`refusal`] what the server itself answers. All that is known here about the process is whether a connection is to end: then its next response says
//! `Connection: close`, and it is closed after that.

mod body;
mod handler;
mod head;
mod input;
mod refusal;
mod request;
mod response;
mod target;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use log::Level;
use tiny_http::ResponseBox;

pub use self::handler::Handler;
pub use self::request::Request;

use self::head::{Framing, Head};
use self::input::Input;
use self::refusal::Refusal;
use self::response::{Reply, Written};
use crate::deadline::{after, later};
use crate::options::Limits;
use crate::server::connection::Connection;

/// The log target of the access log.
const ACCESS_LOG: &str = "handover::access";
/// The time for a client to close its side of a connection after its last response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes of a body that a handler has left unread are skipped to keep the connection.
const SKIP_LIMIT: u64 = 256 * 1024;

/// Serves the requests of one connection until it ends, each within the limits of its time.
pub(crate) fn serve(connection: &Arc<Connection>, handler: &dyn Handler, limits: &RwLock<Limits>) {
    let current = || *limits.read().unwrap_or_else(PoisonError::into_inner);
    let mut input = Input::new(Arc::clone(connection), current());
    let mut patience = input.limits().head_timeout;
    loop {
        let then = match input.wait_for_request(patience) {
            Ok(true) => {
                input.set_limits(current());
                connection.in_flight(|| exchange(input, handler))
            }
            Ok(false) => Ok(Then::Close),
            Err(error) => Err(error),
        };
        match then {
            Ok(Then::Next(rest)) => input = rest,
            Ok(Then::Linger) => return connection.linger(after(LINGER_TIMEOUT)),
            Ok(Then::Close) => return,
            Err(error) => return log::debug!("{}: {error}", connection.peer()),
        }
        patience = input.limits().idle_timeout;
    }
}

/// What follows a response.
enum Then {
    /// The next request, at the beginning of this input.
    Next(Input),
    /// The end of the connection, once the client has received the response.
    Linger,
    /// The end of the connection: the client has asked for it, and sends nothing more (RFC 9112 section 9.6).
    Close,
}

/// Reads one request and answers it.
///
/// # Errors
///
/// The connection has failed, or has ended within the head of the request.
fn exchange(mut input: Input, handler: &dyn Handler) -> io::Result<Then> {
    let connection = Arc::clone(input.connection());
    let responder = Responder { connection: &connection, begin: Instant::now() };
    let Limits { head_timeout, write_timeout, .. } = *input.limits();
    let head = match Head::read(&mut input, later(responder.begin, head_timeout))? {
        Ok(head) => head,
        Err(refusal) => {
            let reply = Reply::to_malformed(input.unused(), write_timeout);
            return responder.refuse("- -", reply, refusal);
        }
    };
    log::debug!("{}: {head}", connection.peer());
    let reply = Reply::to(&head, write_timeout);
    let mut request = Request::new(head, input);
    let response = handle(&mut request, handler);
    let Request { head, mut body, .. } = request;
    let response = match response {
        Ok(response) => response,
        Err(refusal) => return responder.refuse(&head, reply, refusal),
    };

    let last = !head.keep_alive
        || !body.can_be_skipped(SKIP_LIMIT)
        || (connection.is_ending() && !body.is_followed());
    let reply = if last { reply.last() } else { reply };
    let written = responder.respond(&head, reply, response)?;
    if last || !written.complete {
        let is_over = !head.keep_alive && head.framing == Framing::Length(0) && !body.is_followed();
        return Ok(if is_over { Then::Close } else { Then::Linger });
    }
    match body.skip(SKIP_LIMIT) {
        Ok(true) => Ok(Then::Next(body.input)),
        _ => Ok(Then::Linger),
    }
}

/// Has the request answered by the handler, unless its body is malformed from the beginning.
fn handle(request: &mut Request, handler: &dyn Handler) -> Result<ResponseBox, Refusal> {
    request.body.begin()?;
    let response = catch_unwind(AssertUnwindSafe(|| handler.handle(request))).map_err(|_| {
        log::error!("the handler panicked on {}", request.head);
        Refusal::internal_error()
    })?;
    // What the handler made of a part of the body is no answer to the request.
    request.body.check()?;
    Ok(response)
}

/// Answers one request, and logs that.
struct Responder<'a> {
    connection: &'a Connection,
    /// When the first bytes of the request had come.
    begin: Instant,
}

impl Responder<'_> {
    /// Writes one line to the access log, too: peer, method, URL, status, bytes of the body, duration.
    fn respond(&self, request: impl Display, reply: Reply, response: ResponseBox) -> io::Result<Written> {
        let written = reply.write(self.connection, response)?;
        // The clock is read only if the line is wanted.
        if log::log_enabled!(target: ACCESS_LOG, Level::Info) {
            let (peer, duration) = (self.connection.peer(), self.begin.elapsed());
            let Written { status, bytes, .. } = written;
            log::info!(target: ACCESS_LOG, "{peer} {request} {status} {bytes} {duration:?}");
        }
        Ok(written)
    }

    fn refuse(&self, request: impl Display, reply: Reply, refusal: Refusal) -> io::Result<Then> {
        log::debug!("{}: {refusal}", self.connection.peer());
        self.respond(request, reply.last(), refusal.response())?;
        Ok(Then::Linger)
    }
}
