//! Locks that go wrong on their way from one holder to the next.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, FencingToken, Grant, Lease, LockBackend, LockName, LockRequest, Loss,
    MemoryBackend, OwnerId, Patience,
};

use super::{Flaw, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(tells_after_the_successor: TellsAfterTheSuccessor,
        "tells a holder whose lock is taken away after the next has been granted it",
        "hand_over::a_loss_during_one_leaves_one_holder", "two believed at the same time"),
    specimen!(holds_once_the_holder_is_gone: HoldsOnceTheHolderIsGone,
        "grants a waiter the lock when the holder ahead of it is gone, and does not look whether the waiter's own place is",
        "hand_over::a_loss_during_one_leaves_one_holder", "two believed at the same time"),
    specimen!(believes_a_late_grant: BelievesALateGrant,
        "reads a grant that it hears late, after the store has given it up, as one that still holds",
        "hand_over::a_waiter_that_was_given_up_is_not_granted_late", "before its earlier holder was told"),
];

fn believed() -> Attempt {
    Attempt::Granted(Grant::new().with_token(FencingToken::after(None)))
}

/// Tells a holder whose lock is taken away after the next has been granted it.
#[derive(Debug, Default)]
pub struct TellsAfterTheSuccessor(Mutex<HashMap<LockName, Vec<Lease>>>);

#[async_trait]
impl Flaw for TellsAfterTheSuccessor {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match LockBackend::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => {
                let lease = Lease::unbounded();
                let lost = lease.signal();
                let mut held = locked(&self.0);
                held.insert(request.name.clone(), vec![lease]);
                Attempt::Granted(grant.with_lost(lost))
            }
            contended @ Attempt::Contended(_) => contended,
        })
    }

    async fn take_away(&self, memory: &MemoryBackend, name: &LockName) {
        let held = locked(&self.0).remove(name).unwrap_or_default();
        memory.lose(name);
        crate::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for lease in held {
                lease.end(Loss::Removed("somebody took it away".into()));
            }
        });
    }
}

/// Grants a waiter the lock when the holder ahead of it is gone.
#[derive(Debug, Default)]
pub struct HoldsOnceTheHolderIsGone(Mutex<HashMap<OwnerId, Option<FencingToken>>>);

#[async_trait]
impl Flaw for HoldsOnceTheHolderIsGone {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let ahead = locked(&self.0).get(&request.owner).copied();
        let holder = |seen: &portalock_core::Inspection| {
            seen.holders.first().and_then(|holder| holder.token)
        };
        if let Some(ahead) = ahead {
            let seen = LockBackend::inspect(sound.memory(), &request.name).await?;
            if holder(&seen) != ahead {
                return Ok(believed());
            }
        }
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) && request.patience == Patience::Queue {
            let seen = LockBackend::inspect(sound.memory(), &request.name).await?;
            if seen.waiters.len() == 1 {
                locked(&self.0).insert(request.owner, holder(&seen));
            }
        }
        Ok(attempt)
    }

    /// The whole queue goes, with the places of those who wait.
    async fn take_away(&self, memory: &MemoryBackend, name: &LockName) {
        while memory.lose(name) > 0 {}
    }
}

/// Reads a grant that it hears late as one that still holds.
#[derive(Debug, Default)]
pub struct BelievesALateGrant {
    waiters: Mutex<HashSet<OwnerId>>,
    given_up: Mutex<HashSet<u64>>,
}

#[async_trait]
impl Flaw for BelievesALateGrant {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let waited = locked(&self.waiters).contains(&request.owner);
        if sound.is_reachable() && waited && locked(&self.given_up).contains(&sound.number()) {
            return Ok(believed());
        }
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) {
            locked(&self.waiters).insert(request.owner);
        }
        Ok(attempt)
    }

    async fn expire(&self, sound: &Sound) {
        locked(&self.given_up).insert(sound.number());
        sound.expire(Loss::Expired).await;
    }
}
