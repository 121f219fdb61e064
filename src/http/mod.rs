//! HTTP/1.1 and 1.0 on one connection: read a request, run the handler, write the response, again.
//!
//! The bytes are taken in by [`input`], a request's head is understood by [`head`], its body decoded by
//! [`body`]; [`request`] is what a handler sees of both, and [`response`] writes what it returns. The only
//! thing this module is told about the process is whether it is draining: then a response says
//! `Connection: close`, and the connection is closed after it.

mod body;
mod head;
mod input;
mod request;
mod response;
#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::ResponseBox;

pub use self::request::Request;

use self::head::{Head, Refusal};
use self::input::Input;
use self::response::Answer;
use crate::server::Connection;

/// The time between two requests on a connection (nginx: keepalive_timeout).
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// The time for a whole request head from its first byte on, however slowly it trickles in.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The time a client may take before it sends more of a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// The time a client may take before it takes more of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time for a client to close its side of a connection after its last response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of a body that a handler has left unread is skipped to keep the connection.
const SKIP_LIMIT: u64 = 256 * 1024;

/// Serves the requests of one connection until it ends.
pub(crate) fn serve<H>(connection: &Arc<Connection>, handler: &H)
where
    H: Fn(&mut Request) -> ResponseBox,
{
    let mut input = Input::new(Arc::clone(connection));
    loop {
        match input.wait_for_request(Instant::now() + IDLE_TIMEOUT) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return log::debug!("{}: {error}", connection.peer()),
        }
        let in_flight = connection.request();
        let exchange = exchange(input, handler);
        drop(in_flight);
        match exchange {
            Ok(Some(rest)) => input = rest,
            Ok(None) => return connection.linger(Instant::now() + LINGER_TIMEOUT),
            Err(error) => return log::debug!("{}: {error}", connection.peer()),
        }
    }
}

/// Reads one request and answers it. The rest of the input comes back if the connection can go on; `None`
/// if this response was its last; an error if there is nobody to answer, or no way to go on.
fn exchange<H>(mut input: Input, handler: &H) -> io::Result<Option<Input>>
where
    H: Fn(&mut Request) -> ResponseBox,
{
    let connection = Arc::clone(input.connection());
    let head = match Head::read(&mut input, Instant::now() + HEAD_TIMEOUT)? {
        Ok(head) => head,
        Err(refusal) => {
            refuse(&connection, &refusal)?;
            return Ok(None);
        }
    };
    log::debug!("{}: {} {}", connection.peer(), head.method, head.url);
    let answer = Answer::to(&head);
    let keep_alive = head.keep_alive;
    let mut request = Request::new(head, input);
    let response = catch_unwind(AssertUnwindSafe(|| handler(&mut request)));
    let (method, url) = (request.method().clone(), request.url().to_owned());
    let mut body = request.into_body();

    let Ok(response) = response else {
        log::error!("the handler panicked on {method} {url}");
        answer
            .last()
            .write(&connection, Refusal::internal_error().response())?;
        return Ok(None);
    };
    // What the handler made of half a body is not an answer to the request.
    if let Some(refusal) = body.refusal() {
        refuse(&connection, &refusal)?;
        return Ok(None);
    }
    let last = !keep_alive
        || !body.can_be_skipped(SKIP_LIMIT)
        || (connection.is_draining() && !body.has_successor());
    let answer = if last { answer.last() } else { answer };
    let complete = answer.write(&connection, response)?;
    if last || !complete {
        return Ok(None);
    }
    match body.skip(SKIP_LIMIT) {
        Ok(true) => Ok(Some(body.into_input())),
        _ => Ok(None),
    }
}

fn refuse(connection: &Connection, refusal: &Refusal) -> io::Result<()> {
    log::debug!("{}: {refusal}", connection.peer());
    Answer::to_nothing()
        .write(connection, refusal.response())
        .map(drop)
}
