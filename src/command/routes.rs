//! The routes of the command: a reference to try the mechanism with.

use std::io::{Cursor, ErrorKind};
use std::process;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use handover::{Handler, Header, Method, Options, Request, Response, ResponseBox};

use super::logging;
use super::settings::{CommandLine, Settings};

/// What any client may know of what is serving.
const VERSION: &str = concat!("handover ", env!("CARGO_PKG_VERSION"));

/// The largest body that `/echo` returns, in bytes: it is held in memory.
const LARGEST_ECHO: u64 = 8 << 20;

const TEST_DURATION: Duration = Duration::from_secs(5);
const LONGEST_SLEEP: Duration = Duration::from_secs(60 * 60);

/// The routes, and the configuration that they come from.
pub(crate) struct Routes {
    command_line: CommandLine,
    /// Shared with the responses that are being written.
    message: RwLock<Arc<[u8]>>,
}

impl Routes {
    pub(crate) fn new(command_line: CommandLine, settings: &Settings) -> Routes {
        Routes { command_line, message: RwLock::new(body(&settings.message)) }
    }

    /// Returns early if the client leaves.
    fn message_after(&self, request: &Request, delay: Duration) -> ResponseBox {
        request.recipient().wait_for_hangup(delay);
        self.message()
    }

    fn message(&self) -> ResponseBox {
        let message = Arc::clone(&self.message.read().unwrap_or_else(PoisonError::into_inner));
        let length = message.len();
        text(200, "").with_data(Cursor::new(message), Some(length)).boxed()
    }
}

impl Handler for Routes {
    fn handle(&self, request: &mut Request) -> ResponseBox {
        let url = request.url().to_owned();
        let (path, query) = url.split_once('?').unwrap_or((&url, ""));
        let allowed: &[Method] = match path {
            "/" | "/hello" | "/test" | "/sleep" | "/healthz" => &[Method::Get, Method::Head],
            "/echo" => &[Method::Post, Method::Put],
            "*" => &[Method::Get, Method::Head, Method::Post, Method::Put],
            _ => return text(404, "not found\n"),
        };
        if !allowed.contains(request.method()) {
            let methods: Vec<&str> = allowed.iter().chain([&Method::Options]).map(Method::as_str).collect();
            let response = match request.method() {
                Method::Options => Response::empty(204).boxed(),
                _ => text(405, "method not allowed\n"),
            };
            return with_header(response, "Allow", &methods.join(", "));
        }
        match path {
            "/hello" => text(200, format!("Hello from {}!\n", process::id())),
            "/test" => self.message_after(request, TEST_DURATION),
            "/sleep" => match duration(query) {
                Some(duration) => self.message_after(request, duration),
                None => {
                    text(400, "expected ?duration= with a time such as 1s, 500ms or 1m, an hour at most\n")
                }
            },
            "/echo" => echo(request),
            "/healthz" if request.is_draining() => text(503, format!("draining\n{VERSION}\n")),
            "/healthz" => text(200, format!("ok\n{VERSION}\n")),
            _ => self.message(),
        }
    }

    fn reload(&self, options: &mut Options) -> Result<(), String> {
        if !self.command_line.has_file() {
            return Err("there is no configuration file to read".to_owned());
        }
        let settings = self.command_line.settings()?;
        logging::apply(&settings);
        *self.message.write().unwrap_or_else(PoisonError::into_inner) = body(&settings.message);
        *options = settings.options;
        Ok(())
    }
}

fn body(message: &str) -> Arc<[u8]> {
    format!("{message}\n").into_bytes().into()
}

fn duration(query: &str) -> Option<Duration> {
    let value = query.split('&').find_map(|parameter| parameter.strip_prefix("duration="))?;
    humantime::parse_duration(value).ok().filter(|duration| *duration <= LONGEST_SLEEP)
}

fn echo(request: &mut Request) -> ResponseBox {
    request.limit_body(LARGEST_ECHO);
    let mut body = Vec::new();
    match request.as_reader().read_to_end(&mut body) {
        Ok(_) => {
            // No browser must take it for a page of this host.
            let response =
                with_header(Response::from_data(body).boxed(), "X-Content-Type-Options", "nosniff");
            with_header(response, "Content-Type", "application/octet-stream")
        }
        Err(error) if error.kind() == ErrorKind::FileTooLarge => text(413, "the body is larger than 8 MiB\n"),
        // The server itself answers a client that has sent a part of the body.
        Err(error) => text(400, format!("the body cannot be read: {error}\n")),
    }
}

fn with_header(response: ResponseBox, name: &str, value: &str) -> ResponseBox {
    match Header::from_bytes(name, value) {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    }
}

fn text(status: u16, text: impl Into<String>) -> ResponseBox {
    Response::from_string(text).with_status_code(status).boxed()
}
