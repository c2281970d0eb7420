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
    pub(crate) stamp: u8,
    /// A request may still be in flight: its answer never came.
    unsure: bool,
    /// A grant may have been missed.
    looks: bool,
    /// The owner right ahead, and the token with which this owner takes over.
    pub(crate) turn: Option<(Owner, u8)>,
    /// It releases what it held, and the waiter right behind may take over.
    pub(crate) passes_on: bool,
    /// The neighbour that has taken over, when this owner began to release.
    pub(crate) next: Option<Owner>,
}

impl Client {
    pub(crate) fn new(number: Owner, session: Session) -> Self {
        Self {
            number,
            phase: Phase::Idle,
            session,
            lease: true,
            ticks: 0,
            stamp: 1,
            unsure: false,
            looks: false,
            turn: None,
            passes_on: false,
            next: None,
        }
    }

    /// The token with which it holds, as the session's book says.
    pub(crate) fn held(&self) -> Option<u8> {
        match self.phase {
            Phase::Held(token) => Some(token),
            Phase::Asking(attempt) => attempt.unheard,
            _ => None,
        }
    }

    /// Records a grant without an answer. Returns whether it waited for it.
    pub(crate) fn is_granted(&mut self, token: u8) -> bool {
        match &mut self.phase {
            Phase::Asking(attempt) if attempt.unheard.is_none() => attempt.unheard = Some(token),
            Phase::Queued => self.phase = Phase::Held(token),
            _ => return false,
        }
        true
    }

    /// Whether an answer to the attempt in flight says what is so in the session: it has not reconnected since.
    pub(crate) fn is_current(&self, session: Session, rules: Rules) -> bool {
        let current = !self.looks || rules.flaw == Flaw::KeepsTurns;
        current && self.session == session && self.lease && matches!(self.phase, Phase::Asking(_))
    }

    /// Handles an answer. Returns the command that is sent because of it.
    pub(crate) fn hear(&mut self, answer: Answer) -> Option<Command> {
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
            Answer::Contended(session, _) | Answer::Stale(session, _)
                if self.session != session || !self.lease =>
            {
                None
            }
            Answer::Ended(_) => {
                self.lease_ends();
                None
            }
            answer => self.hear_of_attempt(answer),
        }
    }

    fn hear_of_attempt(&mut self, answer: Answer) -> Option<Command> {
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
            // The world lets it withdraw.
            return None;
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
        match news {
            News::Closed if rules.form == Form::WithoutNotice => self.lease_ends(),
            News::Grant(_, token, _) => drop(self.is_granted(token)),
            News::Closed => {}
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
            Phase::Withdrawing => Some(Command::Release(self.next)),
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
        Command::Release(self.next)
    }

    /// The caller stops waiting. An attempt in flight is completed first: then this returns false.
    pub(crate) fn gives_up(&mut self) -> bool {
        if let Phase::Asking(attempt) = &mut self.phase {
            attempt.given_up = true;
            return false;
        }
        true
    }

    /// Whether its attempt was answered after its caller stopped waiting.
    pub(crate) fn withdraws_after(&self, answer: Answer) -> bool {
        let answered = matches!(answer, Answer::Granted(session, _) | Answer::Contended(session, _)
            if session == self.session);
        let given_up = matches!(self.phase, Phase::Asking(Attempt { given_up: true, .. }));
        answered && given_up && self.lease
    }

    /// Its lock is broken: the guard is lost, and the lock is released.
    pub(crate) fn is_told(&mut self, rules: Rules) -> Option<Command> {
        match self.phase {
            Phase::Held(_) | Phase::Queued => Some(self.withdraw(rules)),
            _ => {
                self.gives_up();
                None
            }
        }
    }

    /// Merges states that differ only in values that no longer matter.
    pub(crate) fn forget_what_no_longer_counts(&mut self) {
        if self.phase.is_over() {
            (self.ticks, self.stamp) = (0, 1);
            (self.unsure, self.looks) = (false, false);
            (self.passes_on, self.next) = (false, None);
        }
        if !matches!(self.phase, Phase::Asking(_) | Phase::Queued) {
            self.turn = None;
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
        if rules.flaw != Flaw::KeepsTurns {
            self.turn = None;
        }
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
        (self.turn, self.passes_on, self.next) = (None, false, None);
        match self.phase {
            Phase::Asking(Attempt { given_up: true, .. }) | Phase::Voiding => {
                Some(self.withdraw(rules))
            }
            Phase::Asking(_) | Phase::Queued => Some(self.ask()),
            Phase::Withdrawing => Some(Command::Release(None)),
            _ => None,
        }
    }
}
