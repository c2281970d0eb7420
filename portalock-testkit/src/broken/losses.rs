//! Holders that are not told, told late, told for nothing; crashes that nobody notices.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Contention, Grant, Lease, LockBackend, LockName, LockRequest, Loss,
    LostSignal, MemoryBackend, Mode, OwnerId, Released,
};

use super::{Flaw, LEASE, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(lost_never_fires: LostNeverFires,
        "claims to tell of a loss and never does",
        "loss::a_lock_taken_away_fires_lost", "the lost signal of a lock that was taken away did not happen"),
    specimen!(lost_fires_late: LostFiresLate,
        "tells of a loss when another has been granted the lock, though it claims to do so before",
        "loss::a_cut_off_holder_is_told", "before its earlier holder was told"),
    specimen!(lost_fires_on_release: LostFiresOnRelease,
        "tells of a loss when a lock is released in good order",
        "loss::a_released_grant_is_not_lost", "was released in good order"),
    specimen!(one_release_loses_all: OneReleaseLosesAll,
        "tells all of a client's holders of a loss when one of them releases",
        "exclusive::other_names_stay_free", "the session ended"),
    specimen!(expires_the_living: ExpiresTheLiving,
        "passes a lock on after a time, though its holder lives and works",
        "loss::a_living_holder_is_never_expired", "of a holder that lives passed on"),
    specimen!(misses_its_crash_bound: MissesItsCrashBound,
        "claims to free a crashed client's locks in a tenth of a second, and takes an hour",
        "crash::a_crashed_client_frees_its_lock", "the grant to the waiter, declared as"),
    specimen!(a_crash_frees_all: ACrashFreesAll,
        "frees every client's locks when one client crashes",
        "crash::a_crashed_client_frees_its_lock", "was removed from its store"),
    specimen!(a_stall_ends_sessions_in_silence: AStallEndsSessionsInSilence,
        "gives its clients' locks away after it was stalled, and tells none of them",
        "loss::a_stalled_service_ends_the_lease", "was told that it lost it"),
    specimen!(a_restart_ends_sessions_in_silence: ARestartEndsSessionsInSilence,
        "forgets its clients' locks when it is restarted, and tells none of them",
        "loss::a_restart_leaves_no_false_holder", "was told that it lost it"),
    specimen!(stays_behind: StaysBehind,
        "goes on in a store that nobody else finds any more",
        "loss::a_store_that_moved_is_a_loss", "was told that it lost it"),
    specimen!(a_stall_reads_as_locked: AStallReadsAsLocked,
        "says of a store that does not answer that the lock is held",
        "timeout::a_stalled_service_does_not_stall_the_caller", "reads as a lock that is held"),
    specimen!(an_outage_reads_as_locked: AnOutageReadsAsLocked,
        "says of a store that it can't reach that the lock is held",
        "timeout::a_cut_off_client_does_not_hang", "reads as a lock that is held"),
    specimen!(tells_every_holder: TellsEveryHolder,
        "tells all holders of a loss when one lock is taken away",
        "loss::a_lock_taken_away_fires_lost", "kept was not granted within"),
    specimen!(tells_a_loss_twice: TellsALossTwice,
        "tells of a loss a second time, and so tells the client's next holder",
        "loss::a_lock_taken_away_fires_lost", "job was lost"),
    specimen!(tells_those_who_did_not_wait: TellsThoseWhoDidNotWait,
        "ties the grants to its session that it makes at once, and not those to waiters",
        "loss::a_cut_off_holder_is_told", "before its earlier holder was told"),
    specimen!(renews_what_was_granted_at_once: RenewsWhatWasGrantedAtOnce,
        "renews the grants that it makes at once, and not those to waiters",
        "loss::a_living_holder_is_never_expired", "somebody, while the holder lives, was granted"),
    specimen!(a_reconnect_drops_locks: AReconnectDropsLocks,
        "frees a client's locks when it connects again, and tells none of its holders",
        "timeout::a_cut_off_client_does_not_hang", "before its earlier holder was told"),
    specimen!(a_crash_frees_its_readers: ACrashFreesItsReaders,
        "frees the shares of all readers of a lock when the client of one of them crashes",
        "crash::a_crashed_client_frees_its_lock", "a writer, while one of two readers lives,"),
];

/// The same attempt, with another lost signal if it was granted.
fn with_lost(attempt: Attempt, change: impl FnOnce(&Grant) -> LostSignal) -> Attempt {
    match attempt {
        Attempt::Granted(grant) => {
            let lost = change(&grant);
            Attempt::Granted(grant.with_lost(lost))
        }
        contended @ Attempt::Contended(_) => contended,
    }
}

