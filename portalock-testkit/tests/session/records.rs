//! What the service knows, as Redis or Postgres keep it, and what it does with a request.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use portalock_core::{
    BackendError, BackendErrorKind, FencingToken, Holder, Marked, OwnerId, clock, clock::Instant,
};

pub(crate) const LEASE: Duration = Duration::from_millis(900);

/// A place in a lock's queue. Those at the front hold.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) place: Arc<str>,
    pub(crate) owner: OwnerId,
    pub(crate) session: u64,
    pub(crate) shared: bool,
    pub(crate) token: Option<FencingToken>,
    pub(crate) held: bool,
}

#[derive(Debug, Clone)]
struct Mark {
    session: u64,
    by: Holder,
    /// Until then its holder may rely on the lock without knowing of the mark.
    relies_until: Instant,
}

/// What the service tells a session.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Granted(Arc<str>, OwnerId, FencingToken),
    RenewNow,
}

/// What the service knows. An empty queue stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    sessions: HashMap<u64, Instant>,
    queues: HashMap<Arc<str>, Vec<Claim>>,
    last_token: u64,
    refused: HashSet<Arc<str>>,
    marks: HashMap<Arc<str>, Mark>,
    /// After a failover nobody is granted until all who may still rely on a lock have renewed.
    grants_from: Option<Instant>,
    news: Vec<(u64, News)>,
}

/// Greater than all before, also after a failover to an older state.
fn next_token(last: &mut u64) -> FencingToken {
    *last = (*last + 1).max(clock::wall_clock_micros());
    FencingToken::new(*last)
}

pub(crate) fn away(message: &'static str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, message)
}

