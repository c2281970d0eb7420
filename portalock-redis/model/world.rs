//! The whole model: a server, three clients, and the connections between them.

use std::ops::Range;

use crate::{
    client::{Client, Phase},
    server::Server,
};

pub(crate) const CLIENTS: u8 = 3;
/// Each client can start a second session after its first.
pub(crate) const SESSIONS: u8 = 2 * CLIENTS;
/// The capacity of the lock.
pub(crate) const CAPACITY: u8 = 2;

/// Each client makes one acquisition, and its owner is the client's number.
pub(crate) type Owner = u8;
pub(crate) type Session = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A session is alive as long as its key exists.
    Default,
    /// A session is alive as long as its key and its connection exist.
    WithoutNotice,
}

/// A flaw that is added on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    GrantsBesideHolders,
    ServesNobody,
    CancelServesNobody,
    GrantsToTheDead,
    /// A waiter leaves the check of the holders to a last waiter that has died.
    LeavesItToTheDead,
    HearsTheDead,
    RepeatsTokens,
    ForgetsTooEarly,
    /// A session of the default form ends with its connection.
    FreesWithTheConnection,
    KeepsAStaleShape,
    /// A command of an old connection can take effect.
    IgnoresStamps,
    WithdrawsWhatMayArrive,
    /// A session that the server has forgotten continues.
    ResumesTheForgotten,
    /// No client checks for grants whose message was lost.
    ForgetsToLook,
    /// The owner of an attempt learns of its grant from the answer alone.
    TellsOnlyTheOthers,
    /// A server that lost its data lets new clients in at once.
    NoWaitAfterARestart,
    /// A promoted replica grants at once.
    NoWaitAfterAPromotion,
    /// A token that a waiter gets is not the last token of the state.
    ForgetsTokensOfWaiters,
    /// A waiter takes over when the owner ahead gives up, although that one never held.
    FollowsWhoGivesUp,
    /// A release of a waiter also frees the holder ahead.
    FreesTheHolderAhead,
    /// A waiter takes over from a holder of its session, although others wait between them.
    FollowsAcrossOthers,
    /// A reconnect leaves the turns of waiters.
    KeepsTurns,
    /// A check finds only holders that the server has granted.
    SeesNoTurns,
    /// A refresh extends a session although its lock is marked as broken.
    IgnoresMarks,
    /// A hold is ended by force when the time of the first mark has passed, even if that mark was lost.
    CountsFromTheFirstMark,
}

/// An operator, who may break the lock of the first client once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operator {
    Idle,
    /// Has marked the hold, and waits. The client may have refreshed its session since that.
    Waits {
        refreshed: bool,
    },
    Done,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a thing that may happen or not"
)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) form: Form,
    /// The weight of each client. A client without a weight does nothing.
    pub(crate) weights: [u8; 3],
    pub(crate) flaw: Flaw,
    /// The total number of faults.
    pub(crate) faults: u8,
    /// How often each waiter may check on its own.
    pub(crate) ticks: u8,
    /// Whether a caller may stop waiting.
    pub(crate) gives_up: bool,
    /// Whether a client whose session has ended starts another.
    pub(crate) begins: bool,
    /// Whether connections may break, processes crash, and the server restart.
    pub(crate) cuts: bool,
    /// Whether a replica may be promoted.
    pub(crate) promotes: bool,
    /// The number of clients that are owners in one session, each with its own connection for calls.
    pub(crate) neighbours: u8,
    /// Whether an operator breaks a lock.
    pub(crate) breaks: bool,
    /// Whether a waiter that is not the last only checks that the last is alive. Some of its checks do more.
    pub(crate) brief: bool,
}

impl Rules {
    pub(crate) fn weight(self, owner: Owner) -> u8 {
        self.weights[usize::from(owner)]
    }

    /// The clients whose owner is in this session.
    pub(crate) fn members(self, session: Session) -> Range<usize> {
        let first = session / 2;
        let members = if first == 0 { self.neighbours } else { 1 };
        usize::from(first)..usize::from(first + members)
    }

