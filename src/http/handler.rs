//! What an embedding program does with requests.

use tiny_http::ResponseBox;

use super::Request;
use crate::options::Options;

/// Answers requests.
///
/// A function or closure `Fn(&mut Request) -> ResponseBox` is a handler. A type of its own implements this
/// trait, if it has a configuration that can be read again.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. It is run on the thread of the request's connection, so on many at a time. If it
    /// panics, the client gets a 500.
    fn handle(&self, request: &mut Request) -> ResponseBox;

    /// Reads the configuration again, on SIGUSR1: all of it or, if there is an error, none. The present
    /// options are given, to be changed; see [`Options`] for those that can change in place.
    ///
    /// # Errors
    ///
    /// What is wrong, in one line for the log. Whatever has become of `options` is not used then.
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
