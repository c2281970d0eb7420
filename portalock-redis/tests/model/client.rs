//! A client: the engine's wait, and what `Claims` and the session do below it.

use crate::world::{Command, Message, Owner, Session};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    /// An attempt is on its way; a grant may come by message before its answer. It may have been given up already.
    Asking {
        unheard: Option<u8>,
        given_up: bool,
    },
    Queued,
    Held(u8),
    Withdrawing,
    /// Released, or withdrawn, and told so.
    Done,
    /// Held until the session ended: what is left at the server is dead, and goes with whoever meets it.
    Lost,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) number: Owner,
    pub(crate) phase: Phase,
    pub(crate) session: Session,
    /// Whether the session's lease lasts, on the client's own clock and knowledge.
    pub(crate) lease: bool,
    pub(crate) ticks: u8,
}

impl Client {
    pub(crate) fn new(number: Owner) -> Self {
        Self {
            number,
            phase: Phase::Idle,
            session: 2 * number,
            lease: true,
            ticks: 0,
        }
    }

    /// What a message does; a command that is sent because of it.
    pub(crate) fn hear(&mut self, session: Session, message: Message) -> Option<Command> {
        // A session that is over has no ears.
        if self.session != session || !self.lease || self.phase == Phase::Crashed {
            return None;
        }
        match (message, self.phase) {
            (Message::Closed | Message::SessionEnded, _) => {
                self.lease_ends();
                None
            }
            (Message::Grant(token), Phase::Asking { given_up, .. }) => {
                self.phase = Phase::Asking {
                    unheard: Some(token),
                    given_up,
                };
                None
            }
            (Message::Granted(_) | Message::Contended, Phase::Asking { given_up: true, .. }) => {
                Some(self.withdraw())
            }
            (Message::Grant(token), Phase::Queued)
            | (Message::Granted(token), Phase::Asking { .. })
            | (
                Message::Contended,
                Phase::Asking {
                    unheard: Some(token),
                    ..
                },
            ) => {
                self.phase = Phase::Held(token);
                None
            }
            (Message::Contended, Phase::Asking { .. }) => {
                self.phase = Phase::Queued;
                None
            }
            (Message::Released, Phase::Withdrawing) => {
                self.phase = Phase::Done;
                None
            }
            _ => None,
        }
    }

    pub(crate) fn ask(&mut self) -> Command {
        self.phase = Phase::Asking {
            unheard: None,
            given_up: false,
        };
        Command::Acquire(self.number)
    }

    pub(crate) fn withdraw(&mut self) -> Command {
        self.phase = Phase::Withdrawing;
        Command::Release(self.number)
    }

    /// The caller goes away. An attempt in flight is seen out first.
    pub(crate) fn give_up(&mut self) -> Option<Command> {
        if let Phase::Asking { unheard, .. } = self.phase {
            self.phase = Phase::Asking {
                unheard,
                given_up: true,
            };
            return None;
        }
        Some(self.withdraw())
    }

    pub(crate) fn lease_ends(&mut self) {
        self.lease = false;
        if let Phase::Held(_) = self.phase {
            self.phase = Phase::Lost;
        }
    }

    /// What is asked again, for the same owner, in a new session.
    pub(crate) fn take_up(&mut self) -> Option<Command> {
        match self.phase {
            Phase::Asking { given_up: true, .. } | Phase::Withdrawing => Some(self.withdraw()),
            Phase::Asking { .. } | Phase::Queued => Some(self.ask()),
            _ => None,
        }
    }
}
