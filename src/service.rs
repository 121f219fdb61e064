//! What an embedding program does with its connections: HTTP, or a protocol of its own.

use std::io;
use std::sync::{Arc, Mutex};

use crate::http::{self, Handler};
use crate::operations::configuration::Read;
use crate::options::Limits;
use crate::percent;
use crate::server::Serve;
use crate::stream::{self, Stream};

pub(crate) struct Service {
    /// As [`Connections::new`](crate::server::Connections::new) has it.
    pub(crate) protocol: String,
    pub(crate) serve: Box<Serve>,
    pub(crate) reload: Arc<Read>,
}

impl Service {
    /// The limits are the present ones.
    pub(crate) fn http(limits: &Arc<Mutex<Limits>>, handler: impl Handler) -> Service {
        let handler = Arc::new(handler);
        let (serving, current) = (Arc::clone(&handler), Arc::clone(limits));
        Service {
            protocol: String::new(),
            serve: Box::new(move |connection| http::serve(connection, &*serving, &current)),
            reload: Arc::new(move |options| handler.reload(options)),
        }
    }

    pub(crate) fn streams(
        limits: &Arc<Mutex<Limits>>,
        protocol: &str,
        function: impl Fn(&mut Stream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Service {
        let current = Arc::clone(limits);
        Service {
            protocol: format!("stream:{} ", percent::word(protocol.as_bytes())),
            serve: Box::new(move |connection| stream::serve(connection, &function, &current)),
            reload: Arc::new(|_| Err("the program has nothing to reload".to_owned())),
        }
    }
}
