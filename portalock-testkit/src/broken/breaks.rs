//! Backends that break locks in the wrong way: the wrong hold, in silence, too early or never.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, FencingToken, Holder, Lease,
    LockBackend, LockName, LockRequest, Loss, LostSignal, Marked, OwnerId, Released,
};

use super::{Flaw, LEASE, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(breaks_in_silence: BreaksInSilence,
        "takes a lock away when it is broken, and does not say who did it",
        "breaking::the_holder_is_told_who", "and its holder was told"),
    specimen!(tells_after_it_breaks: TellsAfterItBreaks,
        "frees a lock that is broken first, and tells its holder later",
        "breaking::told_before_another_is_granted", "before its earlier holder was told"),
    specimen!(waits_for_the_guard: WaitsForTheGuard,
        "tells the holder of a broken lock, and leaves it the lock until it gives it back by itself",
        "breaking::a_holder_that_lingers_keeps_nobody_out", "was not granted"),
    specimen!(a_break_repeats_the_token: ABreakRepeatsTheToken,
        "grants a lock that was broken with the token of the holder from whom it was taken",
        "breaking::the_token_grows", "the lock was broken under token"),
    specimen!(a_break_clears_the_queue: ABreakClearsTheQueue,
        "sends those who wait for a lock to the end of the queue when it is broken",
        "breaking::the_waiters_keep_their_places", "a grant of job did not happen"),
    specimen!(breaks_whoever_holds: BreaksWhoeverHolds,
        "breaks the lock of whoever holds it now, whatever owner was meant",
        "breaking::an_owner_that_is_gone_hits_nobody", "of an owner that another has followed ended with"),
    specimen!(breaks_every_reader: BreaksEveryReader,
        "breaks all shared holds of a lock when one is meant",
        "breaking::one_reader_is_taken_out", "was lost"),
    specimen!(fails_at_a_second_break: FailsAtASecondBreak,
        "says that a lock can't be broken when its owner was broken before",
        "breaking::a_second_break_is_harmless", "it was broken before"),
    specimen!(waits_for_the_silent: WaitsForTheSilent,
        "waits for a holder that does not respond for an hour",
        "breaking::a_holder_that_does_not_respond_is_evicted", "the end of a break of a silent holder's lock did not happen"),
    specimen!(breaks_are_not_claimed: BreaksAreNotClaimed,
        "claims no way to break a lock, and breaks it",
        "breaking::refused_unless_claimed", "answered an eviction", NoBreaks),
    specimen!(a_mark_is_a_message: AMarkIsAMessage,
        "tells a holder that its lock is broken by a message only, which is lost while its client is cut off",
        "breaking::a_mark_stays_until_it_is_found", "before its earlier holder was told"),
    specimen!(breaks_by_owner_alone: BreaksByOwnerAlone,
        "breaks what an owner holds, whatever name was meant",
        "breaking::an_owner_that_is_gone_hits_nobody", "of an owner that holds another name"),
    specimen!(evicts_whoever_holds: EvictsWhoeverHolds,
        "ends the hold of whoever has the name, whatever owner is evicted",
        "breaking::an_owner_that_is_gone_hits_nobody", "the eviction of an owner that another has followed"),
    specimen!(evicts_a_later_hold: EvictsALaterHold,
        "ends what an owner holds anew when its former hold is evicted",
        "breaking::an_owner_that_holds_anew_keeps_its_hold", "the eviction of an owner's former hold"),
    specimen!(numbers_owners: NumbersOwners,
        "gives the hold that an owner has anew the number of its former hold",
        "breaking::an_owner_that_holds_anew_keeps_its_hold", "have the number"),
];

type Answer = Result<Option<Marked>, BackendError>;

/// Takes a lock away when it is broken, and does not say who did it.
#[derive(Debug, Default)]
pub struct BreaksInSilence;

#[async_trait]
impl Flaw for BreaksInSilence {
    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        _: &Holder,
    ) -> Answer {
        let seen = LockBackend::inspect(sound, name).await?;
        let mut holders = seen.holders.iter();
        let held = holders.find(|claim| claim.owner == Some(owner));
        let Some(token) = held.and_then(|claim| claim.token) else {
            return Ok(None);
        };
        LockBackend::evict(sound, name, owner, token.get()).await?;
        Ok(Some(Marked::new(Duration::ZERO, token.get())))
    }
}

/// Frees a lock that is broken first, and tells its holder later.
#[derive(Debug, Default)]
pub struct TellsAfterItBreaks(Mutex<Vec<(OwnerId, Lease, LockRequest)>>);

