//! Code that takes the runtime's thread and does not give it back, or that depends on one runtime.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Inspection, Lease, LockBackend, LockName, LockRequest,
    Loss, LostSignal, PermitRequest, Semaphore, clock::Instant,
};
use tokio::runtime::Handle;

use super::{Flaw, Sound, Specimen, locked, sound::LEASE, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(blocks_the_runtime: BlocksTheRuntime,
        "puts the thread to sleep until the lock is free",
        "timeout::waiting_leaves_the_runtime_free", "another task of the waiter's runtime running did not happen"),
    specimen!(dies_with_its_runtime: DiesWithItsRuntime,
        "keeps its session on the runtime of the first caller, and loses it when that runtime ends",
        "runtime::a_lock_outlives_its_runtime", "while the holder's runtime has ended"),
    specimen!(renews_on_the_callers_runtime: RenewsOnTheCallersRuntime,
        "renews its lease on the caller's runtime",
        "runtime::a_runtime_that_stands_still_loses_nothing", "while its runtime stood still"),
    specimen!(speaks_through_its_first_runtime: SpeaksThroughItsFirstRuntime,
        "sends everything over a connection that the first caller's runtime drives",
        "runtime::one_client_serves_many_runtimes", "its connection is gone"),
    specimen!(releases_on_the_acquirers_runtime: ReleasesOnTheAcquirersRuntime,
        "leaves the release of a dropped guard to the runtime that acquired the lock",
        "runtime::a_guard_dropped_beside_an_idle_runtime_is_released", "nobody should hold it any more"),
    specimen!(looks_need_threads: LooksNeedThreads,
        "looks who holds in a way that a runtime with one thread does not have",
        "runtime::one_thread_is_enough", "panicked"),
    specimen!(waits_for_answers_in_the_system: WaitsForAnswersInTheSystem,
        "keeps its thread while it waits for an answer of the store",
        "timeout::a_stalled_service_does_not_stall_the_caller", "beside another task of its runtime"),
    specimen!(permits_need_threads: PermitsNeedThreads,
        "asks for permits in a way that a runtime with one thread does not have",
        "runtime::one_thread_is_enough", "panicked"),
    specimen!(permits_die_with_their_runtime: PermitsDieWithTheirRuntime,
        "loses permits with the runtime on which they were acquired",
        "runtime::one_thread_is_enough", "were granted while too few were free"),
];

/// Keeps its session on the runtime of the first caller.
#[derive(Debug, Default)]
pub struct DiesWithItsRuntime;

/// Ends the session when the task that it belongs to is dropped.
struct SessionTask(Sound);

impl Drop for SessionTask {
    fn drop(&mut self) {
        self.0.end_lease(Loss::Expired);
        let _ = self.0.free_all().now_or_never();
    }
}

#[async_trait]
impl Flaw for DiesWithItsRuntime {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let session = SessionTask(sound.clone());
        crate::spawn(async move {
            let _session = session;
            std::future::pending::<()>().await;
        });
        LockBackend::try_acquire(sound, request).await
    }
}

/// Renews its lease on the caller's runtime.
#[derive(Debug, Default)]
pub struct RenewsOnTheCallersRuntime;

#[async_trait]
impl Flaw for RenewsOnTheCallersRuntime {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        let Attempt::Granted(grant) = attempt else {
            return Ok(attempt);
        };
        let lease = Lease::until(Instant::now() + LEASE);
        let lost = LostSignal::any([grant.lost.clone(), lease.signal()]);
        crate::spawn(async move {
            while lease.extend(Instant::now() + LEASE) {
                tokio::time::sleep(LEASE / 3).await;
            }
        });
        Ok(Attempt::Granted(grant.with_lost(lost)))
    }
}

/// Sends everything over a connection that the first caller's runtime drives.
#[derive(Debug, Default)]
pub struct SpeaksThroughItsFirstRuntime(Mutex<Option<Handle>>);

#[async_trait]
impl Flaw for SpeaksThroughItsFirstRuntime {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let driver = locked(&self.0).get_or_insert_with(Handle::current).clone();
        let (sound, request) = (sound.clone(), request.clone());
        let call = async move { LockBackend::try_acquire(&sound, &request).await };
        driver.spawn(call).await.map_err(|_| {
            BackendError::new(BackendErrorKind::Misconfigured, "its connection is gone")
        })?
    }
}

/// Leaves the release of a dropped guard to the runtime that acquired the lock.
#[derive(Debug, Default)]
pub struct ReleasesOnTheAcquirersRuntime(Mutex<Option<Handle>>);

#[async_trait]
impl Flaw for ReleasesOnTheAcquirersRuntime {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        *locked(&self.0) = Some(Handle::current());
        LockBackend::try_acquire(sound, request).await
    }

    fn release_now(&self, sound: &Sound, request: &LockRequest) -> bool {
        let (sound, request) = (sound.clone(), request.clone());
        if let Some(home) = &*locked(&self.0) {
            home.spawn(async move { LockBackend::release(&sound, &request).await });
        }
        true
    }
}

/// Puts the thread to sleep until the lock is free.
#[derive(Debug, Default)]
pub struct BlocksTheRuntime;

#[async_trait]
impl Flaw for BlocksTheRuntime {
    #[allow(
        clippy::disallowed_methods,
        reason = "blocking is what is wrong with it"
    )]
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        // Longer than any case watches, so that a thread is not taken for good.
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match LockBackend::try_acquire(sound, request).await? {
                Attempt::Contended(_) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                attempt => return Ok(attempt),
            }
        }
    }
}

/// Looks who holds in a way that a runtime with one thread does not have.
#[derive(Debug, Default)]
pub struct LooksNeedThreads;

#[async_trait]
impl Flaw for LooksNeedThreads {
    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        tokio::task::block_in_place(|| ());
        LockBackend::inspect(sound, name).await
    }
}

/// Keeps its thread while it waits for an answer.
#[derive(Debug, Default)]
pub struct WaitsForAnswersInTheSystem;

#[async_trait]
impl Flaw for WaitsForAnswersInTheSystem {
    #[allow(
        clippy::disallowed_methods,
        reason = "blocking is what is wrong with it"
    )]
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let end = Instant::now() + Duration::from_secs(3);
        let mut answer = Box::pin(LockBackend::try_acquire(sound, request));
        loop {
            if let Some(answer) = (&mut answer).now_or_never() {
                return answer;
            }
            if Instant::now() >= end {
                let silence = "the store did not answer";
                return Err(BackendError::new(BackendErrorKind::Unavailable, silence));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Asks for permits in a way that a runtime with one thread does not have.
#[derive(Debug, Default)]
pub struct PermitsNeedThreads;

#[async_trait]
impl Flaw for PermitsNeedThreads {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        tokio::task::block_in_place(|| ());
        Semaphore::try_acquire(sound, request).await
    }
}

/// Loses permits with the runtime on which they were acquired.
#[derive(Debug, Default)]
pub struct PermitsDieWithTheirRuntime;

/// Frees the permits when the task that it belongs to is dropped.
struct PermitsTask(Sound, PermitRequest);

impl Drop for PermitsTask {
    fn drop(&mut self) {
        let _ = Semaphore::release(self.0.memory(), &self.1).now_or_never();
    }
}

#[async_trait]
impl Flaw for PermitsDieWithTheirRuntime {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = Semaphore::try_acquire(sound, request).await?;
        if matches!(attempt, Attempt::Granted(_)) {
            let task = PermitsTask(sound.clone(), request.clone());
            crate::spawn(async move {
                let _task = task;
                std::future::pending::<()>().await;
            });
        }
        Ok(attempt)
    }
}
