//! All places where this process is to be found: one order of events for the PID file and the control socket.

use std::sync::Arc;

use super::control::{Ask, Control};
use super::place::Place;
use crate::error::Error;
use crate::options::Options;

/// The places of this process.
pub(crate) struct Places {
    pid_file: Option<Place>,
    control: Option<Control>,
    ask: Arc<Ask>,
}

/// What a process finds in its places when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing, or what a process has left behind that was killed.
    Nothing,
    /// The files of its predecessor.
    Predecessor,
}

impl Places {
    /// Prepares everything that can fail. Requests on the control socket go to `ask`.
    pub(crate) fn prepare(options: &Options, before: Before, ask: Arc<Ask>) -> Result<Places, Error> {
        let pid_file = options.pid_file.as_deref().map(|path| {
            let error = |source| Error::new(format!("write the PID file {}", path.display()), source);
            Place::pid_file(path).map_err(error)
        });
        let control = options.control.as_deref().map(|path| {
            let error = |source| Error::new(format!("listen for requests on {}", path.display()), source);
            Control::open(path, before, Arc::clone(&ask)).map_err(error)
        });
        Ok(Places { pid_file: pid_file.transpose()?, control: control.transpose()?, ask })
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Place> {
        self.pid_file.iter_mut().chain(self.control.iter_mut().map(Control::place))
    }

    /// Puts this process in its places.
    pub(crate) fn take(&mut self, before: Before) {
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

    /// Waits until the answers that have been given on the control socket are written.
    pub(crate) fn finish(&self) {
        self.control.iter().for_each(Control::finish);
    }
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
