//! What is built of locks keeps their promises: reentrant locks, sets, slots, and the facade without async.

use portalock_core::{
    LockError, LockSet, Mode, Policy, Pool, ReentrantLock, SlotSemaphore, blocking, clock::Instant,
};

use super::{Case, case};
use crate::{
    section::Section,
    sweep::{Ended, Moment, drop_after},
    trial::{Client, Trial, ensure_contended, patient},
    verdict::{A_WHILE, CaseResult, IN_VAIN, Stop, ensure, rounds, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(composite::every_form_of_a_backend_works, rules [1, 4], needs [],
        "a backend does the same by itself, in a Box and in an Arc"),
    case!(composite::a_reentrant_lock_counts, rules [1], needs [],
        "a reentrant lock is acquired again by those who share it, keeps others out, and is freed by its last guard"),
    case!(composite::reentrant_locks_exclude_each_other, rules [1], needs [],
        "two reentrant locks of one name are two owners, in one client or in two"),
    case!(composite::a_set_is_all_or_none, rules [1, 5], needs [],
        "a set of names of which one is held is not granted, and keeps none of the others"),
    case!(composite::a_set_has_one_deadline, rules [5], needs [],
        "a set waits for all its names together as long as its caller said, and then holds none"),
    case!(composite::sets_never_deadlock, rules [1], needs [],
        "tasks that take the same names in opposite orders all get their turns, and are never inside together"),
    case!(composite::sweep_of_a_set, rules [5], needs [],
        "the acquisition of a set, dropped after any number of polls, leaves all its names free"),
    case!(composite::one_loss_is_the_sets_loss, rules [10], needs [LossNotice, TakeAway],
        "when one lock of a set is lost, the set's signal fires"),
    case!(composite::slots_make_a_semaphore, rules [1], needs [],
        "a semaphore made of the backend's locks never grants more permits than there are, all or none"),
    case!(composite::sweep_of_slots, rules [5], needs [],
        "the acquisition of permits made of locks, dropped after any number of polls, leaves all permits free"),
    case!(composite::the_blocking_facade_works, rules [1], needs [],
        "a program without async locks, waits, times out and releases, and sees the same locks"),
    case!(composite::blocking_threads_never_overlap, rules [1], needs [],
        "threads of a program without async are never inside together"),
];

async fn every_form_of_a_backend_works(trial: Trial) -> CaseResult {
    trial.every_form().await
}

async fn a_reentrant_lock_counts(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let lock = ReentrantLock::new(client.lock("job")?);
    let first = lock.acquire().await?;
    let second = lock.acquire_with(&patient()).await?;
    let third = lock.clone().try_acquire().await?;
    ensure!(
        lock.count() == 3,
        "three guards are held, and {} are counted",
        lock.count()
    );
    let outside = other.lock("job")?;
    ensure_contended(outside.try_acquire().await, "another client")?;
    first.release().await?;
    drop(second);
    ensure_contended(
        outside.try_acquire().await,
        "another client, with one guard left,",
    )?;
    third.ensure_held()?;
    third.release().await?;
    trial.ensure_free(&other, outside.name()).await?;
    ensure!(lock.count() == 0, "{} guards are left over", lock.count());
    lock.acquire_with(&patient()).await?.release().await?;
    Ok(())
}

async fn reentrant_locks_exclude_each_other(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let lock = ReentrantLock::new(client.lock("job")?);
    let guard = lock.acquire().await?;
    for another in [client.lock("job")?, other.lock("job")?] {
        let refused = ReentrantLock::new(another).try_acquire().await;
        ensure!(
            refused.as_ref().is_err_and(LockError::is_contention),
            "another reentrant lock was answered with {refused:?}"
        );
    }
    guard.release().await?;
    let other = ReentrantLock::new(other.lock("job")?);
    other.acquire_with(&patient()).await?.release().await?;
    Ok(())
}

async fn a_set_is_all_or_none(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let held = other.lock("b")?.acquire().await?;
    let set = LockSet::new(client.backend(), ["c", "a", "b", "a"])?;
    let refused = set.try_acquire().await;
    ensure!(
        refused.as_ref().is_err_and(LockError::is_contention),
        "a set with a name that is held was answered with {refused:?}"
    );
    for name in ["a", "c"] {
        trial.ensure_free(&other, other.lock(name)?.name()).await?;
    }
    held.release().await?;
    let guard = set.acquire_with(&patient()).await?;
    for name in ["a", "b", "c"] {
        ensure_contended(other.lock(name)?.try_acquire().await, name)?;
    }
    guard.ensure_held()?;
    guard.release().await?;
    for name in ["a", "b", "c"] {
        other.lock(name)?.try_acquire().await?.release().await?;
    }
    Ok(())
}

async fn a_set_has_one_deadline(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let (first, last) = (
        other.lock("a")?.acquire().await?,
        other.lock("c")?.acquire().await?,
    );
    let wait = IN_VAIN;
    let policy = Policy::new().with_timeout(wait);
    let started = Instant::now();
    let release = async {
        tokio::time::sleep(wait / 3).await;
        first.release().await
    };
    let set = LockSet::new(client.backend(), ["a", "b", "c"])?;
    let acquire = soon("the set's end", set.acquire_with(&policy));
    let (released, acquired) = tokio::join!(release, acquire);
    released?;
    let lasted = started.elapsed();
    let acquired = acquired?;
    // A slow store may not have answered the last of its attempts.
    ensure!(
        matches!(acquired, Err(LockError::Timeout { .. })),
        "a set with a name that stays held was answered with {acquired:?}"
    );
    ensure!(
        lasted >= wait,
        "a set's wait of {wait:?} gave up after {lasted:?}"
    );
    for name in ["a", "b"] {
        trial.ensure_free(&other, other.lock(name)?.name()).await?;
    }
    last.release().await?;
    Ok(())
}

async fn sets_never_deadlock(trial: Trial) -> CaseResult {
    let clients = trial.clients(2).await?;
    let section = Section::of_a_lock();
    let mut tasks = Vec::new();
    for (number, client) in clients.iter().cycle().take(6).enumerate() {
        let mut names = ["a", "b", "c"];
        names.rotate_left(number % 3);
        if number % 2 == 0 {
            names.reverse();
        }
        let (set, section) = (LockSet::new(client.backend(), names)?, section.clone());
        tasks.push(crate::spawn(async move {
            for _ in rounds(6) {
                let guard = set.acquire_with(&patient()).await?;
                section.visit(Mode::Exclusive).await;
                guard.release().await?;
            }
            Ok::<_, Stop>(())
        }));
    }
    for task in tasks {
        soon("everyone's turns", task).await???;
    }
    section.ensure_never_crowded()
}

async fn sweep_of_a_set(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let set = LockSet::new(client.backend(), ["a", "b", "c"])?;
    for moment in Moment::ALL {
        for polls in 0..10 {
            let held = other.lock("c")?.acquire_with(&patient()).await?;
            if let Ended::With(Ok(_)) = drop_after(set.acquire(), polls, moment).await {
                return Err(Stop::failed("a set was granted with one of its names held"));
            }
            held.release().await?;
            drop(drop_after(set.acquire_with(&patient()), polls, moment).await);
            for name in ["a", "b", "c"] {
                trial.ensure_free(&other, other.lock(name)?.name()).await?;
            }
        }
    }
    Ok(())
}

async fn one_loss_is_the_sets_loss(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let set = LockSet::new(client.backend(), ["a", "b", "c"])?;
    let guard = set.acquire().await?;
    guard.run(tokio::time::sleep(A_WHILE / 10)).await?;
    trial.take_away(client.lock("b")?.name()).await?;
    soon("the lost signal of the set", guard.lost_signal().lost()).await?;
    ensure!(
        guard.is_lost() && matches!(guard.ensure_held(), Err(LockError::Lost { .. })),
        "the set's signal fired, and its guard does not know"
    );
    let ran = guard.run(std::future::pending::<()>()).await;
    ensure!(
        matches!(ran, Err(LockError::Lost { .. })),
        "work under a set that was lost ended with {ran:?}"
    );
    Ok(())
}

fn slots(client: &Client) -> CaseResult<Pool<SlotSemaphore<crate::erased::AnyBackend>>> {
    Ok(Pool::new(SlotSemaphore::new(client.backend()), "pool", 3)?)
}

async fn slots_make_a_semaphore(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let section = Section::of_permits(3);
    let two = slots(&clients[0])?.try_acquire(2).await?;
    let refused = slots(&clients[1])?.try_acquire(2).await;
    ensure!(
        refused.as_ref().is_err_and(LockError::is_contention),
        "two of three permits were asked for with one free, and answered with {refused:?}"
    );
    let one = slots(&clients[1])?.try_acquire(1).await?;
    two.release().await?;
    one.release().await?;
    let mut tasks = Vec::new();
    for (number, client) in (0..).zip(clients.iter().cycle().take(6)) {
        let (pool, section) = (slots(client)?, section.clone());
        tasks.push(crate::spawn(async move {
            for round in rounds(6) {
                // Small requests only: slots are not fair, and a large request may wait for a long time.
                let count = 1 + (number + round) % 2;
                let guard = pool.acquire_with(count, &patient()).await?;
                section.visit_with(count).await;
                guard.release().await?;
            }
            Ok::<_, Stop>(())
        }));
    }
    for task in tasks {
        soon("everyone's turns", task).await???;
    }
    section.ensure_never_crowded()
}

async fn sweep_of_slots(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let (pool, outside) = (slots(&client)?, slots(&other)?);
    for moment in Moment::ALL {
        for polls in 0..10 {
            drop(drop_after(pool.acquire_with(2, &patient()), polls, moment).await);
            let all = outside.acquire_with(3, &patient()).await?;
            drop(drop_after(pool.acquire_with(2, &patient()), polls, moment).await);
            all.ensure_held()?;
            all.release().await?;
        }
    }
    outside.acquire_with(3, &patient()).await?.release().await?;
    Ok(())
}

/// Runs `program` on a thread that knows of no runtime.
async fn without_runtime<T: Send + 'static>(
    program: impl FnOnce() -> CaseResult<T> + Send + 'static,
) -> CaseResult<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || tell.send(program()));
    soon("the end of a program without async", told)
        .await?
        .map_err(|_| Stop::failed("a program without async panicked"))?
}

