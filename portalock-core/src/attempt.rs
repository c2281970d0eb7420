//! What a backend answers: granted, contended, released, and who stands where.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{FencingToken, Holder, LostSignal, OwnerId};

/// The answer to one attempt.
#[derive(Debug)]
#[must_use = "a grant that nobody keeps must be released"]
pub enum Attempt {
    /// The owner holds the lock from now on.
    Granted(Grant),
    /// Somebody else holds it, or has the earlier place in the queue.
    Contended(Contention),
}

/// Ownership: what comes with it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Grant {
    /// The grant's fencing token, where the backend has tokens.
    pub token: Option<FencingToken>,
    /// Fires when this ownership is no longer certain.
    pub lost: LostSignal,
}

impl Grant {
    /// A grant without a token, that is never lost.
    pub const fn new() -> Self {
        Self {
            token: None,
            lost: LostSignal::never(),
        }
    }

    /// Sets the fencing token.
    #[must_use]
    pub fn with_token(mut self, token: FencingToken) -> Self {
        self.token = Some(token);
        self
    }

    /// Sets the signal that fires when this ownership ends unasked.
    #[must_use]
    pub fn with_lost(mut self, lost: LostSignal) -> Self {
        self.lost = lost;
        self
    }
}

/// What is known of those who are in the way.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Contention {
    /// One of those who hold the lock, where the backend can know.
    pub holder: Option<Holder>,
    /// Whether the request stands in the backend's queue and a wake-up is sure to come. The engine then sleeps without
    /// trying again first.
    pub queued: bool,
    /// When to try again if no wake-up has come. `None` leaves it to the caller's policy.
    pub recheck_after: Option<Duration>,
}

impl Contention {
    /// Contended, by nobody knows whom.
    pub const fn new() -> Self {
        Self {
            holder: None,
            queued: false,
            recheck_after: None,
        }
    }

    /// Names one of those who hold.
    #[must_use]
    pub fn with_holder(mut self, holder: Option<Holder>) -> Self {
        self.holder = holder;
        self
    }

    /// Sets [`queued`](Self::queued).
    #[must_use]
    pub const fn with_queued(mut self, queued: bool) -> Self {
        self.queued = queued;
        self
    }

    /// Sets [`recheck_after`](Self::recheck_after).
    #[must_use]
    pub const fn with_recheck_after(mut self, recheck_after: Duration) -> Self {
        self.recheck_after = Some(recheck_after);
        self
    }
}

/// What a release found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Released {
    /// The owner held; it no longer does.
    Freed,
    /// The owner did not hold: it waited, had already been released, was lost, or was never granted.
    NotHeld,
}

/// Who holds a name and who waits for it, at one moment that may have passed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Whether anyone holds it. True with an empty `holders` if the backend can't tell who.
    pub held: bool,
    /// Those who hold.
    pub holders: Vec<Claim>,
    /// Those who wait, the next one first. Empty where the backend does not know of waiters.
    pub waiters: Vec<Claim>,
    /// The last token that was granted, where the backend keeps it.
    pub last_token: Option<FencingToken>,
}

impl Inspection {
    /// What a look found: `held` follows from `holders`.
    pub fn new(holders: Vec<Claim>, waiters: Vec<Claim>) -> Self {
        Self {
            held: !holders.is_empty(),
            holders,
            waiters,
            last_token: None,
        }
    }

    /// Says that somebody holds, known or not.
    #[must_use]
    pub const fn with_held(mut self, held: bool) -> Self {
        self.held = held;
        self
    }

    /// Sets the last token that was granted.
    #[must_use]
    pub const fn with_last_token(mut self, token: Option<FencingToken>) -> Self {
        self.last_token = token;
        self
    }
}

/// One who holds or waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Claim {
    /// Who it is.
    pub holder: Holder,
    /// What it holds or wants.
    pub kind: ClaimKind,
    /// Which acquisition it is, if the backend tells: what [`Lock::break_holder`](crate::Lock::break_holder) asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerId>,
    /// The token of its grant, if it holds and the backend tells it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<FencingToken>,
}

impl Claim {
    /// `holder` holds, or waits for, `kind`.
    pub const fn new(holder: Holder, kind: ClaimKind) -> Self {
        Self {
            holder,
            kind,
            owner: None,
            token: None,
        }
    }

    /// Sets which acquisition it is.
    #[must_use]
    pub const fn with_owner(mut self, owner: OwnerId) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Sets the token of the grant.
    #[must_use]
    pub const fn with_token(mut self, token: FencingToken) -> Self {
        self.token = Some(token);
        self
    }
}

/// What a claim is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ClaimKind {
    /// The exclusive lock.
    Exclusive,
    /// A shared lock.
    Shared,
    /// That many permits of a semaphore.
    Permits(u32),
}

impl From<crate::Mode> for ClaimKind {
    fn from(mode: crate::Mode) -> Self {
        match mode {
            crate::Mode::Exclusive => Self::Exclusive,
            crate::Mode::Shared => Self::Shared,
        }
    }
}

impl From<crate::Permits> for ClaimKind {
    fn from(permits: crate::Permits) -> Self {
        Self::Permits(permits.count())
    }
}
