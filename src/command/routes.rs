//! The routes of the command: a reference to try the mechanism with.

use std::io::ErrorKind;
use std::process;
use std::thread;
use std::time::Duration;

use handover::{Header, Method, Request, Response, ResponseBox};

/// The largest body that `/echo` returns, in bytes: it is held in memory.
const LARGEST_ECHO: u64 = 8 << 20;

/// How long `/test` takes.
const TEST_DURATION: Duration = Duration::from_secs(5);

/// Answers a request.
pub(crate) fn answer(request: &mut Request, message: &str) -> ResponseBox {
    let url = request.url().to_owned();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    let allowed: &[Method] = match path {
        "/" | "/hello" | "/test" | "/sleep" | "/healthz" => &[Method::Get, Method::Head],
        "/echo" => &[Method::Post, Method::Put],
        _ => return text(404, "not found\n"),
    };
    if !allowed.contains(request.method()) {
        return not_allowed(allowed);
    }
    match path {
        "/hello" => text(200, format!("Hello from {}!", process::id())),
        "/test" => {
            thread::sleep(TEST_DURATION);
            text(200, message)
        }
        "/sleep" => match duration(query) {
            Some(duration) => {
                thread::sleep(duration);
                text(200, message)
            }
            None => text(400, "expected ?duration= with a time such as 1s, 500ms or 1m\n"),
        },
        "/echo" => echo(request),
        "/healthz" if request.is_draining() => text(503, "draining\n"),
        "/healthz" => text(200, "ok\n"),
        _ => text(200, message),
    }
}

fn duration(query: &str) -> Option<Duration> {
    let value = query.split('&').find_map(|parameter| parameter.strip_prefix("duration="))?;
    humantime::parse_duration(value).ok()
}

fn echo(request: &mut Request) -> ResponseBox {
    request.limit_body(LARGEST_ECHO);
    let mut body = Vec::new();
    match request.as_reader().read_to_end(&mut body) {
        Ok(_) => Response::from_data(body).boxed(),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => text(413, "the body is larger than 8 MiB\n"),
        // Whoever sent half a body is answered by the server.
        Err(error) => text(400, format!("the body cannot be read: {error}\n")),
    }
}

fn not_allowed(allowed: &[Method]) -> ResponseBox {
    let methods: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    let response = text(405, "method not allowed\n");
    match Header::from_bytes("Allow", methods.join(", ")) {
        Ok(allow) => response.with_header(allow),
        Err(()) => response,
    }
}

fn text(status: u16, text: impl Into<String>) -> ResponseBox {
    Response::from_string(text).with_status_code(status).boxed()
}
