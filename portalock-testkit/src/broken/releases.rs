//! Releases that release too little or too much, or report something wrong.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, LockBackend, LockName, LockRequest, Mode, OwnerId, Released,
};

use super::{Flaw, LEASE, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(forgets_release: ForgetsRelease,
        "answers that it released, and frees nothing",
        "release::a_released_lock_is_free_at_once", "was refused while nobody was in the way"),
    specimen!(frees_a_successor: FreesASuccessor,
        "frees whoever holds the name when an owner that is long gone is released again",
        "release::a_late_release_leaves_the_next_holder", "a late release answered Freed"),
    specimen!(owns_per_object: OwnsPerObject,
        "keeps ownership per client and not per acquisition: any release through the client that holds frees the lock",
        "release::a_refused_owners_release_leaves_the_holder", "that was refused answered Freed"),
    specimen!(always_says_freed: AlwaysSaysFreed,
        "answers every release, also of what nobody holds, with having freed it",
        "release::releasing_twice_is_harmless", "a repeated release answered Freed"),
    specimen!(releases_now_in_name: ReleasesNowInName,
        "claims to have released at once, and has only forgotten it",
        "release::a_dropped_guard_frees_at_once", "after drop 0 had returned"),
    specimen!(frees_all_readers: FreesAllReaders,
        "frees the shared locks of all a client's readers when one of them releases",
        "shared::one_readers_release_leaves_the_others", "was granted while somebody was in the way"),
    specimen!(counts_attempts: CountsAttempts,
        "counts an owner's repeated attempts, and wants as many releases",
        "shared::a_repeated_attempt_counts_once", "was refused while nobody was in the way"),
    specimen!(hides_a_loss: HidesALoss,
        "answers the first release of whoever it granted with having freed the lock, which had been taken away",
        "loss::a_release_hides_no_loss", "had been taken away answered Freed"),
    specimen!(forgets_the_unanswered: ForgetsTheUnanswered,
        "takes an attempt that failed for one that did nothing, and does not release it",
        "cancellation::an_unanswered_attempt_leaves_nothing", "was refused while nobody was in the way"),
    specimen!(grants_the_released: GrantsTheReleased,
        "grants an attempt that arrives late, although its owner was released before",
        "cancellation::an_attempt_that_arrives_after_its_release_leaves_nothing", "was refused while nobody was in the way"),
    specimen!(closes_in_silence: ClosesInSilence,
        "frees its locks on close, and tells none of its guards",
        "release::a_closed_client_starts_anew", "before its earlier holder was told"),
    specimen!(frees_readers_later: FreesReadersLater,
        "claims to release at once, and frees the shared locks of dropped guards a moment later",
        "release::a_dropped_guard_frees_at_once", "after drop 1 had returned"),
];

/// Answers that it released, and frees nothing.
#[derive(Debug, Default)]
pub struct ForgetsRelease;

#[async_trait]
impl Flaw for ForgetsRelease {
    async fn release(&self, _: &Sound, _: &LockRequest) -> Result<Released, BackendError> {
        Ok(Released::Freed)
    }
}

/// Releases the current holder when a former holder is released late.
#[derive(Debug, Default)]
pub struct FreesASuccessor(Mutex<HashMap<LockName, LockRequest>>);

#[async_trait]
impl Flaw for FreesASuccessor {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            locked(&self.0).insert(request.name.clone(), request.clone());
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let holder = locked(&self.0).get(&request.name).cloned();
        LockBackend::release(sound, holder.as_ref().unwrap_or(request)).await
    }
}

/// Keeps ownership per client and not per acquisition.
#[derive(Debug, Default)]
pub struct OwnsPerObject(Mutex<HashMap<(u64, LockName), LockRequest>>);

#[async_trait]
impl Flaw for OwnsPerObject {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            let object = (sound.number(), request.name.clone());
            locked(&self.0).insert(object, request.clone());
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let object = (sound.number(), request.name.clone());
        let held = locked(&self.0).remove(&object);
        LockBackend::release(sound, held.as_ref().unwrap_or(request)).await
    }
}

