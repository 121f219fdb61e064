//! What a process learns of its successor, as `src/handover/successor.rs` has it, and what its phase does about it.

use super::phases::{begin_close, drain, leave, let_go, retire, take_back};
use super::rules::Rule;
use super::state::{At, Caller, End, Gate, Life, Look, News, Process, State, Word};
use super::steps::Steps;

impl Steps<'_> {
    /// The begin of `Successor::news`: whether it has exited.
    pub fn look(&self, p: usize, caller: Caller) -> impl FnOnce(&mut State) + use<> {
        let hears_first = self.lacks(Rule::LookForTheEndBeforeTheWords);
        let closes = !self.lacks(Rule::CloseForWordsAtTakeBack);
        move |s| {
            let successor = s.successor(p).expect("a successor");
            let exited = !hears_first && s.processes[successor].life == Life::Waitable;
            s.processes[p].exited = exited && !s.processes[successor].is_stranger;
            let next = if exited && closes { Look::CloseForWords } else { Look::Words };
            s.processes[p].at = At::News(caller, next);
        }
    }

    /// The rest of `Successor::news`, and what becomes of it.
    pub fn news(&mut self, p: usize, caller: Caller, look: Look) {
        let state = self.from;
        let this = state.processes[p];
        let successor = state.successor(p).expect("a successor");
        let hears_first = self.lacks(Rule::LookForTheEndBeforeTheWords);
        let says_no = !self.lacks(Rule::SayNoAtTakeBack);
        let at = move |look| At::News(caller, look);
        let has_exited = |s: &State| s.processes[successor].life == Life::Waitable;
        match look {
            Look::Exit => self.to(p, "looks at its successor once more", self.look(p, caller)),
            Look::CloseForWords => self.to(p, "takes no more words, because the successor has exited", |s| {
                s.links[successor].end = End::Shut;
                s.processes[p].at = at(Look::Words);
            }),
            Look::Words => self.to(p, "hears the successor", |s| {
                s.processes[p].link_ended = s.links[successor].end == End::Shut || !s.is_held(successor);
                if let Some(word) = s.links[successor].up.pop() {
                    return deliver(s, p, caller, news_of(word));
                }
                if hears_first {
                    // In a step of its own, or there is no difference.
                    s.processes[p].at = at(Look::SayNo);
                } else if this.exited || s.processes[successor].is_stranger && s.processes[p].link_ended {
                    s.processes[p].at = at(Look::SayNo);
                } else {
                    deliver(s, p, caller, News::None);
                }
            }),
            Look::SayNo if hears_first && !has_exited(state) => {
                self.to(p, "has looked at its successor", |s| deliver(s, p, caller, News::None));
            }
            Look::SayNo => self.to(p, "says no, and takes the place of its successor", |s| {
                // It has been told to stop itself, so nobody has to serve.
                s.is_killed |= caller == Caller::GoForward;
                if says_no {
                    s.say_down(successor, Word::No);
                }
                deliver(s, p, caller, News::Died);
            }),
            Look::LastClose | Look::LastWords => self.last_news(p, caller, look),
        }
        if caller == Caller::GoForward && self.lacks(Rule::LookOnceMoreBeforeGoingForward) {
            self.to.clear();
            self.to(p, "goes forward without a look", |s| decide(s, p, caller, News::None));
        }
    }

    /// The rest of `Successor::last_news`.
    fn last_news(&mut self, p: usize, caller: Caller, look: Look) {
        let this = self.from.processes[p];
        let successor = self.from.successor(p).expect("a successor");
        let skips = !self.lacks(Rule::HearTheVeryLastWord);
        let (confuses, stops_silently) =
            (self.lacks(Rule::HandedOverIsNoStop), self.lacks(Rule::SayStoppingFromAnOverlap));
        let decide = |s: &mut State, news: News| {
            let is_confused = confuses && (caller, news) == (Caller::GoForward, News::HandedOver);
            decide(s, p, caller, if is_confused { News::Stopping } else { news });
            if stops_silently && s.processes[p].at == At::Stop {
                begin_close(s, p);
            }
        };
        match look {
            Look::LastClose => self.to(p, "takes no more words, because it leaves", |s| {
                let has_died = this.news == News::None && this.link_ended;
                s.links[successor].end = End::Shut;
                let news = if has_died { News::Died } else { this.news };
                match news {
                    News::None => s.processes[p].at = At::News(caller, Look::LastWords),
                    news => decide(s, news),
                }
            }),
            _ => self.to(p, "hears the successor for the last time", |s| {
                let mut hear = || s.links[successor].up.pop().map_or(News::None, news_of);
                let mut news = hear();
                while skips && news == News::Serving {
                    news = hear();
                }
                decide(s, news);
            }),
        }
    }
}

fn news_of(word: Word) -> News {
    match word {
        Word::Serving => News::Serving,
        Word::HandedOver => News::HandedOver,
        _ => News::Stopping,
    }
}

/// What `news` has returned.
fn deliver(s: &mut State, p: usize, caller: Caller, news: News) {
    s.processes[p].at = match (caller, news) {
        (Caller::Overlap | Caller::Drain, _) => return decide(s, p, caller, news),
        // `last_news` looks again.
        (_, News::Serving) => At::News(caller, Look::Exit),
        (..) => At::News(caller, Look::LastClose),
    };
    s.processes[p].news = if news == News::Serving { News::None } else { news };
}

/// What the phase does about it.
fn decide(s: &mut State, p: usize, caller: Caller, news: News) {
    let successor = s.successor(p).expect("a successor");
    s.processes[p].exited = false;
    s.processes[p].link_ended = false;
    s.processes[p].news = News::None;
    match (caller, news) {
        (Caller::Overlap, News::None) => s.processes[p].at = At::Overlap,
        (Caller::Overlap, News::Serving) if s.is_mode_overlap() => s.processes[p].at = At::Overlap,
        (Caller::Overlap, News::Serving) => drain(s, p, Some(successor as u8)),
        (Caller::Overlap, News::HandedOver | News::Stopping) => {
            // What has moved connections here until now makes room for what does from now on.
            s.finish_moving(p, 1, true);
            retire(s, p);
            s.processes[p].at = At::Serve;
        }
        (Caller::Overlap, News::Died) => {
            s.finish_moving(successor, 0, true);
            retire(s, p);
            s.processes[p].at = At::Serve;
        }
        (Caller::Drain, News::None | News::Serving) => s.processes[p].at = At::Drain,
        (Caller::Drain, News::HandedOver | News::Stopping) => {
            let_go(s, p);
            s.processes[p].at = At::Drain;
        }
        (Caller::Drain | Caller::Leave, News::Died) => take_back(s, p),
        (Caller::Leave, _) => leave(s, p),
        (Caller::GoForward, News::Stopping | News::Died) => {
            s.finish_moving(successor, 0, true);
            retire(s, p);
            s.processes[p].at = At::Stop;
        }
        (Caller::GoForward, _) => {
            retire(s, p);
            s.processes[p].gate = Gate::Closed;
            drain(s, p, Some(successor as u8));
        }
    }
}

/// Whether there is something to hear of a candidate or successor.
pub fn has_news(s: &State, successor: usize) -> bool {
    let Process { life, is_stranger, .. } = s.processes[successor];
    let has_ended = if is_stranger { !s.is_held(successor) } else { life == Life::Waitable };
    has_ended || s.links[successor].up.first().is_some()
}