impl Records {
    /// Ends the sessions whose lease is over.
    pub(crate) fn expire(&mut self) {
        let now = Instant::now();
        self.sessions.retain(|_, ends| *ends > now);
        let names: Vec<_> = self.queues.keys().cloned().collect();
        for name in names {
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.retain(|claim| self.sessions.contains_key(&claim.session));
            }
            self.serve(&name);
        }
    }

    /// Grants the lock to those at the front.
    fn serve(&mut self, name: &str) {
        if self.grants_from.is_some_and(|from| Instant::now() < from) {
            return;
        }
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        for at in 0..queue.len() {
            let (ahead, rest) = queue.split_at_mut(at);
            let claim = &mut rest[0];
            let fits = ahead.iter().all(|other| other.shared && claim.shared);
            if !fits {
                return;
            }
            if !claim.held {
                let new = || next_token(&mut self.last_token);
                let token = *claim.token.get_or_insert_with(new);
                claim.held = true;
                let news = News::Granted(claim.place.clone(), claim.owner, token);
                self.news.push((claim.session, news));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.values().all(Vec::is_empty)
    }

    pub(crate) fn take_news(&mut self) -> Vec<(u64, News)> {
        std::mem::take(&mut self.news)
    }

    /// Goes on where a server was that knew more. As with the backends, it extends all sessions, grants nothing for as long as somebody
    /// may rely on a lock, and knows what was refused.
    pub(crate) fn take_over_from(&mut self, former: Self) {
        self.refused = former.refused;
        self.last_token = former.last_token;
        self.grants_from = Some(Instant::now() + LEASE);
        self.news.clear();
        for ends in self.sessions.values_mut() {
            *ends = Instant::now() + LEASE;
        }
    }

    pub(crate) fn begin(&mut self, session: u64, former: Option<u64>) {
        if let Some(former) = former {
            self.end(former);
        }
        self.sessions.insert(session, Instant::now() + LEASE);
    }

    pub(crate) fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.expire();
    }

    pub(crate) fn lives(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Renews a session, and returns the marks of its places, if it still lives.
    pub(crate) fn renew(&mut self, session: u64) -> Option<Vec<(Arc<str>, Holder)>> {
        *self.sessions.get_mut(&session)? = Instant::now() + LEASE;
        let marks = self
            .marks
            .iter()
            .filter(|(_, mark)| mark.session == session);
        Some(
            marks
                .map(|(place, mark)| (place.clone(), mark.by.clone()))
                .collect(),
        )
    }

    pub(crate) fn heed(&mut self, marks: &[Arc<str>]) {
        self.marks.retain(|place, _| !marks.contains(place));
    }

    pub(crate) fn queue(&self, name: &str) -> &[Claim] {
        self.queues.get(name).map_or(&[], Vec::as_slice)
    }

    /// The claims of a session, each with the name of its lock.
    pub(crate) fn claims_of(&self, session: u64) -> Vec<(Arc<str>, Claim)> {
        let all = self
            .queues
            .iter()
            .flat_map(|(name, queue)| queue.iter().map(move |claim| (name.clone(), claim.clone())));
        all.filter(|(_, claim)| claim.session == session).collect()
    }

    /// Enters a claim, unless it is there or its place was refused, and returns what came of it. If the claim ahead is of the same
    /// session, that is returned too: the session can hand the lock on by itself, with the token that the new claim has already.
    pub(crate) fn enter(
        &mut self,
        name: &Arc<str>,
        new: Claim,
        queues: bool,
    ) -> Option<(Claim, Option<Claim>)> {
        if self.refused.contains(&new.place) {
            return None;
        }
        let place = new.place.clone();
        let queue = self.queues.entry(name.clone()).or_default();
        if !queue.iter().any(|claim| claim.place == place) {
            queue.push(new);
            self.serve(name);
            // The caller hears of it by the answer.
            self.news.pop_if(
                |(_, news)| matches!(news, News::Granted(granted, ..) if *granted == place),
            );
        }
        let queue = self.queues.get_mut(name)?;
        let at = queue.iter().position(|claim| claim.place == place)?;
        if !queue[at].held && !queues {
            queue.remove(at);
            return None;
        }
        let (ahead, rest) = queue.split_at_mut(at);
        let (ahead, claim) = (ahead.last(), &mut rest[0]);
        let ahead = ahead.filter(|ahead| {
            !claim.held
                && !claim.shared
                && !ahead.shared
                && ahead.session == claim.session
                && ahead.token.is_some()
        });
        if ahead.is_some() && claim.token.is_none() {
            claim.token = Some(next_token(&mut self.last_token));
        }
        Some((claim.clone(), ahead.cloned()))
    }

    /// Removes a claim, and says whether it was held. If a request for it may still come, that is refused from now on.
    pub(crate) fn leave(&mut self, name: &str, place: &Arc<str>, unsure: bool) -> bool {
        if unsure {
            self.refused.insert(place.clone());
        }
        self.marks.remove(place);
        let Some(queue) = self.queues.get_mut(name) else {
            return false;
        };
        let Some(at) = queue.iter().position(|claim| claim.place == *place) else {
            return false;
        };
        let held = queue.remove(at).held;
        self.serve(name);
        held
    }

    fn held_by(&self, name: &str, owner: OwnerId) -> Option<&Claim> {
        let mut queue = self.queue(name).iter();
        queue.find(|claim| claim.owner == owner && claim.held)
    }

    pub(crate) fn mark(&mut self, name: &str, owner: OwnerId, by: Holder) -> Option<Marked> {
        let claim = self.held_by(name, owner)?.clone();
        let hold = claim.token?.get();
        let relies_until = *self.sessions.get(&claim.session)?;
        self.marks.entry(claim.place).or_insert(Mark {
            session: claim.session,
            by,
            relies_until,
        });
        self.news.push((claim.session, News::RenewNow));
        let relies_for = relies_until.saturating_duration_since(Instant::now());
        Some(Marked::new(relies_for, hold))
    }

    /// Removes what a marked holder holds with this token, and says whether it held it.
    pub(crate) fn evict(
        &mut self,
        name: &str,
        owner: OwnerId,
        token: u64,
    ) -> Result<bool, BackendError> {
        let token = Some(FencingToken::new(token));
        let held = self.held_by(name, owner).cloned();
        let Some(claim) = held.filter(|claim| claim.token == token) else {
            return Ok(false);
        };
        let mark = self.marks.get(&claim.place);
        if mark.is_none_or(|mark| mark.relies_until > Instant::now()) {
            return Err(away("it may still rely on the lock"));
        }
        Ok(self.leave(name, &claim.place, false))
    }
}
