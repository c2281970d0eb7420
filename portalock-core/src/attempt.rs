//! The answers of a backend: granted, contended, released, and the holders and waiters.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{FencingToken, Holder, LostSignal, OwnerId};

/// The answer to one attempt.
#[derive(Debug)]
#[must_use = "a grant that nobody keeps must be released"]
pub enum Attempt {
    /// The owner holds the lock from now on.
    Granted(Grant),
    /// Another owner holds the lock, or is ahead in the queue.
    Contended(Contention),
}

/// A grant of ownership.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Grant {
    /// The grant's fencing token, if the backend has tokens.
    pub token: Option<FencingToken>,
    /// Fires when the lock is lost.
    pub lost: LostSignal,
}

impl Grant {
    /// A grant without a token, which can't be lost.
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

    /// Sets the signal that fires when the lock is lost.
    #[must_use]
    pub fn with_lost(mut self, lost: LostSignal) -> Self {
        self.lost = lost;
        self
    }
}

/// What the backend knows about a contended lock.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Contention {
    /// One of the holders, if the backend knows it.
    pub holder: Option<Holder>,
    /// Whether the request has a place in the backend's queue and will get a wake-up. The engine then sleeps without a
    /// second attempt.
    pub queued: bool,
    /// When to try again if no wake-up has come. With `None` the caller's policy decides.
    pub recheck_after: Option<Duration>,
}

impl Contention {
    /// Contended, with an unknown holder.
    pub const fn new() -> Self {
        Self {
            holder: None,
            queued: false,
            recheck_after: None,
        }
    }

    /// Sets one of the holders.
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

/// The result of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Released {
    /// The owner held the lock, and no longer does.
    Freed,
    /// The owner did not hold the lock: it waited, was already released, had lost the lock, or was never granted.
    NotHeld,
}

/// A hold that is marked as broken: see [`LockBackend::mark_broken`](crate::LockBackend::mark_broken).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Marked {
    /// How long, from now on, the holder's client may still rely on the lock if it never learns of the mark.
    pub relies_for: Duration,
    /// The hold that has the mark. If the same owner holds the lock anew, that hold has another number. Where each
    /// grant has a fencing token, the token can be the number.
    pub hold: u64,
}

impl Marked {
    /// This hold is marked, and its client relies on it for at most this time.
    pub const fn new(relies_for: Duration, hold: u64) -> Self {
        Self { relies_for, hold }
    }

    /// The owner holds nothing, but this call may have marked a hold that has ended since: an earlier try of its request
    /// got no answer. The engine asks again, and then reports that the hold was broken.
    pub const fn has_ended() -> Self {
        Self::new(Duration::MAX, u64::MAX)
    }
}

/// The holders and waiters of a name, at one moment in the past.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Whether there is a holder. It can be true with empty `holders`, if the backend doesn't know the holder.
    pub held: bool,
    /// The holders.
    pub holders: Vec<Claim>,
    /// The waiters, in order. Empty if the backend doesn't know its waiters.
    pub waiters: Vec<Claim>,
    /// The last token that was granted, if the backend keeps it.
    pub last_token: Option<FencingToken>,
}

impl Inspection {
    /// An inspection with these holders and waiters. `held` is true if there are holders.
    pub fn new(holders: Vec<Claim>, waiters: Vec<Claim>) -> Self {
        Self {
            held: !holders.is_empty(),
            holders,
            waiters,
            last_token: None,
        }
    }

    /// Records that there is a holder, which may be unknown.
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

/// A holder or a waiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Claim {
    /// The process, for people.
    pub holder: Holder,
    /// What is held or wanted.
    pub kind: ClaimKind,
    /// The acquisition, if the backend knows it. [`Lock::break_holder`](crate::Lock::break_holder) needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerId>,
    /// The token of the grant, if the backend knows it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<FencingToken>,
}

impl Claim {
    /// A claim of `holder` to `kind`.
    pub const fn new(holder: Holder, kind: ClaimKind) -> Self {
        Self {
            holder,
            kind,
            owner: None,
            token: None,
        }
    }

    /// Sets the acquisition.
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

/// What a claim is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ClaimKind {
    /// The exclusive lock.
    Exclusive,
    /// A shared lock.
    Shared,
    /// This number of permits of a semaphore.
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
