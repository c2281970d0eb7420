//! What this client has at the server, and who is to be told what becomes of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portalock_core::{
    BackendError, FencingToken, Grant, Lease, Loss, LostSignal, OwnerId, WakeSender, Wakeups,
    wakeups,
};

use crate::keys::Named;

/// The claims of one backend object, by owner. Every claim belongs to a session and goes with it.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<HashMap<OwnerId, Claim>>);

/// There are as many as locks are held: what only those need who wait lies apart.
#[derive(Debug)]
struct Claim {
    session: Arc<str>,
    named: Named,
    phase: Phase,
    /// The number of the session's stamp that the latest request without an answer was sent with; 0 if all were answered. Such
    /// a request may still arrive, as long as the session has no later stamp.
    unanswered: u64,
    waiting: Option<Box<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Where the waiter listens, once it does.
    line: Option<WakeSender>,
    /// A grant that came before the waiter listened.
    unheard: Option<Grant>,
    /// A grant may have been told to a connection that was gone, before the waiter listened.
    looks: bool,
    /// What it was granted was broken before it heard of the grant.
    broken: Option<Loss>,
}

#[derive(Debug)]
enum Phase {
    /// Asked for, or in the queue.
    Asked,
    /// Granted. The lease ends if somebody removes the claim from the server.
    Held(Lease),
    /// A release is on its way: that the claim is missing at the server means nothing any more.
    Releasing,
    /// A release failed or was dropped: the session tries again.
    Due,
}

