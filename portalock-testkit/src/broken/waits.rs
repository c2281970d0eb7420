//! Waiters that are not woken, not served in turn, or never go away.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Contention, LockBackend, LockRequest, Loss, Mode, OwnerId, Patience,
    Released, WakeSender, Wakeups, wakeups,
};

use super::{Flaw, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(ignores_the_deadline: IgnoresTheDeadline,
        "waits for the holder inside an attempt, whatever the caller said of waiting",
        "timeout::a_failed_try_does_not_wait", "the answer of try_acquire did not happen"),
    specimen!(never_wakes: NeverWakes,
        "promises its waiters a wake-up that never comes",
        "timeout::a_release_ends_the_wait", "the waiter's grant did not happen"),
    specimen!(wakes_all_and_grants_none: WakesAllAndGrantsNone,
        "wakes every waiter when the lock is free, and grants it to none of them",
        "fairness::every_waiter_is_served", "the grant to waiter"),
    specimen!(starves_writers: StarvesWriters,
        "lets readers in for as long as there are any, past a writer that waits",
        "fairness::a_waiting_writer_stops_new_readers", "was granted while somebody was in the way"),
    specimen!(barges_past: BargesPast,
        "claims a queue and keeps none: whoever asks first after a release has the lock",
        "fairness::a_try_does_not_overtake", "was granted while somebody was in the way"),
    specimen!(serves_the_last_first: ServesTheLastFirst,
        "serves the waiter that came last",
        "fairness::all_clients_waiters_are_served_in_order", "were served in the order"),
    specimen!(loses_the_place: LosesThePlace,
        "sends a waiter that looks again to the end of the queue",
        "fairness::a_repeated_attempt_keeps_its_place", "was granted while somebody was in the way"),
    specimen!(leaks_a_cancelled_waiter: LeaksACancelledWaiter,
        "leaves an owner that is released while it waits in the queue",
        "cancellation::a_withdrawn_owner_is_never_granted", "was refused while nobody was in the way"),
    specimen!(leaves_a_grant_behind: LeavesAGrantBehind,
        "leaves the lock with a waiter that went away between being granted it and being told",
        "cancellation::sweep_against_a_release", "nobody should hold it any more"),
    specimen!(keeps_a_place_for_the_impatient: KeepsAPlaceForTheImpatient,
        "queues those who said that they would not wait",
        "cancellation::an_impatient_attempt_leaves_nothing", "was refused while nobody was in the way"),
    specimen!(waits_for_the_dead: WaitsForTheDead,
        "frees what a crashed client held, and leaves its waiters in the queue",
        "crash::a_crashed_waiter_is_passed_over", "the grant to the waiter behind a dead one"),
    specimen!(wakes_on_a_release_only: WakesOnAReleaseOnly,
        "wakes its waiters when a lock is released, and not when the one ahead of them leaves",
        "fairness::a_waiting_writer_stops_new_readers", "a reader behind a writer that left"),
    specimen!(wakes_the_first_only: WakesTheFirstOnly,
        "wakes one waiter at a release, and nobody else when that one goes away",
        "cancellation::a_dropped_waiter_is_passed_over", "the grant to the waiter behind"),
    specimen!(keeps_a_place_for_impatient_readers: KeepsAPlaceForImpatientReaders,
        "queues readers that said that they would not wait",
        "shared::a_writer_keeps_readers_out", "nobody should hold it any more"),
];

/// The same request by one who will not wait: the store keeps no place for it.
/// The waiter then relies on its wake-up.
fn until_woken(attempt: Attempt) -> Attempt {
    match attempt {
        Attempt::Contended(contention) => {
            Attempt::Contended(contention.with_recheck_after(Duration::from_secs(3600)))
        }
        granted @ Attempt::Granted(_) => granted,
    }
}

fn impatient(request: &LockRequest) -> LockRequest {
    let mut request = request.clone();
    request.patience = Patience::Once;
    request
}

/// Waits for the holder inside an attempt.
#[derive(Debug, Default)]
pub struct IgnoresTheDeadline;

#[async_trait]
impl Flaw for IgnoresTheDeadline {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        loop {
            match LockBackend::try_acquire(sound, request).await? {
                Attempt::Contended(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                granted @ Attempt::Granted(_) => return Ok(granted),
            }
        }
    }
}

