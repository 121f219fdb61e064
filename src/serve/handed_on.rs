//! What a program hands on to its successors beside what the library opens: listening sockets of its own,
//! descriptors by name, and its state.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::Server;
use crate::error::{Error, Reason};
use crate::server::listener::Listener;

impl Server {
    /// Listens as well on a socket that the program makes itself, because of an option that it sets before bind(2),
    /// or has from elsewhere: the one that the predecessor has handed over for this address, and if there is none,
    /// the one that `make` returns, which must listen on it.
    ///
    /// The address is written as in [`Options::listen`](crate::Options::listen), which may be empty then. From now on
    /// the socket is like the others: it does not block, its queue is as long as the system allows, it is handed over,
    /// and a successor that does not ask for it closes it. The file of a Unix socket that `make` binds gets the
    /// permissions of [`Options::socket_mode`](crate::Options::socket_mode), and is removed at the end; one on which
    /// a socket has listened before is left as it is.
    ///
    /// ```
    /// use std::net::TcpListener;
    ///
    /// use handover::{Options, Server};
    ///
    /// let mut server = Server::bind(Options { listen: Vec::new(), ..Options::default() })?;
    /// server.listen_on("127.0.0.1:0", || TcpListener::bind("127.0.0.1:0"))?;
    /// assert_eq!(server.addresses().len(), 1);
    /// # Ok::<(), handover::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of `make`, or what it returns is no socket that listens on this address, or the address is a name
    /// that stands for several.
    pub fn listen_on<S: Into<OwnedFd>>(
        &mut self,
        address: &str,
        make: impl FnOnce() -> io::Result<S>,
    ) -> Result<(), Error> {
        let (mode, new_files) = (self.options.socket_mode, &mut self.new_files);
        let mut make = Some(make);
        let opened = Listener::open_all(&[address.to_owned()], &mut self.unwanted, |address| {
            let make = make.take().ok_or_else(|| io::Error::other("it stands for several addresses"))?;
            Listener::own(address, make, mode, new_files)
        });
        self.listeners.extend(opened?);
        Ok(())
    }

    /// The descriptor that the predecessor has [handed on](Self::hand_on) under this name; `None` if it has not, if
    /// there is no predecessor, or if it has been taken already.
    ///
    /// It is close-on-exec. Those that are not taken are closed when this process [serves](Self::serve).
    ///
    /// ```no_run
    /// # use std::net::UdpSocket;
    /// # fn open(server: &mut handover::Server) -> Result<UdpSocket, Box<dyn std::error::Error>> {
    /// let socket = match server.inherited("echo") {
    ///     Some(socket) => UdpSocket::from(socket),
    ///     None => UdpSocket::bind("127.0.0.1:0")?,
    /// };
    /// server.hand_on("echo", &socket)?;
    /// # Ok(socket)
    /// # }
    /// ```
    pub fn inherited(&mut self, name: &str) -> Option<OwnedFd> {
        self.inherited.take(name)
    }

    /// Hands a descriptor on under this name to each successor, which gets it with [`inherited`](Self::inherited): a
    /// socket on which datagrams wait, or a file that is locked by flock(2). A duplicate is kept for that. One that
    /// has been handed on under the same name before is not any more.
    ///
    /// The processes share all that does not belong to the descriptor but to what is behind it, such as O_NONBLOCK,
    /// the position in a file, and a lock: it is held until the last of them has closed the file, or one unlocks it.
    ///
    /// # Errors
    ///
    /// The name is not one of 1 to 64 letters (`A` to `Z`, `a` to `z`), digits, `.`, `_` and `-`, there are 64
    /// descriptors already, or this process cannot have more.
    pub fn hand_on(&mut self, name: &str, descriptor: impl AsFd) -> Result<(), Error> {
        let mut put =
            || -> Result<(), Reason> { Ok(self.named.put(name, descriptor.as_fd().try_clone_to_owned()?)?) };
        put().map_err(|reason| Error::new(format!("hand on a descriptor as {name:?}"), reason))
    }

    /// The state that the program has [handed on](crate::Handle::hand_on_state) in the predecessor, as it was when
    /// this process was started; `None` if it has not, or if there is no predecessor.
    ///
    /// It may be that of an older version of the program, or, after a step back, of a newer one. So it is to begin
    /// with its version, and one of a version that is not known is to be left alone:
    ///
    /// ```no_run
    /// # use std::time::{SystemTime, UNIX_EPOCH};
    /// # const VERSION: u8 = 1;
    /// # fn prepare(server: &handover::Server) -> Result<(), Box<dyn std::error::Error>> {
    /// let began = match server.state() {
    ///     Some([VERSION, began @ ..]) => String::from_utf8_lossy(began).into_owned(),
    ///     // It is the first process, or the predecessor is of another version.
    ///     _ => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos().to_string(),
    /// };
    /// let handle = server.handle();
    /// handle.hand_on_state([&[VERSION], began.as_bytes()].concat())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn state(&self) -> Option<&[u8]> {
        self.state.as_deref()
    }
}
