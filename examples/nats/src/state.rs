//! The state of one lock, as its key contains it. Each change is a function of the last state, so that it can be
//! repeated.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use portalock_core::{
    ClaimKind, FencingToken, Holder, Inspection,
    session::{Entered, Stand},
};
use serde::{Deserialize, Serialize};

/// The holders and waiters of a lock, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    last: Option<u64>,
    holders: Vec<Claim>,
    queue: Vec<Claim>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The place's name.
    pub(crate) place: Arc<str>,
    pub(crate) session: Arc<str>,
    pub(crate) shared: bool,
    token: Option<u64>,
    host: Arc<str>,
    pid: u32,
    label: Option<Arc<str>>,
    since: Duration,
}

impl Claim {
    pub(crate) fn new(place: &Arc<str>, session: &Arc<str>, shared: bool, who: &Holder) -> Self {
        Self {
            place: place.clone(),
            session: session.clone(),
            shared,
            token: None,
            host: who.host.clone(),
            pid: who.pid,
            label: who.label.clone(),
            since: since_epoch(who.since),
        }
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token.map(FencingToken::new)
    }

    fn holder(&self) -> Holder {
        let since = UNIX_EPOCH.checked_add(self.since).unwrap_or(UNIX_EPOCH);
        Holder::new(self.host.clone(), self.pid, self.label.clone(), since)
    }
}

impl State {
    /// Makes one attempt. True if the state has changed.
    pub(crate) fn enter(&mut self, claim: Claim, queues: bool) -> (Entered, bool) {
        let place = claim.place.clone();
        match self.stand(&place) {
            Stand::Gone => self.queue.push(claim),
            Stand::Held(token) => return (Entered::Granted(token), false),
            _ => return (self.queued(), false),
        }
        self.serve();
        match self.stand(&place) {
            Stand::Held(token) => (Entered::Granted(token), true),
            _ if queues => (self.queued(), true),
            _ => {
                self.queue.pop();
                (Entered::Refused(self.holder()), false)
            }
        }
    }

    /// Removes the claims that `which` selects, and grants to the next waiters. True if one of the removed claims was a
    /// hold.
    pub(crate) fn leave(&mut self, which: impl Fn(&Claim) -> bool) -> bool {
        let held = self.holders.iter().any(&which);
        self.holders.retain(|claim| !which(claim));
        self.queue.retain(|claim| !which(claim));
        self.serve();
        held
    }

    /// Grants to the head of the queue, as long as it fits.
    fn serve(&mut self) {
        while let Some(next) = self.queue.first()
            && (self.holders.is_empty() || next.shared && self.holders.iter().all(|it| it.shared))
        {
            let mut next = self.queue.remove(0);
            let token = FencingToken::after(self.last.map(FencingToken::new)).get();
            self.last = Some(token);
            next.token = Some(token);
            next.since = since_epoch(next.holder().since_now().since);
            self.holders.push(next);
        }
    }

    /// The state of a place.
    pub(crate) fn stand(&self, place: &str) -> Stand {
        let is_of = |claim: &&Claim| *claim.place == *place;
        match self.claims().find(is_of) {
            Some(claim) => claim.token().map_or(Stand::Waits, Stand::Held),
            None => Stand::Gone,
        }
    }

    pub(crate) fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.holders.iter().chain(&self.queue)
    }

    fn queued(&self) -> Entered {
        Entered::Queued {
            holder: self.holder(),
            look_in: None,
        }
    }

    fn holder(&self) -> Option<Holder> {
        self.holders.first().map(Claim::holder)
    }

    pub(crate) fn inspection(&self) -> Inspection {
        let claim = |claim: &Claim| {
            let kind = if claim.shared {
                ClaimKind::Shared
            } else {
                ClaimKind::Exclusive
            };
            let known = portalock_core::Claim::new(claim.holder(), kind);
            match claim.token() {
                Some(token) => known.with_token(token),
                None => known,
            }
        };
        let holders = self.holders.iter().map(claim).collect();
        Inspection::new(holders, self.queue.iter().map(claim).collect())
            .with_last_token(self.last.map(FencingToken::new))
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
