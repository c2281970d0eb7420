//! A backend belongs to the program, and not to the runtime that first used it.

use std::{sync::mpsc, time::Duration};

use portalock_core::{CrashRelease, Inspect, LockBackend, PermitGuard, Policy, Semaphore};
use tokio::{runtime::Runtime, sync::oneshot, task::spawn_blocking};

use super::{
    Case, case,
    semaphore::{ensure_all_free, ensure_short},
};
use crate::{
    erased::AnySemaphore,
    trial::{Client, Trial, ensure_contended, name, patient},
    verdict::{A_WHILE, CaseResult, IN_VAIN, Stop, ensure, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(runtime::a_lock_outlives_its_runtime, rules [11], needs [],
        "when the runtime that took a lock has ended and the guard lives on, the lock is still held, and is released by any other runtime"),
    case!(runtime::a_runtime_that_stands_still_loses_nothing, rules [11], needs [],
        "a holder whose runtime is blocked by a computation, for longer than a crashed holder's lock takes to pass on, keeps its lock"),
    case!(runtime::one_client_serves_many_runtimes, rules [11], needs [],
        "a client that was made on a runtime that has ended waits and is granted on the next ones"),
    case!(runtime::a_guard_dropped_beside_an_idle_runtime_is_released, rules [11], needs [],
        "a guard that is dropped while nobody drives the runtime it was acquired on frees its lock"),
    case!(runtime::one_thread_is_enough, rules [9, 11], needs [],
        "each call works on a runtime with a single thread, and permits that outlive that runtime stay held until they are dropped"),
];

async fn one_thread_is_enough(trial: Trial) -> CaseResult {
    let its_trial = trial.clone();
    let used = spawn_blocking(move || runtime()?.block_on(uses_everything(&its_trial)));
    let permits = soon("the end of all calls on one thread", used).await??;
    let Some(permits) = permits? else {
        return Ok(());
    };
    let client = trial.client().await?;
    ensure_short(client.pool("pool", 3)?.try_acquire(1).await)?;
    let thread = std::thread::spawn(move || drop(permits));
    let joined = spawn_blocking(move || thread.join().is_ok());
    ensure!(
        soon("the drop of a guard of permits", joined).await??,
        "dropping a guard of permits outside a runtime panicked"
    );
    ensure_all_free(&client, 3).await
}

/// Makes each kind of call. Returns the guard of a permit, if there are semaphores.
async fn uses_everything(trial: &Trial) -> CaseResult<Option<PermitGuard<AnySemaphore>>> {
    let claims = *trial.capabilities();
    let (client, other) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    if claims.shared {
        let readers = [
            lock.acquire_shared().await?,
            other.lock("job")?.acquire_shared().await?,
        ];
        ensure_contended(lock.try_acquire().await, "a writer")?;
        for reader in readers {
            reader.release().await?;
        }
    }
    let guard = lock.acquire_with(&patient()).await?;
    let backend = client.backend();
    let _watch = backend.watch(lock.name()).await?;
    let _listed = backend.names().await;
    if claims.inspect >= Inspect::Holders {
        lock.inspect().await?;
    }
    if claims.breaks {
        other.lock("job")?.break_holder(guard.owner()).await?;
        drop(guard.release().await);
    } else {
        guard.release().await?;
    }
    backend.close().await?;
    let Ok(semaphore) = other.semaphore() else {
        return Ok(None);
    };
    let pool = other.pool("pool", 3)?;
    let two = pool.acquire(2).await?;
    ensure_short(pool.try_acquire(2).await)?;
    if semaphore.capabilities().inspect >= Inspect::Holders {
        pool.inspect().await?;
    }
    two.release().await?;
    Ok(Some(pool.acquire_with(3, &patient()).await?))
}

fn runtime() -> CaseResult<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::Failed(error.to_string()))
}

/// Longer than the lock of a crashed holder takes to pass on.
fn longer_than_a_crash(trial: &Trial) -> Policy {
    let bound = match trial.capabilities().crash_release {
        CrashRelease::Within(bound) => bound,
        _ => Duration::ZERO,
    };
    Policy::new().with_timeout(bound + IN_VAIN)
}

