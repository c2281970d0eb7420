//! A client: the waiting of the engine, and the places, session and connections below it.

use crate::world::{Answer, Command, Flaw, Form, News, Owner, Rules, Session};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    Asking(Attempt),
    Queued,
    Held(u8),
    /// Makes earlier requests void, before it releases.
    Voiding,
    Withdrawing,
    /// Released or withdrawn, and the client has the answer.
    Done,
    /// Held until the session ended. Its claim at the server is dead, and the next client that finds it removes it.
    Lost,
    Crashed,
}

impl Phase {
    /// Whether the client does nothing any more.
    pub(crate) const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Lost | Self::Crashed)
    }
}

/// An attempt in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    /// A grant that came by message before the answer.
    unheard: Option<u8>,
    given_up: bool,
    /// Whether it was sent more than once.
    repeated: bool,
    /// Whether an earlier attempt got no answer.
    unsure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) number: Owner,
    pub(crate) phase: Phase,
    pub(crate) session: Session,
    /// Whether the session's lease is alive, by the client's own clock and knowledge.
    pub(crate) lease: bool,
    pub(crate) ticks: u8,
    /// The session's stamp, as this client knows it.
    stamp: u8,
    /// A request may still be in flight: its answer never came.
    unsure: bool,
    /// A grant may have been missed.
    looks: bool,
}

impl Client {
    pub(crate) fn new(number: Owner) -> Self {
        Self {
            number,
            phase: Phase::Idle,
            session: 2 * number,
            lease: true,
            ticks: 0,
            stamp: 1,
            unsure: false,
            looks: false,
        }
    }

    /// Handles an answer. Returns the command that is sent because of it.
    pub(crate) fn hear(&mut self, answer: Answer, rules: Rules) -> Option<Command> {
        match answer {
            Answer::Released => {
                if self.phase == Phase::Withdrawing {
                    self.phase = Phase::Done;
                }
                None
            }
            Answer::Raised(session, present) => {
                if self.phase != Phase::Voiding {
                    return None;
                }
                if self.session == session {
                    match present {
                        Some(number) => self.stamp = number,
                        None => self.lease_ends(),
                    }
                }
                Some(self.release())
            }
            // A request of a session that has ended is made again in the next session.
            Answer::Ended(session) | Answer::Granted(session, _)
                if self.session != session || !self.lease =>
            {
                None
            }
            Answer::Contended(session) | Answer::Stale(session, _)
                if self.session != session || !self.lease =>
            {
                None
            }
            Answer::Ended(_) => {
                self.lease_ends();
                None
            }
            answer => self.hear_of_attempt(answer, rules),
        }
    }

    fn hear_of_attempt(&mut self, answer: Answer, rules: Rules) -> Option<Command> {
        let Phase::Asking(attempt) = self.phase else {
            return None;
        };
        if !attempt.repeated {
            self.unsure = attempt.unsure;
        }
        if let Answer::Stale(_, present) = answer {
            self.stamp = present;
            return Some(self.send(attempt.unheard, attempt.given_up));
        }
        if attempt.given_up {
            return Some(self.withdraw(rules));
        }
        match (answer, attempt.unheard) {
            (Answer::Granted(_, token), _) | (_, Some(token)) => self.phase = Phase::Held(token),
            _ if self.looks => return Some(self.ask()),
            _ => self.phase = Phase::Queued,
        }
        None
    }

    /// Handles a message.
    pub(crate) fn hear_news(&mut self, news: News, rules: Rules) {
        if !self.lease {
            return;
        }
        match (news, &mut self.phase) {
            (News::Closed, _) if rules.form == Form::WithoutNotice => self.lease_ends(),
            (News::Grant(token), Phase::Asking(attempt)) => attempt.unheard = Some(token),
            (News::Grant(token), Phase::Queued) => self.phase = Phase::Held(token),
            _ => {}
        }
    }

