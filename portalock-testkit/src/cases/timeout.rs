//! A call ends when its caller said, and waits for as long as its caller said.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portalock_core::{Lock, LockError, Policy, clock::Instant};

use super::{Case, case, loss::ensure_told};
use crate::{
    erased::AnyBackend,
    spy::Spy,
    trial::{Trial, ensure_contended, patient},
    verdict::{CaseResult, IN_VAIN, SLACK, Stop, ensure, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(timeout::a_contended_wait_lasts_its_timeout, rules [], needs [],
        "a wait for a lock that stays held lasts its whole timeout and then ends, saying that it is contended"),
    case!(timeout::a_release_ends_the_wait, rules [], needs [],
        "a waiter is granted the lock when it is released, long before its timeout"),
    case!(timeout::a_failed_try_does_not_wait, rules [], needs [],
        "try_acquire, fail_when_locked and a zero timeout answer a contended lock without waiting for its holder"),
    case!(timeout::a_zero_timeout_takes_a_free_lock, rules [], needs [],
        "a zero timeout still acquires a lock that is free"),
    case!(timeout::a_timed_out_waiter_leaves_nothing, rules [5], needs [],
        "a waiter that timed out is not granted the lock later, and keeps nobody from it"),
    case!(timeout::a_release_at_the_deadline_strands_nothing, rules [5], needs [],
        "a lock that is released just as its waiter times out is either the waiter's or free"),
    case!(timeout::waiting_leaves_the_runtime_free, rules [9], needs [],
        "while one task of a single-threaded runtime waits for the lock, the others run on"),
    case!(
        timeout::a_stalled_service_does_not_stall_the_caller,
        rules[8, 9],
        needs[Stall],
        "while the service does not answer, a call ends at its timeout, does not say that the lock is held, and leaves the other tasks of its runtime running"
    ),
    case!(
        timeout::a_cut_off_client_does_not_hang,
        rules[8],
        needs[CutOff],
        "while a client is cut off, its calls end at their timeout and do not say that the lock is held, and after a short cut it knows whether it still holds"
    ),
];

async fn a_contended_wait_lasts_its_timeout(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let held = holder.lock("job")?.acquire().await?;
    let (others, own) = (waiter.lock("job")?, holder.lock("job")?);
    let (others, own) = tokio::join!(waits_in_vain(&others), waits_in_vain(&own));
    others?;
    own?;
    held.ensure_held()?;
    held.release().await?;
    Ok(())
}

async fn waits_in_vain(lock: &Lock<AnyBackend>) -> CaseResult {
    let started = Instant::now();
    let policy = Policy::new().with_timeout(IN_VAIN);
    let refused = within(
        IN_VAIN + SLACK * 2,
        "the wait's end",
        lock.acquire_with(&policy),
    )
    .await?;
    let lasted = started.elapsed();
    let error = ensure_contended(refused, "a waiter")?;
    ensure!(
        matches!(error, LockError::Timeout { .. }),
        "a wait that timed out ended with {error}"
    );
    ensure!(
        lasted >= IN_VAIN,
        "a wait of {IN_VAIN:?} gave up after {lasted:?}"
    );
    Ok(())
}

async fn a_release_ends_the_wait(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let spy = Spy::on(waiter.backend());
    let lock = Lock::new(spy.clone(), "job")?;
    let held = holder.lock("job")?.acquire().await?;
    // Five minutes: the wait can only end in time by a grant.
    let policy = Policy::new().with_timeout(Duration::from_secs(300));
    let waiting = crate::spawn(async move { lock.acquire_with(&policy).await });
    spy.contended(1).await?;
    held.release().await?;
    let guard = soon("the waiter's grant", waiting).await???;
    guard.release().await?;
    Ok(())
}

async fn a_failed_try_does_not_wait(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let held = holder.lock("job")?.acquire().await?;
    let lock = other
        .lock("job")?
        .with_policy(Policy::new().with_timeout(Duration::from_secs(300)));
    let fails = Policy::forever().with_fail_when_locked(true);
    let zero = Policy::new().with_timeout(Duration::ZERO);
    let refused = soon("the answer of try_acquire", lock.try_acquire()).await?;
    let error = ensure_contended(refused, "try_acquire")?;
    ensure!(
        matches!(error, LockError::AlreadyLocked { .. }),
        "try_acquire ended with {error}"
    );
    let refused = soon("the answer of fail_when_locked", lock.acquire_with(&fails)).await?;
    let error = ensure_contended(refused, "fail_when_locked")?;
    ensure!(
        matches!(error, LockError::AlreadyLocked { .. }),
        "fail_when_locked ended with {error}"
    );
    let refused = soon("the answer of a zero timeout", lock.acquire_with(&zero)).await?;
    ensure_contended(refused, "a zero timeout")?;
    held.ensure_held()?;
    held.release().await?;
    trial.ensure_free(&other, lock.name()).await
}

async fn a_zero_timeout_takes_a_free_lock(trial: Trial) -> CaseResult {
    let lock = trial.client().await?.lock("job")?;
    let zero = Policy::new().with_timeout(Duration::ZERO);
    lock.acquire_with(&zero).await?.release().await?;
    lock.acquire_with(&zero.with_fail_when_locked(true))
        .await?
        .release()
        .await?;
    Ok(())
}

async fn a_timed_out_waiter_leaves_nothing(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let held = holder.lock("job")?.acquire().await?;
    let brief = Policy::new().with_timeout(Duration::from_millis(50));
    for _ in 0..3 {
        let refused = waiter.lock("job")?.acquire_with(&brief).await;
        ensure!(
            matches!(refused, Err(LockError::Timeout { .. })),
            "a brief wait for a lock that is held ended with {refused:?}"
        );
    }
    held.release().await?;
    trial.ensure_free(&waiter, holder.lock("job")?.name()).await
}

async fn a_release_at_the_deadline_strands_nothing(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let lock = waiter.lock("job")?;
    for round in 0..20 {
        let held = holder.lock("job")?.acquire_with(&patient()).await?;
        let policy = Policy::new().with_timeout(Duration::from_millis(10));
        let release = async {
            tokio::time::sleep(Duration::from_micros(6_000 + 400 * round)).await;
            held.release().await
        };
        let (released, acquired) = tokio::join!(release, lock.acquire_with(&policy));
        released?;
        match acquired {
            Ok(guard) => guard.release().await?,
            Err(LockError::Timeout { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        trial.ensure_free(&holder, lock.name()).await?;
    }
    Ok(())
}

async fn waiting_leaves_the_runtime_free(trial: Trial) -> CaseResult {
    let holder = trial.client().await?;
    let held = holder.lock("job")?.acquire().await?;
    let (beats, mut counted) = tokio::sync::mpsc::unbounded_channel();
    let single = trial.clone();
    let waiting = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Stop::Failed(error.to_string()))?;
        runtime.block_on(async move {
            let lock = single.client().await?.lock("job")?;
            let heart = crate::spawn(async move {
                while beats.send(()).is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            let guard = lock.acquire_with(&patient()).await?;
            guard.release().await?;
            heart.abort();
            Ok::<_, Stop>(())
        })
    });
    // The first beat comes while the wait starts. A blocked runtime sends no more beats until the lock is released.
    let beating = async {
        for _ in 0..40 {
            if counted.recv().await.is_none() {
                return false;
            }
        }
        true
    };
    let beaten = within(
        SLACK * 2,
        "another task of the waiter's runtime running",
        beating,
    )
    .await;
    held.release().await?;
    let waited = soon("the waiter's grant", waiting).await??;
    ensure!(beaten?, "the waiter gave up: {waited:?}");
    waited
}

async fn a_stalled_service_does_not_stall_the_caller(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let lock = client.lock("job")?;
    lock.acquire().await?.release().await?;
    let stall = trial.stall_service().await?;
    beside_a_heart(lock.clone()).await?;
    stall.now().await?;
    recovers(&trial, &lock).await
}

/// Calls in vain on a runtime with a single thread, until another task of that runtime has run often: a client that
/// waits for its answer in the system would keep the thread.
async fn beside_a_heart(lock: Lock<AnyBackend>) -> CaseResult {
    const BEATS: usize = 40;
    let calling = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Stop::Failed(error.to_string()))?;
        let called = runtime.block_on(async move {
            let beats = Arc::new(AtomicUsize::new(0));
            let count = beats.clone();
            crate::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            loop {
                unanswered(lock.acquire_with(&Policy::new().with_timeout(IN_VAIN))).await?;
                if beats.load(Ordering::Relaxed) >= BEATS {
                    return Ok(());
                }
            }
        });
        runtime.shutdown_background();
        called
    });
    within(
        SLACK * 3,
        "a call's end, beside another task of its runtime,",
        calling,
    )
    .await??
}

