//! What an embedding program provides: the answers to requests.

use tiny_http::ResponseBox;

use super::Request;
use crate::options::Options;

/// Answers requests.
///
/// A function or closure `Fn(&mut Request) -> ResponseBox` is a handler. A type that has a configuration to
/// reload implements this trait itself.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. It runs on the thread of the connection, so on many at the same time, and may
    /// block. If it panics, the client gets a 500.
    fn handle(&self, request: &mut Request) -> ResponseBox;

    /// Reads the configuration again, on SIGUSR1, and applies all of it or, if there is an error, nothing.
    /// `options` are the present ones, to be changed; see [`Options`] for those that can change in place.
    ///
    /// # Errors
    ///
    /// What is wrong, in one line for the log. `options` are then discarded.
    fn reload(&self, options: &mut Options) -> Result<(), String> {
        let _ = options;
        Ok(())
    }
}

impl<F> Handler for F
where
    F: Fn(&mut Request) -> ResponseBox + Send + Sync + 'static,
{
    fn handle(&self, request: &mut Request) -> ResponseBox {
        self(request)
    }
}