async fn a_lock_outlives_its_runtime(trial: Trial) -> CaseResult {
    let (its_trial, short) = (trial.clone(), runtime()?);
    let taken = spawn_blocking(move || {
        let taken = short.block_on(async {
            let client = its_trial.client().await?;
            let guard = client.lock("job")?.acquire().await?;
            Ok::<_, Stop>((client, guard))
        });
        drop(short);
        taken
    });
    let (_client, guard) = soon("the lock's being taken", taken).await???;
    let other = trial.client().await?;
    still_held(&trial, &other, "the holder's runtime has ended").await?;
    ensure!(
        !guard.is_lost(),
        "the holder was told that it lost a lock that nobody else can get: {:?}",
        guard.lost_signal().loss()
    );
    soon("the release", guard.release()).await??;
    trial.ensure_free(&other, &name("job")?).await
}

async fn a_runtime_that_stands_still_loses_nothing(trial: Trial) -> CaseResult {
    let (held, is_held) = oneshot::channel();
    let (go_on, stand_still) = mpsc::channel::<()>();
    let its_trial = trial.clone();
    let holder = spawn_blocking(move || {
        runtime()?.block_on(async {
            let guard = its_trial.client().await?.lock("job")?.acquire().await?;
            let _ = held.send(());
            // Blocks the runtime's only thread, like a computation.
            let _ = stand_still.recv();
            ensure!(
                !guard.is_lost(),
                "a holder lost its lock while its runtime stood still: {:?}",
                guard.lost_signal().loss()
            );
            guard.release().await?;
            Ok(())
        })
    });
    let waited = match soon("the lock's being taken", is_held).await? {
        Ok(()) => {
            let other = trial.client().await?;
            still_held(&trial, &other, "the holder's runtime stands still").await
        }
        // The holder's own result has the reason.
        Err(_) => Ok(()),
    };
    drop(go_on);
    soon("the holder's end", holder).await???;
    waited
}

/// `other` waits in vain, for longer than the lock of a crashed holder takes to pass on.
async fn still_held(trial: &Trial, other: &Client, while_what: &str) -> CaseResult {
    let lock = other.lock("job")?;
    let tried = lock.acquire_with(&longer_than_a_crash(trial)).await;
    match tried {
        Ok(_) => Err(Stop::Failed(format!(
            "another was granted the lock while {while_what} and its guard lives"
        ))),
        Err(error) if error.is_contention() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn one_client_serves_many_runtimes(trial: Trial) -> CaseResult {
    let (its_trial, first) = (trial.clone(), runtime()?);
    let made = spawn_blocking(move || {
        let made = first.block_on(async {
            let client = its_trial.client().await?;
            client.lock("job")?.acquire().await?.release().await?;
            Ok::<_, Stop>(client)
        });
        drop(first);
        made
    });
    let client = soon("the client's first lock", made).await???;
    let other = trial.client().await?;
    for _ in 0..3 {
        let held = other.lock("job")?.acquire_with(&patient()).await?;
        let (waits, is_waiting) = oneshot::channel();
        let lock = client.lock("job")?;
        let waiter = spawn_blocking(move || {
            runtime()?.block_on(async {
                ensure_contended(lock.try_acquire().await, "a client on its next runtime")?;
                let _ = waits.send(());
                lock.acquire_with(&patient()).await?.release().await?;
                Ok::<_, Stop>(())
            })
        });
        // If the waiter failed, its own result has the reason.
        let _ = soon("the wait's beginning", is_waiting).await?;
        tokio::time::sleep(A_WHILE).await;
        held.release().await?;
        soon("the waiter's turn", waiter).await???;
    }
    Ok(())
}

async fn a_guard_dropped_beside_an_idle_runtime_is_released(trial: Trial) -> CaseResult {
    let its_trial = trial.clone();
    let dropped = spawn_blocking(move || {
        let idle = runtime()?;
        let (client, guard) = idle.block_on(async {
            let client = its_trial.client().await?;
            let guard = client.lock("job")?.acquire().await?;
            Ok::<_, Stop>((client, guard))
        })?;
        drop(guard);
        Ok::<_, Stop>((client, idle))
    });
    let (client, idle) = soon("the lock's being taken and dropped", dropped).await???;
    let other = trial.client().await?;
    let freed = trial.ensure_free(&other, &name("job")?).await;
    drop(client);
    // A runtime may not be dropped on a thread that drives another.
    idle.shutdown_background();
    freed
}