    /// Whether this client stands for its session.
    pub(crate) fn is_first(self, number: usize) -> bool {
        number == 0 || number >= usize::from(self.neighbours)
    }
}

/// A command from a client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// An attempt in a session, with its stamp.
    Acquire(Session, u8),
    /// Gives a session its next stamp.
    Raise(Session),
    /// A release, and the neighbour that holds from now on.
    Release(Option<Owner>),
}

/// An answer from the server, over the connection of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Granted(Session, u8),
    /// It waits; and if it has a token, the owner ahead and the token.
    Contended(Session, Option<(Owner, u8)>),
    Ended(Session),
    /// The attempt had an old stamp; this is the session's current one.
    Stale(Session, u8),
    /// The session's next stamp, if the session is alive.
    Raised(Session, Option<u8>),
    Released,
}

/// A message over the session's own connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum News {
    /// A grant, and the tokens of the waiters right behind it.
    Grant(Owner, u8, [Option<(Owner, u8)>; 2]),
    Closed,
}

/// The messages in flight, first in, first out. There are only a few, so a state is one plain value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Line<T>([Option<T>; 4]);

impl<T: Copy> Default for Line<T> {
    fn default() -> Self {
        Self([None; 4])
    }
}

impl<T: Copy> Line<T> {
    pub(crate) fn push(&mut self, item: T) {
        let free = self.0.iter_mut().find(|place| place.is_none());
        *free.unwrap() = Some(item);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let first = self.0[0].take();
        self.0.rotate_left(1);
        first
    }
}

/// A client's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Lines {
    /// Its commands. `down` has their answers.
    pub(crate) up: Line<Command>,
    pub(crate) down: Line<Answer>,
    /// Commands of old connections that may still reach the server.
    pub(crate) late: Line<Command>,
    pub(crate) news: Line<News>,
}

impl Lines {
    /// The connection of calls is gone. Its commands are lost, or arrive later.
    pub(crate) fn break_calls(&mut self, loses: bool) {
        while let Some(command) = self.up.pop() {
            if !loses {
                self.late.push(command);
            }
        }
        self.down = Line::default();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) server: Server,
    /// A replica that can be promoted: it has the server's data without the last write.
    pub(crate) replica: Option<Server>,
    /// The server was promoted, and no command that can grant reaches it yet.
    pub(crate) waits: bool,
    /// A release may have been lost in a promotion. The next attempt that finds the claim asks its client, which
    /// releases again.
    pub(crate) was_promoted: bool,
    pub(crate) clients: [Client; CLIENTS as usize],
    pub(crate) lines: [Lines; CLIENTS as usize],
    pub(crate) faults: u8,
    /// The largest token that a client held; and whether a later hold had none that was larger.
    held: u8,
    pub(crate) held_fell: bool,
    pub(crate) operator: Operator,
}

impl World {
    pub(crate) fn new(rules: Rules) -> Self {
        let session = |number: u8| {
            if number < rules.neighbours {
                0
            } else {
                2 * number
            }
        };
        Self {
            held: 0,
            held_fell: false,
            server: Server::new(),
            replica: rules.promotes.then(Server::new),
            waits: false,
            was_promoted: false,
            clients: [0, 1, 2].map(|number| Client::new(number, session(number))),
            lines: Default::default(),
            faults: 0,
            operator: if rules.breaks {
                Operator::Idle
            } else {
                Operator::Done
            },
        }
    }

    pub(crate) fn client_of(&self, session: Session) -> &Client {
        &self.clients[usize::from(session / 2)]
    }

    pub(crate) fn news(&mut self, session: Session) -> &mut Line<News> {
        &mut self.lines[usize::from(session / 2)].news
    }

    pub(crate) fn send(&mut self, number: usize, command: Option<Command>) {
        if let Some(command) = command {
            self.lines[number].up.push(command);
        }
    }

    /// A client acts, and sends the resulting command.
    pub(crate) fn act(&mut self, number: usize, act: impl FnOnce(&mut Client) -> Option<Command>) {
        let command = act(&mut self.clients[number]);
        self.send(number, command);
    }

