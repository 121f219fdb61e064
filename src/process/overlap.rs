//! The phase in which both a process and its successor accept connections.

use super::{Phase, Process};
use crate::deadline::after;
use crate::events::Event;
use crate::handover::link::{Mode, Word};
use crate::handover::successor::{News, Successor};
use crate::operations::requester::{Action, Requester};
use crate::status::State;

impl Process {
    /// Until the successor serves, or an operator decides.
    pub(super) fn overlap(&mut self, mut successor: Successor, mode: Mode, requester: &Requester) -> Phase {
        let pid = successor.pid();
        let mut deadline = Some(after(self.config.options.ready_timeout));
        loop {
            match self.next(State::Overlapping, deadline, Some(successor.link())) {
                Event::Asked(by, Action::Restart) => {
                    by.refuse(format_args!("successor {pid} runs beside this process"));
                }
                Event::Asked(by, Action::Stop) => return self.go_forward(&by, successor),
                Event::Asked(by, _) => self.config.reload(by),
                Event::Deadline => {
                    let reason = format!("successor {pid} was told to go, and does not say that it serves");
                    log::error!("{reason}; both processes accept connections");
                    requester.answer(Err(reason));
                    deadline = None;
                }
                _ => {}
            }
            let news = successor.news();
            if let Some(News::Leaving(_)) = news {
                // Its connections come to this process.
                self.mover = successor.mover();
            }
            if matches!((&news, mode), (Some(News::Died(_)), _) | (Some(News::Leaving(_)), Mode::Alone)) {
                self.count_failure();
            }
            let reason = match news {
                None => continue,
                Some(News::Serving) => {
                    self.count_handover();
                    requester.answer(Ok(format!("ok {pid}{}", self.warn_of_closing(&successor))));
                    if mode == Mode::Alone {
                        let mover = successor.mover();
                        return Phase::Drain(Some(successor), mover);
                    }
                    log::info!("both this process and successor {pid} accept connections");
                    deadline = None;
                    continue;
                }
                Some(News::Leaving(word)) => format!("successor {pid} says: {word}"),
                Some(News::Died(end)) => format!("successor {pid} {end}"),
            };
            let phase = self.serve_on(successor.retire());
            self.connections.set_socket_mode(self.config.options.socket_mode);
            match mode {
                Mode::Alone => log::error!("handover failed: {reason} before it served"),
                Mode::Overlap => log::warn!("successor {pid} is leaving; this process goes on alone"),
            }
            requester.answer(Err(reason));
            return phase;
        }
    }

    /// Warns of the addresses on which the successor does not listen, and returns what the answer says of them.
    fn warn_of_closing(&self, successor: &Successor) -> String {
        let (pid, without) = (successor.pid(), successor.without());
        let listeners = self.connections.listeners().iter().enumerate();
        let closing = listeners.filter(|(index, _)| without.contains(index));
        let addresses = closing.map(|(_, listener)| listener.address());
        addresses.fold(String::new(), |answer, address| {
            log::warn!("successor {pid} does not listen on {address}, which is closed with this process");
            let before = if answer.is_empty() { " without" } else { &answer };
            format!("{before} {}", address.to_word())
        })
    }

    /// In an overlap a stop means this process only, unless a supervisor watches it, or the successor has
    /// been told to stop as well.
    fn go_forward(&mut self, by: &Requester, mut successor: Successor) -> Phase {
        let pid = successor.pid();
        let news = successor.last_news();
        let successor_leaves = matches!(news, Some(News::Leaving(Word::Stopping) | News::Died(_)));
        let is_watched = self.keeper.pass_on(by, Action::Stop, Some(pid));
        let mover = successor.mover();
        let without = successor.without().to_vec();
        self.keeper.retire(successor.retire());
        if is_watched || successor_leaves {
            // Or the predecessor of this process would take its place.
            self.say(&Word::Stopping);
            return self.close(by);
        }
        self.connections.close_listeners(|index, _| without.contains(&index));
        log::info!("{by}: successor {pid} goes on alone");
        by.answer(Ok("ok".to_owned()));
        Phase::Drain(None, mover)
    }
}
