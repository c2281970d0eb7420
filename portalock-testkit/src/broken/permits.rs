//! Semaphores that can't count.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, ClaimKind, FencingToken, Grant, Inspection, LockName,
    Loss, LostSignal, OwnerId, Patience, PermitRequest, Permits, Released, Semaphore,
};

use super::{Flaw, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(miscounts_permits: MiscountsPermits,
        "counts requests and not the permits that they ask for",
        "semaphore::all_or_none", "were granted while too few were free"),
    specimen!(grants_a_part: GrantsAPart,
        "grants a request as many of its permits as are left, and says that it has them all",
        "semaphore::all_or_none", "were granted while too few were free"),
    specimen!(keeps_a_part: KeepsAPart,
        "takes what is left for a request that is refused, and keeps it",
        "semaphore::all_or_none", "has no room for"),
    specimen!(gives_back_single_permits_only: GivesBackSinglePermitsOnly,
        "forgets to take back permits that were granted several at once",
        "semaphore::permits_come_back", "pool was not granted within"),
    specimen!(small_requests_overtake: SmallRequestsOvertake,
        "claims a queue, and lets small requests overtake a large one that waits",
        "semaphore::waiters_are_served_in_order", "a small request overtook a large one"),
    specimen!(fails_in_a_crowd: FailsInACrowd,
        "fails where many ask for permits at once",
        "semaphore::many_tries_at_once", "the queue changed at every try"),
    specimen!(adds_capacities: AddsCapacities,
        "counts those who asked with different capacities apart, so that their permits add up",
        "semaphore::the_smallest_capacity_binds", "were granted while too few were free"),
    specimen!(leaves_permits_behind: LeavesPermitsBehind,
        "leaves permits with a waiter that went away between being granted them and being told",
        "semaphore::sweep_against_a_release", "nobody should hold a permit any more"),
    specimen!(dead_takers_wait: DeadTakersWait,
        "frees the permits of a crashed client, and leaves its waiters in the queue",
        "semaphore::a_crash_frees_its_permits", "the return of a crashed client's permits"),
    specimen!(lost_permits_are_not_told: LostPermitsAreNotTold,
        "tells the holders of locks of a loss, and not those of permits",
        "semaphore::a_cut_off_holder_is_told", "before its earlier holder was told"),
    specimen!(permits_have_one_token: PermitsHaveOneToken,
        "grants permits with a token that is always the same",
        "semaphore::its_claims_hold", "permits were granted with token"),
    specimen!(permits_are_not_told: PermitsAreNotTold,
        "claims to know who holds permits, and tells nobody",
        "semaphore::its_claims_hold", "one holds two permits, and these are told"),
    specimen!(tries_overtake: TriesOvertake,
        "lets those who only try overtake those who wait for permits",
        "semaphore::waiters_are_served_in_order", "a try overtook"),
    specimen!(takers_lose_their_place: TakersLoseTheirPlace,
        "sends who asks for permits again to the end of the queue",
        "semaphore::waiters_are_served_in_order", "a small request overtook a large one"),
    specimen!(late_releases_add_permits: LateReleasesAddPermits,
        "takes back permits a second time, when one releases whose session has ended",
        "semaphore::a_cut_off_holder_is_told", "no longer held"),
    specimen!(forgets_unanswered_takers: ForgetsUnansweredTakers,
        "takes an attempt for permits that failed for one that did nothing, and does not release it",
        "semaphore::an_unanswered_attempt_leaves_nothing", "nobody should hold a permit any more"),
    specimen!(grants_released_takers: GrantsReleasedTakers,
        "grants an attempt for permits that arrives late, although its owner was released before",
        "semaphore::an_attempt_that_arrives_after_its_release_leaves_nothing", "nobody should hold a permit any more"),
    specimen!(a_stall_frees_permits_in_silence: AStallFreesPermitsInSilence,
        "gives its clients' permits away after it was stalled, and tells none of them",
        "semaphore::a_stalled_service_ends_the_lease", "was told that it lost it"),
];

/// Refuses requests that come while others are being served.
#[derive(Debug, Default)]
pub struct FailsInACrowd {
    served: AtomicU32,
    turned_away: Mutex<HashSet<OwnerId>>,
}