/// Claims to tell of a loss and never does.
#[derive(Debug, Default)]
pub struct LostNeverFires;

#[async_trait]
impl Flaw for LostNeverFires {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        Ok(with_lost(attempt, |_| LostSignal::never()))
    }
}

/// Tells of a loss when another has been granted the lock.
#[derive(Debug, Default)]
pub struct LostFiresLate;

#[async_trait]
impl Flaw for LostFiresLate {
    async fn expire(&self, sound: &Sound) {
        sound.free_all().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        sound.end_lease(Loss::Expired);
    }
}

/// Reports a loss when a lock is released normally.
#[derive(Debug, Default)]
pub struct LostFiresOnRelease(Mutex<HashMap<OwnerId, Lease>>);

#[async_trait]
impl Flaw for LostFiresOnRelease {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        let mut leases = locked(&self.0);
        let lease = leases.entry(request.owner).or_insert_with(Lease::unbounded);
        Ok(with_lost(attempt, |grant| {
            LostSignal::any([grant.lost.clone(), lease.signal()])
        }))
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        if let Some(lease) = locked(&self.0).remove(&request.owner) {
            lease.end(Loss::Removed("its record is gone".into()));
        }
        LockBackend::release(sound, request).await
    }
}

/// Tells all of a client's holders of a loss when one of them releases.
#[derive(Debug, Default)]
pub struct OneReleaseLosesAll;

#[async_trait]
impl Flaw for OneReleaseLosesAll {
    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let released = LockBackend::release(sound, request).await?;
        sound.end_lease(Loss::SessionEnded("its last lock was released".into()));
        sound.reconnect();
        Ok(released)
    }
}

/// Passes a lock on after a time, though its holder lives and works.
#[derive(Debug, Default)]
pub struct ExpiresTheLiving;

#[async_trait]
impl Flaw for ExpiresTheLiving {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            let (memory, request) = (sound.memory().clone(), request.clone());
            crate::spawn(async move {
                tokio::time::sleep(LEASE / 2).await;
                LockBackend::release(&memory, &request).await
            });
        }
        Ok(attempt)
    }
}

/// Claims to free a crashed client's locks in a tenth of a second, and takes an hour.
#[derive(Debug, Default)]
pub struct MissesItsCrashBound;

#[async_trait]
impl Flaw for MissesItsCrashBound {
    async fn expire(&self, sound: &Sound) {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        sound.expire(Loss::Expired).await;
    }
}

/// Frees every client's locks when one client crashes.
#[derive(Debug, Default)]
pub struct ACrashFreesAll;

#[async_trait]
impl Flaw for ACrashFreesAll {
    async fn expire(&self, sound: &Sound) {
        for name in sound.memory().names().await.unwrap_or_default() {
            sound.memory().lose(&name);
        }
        sound.expire(Loss::Expired).await;
    }
}

/// Says of a store that it can't reach that the lock is held.
#[derive(Debug, Default)]
pub struct AnOutageReadsAsLocked;

#[async_trait]
impl Flaw for AnOutageReadsAsLocked {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        if !sound.is_reachable() {
            return Ok(Attempt::Contended(Contention::new()));
        }
        LockBackend::try_acquire(sound, request).await
    }
}

/// Gives its clients' locks away after it was stalled, and tells none of them.
#[derive(Debug, Default)]
pub struct AStallEndsSessionsInSilence;

#[async_trait]
impl Flaw for AStallEndsSessionsInSilence {
    async fn recover(&self, sound: &Sound) {
        sound.free_all().await;
    }
}

/// Forgets its clients' locks when it is restarted, and tells none of them.
#[derive(Debug, Default)]
pub struct ARestartEndsSessionsInSilence;

#[async_trait]
impl Flaw for ARestartEndsSessionsInSilence {
    async fn restart(&self, sound: &Sound) {
        sound.free_all().await;
    }
}

/// Says of a store that does not answer that the lock is held.
#[derive(Debug, Default)]
pub struct AStallReadsAsLocked;

#[async_trait]
impl Flaw for AStallReadsAsLocked {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let answer = LockBackend::try_acquire(sound, request);
        match tokio::time::timeout(LEASE, answer).await {
            Ok(answer) => answer,
            Err(_) => Ok(Attempt::Contended(Contention::new())),
        }
    }
}

