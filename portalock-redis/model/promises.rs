//! What must hold in each state of the model.

use crate::{
    client::{Client, Phase},
    world::{CAPACITY, Form, Rules, World},
};

impl World {
    /// The violated promise in this state, if there is one.
    pub(crate) fn violation(&self, rules: Rules) -> Option<String> {
        if self.server.token_fell || self.held_fell {
            return Some("a token was granted twice or fell".to_owned());
        }
        self.exclusion(rules).or_else(|| {
            self.is_quiet(rules)
                .then(|| self.forgotten(rules).or_else(|| self.leftovers(rules)))
                .flatten()
        })
    }

    /// All clients that rely on a lock fit together. Without notice, this is promised only for clients whose session is
    /// alive at the server.
    fn exclusion(&self, rules: Rules) -> Option<String> {
        let believers: Vec<&Client> = self
            .clients
            .iter()
            .filter(|client| matches!(client.phase, Phase::Held(_)) && client.lease)
            .filter(|client| {
                rules.form == Form::Default || self.server.lives(client.session, rules)
            })
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

    /// No waiter is stuck: the first living waiter can't be granted, or one check by any client grants it. A brief check
    /// need not, unless all waiters behind have died.
    fn forgotten(&self, rules: Rules) -> Option<String> {
        let server = &self.server;
        if let Some((owner, session, _)) = server.queue.first()
            && server.lives(session, rules)
            && server.fits_untouched(owner, rules)
        {
            return Some(format!("{owner} is forgotten: it could be granted"));
        }
        for client in &self.clients {
            if client.phase != Phase::Queued
                || !client.lease
                || !server.lives(client.session, rules)
            {
                continue;
            }
            let place = (client.number, client.session);
            if server.holders.iter().any(|claim| claim.0 == client.number) {
                return Some(format!("{} holds and does not know it", client.number));
            }
            if !server
                .queue
                .iter()
                .any(|waiter| (waiter.0, waiter.1) == place)
            {
                return Some(format!("{} is forgotten: it has no place", client.number));
            }
            let mut behind = server
                .queue
                .iter()
                .skip_while(|waiter| waiter.0 != client.number);
            behind.next();
            let rules = Rules {
                brief: rules.brief && behind.all(|waiter| !server.lives(waiter.1, rules)),
                ..rules
            };
            let mut after = *server;
            let stamp = after.stamps[usize::from(client.session)];
            let mut told = Vec::new();
            after.acquire(client.number, (client.session, stamp), rules, &mut told);
            let still_waits = !after.holders.iter().any(|claim| claim.0 == client.number);
            if let Some((owner, session, _)) = after.queue.first()
                && still_waits
                && (!after.lives(session, rules) || after.fits_the_living(owner, rules))
            {
                return Some(format!("{owner} is forgotten even by who looks"));
            }
        }
        None
    }

    /// Each claim is known to its client, and nothing is left of clients that have ended.
    fn leftovers(&self, rules: Rules) -> Option<String> {
        for (owner, session, token) in self.server.holders.iter() {
            let client = &self.clients[usize::from(owner)];
            if self.was_promoted && client.phase.is_over() {
                continue;
            }
            if client.phase == Phase::Done {
                return Some(format!("a grant of {owner} is left behind"));
            }
            let knows = client.session == session && client.phase == Phase::Held(token);
            if self.server.lives(session, rules) && client.lease && !knows {
                return Some(format!("{owner} holds and does not know it"));
            }
        }
        self.server
            .queue
            .iter()
            .filter(|_| !self.was_promoted)
            .find(|(owner, ..)| self.clients[usize::from(*owner)].phase == Phase::Done)
            .map(|(owner, ..)| format!("a place of {owner} is left behind"))
    }
}