/// Answers every release with having freed something.
#[derive(Debug, Default)]
pub struct AlwaysSaysFreed;

#[async_trait]
impl Flaw for AlwaysSaysFreed {
    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        LockBackend::release(sound, request).await?;
        Ok(Released::Freed)
    }
}

/// Claims to have released at once, and has done nothing.
#[derive(Debug, Default)]
pub struct ReleasesNowInName;

impl Flaw for ReleasesNowInName {
    fn release_now(&self, _: &Sound, _: &LockRequest) -> bool {
        true
    }
}

/// Frees the shared locks of all a client's readers when one of them releases.
#[derive(Debug, Default)]
pub struct FreesAllReaders(Mutex<Vec<(u64, LockRequest)>>);

#[async_trait]
impl Flaw for FreesAllReaders {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) && request.demand == Mode::Shared {
            locked(&self.0).push((sound.number(), request.clone()));
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let released = LockBackend::release(sound, request).await?;
        if request.demand == Mode::Shared {
            let readers = locked(&self.0).clone();
            for (client, reader) in readers {
                if client == sound.number() && reader.name == request.name {
                    LockBackend::release(sound, &reader).await?;
                }
            }
        }
        Ok(released)
    }
}

/// Counts an owner's repeated attempts, and wants as many releases.
#[derive(Debug, Default)]
pub struct CountsAttempts(Mutex<HashMap<OwnerId, u32>>);

#[async_trait]
impl Flaw for CountsAttempts {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            *locked(&self.0).entry(request.owner).or_default() += 1;
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        if let Some(count) = locked(&self.0).get_mut(&request.owner) {
            *count = count.saturating_sub(1);
            if *count > 0 {
                return Ok(Released::Freed);
            }
        }
        LockBackend::release(sound, request).await
    }
}

/// Frees its locks on close, and tells none of its guards.
#[derive(Debug, Default)]
pub struct ClosesInSilence;

#[async_trait]
impl Flaw for ClosesInSilence {
    async fn close(&self, sound: &Sound) -> Result<(), BackendError> {
        sound.free_all().await;
        Ok(())
    }
}

/// Answers "freed" to the first release of every owner that was ever granted.
#[derive(Debug, Default)]
pub struct HidesALoss(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for HidesALoss {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            locked(&self.0).insert(request.owner);
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let released = LockBackend::release(sound, request).await?;
        let was_granted = locked(&self.0).remove(&request.owner);
        Ok(if was_granted {
            Released::Freed
        } else {
            released
        })
    }
}

/// Takes an attempt that failed for one that did nothing.
#[derive(Debug, Default)]
pub struct ForgetsTheUnanswered(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for ForgetsTheUnanswered {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await;
        if attempt.is_err() {
            locked(&self.0).insert(request.owner);
        }
        attempt
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        if locked(&self.0).remove(&request.owner) {
            return Ok(Released::NotHeld);
        }
        LockBackend::release(sound, request).await
    }
}

/// Grants an attempt whatever was released before it arrived.
#[derive(Debug, Default)]
pub struct GrantsTheReleased;

#[async_trait]
impl Flaw for GrantsTheReleased {
    async fn arrive(&self, sound: &Sound, attempt: &LockRequest, _: bool) {
        let _ = self.try_acquire(sound, attempt).await;
    }
}

/// Claims to release at once, and frees the shared locks of dropped guards a moment later.
#[derive(Debug, Default)]
pub struct FreesReadersLater;

impl Flaw for FreesReadersLater {
    fn release_now(&self, sound: &Sound, request: &LockRequest) -> bool {
        if request.demand == Mode::Exclusive {
            return LockBackend::release_now(sound, request);
        }
        let (sound, request) = (sound.clone(), request.clone());
        crate::spawn(async move {
            tokio::time::sleep(LEASE).await;
            LockBackend::release(&sound, &request).await
        });
        true
    }
}
