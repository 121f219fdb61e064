//! HTTP/1.1 and 1.0 on one connection: read a request, run the handler, write the response, and again.
//!
//! [`input`] buffers what has been read, [`head`] parses the head of a request and [`target`] what it is for,
//! [`body`] decodes its body, [`request`] is what a handler sees of these, [`recipient`] the client that it
//! answers, and [`test_request`] makes one; [`response`] writes what it returns, [`access`] logs that, and
//! [`refusal`] is what the server itself answers. All that is known here about the process is whether a connection is to end: then its next response
//! says `Connection: close`, and it is closed after that.

mod access;
mod body;
mod head;
mod input;
mod recipient;
mod refusal;
mod request;
mod response;
mod target;
mod test_request;
#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tiny_http::{Method, ResponseBox};

pub use self::recipient::Recipient;
pub use self::request::{Handler, Request};
pub use self::test_request::TestRequest;

use self::head::{Framing, Head};
use self::input::Input;
use self::refusal::{INTERNAL_ERROR, Refusal};
use self::response::Reply;
use crate::lock::lock;
use crate::options::Limits;
use crate::server::connection::Connection;

/// How many bytes of a body that a handler has left unread are skipped to keep the connection.
const SKIP_LIMIT: u64 = 256 * 1024;

/// Serves the requests of one connection until it ends, each within the limits of its time.
pub(crate) fn serve(connection: &Arc<Connection>, handler: &dyn Handler, limits: &Mutex<Limits>) {
    let current = || *lock(limits);
    let mut input = Input::new(Arc::clone(connection), current());
    let mut patience = match connection.is_used() {
        true => input.limits.idle_timeout,
        false => input.limits.head_timeout,
    };
    loop {
        let then = match input.wait_for_request(patience) {
            Ok(true) => {
                input.limits = current();
                connection.in_flight(|| exchange(input, handler))
            }
            Ok(false) => Ok(Then::Close),
            Err(error) => Err(error),
        };
        match then {
            Ok(Then::Next(rest)) => input = rest,
            Ok(Then::Linger) => return connection.linger(),
            Ok(Then::Close) => return,
            Err(error) => return log::debug!("{}: {error}", connection.peer()),
        }
        patience = input.limits.idle_timeout;
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

/// Reads one request and answers it. It fails if the connection does, or ends within the head of the request.
fn exchange(mut input: Input, handler: &dyn Handler) -> io::Result<Then> {
    let connection = Arc::clone(&input.connection);
    let mut reply = Reply::new(&connection, &input.limits);
    let begin = input.begin.unwrap_or(reply.begin);
    let head = match Head::read(&mut input, begin) {
        Ok(head) => head,
        Err(error) => {
            reply.is_head = input.unused().starts_with(b"HEAD ");
            return reply.refuse(None, error.downcast()?).map(|_| Then::Linger);
        }
    };
    log::debug!("{}: {head}", connection.peer());
    reply.is_head = head.method == Method::Head;
    reply.http_1_0 = head.version.1 == 0;
    let mut request = Request::new(head, input);
    let response = handle(&mut request, handler);
    let Request { head, mut body, .. } = request;
    let response = match response {
        Ok(response) => response,
        Err(refusal) => return reply.refuse(Some(&head), refusal).map(|_| Then::Linger),
    };
    reply.last = !head.keep_alive
        || !body.can_be_skipped(SKIP_LIMIT)
        || (body.input.is_ending() && !body.is_followed());
    if !reply.send(Some(&head), response)? {
        let is_over = !head.keep_alive && head.framing == Framing::Length(0) && !body.input.goes_on();
        return Ok(if is_over { Then::Close } else { Then::Linger });
    }
    match body.skip(SKIP_LIMIT) {
        Ok(()) => Ok(Then::Next(body.input)),
        Err(_) => Ok(Then::Linger),
    }
}

/// Has the request answered by the handler, unless its body is malformed from the beginning.
fn handle(request: &mut Request, handler: &dyn Handler) -> Result<ResponseBox, Refusal> {
    request.body.begin()?;
    let response = catch_unwind(AssertUnwindSafe(|| handler.handle(request))).map_err(|_| {
        log::error!("the handler panicked on {}", request.head);
        INTERNAL_ERROR
    })?;
    // What the handler made of a part of the body is no answer to the request.
    request.body.check()?;
    Ok(response)
}
