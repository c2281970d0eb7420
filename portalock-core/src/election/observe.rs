//! Observers: each change of an election's leader.

use serde::{Deserialize, Serialize};

use crate::{
    Claim, ClaimKind, FencingToken, Holder, HolderWatch, Inspect, Inspection, Lock, LockBackend,
    LockError, Policy,
    clock::Instant,
    engine::{answer::answer, timer},
    settings::LONGEST,
};

/// One leader's term, as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Term {
    /// The leader, and since when it leads.
    pub leader: Holder,
    /// The term's token, if the backend has tokens. It grows from term to term.
    pub token: Option<FencingToken>,
}

impl Term {
    pub(super) fn of(seen: Inspection) -> Option<Self> {
        let last = seen.last_token;
        let claim = seen.holders.into_iter().find(leads)?;
        Some(Self {
            token: claim.token.or(last),
            leader: claim.holder,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self.token, other.token) {
            (Some(one), Some(two)) => one == two,
            _ => self == other,
        }
    }
}

impl From<Claim> for Term {
    fn from(claim: Claim) -> Self {
        Self {
            leader: claim.holder,
            token: claim.token,
        }
    }
}

fn leads(claim: &Claim) -> bool {
    claim.kind == ClaimKind::Exclusive
}

/// Watches an election. Created by [`Election::observe`](crate::Election::observe).
///
/// If the backend can watch ([`LockBackend::watch`]), the observer sees every term. Otherwise it polls once in each
/// check interval of the election's policy, and can miss a shorter term. If terms have tokens, the observer never goes
/// back to an earlier term.
#[derive(Debug)]
pub struct Observer<B> {
    lock: Lock<B>,
    watch: Option<HolderWatch>,
    /// When to poll, or to start a new watch.
    next_look: Option<Instant>,
    has_told: bool,
    /// The last term that was returned.
    told: Option<Term>,
    highest: Option<FencingToken>,
}

impl<B: LockBackend> Observer<B> {
    pub(super) fn new(lock: Lock<B>) -> Self {
        Self {
            lock,
            watch: None,
            next_look: None,
            has_told: false,
            told: None,
            highest: None,
        }
    }

    /// Returns the next change: the new term, or `None` if nobody leads. The first call returns the current state.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the backend can't report the holder; [`LockError::Backend`] if the service failed.
    /// The next call continues, after a pause.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Option<Term>, LockError> {
        ensure_tells(&self.lock)?;
        loop {
            let seen = self.change().await?;
            if self.is_news(seen.as_ref()) {
                self.highest = self.highest.max(seen.as_ref().and_then(|term| term.token));
                self.has_told = true;
                self.told.clone_from(&seen);
                return Ok(seen);
            }
        }
    }

    /// Waits until `term` is over.
    pub(super) async fn until_over(mut self, term: &Term) -> Result<(), LockError> {
        loop {
            match self.next().await {
                Ok(Some(now)) if now.is_same(term) => {}
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn change(&mut self) -> Result<Option<Term>, LockError> {
        loop {
            if let Some(watch) = &mut self.watch {
                match watch.next().await {
                    Some(claim) => return Ok(claim.filter(leads).map(Term::from)),
                    None => self.watch = None,
                }
            }
            if let Some(at) = self.next_look {
                timer::at(at).await;
            }
            let interval = self.lock.policy().check_interval();
            // A watch that fails or ends is followed soon by the next one.
            let soon = interval.min(Policy::DEFAULT_CHECK_INTERVAL);
            self.next_look = Instant::now().checked_add(soon);
            let (backend, name) = (self.lock.backend(), self.lock.name());
            self.watch = answer(name, backend.watch(name)).await?;
            if self.watch.is_none() {
                // A time that the clock can't count would read as no pause at all.
                self.next_look = Instant::now().checked_add(interval.min(LONGEST));
                return Ok(Term::of(answer(name, backend.inspect(name)).await?));
            }
        }
    }

    fn is_news(&self, seen: Option<&Term>) -> bool {
        match (&self.told, seen) {
            _ if !self.has_told => true,
            (told, None) => told.is_some(),
            (told, Some(seen)) => match (seen.token, self.highest) {
                // A smaller one is of an answer that was overtaken by a later one.
                (Some(token), Some(highest)) => token > highest,
                _ => told.as_ref().is_none_or(|told| !told.is_same(seen)),
            },
        }
    }
}

/// Checks that the backend can report the holder, which every observation of an election needs.
fn ensure_tells<B: LockBackend>(lock: &Lock<B>) -> Result<(), LockError> {
    if lock.backend().capabilities().inspect >= Inspect::Holders {
        return Ok(());
    }
    Err(LockError::Unsupported {
        what: "way to tell who holds a lock",
        instead: "choose a backend whose capabilities have `inspect`",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::wall_clock, memory::MemoryBackend};

    fn term(pid: u32, token: Option<u64>) -> Term {
        Term {
            leader: Holder::new("host", pid, None, wall_clock()),
            token: token.map(FencingToken::new),
        }
    }

    #[test]
    fn a_term_is_known_by_its_token_or_else_by_its_leader() {
        assert!(term(1, Some(7)).is_same(&term(2, Some(7))));
        let leader = term(1, None);
        assert!(!term(1, Some(7)).is_same(&Term {
            token: Some(FencingToken::new(8)),
            ..leader.clone()
        }));
        assert!(leader.is_same(&leader.clone()));
        assert!(!leader.is_same(&term(2, None)));
    }

    #[test]
    fn without_tokens_another_leader_is_news() {
        let mut observer = Observer::new(Lock::new(MemoryBackend::new(), "news").unwrap());
        let (one, two) = (term(1, None), term(2, None));
        assert!(observer.is_news(None), "the first state");
        observer.has_told = true;
        assert!(!observer.is_news(None));
        assert!(observer.is_news(Some(&one)));
        observer.told = Some(one.clone());
        assert!(!observer.is_news(Some(&one)));
        assert!(observer.is_news(Some(&two)));
        assert!(observer.is_news(None));
    }
}