#[async_trait]
impl Flaw for TellsAfterItBreaks {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match LockBackend::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => {
                let lease = Lease::unbounded();
                let lost = lease.signal();
                locked(&self.0).push((request.owner, lease, request.clone()));
                Attempt::Granted(grant.with_lost(lost))
            }
            contended @ Attempt::Contended(_) => contended,
        })
    }

    async fn mark_broken(
        &self,
        sound: &Sound,
        _: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let held = locked(&self.0)
            .iter()
            .rev()
            .find(|(other, ..)| *other == owner)
            .cloned();
        let Some((_, lease, request)) = held else {
            return Ok(None);
        };
        let freed = LockBackend::release(sound, &request).await?;
        if freed == Released::NotHeld {
            return Ok(None);
        }
        let loss = Loss::Broken(by.clone().into());
        crate::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            lease.end(loss);
        });
        Ok(Some(Marked::new(Duration::ZERO, 0)))
    }
}

/// Tells the holder of a broken lock, and leaves it the lock until it gives it back by itself.
#[derive(Debug, Default)]
pub struct WaitsForTheGuard(Mutex<Vec<(OwnerId, Lease)>>);

#[async_trait]
impl Flaw for WaitsForTheGuard {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match LockBackend::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => {
                let lease = Lease::unbounded();
                let lost = LostSignal::any([grant.lost.clone(), lease.signal()]);
                locked(&self.0).push((request.owner, lease));
                Attempt::Granted(grant.with_lost(lost))
            }
            contended @ Attempt::Contended(_) => contended,
        })
    }

    async fn mark_broken(&self, _: &Sound, _: &LockName, owner: OwnerId, by: &Holder) -> Answer {
        for (_, lease) in locked(&self.0).iter().filter(|(other, _)| *other == owner) {
            lease.end(Loss::Broken(by.clone().into()));
        }
        Ok(Some(Marked::new(Duration::ZERO, 0)))
    }

    async fn evict(
        &self,
        _: &Sound,
        _: &LockName,
        _: OwnerId,
        _: u64,
    ) -> Result<Released, BackendError> {
        Ok(Released::Freed)
    }
}

/// Grants a lock that was broken with the token of the holder from whom it was taken.
#[derive(Debug, Default)]
pub struct ABreakRepeatsTheToken {
    last: Mutex<Option<FencingToken>>,
    repeats: Mutex<bool>,
}

#[async_trait]
impl Flaw for ABreakRepeatsTheToken {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match LockBackend::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => {
                let mut last = locked(&self.last);
                let former = last.filter(|_| std::mem::take(&mut *locked(&self.repeats)));
                let token = former.or(grant.token);
                *last = token;
                Attempt::Granted(token.map_or(grant.clone(), |token| grant.with_token(token)))
            }
            contended @ Attempt::Contended(_) => contended,
        })
    }

    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        *locked(&self.repeats) = true;
        LockBackend::mark_broken(sound, name, owner, by).await
    }
}

/// Sends those who wait for a lock to the end of the queue when it is broken.
#[derive(Debug, Default)]
pub struct ABreakClearsTheQueue(Mutex<Vec<LockRequest>>);

#[async_trait]
impl Flaw for ABreakClearsTheQueue {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        let mut waiting = locked(&self.0);
        waiting.retain(|other| other.owner != request.owner);
        if matches!(attempt, Attempt::Contended(_)) {
            waiting.push(request.clone());
        }
        Ok(attempt)
    }

    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let mut waiting = locked(&self.0).clone();
        for waiter in &waiting {
            LockBackend::release(sound, waiter).await?;
        }
        let marked = LockBackend::mark_broken(sound, name, owner, by).await?;
        // The last one is the first now.
        waiting.reverse();
        for waiter in &waiting {
            let _ = LockBackend::try_acquire(sound, waiter).await?;
        }
        Ok(marked)
    }
}

/// Breaks the lock of the current holder, whoever the owner is.
#[derive(Debug, Default)]
pub struct BreaksWhoeverHolds;

#[async_trait]
impl Flaw for BreaksWhoeverHolds {
    async fn mark_broken(&self, sound: &Sound, name: &LockName, _: OwnerId, by: &Holder) -> Answer {
        let seen = LockBackend::inspect(sound, name).await?;
        match seen.holders.first().and_then(|claim| claim.owner) {
            Some(owner) => LockBackend::mark_broken(sound, name, owner, by).await,
            None => Ok(None),
        }
    }
}

/// Breaks all shared holds of a lock when one is meant.
#[derive(Debug, Default)]
pub struct BreaksEveryReader;

#[async_trait]
impl Flaw for BreaksEveryReader {
    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let seen = LockBackend::inspect(sound, name).await?;
        let owners = seen.holders.iter().filter_map(|claim| claim.owner);
        let owners: Vec<_> = owners.filter(|other| *other != owner).collect();
        let marked = LockBackend::mark_broken(sound, name, owner, by).await?;
        for other in owners {
            LockBackend::mark_broken(sound, name, other, by).await?;
        }
        Ok(marked)
    }
}

/// Says that a lock can't be broken when its owner was broken before.
#[derive(Debug, Default)]
pub struct FailsAtASecondBreak(Mutex<Vec<OwnerId>>);