    /// What a client learns of its session is known to all owners in it.
    pub(crate) fn share(&mut self, number: usize, rules: Rules) {
        let Client {
            session,
            stamp,
            lease,
            phase,
            ..
        } = self.clients[number];
        for member in rules.members(session) {
            let client = &mut self.clients[member];
            if !phase.is_over() {
                client.stamp = stamp;
            }
            if client.lease && !lease {
                client.lease_ends();
            }
        }
    }

    /// A client releases, and its neighbour may take over.
    pub(crate) fn withdraw(&mut self, number: usize, rules: Rules) {
        let client = &mut self.clients[number];
        client.passes_on =
            client.lease && (client.held().is_some() || rules.flaw == Flaw::FollowsWhoGivesUp);
        client.next = None;
        let next = self.pass_on(number, rules);
        self.act(number, |client| {
            client.next = next;
            Some(client.withdraw(rules))
        });
    }

    /// The waiter right behind a client that releases holds, if there is one.
    fn pass_on(&mut self, number: usize, rules: Rules) -> Option<Owner> {
        let Client {
            session, passes_on, ..
        } = self.clients[number];
        if !passes_on || !self.clients[number].lease {
            return None;
        }
        for member in rules.members(session) {
            let client = &mut self.clients[member];
            if let Some((ahead, token)) = client.turn
                && usize::from(ahead) == number
                && client.is_granted(token)
            {
                self.clients[number].passes_on = false;
                return Some(u8::try_from(member).unwrap());
            }
        }
        None
    }

    /// A waiter learns who is right ahead.
    pub(crate) fn follow(&mut self, number: usize, turn: Option<(Owner, u8)>, rules: Rules) {
        self.clients[number].turn = turn;
        if let Some((ahead, _)) = turn {
            self.pass_on(usize::from(ahead), rules);
        }
    }

    /// Records the holds that have begun since `before`. Shared holds have no order.
    pub(crate) fn note_holds(&mut self, before: &Self, rules: Rules) {
        if rules.form != Form::Default || rules.weights.contains(&1) {
            return;
        }
        for (client, was) in self.clients.iter().zip(&before.clients) {
            if let Phase::Held(token) = client.phase
                && client.phase != was.phase
                && was.phase != Phase::Lost
                && client.lease
            {
                self.held_fell |= token <= self.held;
                self.held = self.held.max(token);
            }
        }
    }

    pub(crate) fn forget_what_no_longer_counts(&mut self, rules: Rules) {
        self.waits &= !self.is_settled(rules);
        if self.was_promoted {
            // Only one promotion in a run.
            self.replica = None;
        }
        self.server.mark &= self.operator != Operator::Done;
        for (client, lines) in self.clients.iter_mut().zip(&mut self.lines) {
            client.forget_what_no_longer_counts();
            if client.phase.is_over() {
                lines.down = Line::default();
            }
        }
        for number in 0..self.clients.len() {
            let session = self.clients[number].session;
            if rules
                .members(session)
                .all(|member| self.clients[member].phase.is_over())
            {
                *self.news(session) = Line::default();
            }
        }
    }

    /// Each client that relied on a lock when the server was promoted now knows which locks the server lacks.
    fn is_settled(&self, rules: Rules) -> bool {
        let knows = |client: &Client| {
            !client.lease
                || client.phase.is_over()
                || rules.weight(client.number) == 0
                || self.server.subscribed[usize::from(client.session)]
        };
        self.clients.iter().all(knows)
    }

    /// No message is in flight, and every living session has its connection.
    pub(crate) fn is_quiet(&self, rules: Rules) -> bool {
        let connected = |client: &Client| {
            !client.lease
                || client.phase.is_over()
                || rules.weight(client.number) == 0
                || self.server.subscribed[usize::from(client.session)]
        };
        self.lines.iter().all(|lines| *lines == Lines::default())
            && self.clients.iter().all(connected)
    }
}