/// A claim that is held, by its owner.
pub(crate) type HeldClaim = (OwnerId, Named);

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, Claim>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt for `owner` is about to be sent, with the session's stamp of this number: from now on a grant may come.
    ///
    /// Answers what [`answered`](Self::answered) must be told when it has been.
    pub(crate) fn expect(
        &self,
        owner: OwnerId,
        session: &Arc<str>,
        named: &Named,
        stamp: u64,
    ) -> u64 {
        let mut claims = self.lock();
        let claim = claims.entry(owner).or_insert_with(|| Claim {
            session: session.clone(),
            named: named.clone(),
            phase: Phase::Asked,
            unanswered: 0,
            waiting: None,
        });
        if matches!(claim.phase, Phase::Due) {
            // Whoever asks again for an owner will release it again.
            claim.phase = Phase::Asked;
        }
        if claim.session != *session {
            claim.session = session.clone();
            claim.phase = Phase::Asked;
            // What was sent in another session is void with that session.
            claim.unanswered = 0;
            if let Some(waiting) = &mut claim.waiting {
                waiting.unheard = None;
            }
        }
        std::mem::replace(&mut claim.unanswered, stamp)
    }

    /// The attempt that [`expect`](Self::expect) announced has been answered, and was sent but once.
    pub(crate) fn answered(&self, owner: OwnerId, before: u64) {
        if let Some(claim) = self.lock().get_mut(&owner) {
            claim.unanswered = before;
        }
    }

    /// Whether a request of `owner` may still arrive at the session while it has the stamp of this number.
    pub(crate) fn may_arrive(&self, owner: OwnerId, session: &str, stamp: u64) -> bool {
        self.lock()
            .get(&owner)
            .is_some_and(|claim| *claim.session == *session && claim.unanswered >= stamp)
    }

    /// The owner has been granted, as an answer says: what it is given.
    pub(crate) fn hold(&self, owner: OwnerId, token: FencingToken, session: &LostSignal) -> Grant {
        match self.lock().get_mut(&owner) {
            Some(claim) => claim.hold(token, session),
            // Its session has ended meanwhile, and says so.
            None => Grant::new().with_token(token).with_lost(session.clone()),
        }
    }

    /// The owner has been granted, as a message says.
    ///
    /// A claim that is gone was released, before the grant or after it: nothing has to be given back. One whose waiter has
    /// stopped listening is about to be released.
    pub(crate) fn granted(&self, owner: OwnerId, token: FencingToken, session: &LostSignal) {
        if let Some(claim) = self.lock().get_mut(&owner) {
            let grant = claim.hold(token, session);
            let waiting = claim.waiting();
            match &waiting.line {
                Some(line) => drop(line.grant(grant)),
                None => waiting.unheard = Some(grant),
            }
        }
    }

    /// The grant that came for `owner` while nobody listened.
    pub(crate) fn take_unheard(&self, owner: OwnerId) -> Option<Grant> {
        let mut claims = self.lock();
        claims.get_mut(&owner)?.waiting.as_mut()?.unheard.take()
    }

    /// Opens the line of a waiter. `None` if its session has ended.
    pub(crate) fn listen(&self, owner: OwnerId) -> Option<Wakeups> {
        let mut claims = self.lock();
        let waiting = claims.get_mut(&owner)?.waiting();
        let (sender, line) = wakeups();
        if let Some(grant) = waiting.unheard.take() {
            sender.grant(grant);
        }
        if std::mem::take(&mut waiting.looks) {
            sender.wake();
        }
        waiting.line = Some(sender);
        Some(line)
    }

    /// Waiting has failed for this owner alone.
    pub(crate) fn failed(&self, owner: OwnerId, error: BackendError) {
        if let Some(line) = self.lock().get(&owner).and_then(Claim::line) {
            line.fail(error);
        }
    }

    /// The owner is the last in its queue: it should look.
    pub(crate) fn last(&self, owner: OwnerId) {
        if let Some(claim) = self.lock().get(&owner)
            && let (Phase::Asked, Some(line)) = (&claim.phase, claim.line())
        {
            line.wake();
        }
    }

    /// The session was without a connection for a while: whoever waits in it looks whether it has been granted meanwhile.
    pub(crate) fn look_again(&self, session: &str) {
        for claim in self.lock().values_mut() {
            if *claim.session != *session || !matches!(claim.phase, Phase::Asked) {
                continue;
            }
            let waiting = claim.waiting();
            match &waiting.line {
                Some(line) => drop(line.wake()),
                None => waiting.looks = true,
            }
        }
    }

    /// A release of `owner` is about to be sent. It is due again when the returned value is dropped.
    pub(crate) fn releasing(&self, owner: OwnerId) -> Releasing<'_> {
        if let Some(claim) = self.lock().get_mut(&owner) {
            claim.phase = Phase::Releasing;
        }
        Releasing {
            claims: self,
            owner,
        }
    }

    /// What is to be released, by nobody but the session.
    pub(crate) fn due(&self, session: &str) -> Vec<HeldClaim> {
        self.select(session, |claim| matches!(claim.phase, Phase::Due))
    }

    /// Whether `owner` has, or asks for, anything: if not, nothing of it should be left at the server.
    pub(crate) fn knows(&self, owner: OwnerId) -> bool {
        self.lock().contains_key(&owner)
    }

    /// The server keeps nothing of `owner` any more.
    pub(crate) fn forget(&self, owner: OwnerId) {
        self.lock().remove(&owner);
    }

    /// Somebody has removed the claim of `owner` from the server.
    pub(crate) fn removed(&self, owner: OwnerId) {
        let mut claims = self.lock();
        if let Some(Phase::Held(lease)) = claims.get(&owner).map(|claim| &claim.phase) {
            lease.end(Loss::Removed("its claim in Redis is gone".into()));
            claims.remove(&owner);
        }
    }

    /// Somebody breaks what `owner` holds: its guard is told. What is to be given back, if there is anything of it.
    pub(crate) fn broken(&self, owner: OwnerId, loss: &Loss) -> Option<Named> {
        let mut claims = self.lock();
        let claim = claims.get_mut(&owner)?;
        match &claim.phase {
            Phase::Held(lease) => {
                lease.end(loss.clone());
                claim.phase = Phase::Releasing;
            }
            Phase::Asked => claim.waiting().broken = Some(loss.clone()),
            Phase::Releasing | Phase::Due => {}
        }
        Some(claim.named.clone())
    }

    /// A session has ended, and all of its claims with it: their waiters are told `error`.
    pub(crate) fn session_ended(&self, session: &str, error: &BackendError) {
        self.lock().retain(|_, claim| {
            if *claim.session != *session {
                return true;
            }
            if let Some(line) = claim.line() {
                line.fail(error.clone());
            }
            false
        });
    }

    /// Everything that a session has at the server.
    pub(crate) fn of_session(&self, session: &str) -> Vec<HeldClaim> {
        self.select(session, |_| true)
    }

    /// What a session holds, and means to go on holding.
    pub(crate) fn held_by(&self, session: &str) -> Vec<HeldClaim> {
        self.select(session, |claim| matches!(claim.phase, Phase::Held(_)))
    }

    fn select(&self, session: &str, which: impl Fn(&Claim) -> bool) -> Vec<HeldClaim> {
        self.lock()
            .iter()
            .filter(|(_, claim)| *claim.session == *session && which(claim))
            .map(|(owner, claim)| (*owner, claim.named.clone()))
            .collect()
    }
}

impl Claim {
    fn line(&self) -> Option<&WakeSender> {
        self.waiting.as_ref()?.line.as_ref()
    }

    fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    fn hold(&mut self, token: FencingToken, session: &LostSignal) -> Grant {
        let lease = match &self.phase {
            Phase::Held(lease) => lease.clone(),
            Phase::Asked | Phase::Releasing | Phase::Due => Lease::unbounded(),
        };
        if let Some(loss) = self
            .waiting
            .as_mut()
            .and_then(|waiting| waiting.broken.take())
        {
            lease.end(loss);
        }
        let lost = LostSignal::any([session.clone(), lease.signal()]);
        if matches!(self.phase, Phase::Asked | Phase::Held(_)) {
            self.phase = Phase::Held(lease);
        }
        Grant::new().with_token(token).with_lost(lost)
    }
}

/// A release under way.
#[must_use = "dropping it leaves the release to the session"]
pub(crate) struct Releasing<'c> {
    claims: &'c Claims,
    owner: OwnerId,
}

impl Releasing<'_> {
    /// The server keeps nothing of the owner any more.
    pub(crate) fn done(self) {
        self.claims.forget(self.owner);
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        // One that is done is no longer there.
        if let Some(claim) = self.claims.lock().get_mut(&self.owner)
            && matches!(claim.phase, Phase::Releasing)
        {
            claim.phase = Phase::Due;
        }
    }
}

#[cfg(test)]
mod tests;