#[async_trait]
impl Flaw for FailsInACrowd {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let others = self.served.fetch_add(1, Ordering::SeqCst);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        self.served.fetch_sub(1, Ordering::SeqCst);
        let is_turned_away = {
            let mut turned_away = locked(&self.turned_away);
            if others > 16 {
                turned_away.insert(request.owner);
            }
            turned_away.contains(&request.owner)
        };
        if is_turned_away {
            let why = "the queue changed at every try";
            return Err(BackendError::new(BackendErrorKind::Unavailable, why));
        }
        Semaphore::try_acquire(sound, request).await
    }
}

fn asking_for(request: &PermitRequest, count: u32) -> PermitRequest {
    let mut request = request.clone();
    if let Ok(permits) = Permits::new(count, request.demand.capacity()) {
        request.demand = permits;
    }
    request
}

/// Counts requests and not the permits that they ask for.
#[derive(Debug, Default)]
pub struct MiscountsPermits;

#[async_trait]
impl Flaw for MiscountsPermits {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        Semaphore::try_acquire(sound, &asking_for(request, 1)).await
    }
}

/// Grants a request as many of its permits as are left.
#[derive(Debug, Default)]
pub struct GrantsAPart;

#[async_trait]
impl Flaw for GrantsAPart {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        for count in (1..=request.demand.count()).rev() {
            let mut part = asking_for(request, count);
            part.patience = Patience::Once;
            let attempt = Semaphore::try_acquire(sound, &part).await?;
            if matches!(attempt, Attempt::Granted(_)) {
                return Ok(attempt);
            }
        }
        Semaphore::try_acquire(sound, request).await
    }
}

/// Takes what is left for a request that is refused, and keeps it.
#[derive(Debug, Default)]
pub struct KeepsAPart;

#[async_trait]
impl Flaw for KeepsAPart {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) && request.patience == Patience::Once {
            for count in (1..request.demand.count()).rev() {
                let part = Semaphore::try_acquire(sound, &asking_for(request, count)).await?;
                if matches!(part, Attempt::Granted(_)) {
                    break;
                }
            }
        }
        Ok(attempt)
    }
}

/// Forgets to take back permits that were granted several at once.
#[derive(Debug, Default)]
pub struct GivesBackSinglePermitsOnly;

#[async_trait]
impl Flaw for GivesBackSinglePermitsOnly {
    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        if request.demand.count() > 1 {
            return Ok(Released::Freed);
        }
        Semaphore::release(sound, request).await
    }
}

/// Claims a queue, and lets small requests overtake a large one that waits.
#[derive(Debug, Default)]
pub struct SmallRequestsOvertake;

#[async_trait]
impl Flaw for SmallRequestsOvertake {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let mut unqueued = request.clone();
        unqueued.patience = Patience::Once;
        Semaphore::try_acquire(sound, &unqueued).await
    }
}

/// Counts those who asked with different capacities apart.
#[derive(Debug, Default)]
pub struct AddsCapacities;

impl AddsCapacities {
    fn apart(request: &PermitRequest) -> PermitRequest {
        let mut request = request.clone();
        let name = format!("{} of {}", request.name, request.demand.capacity());
        request.name = LockName::new(name).unwrap_or(request.name);
        request
    }
}

#[async_trait]
impl Flaw for AddsCapacities {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        Semaphore::try_acquire(sound, &Self::apart(request)).await
    }

    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        Semaphore::release(sound, &Self::apart(request)).await
    }
}

/// Leaves permits with a waiter that went away between being granted them and being told.
#[derive(Debug, Default)]
pub struct LeavesPermitsBehind(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for LeavesPermitsBehind {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        match &attempt {
            Attempt::Contended(_) if request.patience == Patience::Queue => {
                locked(&self.0).insert(request.owner)
            }
            _ => locked(&self.0).remove(&request.owner),
        };
        Ok(attempt)
    }

    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        let untold = locked(&self.0).remove(&request.owner);
        if untold && let Attempt::Granted(_) = Semaphore::try_acquire(sound, request).await? {
            return Ok(Released::NotHeld);
        }
        Semaphore::release(sound, request).await
    }
}

/// Frees the permits of a crashed client, and leaves its waiters in the queue.
#[derive(Debug, Default)]
pub struct DeadTakersWait;

#[async_trait]
impl Flaw for DeadTakersWait {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) {
            sound.forget(request.owner);
        }
        Ok(attempt)
    }
}

/// Tells the holders of locks of a loss, and not those of permits.
#[derive(Debug, Default)]
pub struct LostPermitsAreNotTold;