/// Promises its waiters a wake-up that never comes.
#[derive(Debug, Default)]
pub struct NeverWakes;

#[async_trait]
impl Flaw for NeverWakes {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(until_woken(LockBackend::try_acquire(sound, request).await?))
    }

    async fn subscribe(&self, _: &Sound, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let (sender, line) = wakeups();
        // Open for as long as the waiter listens, and silent.
        Ok(Some(line.with_subscription(sender)))
    }
}

/// Wakes every waiter when the lock is free, and grants it to none of them.
#[derive(Debug, Default)]
pub struct WakesAllAndGrantsNone {
    waiters: Mutex<HashSet<OwnerId>>,
    lines: Mutex<Vec<WakeSender>>,
}

#[async_trait]
impl Flaw for WakesAllAndGrantsNone {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        if locked(&self.waiters).contains(&request.owner) {
            return Ok(Attempt::Contended(Contention::new()));
        }
        let attempt = LockBackend::try_acquire(sound, &impatient(request)).await?;
        if matches!(attempt, Attempt::Contended(_)) && request.patience == Patience::Queue {
            locked(&self.waiters).insert(request.owner);
        }
        Ok(attempt)
    }

    async fn subscribe(&self, _: &Sound, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let (sender, line) = wakeups();
        locked(&self.lines).push(sender);
        Ok(Some(line))
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let released = LockBackend::release(sound, request).await?;
        locked(&self.lines).retain(WakeSender::wake);
        Ok(released)
    }
}

/// Wakes one waiter at a release, and nobody else when that one goes away.
#[derive(Debug, Default)]
pub struct WakesTheFirstOnly(Mutex<VecDeque<(LockRequest, WakeSender)>>);

#[async_trait]
impl Flaw for WakesTheFirstOnly {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, &impatient(request)).await?;
        Ok(until_woken(attempt))
    }

    async fn subscribe(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Option<Wakeups>, BackendError> {
        let (sender, line) = wakeups();
        locked(&self.0).push_back((request.clone(), sender.clone()));
        let seen = LockBackend::inspect(sound, &request.name).await?;
        if !seen.held {
            // It was released since the attempt.
            sender.wake();
        }
        Ok(Some(line))
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        locked(&self.0).retain(|(waits, _)| waits.owner != request.owner);
        let released = LockBackend::release(sound, request).await?;
        if released == Released::Freed {
            let mut lines = locked(&self.0);
            let next = lines
                .iter()
                .position(|(waits, _)| waits.name == request.name);
            if let Some((_, line)) = next.and_then(|next| lines.remove(next)) {
                line.wake();
            }
        }
        Ok(released)
    }
}

/// Lets readers in past a writer that waits.
#[derive(Debug, Default)]
pub struct StarvesWriters;

#[async_trait]
impl Flaw for StarvesWriters {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        match request.demand {
            Mode::Exclusive => LockBackend::try_acquire(sound, &impatient(request)).await,
            Mode::Shared => LockBackend::try_acquire(sound, request).await,
        }
    }

    async fn subscribe(&self, _: &Sound, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(None)
    }
}

/// Claims a queue and keeps none.
#[derive(Debug, Default)]
pub struct BargesPast;

#[async_trait]
impl Flaw for BargesPast {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        LockBackend::try_acquire(sound, &impatient(request)).await
    }

    async fn subscribe(&self, _: &Sound, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(None)
    }
}

/// Serves the waiter that came last.
#[derive(Debug, Default)]
pub struct ServesTheLastFirst(Mutex<Vec<OwnerId>>);

#[async_trait]
impl Flaw for ServesTheLastFirst {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let mut waiters = locked(&self.0).clone();
        if !waiters.contains(&request.owner) && request.patience == Patience::Queue {
            locked(&self.0).push(request.owner);
            waiters.push(request.owner);
        }
        if waiters.last().is_some_and(|last| *last != request.owner) {
            return Ok(Attempt::Contended(Contention::new()));
        }
        let attempt = LockBackend::try_acquire(sound, &impatient(request)).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            locked(&self.0).retain(|waiter| *waiter != request.owner);
        }
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        locked(&self.0).retain(|waiter| *waiter != request.owner);
        LockBackend::release(sound, request).await
    }

    async fn subscribe(&self, _: &Sound, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(None)
    }
}