#[async_trait]
impl Flaw for FailsAtASecondBreak {
    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let is_known = locked(&self.0).contains(&owner);
        if is_known {
            let before = "it was broken before";
            return Err(BackendError::new(BackendErrorKind::Other, before));
        }
        locked(&self.0).push(owner);
        LockBackend::mark_broken(sound, name, owner, by).await
    }
}

/// Waits for a holder that does not respond for an hour.
#[derive(Debug, Default)]
pub struct WaitsForTheSilent;

#[async_trait]
impl Flaw for WaitsForTheSilent {
    async fn mark_broken(&self, _: &Sound, _: &LockName, _: OwnerId, _: &Holder) -> Answer {
        Ok(Some(Marked::new(Duration::from_secs(3600), 0)))
    }
}

/// Claims no way to break a lock, and breaks it.
#[derive(Debug, Default)]
pub struct BreaksAreNotClaimed;

impl Flaw for BreaksAreNotClaimed {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_breaks(false)
    }
}

/// Claims no way to break a lock, and refuses to: no flaw, but what [`BreaksAreNotClaimed`] should be.
#[derive(Debug, Default)]
pub struct NoBreaks;

#[async_trait]
impl Flaw for NoBreaks {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_breaks(false)
    }

    async fn evict(
        &self,
        _: &Sound,
        _: &LockName,
        _: OwnerId,
        _: u64,
    ) -> Result<Released, BackendError> {
        Err(BackendError::unsupported("way to break a lock"))
    }
}

/// Tells a holder that its lock is broken by a message only.
#[derive(Debug, Default)]
pub struct AMarkIsAMessage {
    clients: Mutex<Vec<(Sound, LockRequest)>>,
    missed: Mutex<Vec<OwnerId>>,
}

#[async_trait]
impl Flaw for AMarkIsAMessage {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        locked(&self.clients).push((sound.clone(), request.clone()));
        LockBackend::try_acquire(sound, request).await
    }

    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let is_cut_off = locked(&self.clients)
            .iter()
            .any(|(client, request)| request.owner == owner && !client.is_reachable());
        if is_cut_off {
            locked(&self.missed).push(owner);
        }
        if !locked(&self.missed).contains(&owner) {
            return LockBackend::mark_broken(sound, name, owner, by).await;
        }
        let seen = LockBackend::inspect(sound, name).await?;
        let holds = seen.holders.iter().any(|claim| claim.owner == Some(owner));
        Ok(holds.then_some(Marked::new(LEASE, 0)))
    }

    async fn evict(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let missed = locked(&self.missed).contains(&owner);
        let request = locked(&self.clients)
            .iter()
            .find(|(_, request)| missed && request.owner == owner)
            .map(|(_, request)| request.clone());
        match request {
            Some(request) => LockBackend::release(sound.memory(), &request).await,
            None => LockBackend::evict(sound, name, owner, hold).await,
        }
    }
}

/// Breaks what an owner holds, whatever name was meant.
#[derive(Debug, Default)]
pub struct BreaksByOwnerAlone;

#[async_trait]
impl Flaw for BreaksByOwnerAlone {
    async fn mark_broken(
        &self,
        sound: &Sound,
        _: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let mut marked = None;
        for name in sound.names().await? {
            let one = LockBackend::mark_broken(sound, &name, owner, by).await?;
            marked = marked.or(one);
        }
        Ok(marked)
    }
}

/// Ends the hold of whoever has the name.
#[derive(Debug, Default)]
pub struct EvictsWhoeverHolds;

#[async_trait]
impl Flaw for EvictsWhoeverHolds {
    async fn evict(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let seen = LockBackend::inspect(sound, name).await?;
        let found = seen.holders.first();
        let found = found.and_then(|claim| claim.owner.zip(claim.token));
        let (owner, hold) = found.map_or((owner, hold), |(owner, token)| (owner, token.get()));
        LockBackend::evict(sound, name, owner, hold).await
    }
}

/// Ends what an owner holds, although it is another hold than the one that was marked.
#[derive(Debug, Default)]
pub struct EvictsALaterHold;

#[async_trait]
impl Flaw for EvictsALaterHold {
    async fn evict(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let seen = LockBackend::inspect(sound, name).await?;
        let mut holders = seen.holders.iter();
        let found = holders.find(|claim| claim.owner == Some(owner));
        let token = found.and_then(|claim| claim.token);
        LockBackend::evict(sound, name, owner, token.map_or(hold, FencingToken::get)).await
    }
}

/// Gives all holds of an owner one number.
#[derive(Debug, Default)]
pub struct NumbersOwners;

#[async_trait]
impl Flaw for NumbersOwners {
    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Answer {
        let marked = LockBackend::mark_broken(sound, name, owner, by).await?;
        Ok(marked.map(|marked| Marked::new(marked.relies_for, 0)))
    }
}
