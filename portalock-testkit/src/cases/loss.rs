//! A holder that no longer holds is told; one that holds is left in peace.

use std::{sync::Arc, time::Duration};

use portalock_core::{
    CrashRelease, Guard, Lock, LockError, LossNotice, LostSignal, Mode, Policy, Released,
};

use super::{Case, case};
use crate::{
    erased::AnyBackend,
    helper::Helper,
    spy::Spy,
    trial::{Client, Trial, ensure_contended, name, once, patient},
    verdict::{A_WHILE, CaseResult, SOON, Stop, ensure, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(loss::a_release_fires_no_loss, rules [10], needs [],
        "releasing or dropping a guard in good order never fires its lost signal, not even when another holds the lock after it"),
    case!(loss::a_released_grant_is_not_lost, rules [10], needs [],
        "the lost signal that a backend gives with a grant stays silent when that grant is released, and when its client releases another"),
    case!(loss::a_living_holder_is_never_expired, rules [1, 10], needs [],
        "a holder that works longer than any lease, while others wait, keeps its lock and is told of no loss"),
    case!(loss::a_lock_taken_away_fires_lost, rules [10], needs [LossNotice, TakeAway],
        "when the lock is taken from the store behind its holder's back, the lost signal fires, the guard says so, and so does its release, and no other guard of the client is told"),
    case!(
        loss::a_release_hides_no_loss,
        rules[4],
        needs[TakeAway],
        "releasing a lock that was taken away reports that it was not held, and does not affect the next holder"
    ),
    case!(loss::a_store_that_moved_is_a_loss, rules [1, 10], needs [LossNotice, MoveStore],
        "when another store is put at the store's address, those who hold in the old one are told, and nobody is granted a lock there beside those who come by the address"),
    case!(loss::work_stops_with_the_lock, rules [10], needs [LossNotice, TakeAway],
        "guard.run stops the work when the lock is lost"),
    case!(loss::a_lost_guard_leaves_the_next_holder, rules [2, 4], needs [LossNotice, TakeAway],
        "dropping or releasing a guard that was lost leaves the lock of whoever got it since"),
    case!(loss::a_cut_off_holder_is_told, rules [10], needs [LossNotice, CrashRelease, CutOff],
        "a holder that is cut off from the store learns that it is lost, before another is granted the lock or within the time the backend declares"),
    case!(loss::a_stalled_service_ends_the_lease, rules [10], needs [LossNotice, CrashRelease, Stall],
        "while the service does not answer, a holder either keeps a lock that nobody else is granted, or is told that it lost it"),
    case!(loss::a_restart_leaves_no_false_holder, rules [10], needs [LossNotice, Restart],
        "after the service was restarted, a lock that another is granted is known to be lost by its earlier holder"),
    case!(loss::a_stopped_process_finds_out, rules [10], needs [BeyondProcess, Helper],
        "a process that was stopped while it held the lock finds it still its own on waking, or knows at once that it is lost"),
];

async fn a_release_fires_no_loss(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    let mut signals = Vec::new();
    for releases in [true, false] {
        let guard = lock.acquire_with(&trial.patience()).await?;
        signals.push(guard.lost_signal());
        if releases {
            guard.release().await?;
        } else {
            drop(guard);
        }
    }
    let next = second.lock("job")?.acquire_with(&trial.patience()).await?;
    tokio::time::sleep(A_WHILE).await;
    for signal in signals {
        ensure!(
            !signal.is_lost(),
            "the signal of a guard that was released in good order says {:?}",
            signal.loss()
        );
    }
    next.ensure_held()?;
    next.release().await?;
    Ok(())
}

async fn a_released_grant_is_not_lost(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (job, other) = (once(&name("job")?), once(&name("other")?));
    let (released, held) = (
        first.grant(&job).await?.lost,
        first.grant(&other).await?.lost,
    );
    first.free(&job).await?;
    // Uses the backend directly: the engine would keep the signal of a released guard silent even if the backend fires
    // it.
    let next = once(&job.name);
    let _ = second.grant(&next).await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(
        !released.is_lost(),
        "a grant that was released in good order is said to be lost: {:?}",
        released.loss()
    );
    ensure!(
        !held.is_lost(),
        "a grant is said to be lost since its client released another: {:?}",
        held.loss()
    );
    second.free(&next).await?;
    first.free(&other).await
}

async fn a_living_holder_is_never_expired(trial: Trial) -> CaseResult {
    const AT_LEAST: Duration = Duration::from_secs(1);
    let (holder, waiter) = trial.two_clients().await?;
    let work = match trial.capabilities().crash_release {
        // On a busy machine nothing that a backend does after a tenth of a second is sure to be done in another tenth.
        CrashRelease::Within(bound) => (bound + bound / 2).clamp(AT_LEAST, SOON),
        _ => AT_LEAST,
    };
    let spy = Spy::on(waiter.backend());
    let lock = Lock::new(spy.clone(), "job")?;
    let guard = holder.lock("job")?.acquire().await?;
    let policy = trial.patience().with_timeout(work + SOON);
    let waiting = crate::spawn(async move { lock.acquire_with(&policy).await });
    spy.contended(1).await?;
    // What is granted, held or counted in another way is renewed in another way, too.
    let waited_for = by_waiting(&holder, &waiter, "waited for").await?;
    let share = if trial.capabilities().shared {
        Some(holder.lock("shared")?.acquire_shared().await?)
    } else {
        None
    };
    let permit = match holder.semaphore() {
        Ok(_) => Some(holder.pool("pool", 1)?.acquire(1).await?),
        Err(_) => None,
    };
    guard.run(tokio::time::sleep(work)).await?;
    ensure!(
        !waiting.is_finished(),
        "the lock of a holder that lives passed on after {work:?}"
    );
    for name in ["waited for"]
        .into_iter()
        .chain(share.as_ref().map(|_| "shared"))
    {
        let tried = waiter.lock(name)?.try_acquire().await;
        ensure_contended(tried, "somebody, while the holder lives,")?;
    }
    waited_for.release().await?;
    if let Some(share) = share {
        share.release().await?;
    }
    if let Some(permit) = permit {
        let tried = waiter.pool("pool", 1)?.try_acquire(1).await;
        ensure_contended(
            tried,
            "somebody, while the holder of the only permit lives,",
        )?;
        permit.release().await?;
    }
    guard.release().await?;
    let next = soon("the waiter's grant", waiting).await???;
    next.release().await?;
    Ok(())
}

/// A guard whose lock has been taken away, known to be lost.
async fn taken_away(trial: &Trial, lock: &Lock<AnyBackend>) -> CaseResult<Guard<AnyBackend>> {
    let guard = lock.acquire().await?;
    ensure!(!guard.is_lost(), "a new guard says that it is lost");
    trial.take_away(lock.name()).await?;
    soon(
        "the lost signal of a lock that was taken away",
        guard.lost(),
    )
    .await?;
    Ok(guard)
}

async fn a_lock_taken_away_fires_lost(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let lock = holder.lock("job")?;
    let kept = holder.lock("kept")?.acquire().await?;
    let guard = taken_away(&trial, &lock).await?;
    ensure!(guard.is_lost(), "lost() returned and is_lost() is false");
    ensure!(
        guard.lost_signal().is_lost(),
        "a signal taken after the loss does not know of it"
    );
    ensure!(
        matches!(guard.ensure_held(), Err(LockError::Lost { .. })),
        "ensure_held does not know of the loss"
    );
    let released = guard.release().await;
    ensure!(
        matches!(released, Err(LockError::Lost { .. })),
        "releasing a lock that was lost answered {released:?}"
    );
    trial.ensure_free(&other, lock.name()).await?;
    // The word of the loss is for that guard: not for the client's next one, nor for its other locks.
    let next = lock.acquire_with(&trial.patience()).await?;
    next.run(tokio::time::sleep(A_WHILE)).await?;
    next.release().await?;
    if kept.is_lost() {
        // Then it must have been taken away as well.
        let free = other.lock("kept")?.acquire_with(&trial.patience()).await;
        return free?.release().await.map_err(Stop::from);
    }
    kept.release().await?;
    Ok(())
}

async fn a_release_hides_no_loss(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let name = name("job")?;
    for has_successor in [false, true] {
        // Uses the backend directly: the engine would know of the loss from the signal.
        let held = once(&name);
        let _ = holder.grant(&held).await?;
        trial.take_away(&name).await?;
        let next = once(&name);
        if has_successor {
            let _ = other.granted_soon(&next).await?;
        }
        let released = holder.release(&held).await?;
        ensure!(
            released == Released::NotHeld,
            "releasing a lock that had been taken away answered {released:?}"
        );
        if has_successor {
            holder.refused(&once(&name)).await?;
            other.free(&next).await?;
        }
    }
    trial.ensure_free(&other, &name).await
}

async fn a_store_that_moved_is_a_loss(trial: Trial) -> CaseResult {
    let holder = trial.client().await?;
    let lock = holder.lock("job")?;
    let guard = lock.acquire().await?;
    trial.move_store().await?;
    let newcomer = trial.client().await?.lock("job")?;
    let next = newcomer.acquire_with(&trial.patience()).await?;
    let known = guard.is_lost();
    ensure_told(&trial, &guard.lost_signal(), known).await?;
    ensure!(
        lock.try_acquire().await.is_err(),
        "a client of the old store was granted a lock that another holds in the new one"
    );
    next.ensure_held()?;
    next.release().await?;
    Ok(())
}

async fn work_stops_with_the_lock(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let lock = client.lock("job")?;
    let guard = lock.acquire().await?;
    let (working, mut stopped) = tokio::sync::mpsc::channel::<()>(1);
    let work = async move {
        let _working = working;
        std::future::pending::<()>().await;
    };
    let take = trial.take_away(lock.name());
    // Without a way to take it away, nothing ends the work.
    let (ran, ()) = tokio::try_join!(soon("the work's end", guard.run(work)), take)?;
    ensure!(
        matches!(ran, Err(LockError::Lost { .. })),
        "work under a lock that was lost ended with {ran:?}"
    );
    ensure!(
        stopped.recv().await.is_none(),
        "the work goes on after the lock was lost"
    );
    Ok(())
}

async fn a_lost_guard_leaves_the_next_holder(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let lock = holder.lock("job")?;
    for releases in [true, false] {
        let lost = taken_away(&trial, &lock).await?;
        let next = other.lock("job")?.acquire_with(&trial.patience()).await?;
        if releases {
            // The release reports the loss; its effect on others is what matters.
            drop(lost.release().await);
        } else {
            drop(lost);
        }
        tokio::time::sleep(A_WHILE).await;
        let tried = holder.lock("job")?.try_acquire().await;
        // Checked first, because a holder whose lease has ended may be replaced.
        next.ensure_held()?;
        ensure_contended(tried, "somebody, after a lost guard had been given back,")?;
        next.release().await?;
    }
    Ok(())
}

/// `guard` can't hold any more once another has been granted the lock: it must know, when the backend says.
pub(super) async fn ensure_told(trial: &Trial, lost: &LostSignal, known: bool) -> CaseResult {
    ensure_told_within(trial.notice(), lost, known).await
}

/// The same with the time that is declared, or zero for before the grant.
pub(super) async fn ensure_told_within(
    window: Duration,
    lost: &LostSignal,
    known: bool,
) -> CaseResult {
    if window.is_zero() {
        ensure!(
            known,
            "another was granted the lock before its earlier holder was told that it lost it"
        );
        return Ok(());
    }
    within(
        window,
        "word to the earlier holder that it lost the lock",
        lost.lost(),
    )
    .await?;
    Ok(())
}

async fn a_cut_off_holder_is_told(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let guards = [
        at_once(&holder, "job").await?,
        by_waiting(&holder, &waiter, "waited for").await?,
    ];
    let cut = trial.cut_off(&holder).await?;
    let mut successors = Vec::new();
    for guard in &guards {
        let lock = waiter.lock(guard.name())?;
        let next = lock.acquire_with(&trial.patience()).await?;
        // Read before anything else is awaited.
        let known = guard.is_lost();
        ensure_told(&trial, &guard.lost_signal(), known).await?;
        next.ensure_held()?;
        successors.push(next);
    }
    cut.now().await?;
    // When the earlier holder is heard again, its release must not affect the new holder.
    for guard in guards {
        drop(guard.release().await);
    }
    tokio::time::sleep(A_WHILE).await;
    let other = trial.client().await?;
    for next in successors {
        let tried = other.lock(next.name())?.try_acquire().await;
        // Checked first, because a holder whose lease has ended may be replaced.
        next.ensure_held()?;
        ensure_contended(tried, "somebody, after an earlier holder was heard again,")?;
        next.release().await?;
    }
    Ok(())
}

type SpiedGuard = Guard<Arc<Spy>>;

async fn at_once(client: &Client, name: &str) -> CaseResult<SpiedGuard> {
    let lock = Lock::new(Spy::on(client.backend()), name)?;
    Ok(lock.acquire_with(&patient()).await?)
}

/// A guard that was not granted at once: a backend may make such a grant in another way.
async fn by_waiting(client: &Client, other: &Client, name: &str) -> CaseResult<SpiedGuard> {
    let held = other.lock(name)?.acquire().await?;
    let spy = Spy::on(client.backend());
    let lock = Lock::new(spy.clone(), name)?;
    let waiting = crate::spawn(async move { lock.acquire_with(&patient()).await });
    spy.contended(1).await?;
    held.release().await?;
    Ok(soon("a waiter's grant", waiting).await???)
}

async fn a_stalled_service_ends_the_lease(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    let stall = trial.stall_service().await?;
    tokio::time::sleep(trial.crash_limit().min(SOON)).await;
    stall.now().await?;
    let lock = waiter.lock("job")?;
    let policy = trial.patience();
    let taken = tokio::select! {
        taken = lock.acquire_with(&policy) => taken,
        // It kept its lock, so nobody else may be granted it.
        () = tokio::time::sleep(A_WHILE * 2), if !guard.is_lost() => {
            guard.ensure_held()?;
            guard.release().await?;
            return Ok(());
        }
    };
    let known = guard.is_lost();
    let next = taken?;
    ensure_told(&trial, &guard.lost_signal(), known).await?;
    next.release().await?;
    Ok(())
}

async fn a_restart_leaves_no_false_holder(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    trial.restart_service().await?;
    let next = loop {
        match waiter.lock("job")?.try_acquire().await {
            Ok(next) => break Some(next),
            Err(error) if error.is_contention() && !guard.is_lost() => break None,
            Err(error) if error.is_retryable() => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let known = guard.is_lost();
    if let Some(next) = next {
        ensure_told(&trial, &guard.lost_signal(), known).await?;
        next.release().await?;
    }
    Ok(())
}

async fn a_stopped_process_finds_out(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, &name, Mode::Exclusive).await?;
    helper.freeze()?;
    let lock = client.lock(&name)?;
    let waits = match trial.capabilities().crash_release {
        // If the backend expects signs of life, a stopped holder loses the lock.
        CrashRelease::Within(_) if trial.capabilities().loss != LossNotice::Never => {
            trial.crash_limit()
        }
        _ => A_WHILE * 3,
    };
    let taken = lock.acquire_with(&Policy::new().with_timeout(waits)).await;
    helper.thaw()?;
    match taken {
        Ok(next) => {
            ensure!(
                helper.is_lost(1).await?,
                "a stopped process woke up and took a lock for its own that another holds"
            );
            helper.lost(1).await?;
            next.ensure_held()?;
            next.release().await?;
        }
        Err(error) if error.is_contention() => {
            ensure!(
                !helper.is_lost(1).await?,
                "a process that was stopped lost a lock that nobody else was granted"
            );
            let wrong = helper.release(1).await?;
            ensure!(wrong.is_none(), "a process that was stopped: {wrong:?}");
            trial.ensure_free(&client, &name).await?;
        }
        Err(error) => return Err(Stop::from(error)),
    }
    Ok(())
}
