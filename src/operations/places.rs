//! All places where this process is to be found: one order of events for the PID file and the control socket.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use nix::errno::Errno;

use super::asker;
use super::control::{Ask, Control};
use super::place::Place;
use crate::error::Error;
use crate::options::Options;
use crate::unix_file::is_left;

/// The places of this process.
pub(crate) struct Places {
    pid_file: Option<Place>,
    control: Option<Control>,
    before: Before,
    ask: Arc<Ask>,
}

/// What a process finds in its places when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing, or what a process has left behind that was killed.
    Nothing,
    /// The files of its predecessor.
    Predecessor,
}

impl Places {
    /// Prepares everything that can fail, for the successor of this process if there is one before it. Requests
    /// on the control socket go to `ask`.
    pub(crate) fn prepare(
        options: &Options,
        predecessor: Option<i32>,
        ask: Arc<Ask>,
    ) -> Result<Places, Error> {
        let before = if predecessor.is_some() { Before::Predecessor } else { Before::Nothing };
        let pid_file = options.pid_file.as_deref().map(|path| {
            let error = |source| Error::new(format!("write the PID file {}", path.display()), source);
            Place::pid_file(path).map_err(error)
        });
        let control = options.control.as_deref().map(|path| {
            let error = |source| Error::new(format!("listen for requests on {}", path.display()), source);
            if predecessor.is_some_and(|pid| !may_replace(path, pid)) {
                return Err(error(Errno::EADDRINUSE.into()));
            }
            Control::open(path, before, Arc::clone(&ask)).map_err(error)
        });
        Ok(Places { pid_file: pid_file.transpose()?, control: control.transpose()?, before, ask })
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Place> {
        self.pid_file.iter_mut().chain(self.control.iter_mut().map(Control::place))
    }

    /// Puts this process in its places.
    pub(crate) fn take(&mut self) {
        let before = self.before;
        self.each().for_each(|place| put(place, before));
    }

    /// Puts this process back in its places if a successor has taken them.
    pub(crate) fn restore(&mut self) {
        if let Some(place) = self.pid_file.as_mut().filter(|place| !place.restore()) {
            match Place::pid_file(place.path()) {
                Ok(new) => {
                    *place = new;
                    put(place, Before::Nothing);
                }
                Err(error) => log::error!("cannot write {}: {error}", place.path().display()),
            }
        }
        if let Some(control) = &mut self.control
            && !control.place().restore()
        {
            let path = control.place().path().to_owned();
            // Beside what is there, and then instead of it.
            match Control::open(&path, Before::Predecessor, Arc::clone(&self.ask)) {
                Ok(new) => {
                    *control = new;
                    put(control.place(), Before::Nothing);
                }
                Err(error) => log::error!("cannot listen for requests on {}: {error}", path.display()),
            }
        }
    }

    /// Gives the places back to the predecessor, which accepts connections beside this process.
    pub(crate) fn give_back(&mut self) {
        self.each().for_each(|place| place.give_back());
    }

    /// Removes what a predecessor that has ended has left aside.
    pub(crate) fn clear_aside(&mut self) {
        self.each().for_each(Place::clear_aside);
    }

    /// Removes what this process has in these places, because it is not to be found any more.
    pub(crate) fn withdraw(&mut self) {
        self.pid_file = None;
        self.control = None;
    }
}

/// Whether a control socket may replace what is at this path: nothing, what a process has left behind that was
/// killed, or the socket of the predecessor, but not that of another server.
fn may_replace(path: &Path, predecessor: i32) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        || is_left(path)
        || asker::is_served_by(path, predecessor)
}

fn put(place: &mut Place, before: Before) {
    let put = match before {
        Before::Nothing => place.take(),
        Before::Predecessor => place.succeed(),
    };
    if let Err(error) = put {
        log::error!("cannot rename a file to {}: {error}", place.path().display());
    }
}
