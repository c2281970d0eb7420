//! A release frees what its owner holds, and nothing else.

use std::time::Duration;

use portalock_core::{LockBackend, LockError, Mode, Released};

use super::{Case, case, loss::ensure_told};
use crate::{
    helper::Helper,
    trial::{Trial, ensure_contended, name, once, patient, queued},
    verdict::{CaseResult, Stop, ensure, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(release::a_released_lock_is_free_at_once, rules [4], needs [],
        "when release has returned, another client gets the lock at its first attempt"),
    case!(release::a_refused_owners_release_leaves_the_holder, rules [2, 4, 6], needs [],
        "releasing a request that was refused, through the client that holds, leaves the lock held"),
    case!(release::a_waiters_release_leaves_the_holder, rules [2, 4, 5], needs [],
        "releasing an owner that waits takes it out of the queue, and leaves the holder and the other waiters"),
    case!(release::a_late_release_leaves_the_next_holder, rules [4], needs [],
        "a repeated release, after the lock has passed on, leaves the next holder's lock held"),
    case!(release::releasing_twice_is_harmless, rules [4], needs [],
        "the first release says that it freed the lock, every later one that there was nothing to free"),
    case!(release::releasing_what_was_never_asked_for_is_harmless, rules [4], needs [],
        "releasing an owner that the store has never heard of answers that it did not hold"),
    case!(release::a_dropped_guard_frees_the_lock, rules [], needs [],
        "a guard that is dropped, or whose task is aborted or panics, frees its lock"),
    case!(
        release::a_dropped_guard_frees_at_once,
        rules[10],
        needs[ReleasesNow],
        "if a backend claims to release at once, the lock is free when drop has returned"
    ),
    case!(release::a_guard_dropped_outside_a_runtime_frees_the_lock, rules [], needs [],
        "a guard that is dropped on a thread without a runtime frees its lock"),
    case!(release::a_guard_outlives_its_runtime, rules [], needs [],
        "a guard that is dropped while, or after, the runtime it was made on shuts down frees its lock"),
    case!(release::a_closed_client_starts_anew, rules [], needs [],
        "a client that was closed in good order can be used again, and a guard from before never believes that it holds a lock that closing freed"),
    case!(release::a_forked_childs_copy_frees_nothing, rules [2, 4], needs [BeyondProcess, Helper],
        "a forked child that drops, or releases, the copy of a guard that it inherited leaves its parent's lock held"),
];

async fn a_released_lock_is_free_at_once(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    for round in 0..10 {
        let (here, there) = if round % 2 == 0 {
            (&first, &second)
        } else {
            (&second, &first)
        };
        let held = queued(&name);
        let _ = here.grant(&held).await?;
        here.free(&held).await?;
        let next = once(&name);
        let _ = there.grant(&next).await?;
        there.free(&next).await?;
    }
    Ok(())
}

async fn a_refused_owners_release_leaves_the_holder(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (held, refused) = (once(&name), once(&name));
    let _ = client.grant(&held).await?;
    client.refused(&refused).await?;
    let released = client.release(&refused).await?;
    ensure!(
        released == Released::NotHeld,
        "releasing an owner that was refused answered {released:?}"
    );
    other.refused(&once(&name)).await?;
    client.refused(&once(&name)).await?;
    client.free(&held).await?;
    let next = once(&name);
    let _ = other.grant(&next).await?;
    other.free(&next).await
}

async fn a_waiters_release_leaves_the_holder(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (held, gone, stays) = (queued(&name), queued(&name), queued(&name));
    let _ = client.grant(&held).await?;
    client.refused(&gone).await?;
    client.refused(&stays).await?;
    let released = client.release(&gone).await?;
    ensure!(
        released == Released::NotHeld,
        "releasing an owner that waits answered {released:?}"
    );
    other.refused(&once(&name)).await?;
    client.free(&held).await?;
    let _ = client.granted_soon(&stays).await?;
    other.refused(&once(&name)).await?;
    client.free(&stays).await?;
    trial.ensure_free(&other, &name).await
}

async fn a_late_release_leaves_the_next_holder(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let early = once(&name);
    let _ = first.grant(&early).await?;
    first.free(&early).await?;
    for client in [&first, &second] {
        let held = once(&name);
        let _ = client.grant(&held).await?;
        let released = first.release(&early).await?;
        ensure!(
            released == Released::NotHeld,
            "a late release answered {released:?}"
        );
        first.refused(&once(&name)).await?;
        second.refused(&once(&name)).await?;
        client.free(&held).await?;
    }
    Ok(())
}

async fn releasing_twice_is_harmless(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let held = once(&name("job")?);
    let _ = client.grant(&held).await?;
    client.free(&held).await?;
    for _ in 0..2 {
        let again = client.release(&held).await?;
        ensure!(
            again == Released::NotHeld,
            "a repeated release answered {again:?}"
        );
    }
    trial.ensure_free(&client, &held.name).await
}

async fn releasing_what_was_never_asked_for_is_harmless(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let unheard_of = queued(&name("job")?);
    let released = client.release(&unheard_of).await?;
    ensure!(
        released == Released::NotHeld,
        "releasing an owner that never asked answered {released:?}"
    );
    trial.ensure_free(&client, &unheard_of.name).await
}

async fn a_dropped_guard_frees_the_lock(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    drop(lock.acquire().await?);
    trial.ensure_free(&second, lock.name()).await?;

    let guard = lock.acquire_with(&patient()).await?;
    let holding = crate::spawn(async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    holding.abort();
    trial.ensure_free(&second, lock.name()).await?;

    let guard = lock.acquire_with(&patient()).await?;
    let thread = std::thread::spawn(move || {
        let _guard = guard;
        // Unwinds like a panic, without printing a message that would look like a failure of the suite.
        std::panic::resume_unwind(Box::new("a panic with a guard in hand"));
    });
    ensure!(thread.join().is_err(), "the thread did not unwind");
    trial.ensure_free(&second, lock.name()).await
}

async fn a_dropped_guard_frees_at_once(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    for round in 0..6 {
        if round % 2 == 1 && trial.capabilities().shared {
            drop(lock.acquire_shared().await?);
        } else {
            drop(lock.acquire().await?);
        }
        match second.lock("job")?.try_acquire().await {
            Ok(guard) => guard.release().await?,
            Err(error) => {
                return Err(Stop::Failed(format!(
                    "after drop {round} had returned: {error}"
                )));
            }
        }
    }
    Ok(())
}

async fn a_guard_dropped_outside_a_runtime_frees_the_lock(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    let guard = lock.acquire().await?;
    let thread = std::thread::spawn(move || drop(guard));
    let joined = soon(
        "the guard's drop",
        tokio::task::spawn_blocking(move || thread.join().is_ok()),
    )
    .await??;
    ensure!(joined, "dropping a guard outside a runtime panicked");
    trial.ensure_free(&second, lock.name()).await
}

async fn a_guard_outlives_its_runtime(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    for dropped_with_runtime in [true, false] {
        let doomed = lock.clone();
        let dying = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Stop::Failed(error.to_string()))?;
            let guard = runtime.block_on(doomed.acquire_with(&patient()))?;
            if dropped_with_runtime {
                runtime.spawn(async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                });
                runtime.block_on(tokio::task::yield_now());
                drop(runtime);
            } else {
                drop(runtime);
                drop(guard);
            }
            Ok::<_, Stop>(())
        });
        soon("the runtime's end", dying).await???;
        trial.ensure_free(&second, lock.name()).await?;
    }
    Ok(())
}

