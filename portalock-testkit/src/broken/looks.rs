//! Wrong answers to the question who holds a lock.

use std::{collections::HashMap, sync::Mutex};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Claim, Inspect, Inspection, LockBackend, LockName,
    LockRequest, Mode, Patience, Released,
};

use super::{Flaw, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(names_the_wrong_holder: NamesTheWrongHolder,
        "names the one who asks as the one who holds",
        "inspect::contention_names_the_holder", "the holder is called"),
    specimen!(inspect_sees_nothing: InspectSeesNothing,
        "says of every lock that it is free",
        "inspect::the_holders_are_told", "a lock that is held looks free"),
    specimen!(looks_by_locking: LooksByLocking,
        "finds out whether a lock is free by taking it, and does not give it back",
        "inspect::looking_changes_nothing", "looks used"),
    specimen!(looks_are_not_claimed: LooksAreNotClaimed,
        "claims not to know who holds, and tells",
        "inspect::refused_unless_claimed", "the backend itself answered a look", NoLooks),
    specimen!(lists_waiters_backwards: ListsWaitersBackwards,
        "lists the waiter that came last as the next",
        "inspect::the_waiters_are_told", "three wait, and these are told"),
    specimen!(looks_by_prefix: LooksByPrefix,
        "tells the holders of all names that begin like the one that is asked for",
        "inspect::the_holders_are_told", "one client holds, and these are told"),
    specimen!(tells_the_dead: TellsTheDead,
        "tells a holder that has crashed until another is granted the lock",
        "crash::a_crashed_client_frees_its_lock", "a look that no longer tells a crashed holder"),
];

/// Names the one who asks as the one who holds.
#[derive(Debug, Default)]
pub struct NamesTheWrongHolder;

#[async_trait]
impl Flaw for NamesTheWrongHolder {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match LockBackend::try_acquire(sound, request).await? {
            Attempt::Contended(contention) => {
                Attempt::Contended(contention.with_holder(Some(request.holder.clone())))
            }
            granted @ Attempt::Granted(_) => granted,
        })
    }
}

/// Says of every lock that it is free.
#[derive(Debug, Default)]
pub struct InspectSeesNothing;

#[async_trait]
impl Flaw for InspectSeesNothing {
    async fn inspect(&self, _: &Sound, _: &LockName) -> Result<Inspection, BackendError> {
        Ok(Inspection::default())
    }
}

/// Lists the waiter that came last as the next.
#[derive(Debug, Default)]
pub struct ListsWaitersBackwards;

#[async_trait]
impl Flaw for ListsWaitersBackwards {
    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        let mut seen = LockBackend::inspect(sound, name).await?;
        seen.waiters.reverse();
        Ok(seen)
    }
}

/// Finds out whether a lock is free by taking it, and does not give it back.
#[derive(Debug, Default)]
pub struct LooksByLocking;

#[async_trait]
impl Flaw for LooksByLocking {
    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        let seen = LockBackend::inspect(sound, name).await?;
        let probe = LockRequest::new(name.clone(), Mode::Exclusive, Patience::Once);
        let _ = LockBackend::try_acquire(sound, &probe).await?;
        Ok(seen)
    }
}

/// Claims not to know who holds, and tells.
#[derive(Debug, Default)]
pub struct LooksAreNotClaimed;

impl Flaw for LooksAreNotClaimed {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_inspect(Inspect::None)
    }
}

/// Claims not to know who holds, and refuses to be asked: no flaw, but what [`LooksAreNotClaimed`] should be.
#[derive(Debug, Default)]
pub struct NoLooks;

#[async_trait]
impl Flaw for NoLooks {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_inspect(Inspect::None)
    }

    async fn inspect(&self, _: &Sound, _: &LockName) -> Result<Inspection, BackendError> {
        Err(BackendError::unsupported("way to inspect a lock"))
    }
}

/// Tells the holders of all names that begin like the one that is asked for.
#[derive(Debug, Default)]
pub struct LooksByPrefix;

#[async_trait]
impl Flaw for LooksByPrefix {
    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        let mut seen = Inspection::default();
        for other in sound.names().await? {
            if other.as_str().starts_with(name.as_str()) {
                let more = LockBackend::inspect(sound, &other).await?;
                seen.held |= more.held;
                seen.holders.extend(more.holders);
                seen.waiters.extend(more.waiters);
            }
        }
        Ok(seen)
    }
}

/// Tells a holder that has crashed until another is granted the lock.
#[derive(Debug, Default)]
pub struct TellsTheDead(Mutex<HashMap<LockName, Claim>>);

#[async_trait]
impl Flaw for TellsTheDead {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            let claim = Claim::new(request.holder.clone(), request.demand.into());
            locked(&self.0).insert(request.name.clone(), claim);
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let released = LockBackend::release(sound, request).await?;
        locked(&self.0).remove(&request.name);
        Ok(released)
    }

    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        let seen = LockBackend::inspect(sound, name).await?;
        let recorded = locked(&self.0).get(name).cloned();
        Ok(match recorded {
            Some(claim) if !seen.held => Inspection::new(vec![claim], seen.waiters),
            _ => seen,
        })
    }
}