    pub(crate) fn ask(&mut self) -> Command {
        self.looks = false;
        self.send(None, false)
    }

    fn send(&mut self, unheard: Option<u8>, given_up: bool) -> Command {
        let unsure = std::mem::replace(&mut self.unsure, true);
        self.phase = Phase::Asking(Attempt {
            unheard,
            given_up,
            repeated: false,
            unsure,
        });
        self.attempt()
    }

    const fn attempt(&self) -> Command {
        Command::Acquire(self.session, self.stamp)
    }

    /// The connection of a call broke. Returns the command to send over the next one.
    pub(crate) fn repeat(&mut self) -> Option<Command> {
        match &mut self.phase {
            Phase::Asking(attempt) if self.lease => {
                attempt.repeated = true;
                Some(self.attempt())
            }
            Phase::Voiding => Some(Command::Raise(self.session)),
            Phase::Withdrawing => Some(Command::Release),
            _ => None,
        }
    }

    pub(crate) fn withdraw(&mut self, rules: Rules) -> Command {
        if self.lease && self.unsure && rules.flaw != Flaw::WithdrawsWhatMayArrive {
            self.phase = Phase::Voiding;
            return Command::Raise(self.session);
        }
        self.release()
    }

    fn release(&mut self) -> Command {
        self.phase = Phase::Withdrawing;
        Command::Release
    }

    /// The caller stops waiting. An attempt in flight is completed first.
    pub(crate) fn give_up(&mut self, rules: Rules) -> Option<Command> {
        if let Phase::Asking(attempt) = &mut self.phase {
            attempt.given_up = true;
            return None;
        }
        Some(self.withdraw(rules))
    }

    /// Its lock is broken: the guard is lost, and the lock is released.
    pub(crate) fn is_told(&mut self, rules: Rules) -> Option<Command> {
        match self.phase {
            Phase::Held(_) | Phase::Queued => Some(self.withdraw(rules)),
            _ if self.waits() => self.give_up(rules),
            _ => None,
        }
    }

    /// Merges states that differ only in values that no longer matter.
    pub(crate) fn forget_what_no_longer_counts(&mut self) {
        if self.phase.is_over() {
            (self.ticks, self.stamp) = (0, 1);
            (self.unsure, self.looks) = (false, false);
        }
    }

    pub(crate) fn waits(&self) -> bool {
        match self.phase {
            Phase::Asking(attempt) => !attempt.given_up,
            phase => phase == Phase::Queued,
        }
    }

    pub(crate) fn lease_ends(&mut self) {
        self.lease = false;
        if let Phase::Held(_) = self.phase {
            self.phase = Phase::Lost;
        }
    }

    /// The session continues. `holds` is the token of its claim at the server. A grant that came by message counts,
    /// although the attempt is not answered yet.
    pub(crate) fn resumed(&mut self, holds: Option<u8>, rules: Rules) -> Option<Command> {
        match self.phase {
            Phase::Held(token)
            | Phase::Asking(Attempt {
                unheard: Some(token),
                given_up: false,
                ..
            }) if holds != Some(token) => self.phase = Phase::Lost,
            _ if rules.flaw == Flaw::ForgetsToLook => {}
            Phase::Asking(_) => self.looks = true,
            Phase::Queued => return Some(self.ask()),
            _ => {}
        }
        None
    }

    /// Asks in a new session.
    pub(crate) fn begin(&mut self, rules: Rules) -> Option<Command> {
        self.session += 1;
        (self.lease, self.stamp) = (true, 1);
        (self.unsure, self.looks) = (false, false);
        match self.phase {
            Phase::Asking(Attempt { given_up: true, .. }) | Phase::Voiding => {
                Some(self.withdraw(rules))
            }
            Phase::Asking(_) | Phase::Queued => Some(self.ask()),
            Phase::Withdrawing => Some(Command::Release),
            _ => None,
        }
    }
}