async fn a_closed_client_starts_anew(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let other = second.lock("other")?.acquire().await?;
    let before = first.lock("before")?.acquire().await?;
    soon("the end of close", first.backend().close()).await??;
    if let Ok(taken) = second.lock("before")?.try_acquire().await {
        let known = before.is_lost();
        ensure_told(&trial, &before.lost_signal(), known).await?;
        taken.release().await?;
    }
    drop(before);
    let lock = first.lock("job")?;
    let again = async {
        loop {
            match lock.acquire().await {
                Err(LockError::Backend { source, .. }) if source.is_retryable() => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                outcome => return outcome,
            }
        }
    };
    let guard = soon("a closed client's new session", again).await??;
    ensure_contended(
        second.lock("job")?.try_acquire().await,
        "another client, while a client that started anew holds,",
    )?;
    guard.release().await?;
    other.ensure_held()?;
    other.release().await?;
    Ok(())
}

async fn a_forked_childs_copy_frees_nothing(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, &name, Mode::Exclusive).await?;
    for releases in [false, true] {
        helper.fork(1, releases).await?;
        ensure_contended(
            client.lock(&name)?.try_acquire().await,
            "another process, after a child of the holder had given back its copy,",
        )?;
        ensure!(
            !helper.is_lost(1).await?,
            "the parent was told that it lost a lock that nobody else can get"
        );
    }
    let wrong = helper.release(1).await?;
    ensure!(wrong.is_none(), "the parent could not release: {wrong:?}");
    trial.ensure_free(&client, &name).await
}