#[async_trait]
impl Flaw for LostPermitsAreNotTold {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        Ok(match attempt {
            Attempt::Granted(grant) => Attempt::Granted(grant.with_lost(LostSignal::never())),
            contended @ Attempt::Contended(_) => contended,
        })
    }
}

/// Grants permits with a token that is always the same.
#[derive(Debug, Default)]
pub struct PermitsHaveOneToken;

#[async_trait]
impl Flaw for PermitsHaveOneToken {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match Semaphore::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => Attempt::Granted(grant.with_token(FencingToken::new(1))),
            contended @ Attempt::Contended(_) => contended,
        })
    }
}

/// Claims to know who holds permits, and tells nobody.
#[derive(Debug, Default)]
pub struct PermitsAreNotTold;

#[async_trait]
impl Flaw for PermitsAreNotTold {
    async fn inspect_permits(&self, _: &Sound, _: &LockName) -> Result<Inspection, BackendError> {
        Ok(Inspection::default())
    }
}

/// Lets those who only try overtake those who wait.
#[derive(Debug, Default)]
pub struct TriesOvertake;

#[async_trait]
impl Flaw for TriesOvertake {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Contended(_)) && request.patience == Patience::Once {
            let seen = Semaphore::inspect(sound, &request.name).await?;
            let used: u32 = seen
                .holders
                .iter()
                .map(|claim| match claim.kind {
                    ClaimKind::Permits(count) => count,
                    _ => 0,
                })
                .sum();
            if used + request.demand.count() <= request.demand.capacity() {
                return Ok(Attempt::Granted(Grant::new()));
            }
        }
        Ok(attempt)
    }
}

/// Sends who asks again to the end of the queue.
#[derive(Debug, Default)]
pub struct TakersLoseTheirPlace;

#[async_trait]
impl Flaw for TakersLoseTheirPlace {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        match Semaphore::try_acquire(sound, request).await? {
            Attempt::Contended(_) => {
                Semaphore::release(sound, request).await?;
                Semaphore::try_acquire(sound, request).await
            }
            granted @ Attempt::Granted(_) => Ok(granted),
        }
    }
}

/// Takes back permits a second time, when one releases whose session has ended.
#[derive(Debug, Default)]
pub struct LateReleasesAddPermits {
    granted: Mutex<Vec<(u64, PermitRequest)>>,
    ended: Mutex<HashSet<OwnerId>>,
}

#[async_trait]
impl Flaw for LateReleasesAddPermits {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            locked(&self.granted).push((sound.number(), request.clone()));
        }
        Ok(attempt)
    }

    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        let released = Semaphore::release(sound, request).await?;
        if locked(&self.ended).remove(&request.owner) {
            let others = locked(&self.granted).clone();
            for (_, other) in others {
                Semaphore::release(sound.memory(), &other).await?;
            }
        }
        Ok(released)
    }

    async fn expire(&self, sound: &Sound) {
        let granted = locked(&self.granted).clone();
        let its_own = granted
            .iter()
            .filter(|(client, _)| *client == sound.number());
        locked(&self.ended).extend(its_own.map(|(_, request)| request.owner));
        sound.expire(Loss::Expired).await;
    }
}

/// Takes an attempt for permits that failed for one that did nothing.
#[derive(Debug, Default)]
pub struct ForgetsUnansweredTakers(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for ForgetsUnansweredTakers {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await;
        if attempt.is_err() {
            locked(&self.0).insert(request.owner);
        }
        attempt
    }

    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        if locked(&self.0).remove(&request.owner) {
            return Ok(Released::NotHeld);
        }
        Semaphore::release(sound, request).await
    }
}

/// Grants an attempt for permits whatever was released before it arrived.
#[derive(Debug, Default)]
pub struct GrantsReleasedTakers;

#[async_trait]
impl Flaw for GrantsReleasedTakers {
    async fn arrive_for_permits(&self, sound: &Sound, attempt: &PermitRequest, _: bool) {
        let _ = self.try_acquire_permits(sound, attempt).await;
    }
}

/// Gives its clients' permits away after it was stalled, and tells none of them.
#[derive(Debug, Default)]
pub struct AStallFreesPermitsInSilence;

#[async_trait]
impl Flaw for AStallFreesPermitsInSilence {
    async fn recover(&self, sound: &Sound) {
        sound.free_permits().await;
    }
}