/// Sends a waiter that looks again to the end of the queue.
#[derive(Debug, Default)]
pub struct LosesThePlace;

#[async_trait]
impl Flaw for LosesThePlace {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        match LockBackend::try_acquire(sound, request).await? {
            Attempt::Contended(_) => {
                LockBackend::release(sound, request).await?;
                LockBackend::try_acquire(sound, request).await
            }
            granted @ Attempt::Granted(_) => Ok(granted),
        }
    }
}

/// Leaves an owner that is released while it waits in the queue.
#[derive(Debug, Default)]
pub struct LeaksACancelledWaiter(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for LeaksACancelledWaiter {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        match &attempt {
            Attempt::Granted(_) => locked(&self.0).remove(&request.owner),
            Attempt::Contended(_) => locked(&self.0).insert(request.owner),
        };
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        if locked(&self.0).contains(&request.owner) {
            return Ok(Released::NotHeld);
        }
        LockBackend::release(sound, request).await
    }
}

/// Leaves the lock with a waiter that went away between being granted it and being told.
#[derive(Debug, Default)]
pub struct LeavesAGrantBehind(Mutex<HashSet<OwnerId>>);

#[async_trait]
impl Flaw for LeavesAGrantBehind {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        match &attempt {
            Attempt::Contended(_) if request.patience == Patience::Queue => {
                locked(&self.0).insert(request.owner)
            }
            _ => locked(&self.0).remove(&request.owner),
        };
        Ok(attempt)
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let untold = locked(&self.0).remove(&request.owner);
        if untold && let Attempt::Granted(_) = LockBackend::try_acquire(sound, request).await? {
            return Ok(Released::NotHeld);
        }
        LockBackend::release(sound, request).await
    }
}

/// Queues those who said that they would not wait.
#[derive(Debug, Default)]
pub struct KeepsAPlaceForTheImpatient;

#[async_trait]
impl Flaw for KeepsAPlaceForTheImpatient {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let mut queued = request.clone();
        queued.patience = Patience::Queue;
        LockBackend::try_acquire(sound, &queued).await
    }
}

/// Frees what a crashed client held, and leaves its waiters in the queue.
#[derive(Debug, Default)]
pub struct WaitsForTheDead(Mutex<HashMap<OwnerId, (u64, LockRequest)>>);

#[async_trait]
impl Flaw for WaitsForTheDead {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            locked(&self.0).insert(request.owner, (sound.number(), request.clone()));
        }
        Ok(attempt)
    }

    async fn expire(&self, sound: &Sound) {
        sound.end_lease(Loss::Expired);
        let held = locked(&self.0).clone();
        for (client, request) in held.into_values() {
            if client == sound.number() {
                let _ = LockBackend::release(sound.memory(), &request).await;
            }
        }
    }
}

/// Wakes its waiters when a lock is released, and not when the one ahead of them leaves.
#[derive(Debug, Default)]
pub struct WakesOnAReleaseOnly(Mutex<Vec<WakeSender>>);

#[async_trait]
impl Flaw for WakesOnAReleaseOnly {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(until_woken(LockBackend::try_acquire(sound, request).await?))
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let released = LockBackend::release(sound, request).await?;
        if released == Released::Freed {
            for line in locked(&self.0).iter() {
                line.wake();
            }
        }
        Ok(released)
    }

    async fn subscribe(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Option<Wakeups>, BackendError> {
        let (sender, line) = wakeups();
        let seen = LockBackend::inspect(sound, &request.name).await?;
        if seen
            .holders
            .iter()
            .any(|claim| claim.owner == Some(request.owner))
        {
            // It was granted the lock since its attempt.
            sender.wake();
        }
        locked(&self.0).push(sender);
        Ok(Some(line))
    }
}

/// Queues readers that said that they would not wait.
#[derive(Debug, Default)]
pub struct KeepsAPlaceForImpatientReaders;

#[async_trait]
impl Flaw for KeepsAPlaceForImpatientReaders {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let mut request = request.clone();
        if request.demand == Mode::Shared {
            request.patience = Patience::Queue;
        }
        LockBackend::try_acquire(sound, &request).await
    }
}
