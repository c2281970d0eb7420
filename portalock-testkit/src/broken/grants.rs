//! Locks that are granted when they must not be, or not as they were asked for.

use std::{collections::HashMap, sync::Mutex};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, FencingToken, Grant,
    LockBackend, LockName, LockRequest, Mode, OwnerId, Released, Wakeups,
};

use super::{Flaw, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(grants_twice: GrantsTwice,
        "grants a lock that another holds",
        "exclusive::one_holder_among_clients", "was granted while somebody was in the way"),
    specimen!(checks_then_acts: ChecksThenActs,
        "looks whether a lock is free and takes it a moment later, unseen by another who looks in between",
        "exclusive::tasks_never_overlap", "were inside together"),
    specimen!(reenters: Reenters,
        "grants a client what another acquisition of the same client holds",
        "exclusive::one_lock_object_acquires_once", "was granted while somebody was in the way"),
    specimen!(mints_a_new_token: MintsANewToken,
        "grants anew, with another token, when an owner that holds asks again",
        "exclusive::a_repeated_attempt_keeps_the_grant", "the token of one owner changed"),
    specimen!(forgets_the_mode: ForgetsMode,
        "claims shared locks and grants them exclusively",
        "shared::readers_hold_together", "not granted"),
    specimen!(lets_readers_in: LetsReadersIn,
        "grants shared locks beside an exclusive one",
        "shared::a_writer_keeps_readers_out", "was granted while somebody was in the way"),
    specimen!(grants_what_it_does_not_claim: GrantsWhatItDoesNotClaim,
        "claims no shared locks and grants them",
        "shared::refused_unless_claimed", "the backend itself answered a shared request", NoReaders),
    specimen!(gives_up_at_once: GivesUpAtOnce,
        "reports a lock that is held as an error, so that a wait of five seconds ends at once",
        "timeout::a_contended_wait_lasts_its_timeout", "the lock is held"),
];

fn granted_anyway() -> Attempt {
    Attempt::Granted(Grant::new().with_token(FencingToken::after(None)))
}

/// Grants a lock that another holds.
#[derive(Debug, Default)]
pub struct GrantsTwice;

#[async_trait]
impl Flaw for GrantsTwice {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        match LockBackend::try_acquire(sound, request).await? {
            Attempt::Contended(_) => Ok(granted_anyway()),
            granted @ Attempt::Granted(_) => Ok(granted),
        }
    }
}

/// Looks whether a lock is free, and takes it a moment later: two who look at the same time both take it.
#[derive(Debug, Default)]
pub struct ChecksThenActs(Mutex<HashMap<LockName, OwnerId>>);

#[async_trait]
impl Flaw for ChecksThenActs {
    async fn try_acquire(&self, _: &Sound, request: &LockRequest) -> Result<Attempt, BackendError> {
        let holder = locked(&self.0).get(&request.name).copied();
        if holder.is_some_and(|holder| holder != request.owner) {
            return Ok(Attempt::Contended(Contention::new()));
        }
        tokio::task::yield_now().await;
        locked(&self.0).insert(request.name.clone(), request.owner);
        Ok(granted_anyway())
    }

    async fn release(&self, _: &Sound, request: &LockRequest) -> Result<Released, BackendError> {
        let mut held = locked(&self.0);
        if held.get(&request.name) == Some(&request.owner) {
            held.remove(&request.name);
        }
        Ok(Released::Freed)
    }

    async fn subscribe(&self, _: &Sound, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(None)
    }
}

/// Grants a client what another acquisition of the same client holds: two guards from one lock object.
#[derive(Debug, Default)]
pub struct Reenters(Mutex<HashMap<LockName, u64>>);

#[async_trait]
impl Flaw for Reenters {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        let mut holders = locked(&self.0);
        if matches!(attempt, Attempt::Granted(_)) {
            holders.insert(request.name.clone(), sound.number());
        } else if holders.get(&request.name) == Some(&sound.number()) {
            return Ok(granted_anyway());
        }
        Ok(attempt)
    }
}

/// Grants again, with another token, when a holder repeats its attempt.
#[derive(Debug, Default)]
pub struct MintsANewToken;

#[async_trait]
impl Flaw for MintsANewToken {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match LockBackend::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => {
                Attempt::Granted(grant.with_token(FencingToken::after(None)))
            }
            contended @ Attempt::Contended(_) => contended,
        })
    }
}

/// Claims shared locks and grants them exclusively.
#[derive(Debug, Default)]
pub struct ForgetsMode;

#[async_trait]
impl Flaw for ForgetsMode {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let mut exclusive = request.clone();
        exclusive.demand = Mode::Exclusive;
        LockBackend::try_acquire(sound, &exclusive).await
    }
}

/// Grants shared locks beside an exclusive one.
#[derive(Debug, Default)]
pub struct LetsReadersIn;

#[async_trait]
impl Flaw for LetsReadersIn {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) && request.demand == Mode::Shared {
            return Ok(granted_anyway());
        }
        Ok(attempt)
    }
}

/// Claims no shared locks and grants them.
#[derive(Debug, Default)]
pub struct GrantsWhatItDoesNotClaim;

impl Flaw for GrantsWhatItDoesNotClaim {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_shared(false)
    }
}

/// Claims no shared locks and refuses them: no flaw, but what [`GrantsWhatItDoesNotClaim`] should be.
#[derive(Debug, Default)]
pub struct NoReaders;

#[async_trait]
impl Flaw for NoReaders {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_shared(false)
    }

    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        if request.demand == Mode::Shared {
            return Err(BackendError::unsupported("shared locks"));
        }
        LockBackend::try_acquire(sound, request).await
    }
}

/// Reports a lock that is held as an error, and not as contention.
#[derive(Debug, Default)]
pub struct GivesUpAtOnce;

#[async_trait]
impl Flaw for GivesUpAtOnce {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        match LockBackend::try_acquire(sound, request).await? {
            Attempt::Contended(_) => {
                let held = "the lock is held by somebody else";
                Err(BackendError::new(BackendErrorKind::Other, held))
            }
            granted @ Attempt::Granted(_) => Ok(granted),
        }
    }
}