async fn a_cut_off_client_does_not_hang(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    let held = client.lock("held")?.acquire().await?;
    lock.acquire().await?.release().await?;
    trial.cut_off(&client).await?.now().await?;
    // After so short a cut it may have lost its lock, or not.
    let taken = other.lock("held")?.try_acquire().await;
    let known = held.is_lost();
    if let Ok(taken) = taken {
        ensure_told(&trial, &held.lost_signal(), known).await?;
        taken.release().await?;
    }
    let cut = trial.cut_off(&client).await?;
    unanswered(lock.acquire_with(&Policy::new().with_timeout(IN_VAIN))).await?;
    cut.now().await?;
    recovers(&trial, &lock).await
}

async fn unanswered<T>(call: impl Future<Output = Result<T, LockError>>) -> CaseResult {
    match within(SLACK * 2, "the call's end", call).await? {
        Ok(_) => Err(Stop::failed(
            "a lock was granted by a service that can't be reached",
        )),
        Err(error) => {
            ensure!(
                !error.is_contention(),
                "a service that can't be reached reads as a lock that is held: {error}"
            );
            Ok(())
        }
    }
}

async fn recovers(trial: &Trial, lock: &Lock<AnyBackend>) -> CaseResult {
    let recovered = async {
        loop {
            match lock.acquire_with(&trial.patience()).await {
                Ok(guard) => return guard.release().await,
                Err(LockError::Backend { .. }) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        }
    };
    within(
        trial.crash_limit() + SLACK * 2,
        "a grant, once the service could be reached again,",
        recovered,
    )
    .await??;
    Ok(())
}
