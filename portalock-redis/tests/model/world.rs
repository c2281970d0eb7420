//! What there is: a server, three clients, and the connections between them.

use crate::{
    client::{Client, Phase},
    server::Server,
};

pub(crate) const CLIENTS: u8 = 3;
/// Each client can open a second session after its first.
pub(crate) const SESSIONS: u8 = 2 * CLIENTS;
/// So much fits in beside each other.
pub(crate) const CAPACITY: u8 = 2;

/// One acquisition a client: its owner is the client's number.
pub(crate) type Owner = u8;
pub(crate) type Session = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Default,
    Strict,
}

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    GrantsBesideHolders,
    ServesNobody,
    CancelServesNobody,
    GrantsToTheDead,
    HearsTheDead,
    RepeatsTokens,
    ForgetsTooEarly,
    StrictIsNot,
    KeepsAStaleShape,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) form: Form,
    pub(crate) weights: [u8; 3],
    pub(crate) flaw: Flaw,
    /// How many faults may happen in all.
    pub(crate) faults: u8,
    /// How often each waiter may look by itself.
    pub(crate) ticks: u8,
    /// Whether a wait may be given up.
    pub(crate) gives_up: bool,
}

impl Rules {
    pub(crate) fn weight(self, owner: Owner) -> u8 {
        self.weights[usize::from(owner)]
    }
}

/// From a client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    Acquire(Owner),
    Release(Owner),
    /// The end of the connection: it comes after everything that was sent before it.
    End,
}

/// From the server to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    Granted(u8),
    Contended,
    SessionEnded,
    Released,
    /// The grant by message.
    Grant(u8),
    /// The connection was closed.
    Closed,
}

/// What is on its way, first in first out: at most a handful, so a state is one plain value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Line<T>([Option<T>; 5]);

impl<T: Copy> Default for Line<T> {
    fn default() -> Self {
        Self([None; 5])
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

    pub(crate) fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) clients: [Client; CLIENTS as usize],
    pub(crate) up: [Line<Command>; SESSIONS as usize],
    pub(crate) down: [Line<Message>; SESSIONS as usize],
    pub(crate) faults: u8,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            server: Server::new(),
            clients: [0, 1, 2].map(Client::new),
            up: Default::default(),
            down: Default::default(),
            faults: 0,
        }
    }

    pub(crate) fn client_of(&self, session: Session) -> &Client {
        &self.clients[usize::from(session / 2)]
    }

    pub(crate) fn send(&mut self, session: usize, command: Option<Command>) {
        if let Some(command) = command {
            self.up[session].push(command);
        }
    }

    /// A client acts, and sends what it has to send.
    pub(crate) fn act(&mut self, number: usize, act: impl FnOnce(&mut Client) -> Option<Command>) {
        let command = act(&mut self.clients[number]);
        self.send(usize::from(self.clients[number].session), command);
    }

    /// Nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.up.iter().all(Line::is_empty) && self.down.iter().all(Line::is_empty)
    }

    /// What is wrong with this state, if anything is.
    pub(crate) fn violation(&self, rules: Rules) -> Option<String> {
        self.exclusion(rules).or_else(|| {
            self.is_quiet()
                .then(|| self.forgotten(rules).or_else(|| self.leftovers(rules)))
                .flatten()
        })
    }

    /// Those who believe to hold fit together. By default that is promised of those whom the server takes for live.
    fn exclusion(&self, rules: Rules) -> Option<String> {
        let believers: Vec<&Client> = self
            .clients
            .iter()
            .filter(|client| matches!(client.phase, Phase::Held(_)) && client.lease)
            .filter(|client| rules.form == Form::Strict || self.server.keeps(client.session, rules))
            .collect();
        let weight: u8 = believers
            .iter()
            .map(|client| rules.weight(client.number))
            .sum();
        (weight > CAPACITY).then(|| {
            let numbers: Vec<_> = believers.iter().map(|client| client.number).collect();
            format!("clients {numbers:?} hold together")
        })
    }

    /// No waiter is stuck: the next one that lives either can't be granted, or one look of anybody grants it.
    fn forgotten(&self, rules: Rules) -> Option<String> {
        let server = &self.server;
        if let Some((owner, session)) = server.queue.first()
            && server.hears(session)
            && server.fits_untouched(owner, rules)
        {
            return Some(format!("{owner} is forgotten: it could be granted"));
        }
        for client in &self.clients {
            if client.phase != Phase::Queued || !client.lease || !server.hears(client.session) {
                continue;
            }
            let place = (client.number, client.session);
            if !server.queue.iter().any(|waiter| waiter == place) {
                return Some(format!("{} is forgotten: it has no place", client.number));
            }
            let mut after = *server;
            let mut told = Vec::new();
            after.acquire(client.number, client.session, rules, &mut told);
            if let Some((owner, session)) = after.queue.first()
                && (!after.hears(session) || after.fits_untouched(owner, rules))
            {
                return Some(format!("{owner} is forgotten even by who looks"));
            }
        }
        None
    }

    /// Nothing is held that nobody knows of, and nothing stays of what has ended.
    fn leftovers(&self, rules: Rules) -> Option<String> {
        for (owner, session, token) in self.server.holders.iter() {
            let client = self.client_of(session);
            if client.phase == Phase::Done {
                return Some(format!("a grant of {owner} is left behind"));
            }
            let knows = client.session == session && client.phase == Phase::Held(token);
            if self.server.keeps(session, rules) && client.lease && !knows {
                return Some(format!("{owner} holds and does not know it"));
            }
        }
        self.server
            .queue
            .iter()
            .find(|(_, session)| self.client_of(*session).phase == Phase::Done)
            .map(|(owner, _)| format!("a place of {owner} is left behind"))
    }
}