async fn the_blocking_facade_works(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let backend = client.backend();
    let (guard, lock) = without_runtime(move || {
        let lock = blocking::Lock::new(backend, "job")?;
        let guard = lock.acquire()?;
        let brief = Policy::new().with_timeout(IN_VAIN);
        for refused in [lock.try_acquire(), lock.acquire_with(&brief)] {
            ensure!(
                refused.as_ref().is_err_and(LockError::is_contention),
                "a lock that is held was answered with {refused:?}"
            );
        }
        guard.ensure_held()?;
        Ok((guard, lock))
    })
    .await?;
    ensure_contended(other.lock("job")?.try_acquire().await, "an async client")?;
    let waiting = without_runtime(move || Ok(lock.acquire_with(&patient())?.release()?));
    let release = without_runtime(move || {
        std::thread::yield_now();
        Ok(guard.release()?)
    });
    let (waited, released) = tokio::join!(waiting, release);
    released?;
    waited?;
    let name = other.lock("job")?.name().clone();
    trial.ensure_free(&other, &name).await?;
    let backend = client.backend();
    without_runtime(move || {
        drop(blocking::Lock::new(backend, "job")?.acquire()?);
        Ok(())
    })
    .await?;
    trial.ensure_free(&other, &name).await
}

async fn blocking_threads_never_overlap(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let section = Section::of_a_lock();
    let mut threads = Vec::new();
    for client in clients.iter().cycle().take(6) {
        let (backend, section) = (client.backend(), section.clone());
        threads.push(crate::spawn(without_runtime(move || {
            let lock = blocking::Lock::new(backend, "job")?;
            for _ in rounds(8) {
                let guard = lock.acquire_with(&patient())?;
                section.visit_blocking(Mode::Exclusive);
                guard.release()?;
            }
            Ok(())
        })));
    }
    for thread in threads {
        soon("every thread's turns", thread).await???;
    }
    section.ensure_never_crowded()
}