/// Goes on in a store that nobody else finds any more.
#[derive(Debug, Default)]
pub struct StaysBehind;

#[async_trait]
impl Flaw for StaysBehind {
    async fn moved(&self, _: &Sound) {}
}

/// The guards of a store by name, to tell them of a loss.
type Told = Arc<Mutex<Vec<(LockName, OwnerId, Lease)>>>;

fn note(told: &Told, request: &LockRequest, attempt: Attempt) -> Attempt {
    with_lost(attempt, |grant| {
        let lease = Lease::unbounded();
        let lost = LostSignal::any([grant.lost.clone(), lease.signal()]);
        locked(told).push((request.name.clone(), request.owner, lease));
        lost
    })
}

/// Tells all holders of a loss when one lock is taken away.
#[derive(Debug, Default)]
pub struct TellsEveryHolder(Told);

#[async_trait]
impl Flaw for TellsEveryHolder {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        Ok(note(&self.0, request, attempt))
    }

    async fn take_away(&self, memory: &MemoryBackend, name: &LockName) {
        memory.lose(name);
        for (.., lease) in locked(&self.0).drain(..) {
            lease.end(Loss::Removed("a lock is gone".into()));
        }
    }
}

/// Tells of a loss a second time, by the name.
#[derive(Debug, Default)]
pub struct TellsALossTwice {
    told: Told,
    taken: Mutex<Option<LockName>>,
}

#[async_trait]
impl Flaw for TellsALossTwice {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        Ok(note(&self.told, request, attempt))
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        locked(&self.told).retain(|(_, owner, _)| *owner != request.owner);
        // After the second grant since the loss: the first one only looks whether the lock is free.
        if locked(&self.taken).as_ref() == Some(&request.name) {
            let (told, name) = (self.told.clone(), request.name.clone());
            crate::spawn(async move {
                tokio::time::sleep(LEASE / 2).await;
                let told = locked(&told);
                for (.., lease) in told.iter().filter(|(other, ..)| *other == name) {
                    lease.end(Loss::Removed("it was taken away".into()));
                }
            });
        }
        LockBackend::release(sound, request).await
    }

    async fn take_away(&self, memory: &MemoryBackend, name: &LockName) {
        *locked(&self.taken) = Some(name.clone());
        memory.lose(name);
    }
}

/// Ties the grants to its session that it makes at once, and not those to waiters.
#[derive(Debug, Default)]
pub struct TellsThoseWhoDidNotWait(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for TellsThoseWhoDidNotWait {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) {
            locked(&self.0).insert(request.owner);
        } else if locked(&self.0).contains(&request.owner) {
            return LockBackend::try_acquire(sound.memory(), request).await;
        }
        Ok(attempt)
    }
}

/// Renews the grants that it makes at once, and not those to waiters.
#[derive(Debug, Default)]
pub struct RenewsWhatWasGrantedAtOnce(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for RenewsWhatWasGrantedAtOnce {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) {
            locked(&self.0).insert(request.owner);
        } else if locked(&self.0).remove(&request.owner) {
            let (memory, request) = (sound.memory().clone(), request.clone());
            crate::spawn(async move {
                tokio::time::sleep(LEASE).await;
                LockBackend::release(&memory, &request).await
            });
        }
        Ok(attempt)
    }
}

/// Frees a client's locks when it connects again, and tells none of its holders.
#[derive(Debug, Default)]
pub struct AReconnectDropsLocks;

#[async_trait]
impl Flaw for AReconnectDropsLocks {
    async fn heal(&self, sound: &Sound) {
        sound.free_all().await;
        sound.reconnect();
    }
}

/// Frees the shares of all readers of a lock when the client of one of them crashes.
#[derive(Debug, Default)]
pub struct ACrashFreesItsReaders(Mutex<Vec<(u64, LockRequest)>>);

#[async_trait]
impl Flaw for ACrashFreesItsReaders {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        if request.demand == Mode::Shared {
            locked(&self.0).push((sound.number(), request.clone()));
        }
        LockBackend::try_acquire(sound, request).await
    }

    async fn expire(&self, sound: &Sound) {
        sound.expire(Loss::Expired).await;
        let readers = locked(&self.0).clone();
        let is_doomed = |name: &LockName| {
            let mut all = readers.iter();
            all.any(|(client, reader)| *client == sound.number() && reader.name == *name)
        };
        for (_, reader) in &readers {
            if is_doomed(&reader.name) {
                let _ = LockBackend::release(sound.memory(), reader).await;
            }
        }
    }
}
