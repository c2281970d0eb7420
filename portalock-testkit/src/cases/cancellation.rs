//! A call that is dropped leaves no lock, no waiter and nobody stranded behind.

use portalock_core::{Guard, Lock, LockBackend, LockError};

use super::{Case, case, given_up::Fate};
use crate::{
    erased::AnyBackend,
    spy::Spy,
    sweep::{Ended, Moment, drop_after, drop_beside},
    trial::{Client, Trial, eager, ensure_contended, name, once, patient, queued},
    verdict::{CaseResult, SOON, Stop, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(cancellation::sweep_of_a_free_lock, rules [5], needs [],
        "an acquisition of a free lock, dropped after any number of polls, leaves the lock free"),
    case!(cancellation::sweep_of_a_held_lock, rules [5], needs [],
        "a wait for a held lock, dropped after any number of polls, leaves the holder alone and no waiter behind"),
    case!(cancellation::sweep_against_a_release, rules [5], needs [],
        "a wait that is dropped while the lock is being released to it does not keep the lock"),
    case!(
        cancellation::sweep_of_shared_locks,
        rules[5],
        needs[Shared],
        "the same for shared locks, free and held"
    ),
    case!(cancellation::sweep_of_release, rules [4], needs [],
        "a release that is dropped after any number of polls frees the lock all the same"),
    case!(cancellation::a_dropped_waiter_is_passed_over, rules [5], needs [],
        "when a waiter is dropped as the lock is released, or when it was woken and did not try yet, the waiter behind it is served"),
    case!(cancellation::aborted_tasks_leave_nothing, rules [5], needs [],
        "tasks that are aborted while they wait leave the lock free for the next who asks"),
    case!(cancellation::an_impatient_attempt_leaves_nothing, rules [6], needs [],
        "a refused attempt by one who will not wait leaves no place in the queue"),
    case!(cancellation::a_withdrawn_owner_is_never_granted, rules [5], needs [],
        "an owner that was withdrawn from the queue is not granted the lock when it is released"),
    case!(
        cancellation::an_unanswered_attempt_leaves_nothing,
        rules[5],
        needs[LoseAnswers],
        "if an attempt took effect but its answer was lost, a release of its owner leaves no lock and no waiter"
    ),
    case!(
        cancellation::an_attempt_that_arrives_after_its_release_leaves_nothing,
        rules[5],
        needs[DelayRequests],
        "if an attempt reaches the store after the release of its owner, it leaves no lock and no waiter"
    ),
];

/// More polls than an acquisition has await points: one that is still waiting then is only repeating itself.
const MOST_POLLS: usize = 8;

async fn sweep_of_a_free_lock(trial: Trial) -> CaseResult {
    let (client, next) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    let policy = eager()?;
    for moment in Moment::ALL {
        for polls in 0.. {
            let ended = drop_after(lock.acquire_with(&policy), polls, moment).await;
            let granted = was_granted(ended)?;
            trial.ensure_free(&next, lock.name()).await?;
            if granted || polls > MOST_POLLS {
                break;
            }
        }
    }
    Ok(())
}

async fn sweep_of_a_held_lock(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    let policy = eager()?;
    for moment in Moment::ALL {
        for polls in 0..=MOST_POLLS {
            let held = holder.lock("job")?.acquire_with(&patient()).await?;
            if let Ended::With(ended) = drop_after(lock.acquire_with(&policy), polls, moment).await
            {
                ensure_contended(ended, "a waiter")?;
            }
            held.ensure_held()?;
            ensure_contended(
                client.lock("job")?.try_acquire().await,
                "somebody, after a waiter was dropped,",
            )?;
            held.release().await?;
            trial.ensure_free(&holder, lock.name()).await?;
        }
    }
    Ok(())
}

async fn sweep_against_a_release(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    let policy = eager()?;
    for moment in Moment::ALL {
        for polls in 0..=MOST_POLLS {
            let held = holder.lock("job")?.acquire_with(&patient()).await?;
            let (released, ended) =
                drop_beside(held.release(), lock.acquire_with(&policy), polls, moment).await;
            released?;
            was_granted(ended)?;
            trial.ensure_free(&holder, lock.name()).await?;
        }
    }
    Ok(())
}

async fn sweep_of_shared_locks(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    let policy = eager()?;
    for moment in Moment::ALL {
        for polls in 0..=MOST_POLLS {
            let free = drop_after(lock.acquire_shared_with(&policy), polls, moment).await;
            was_granted(free)?;
            let held = holder.lock("job")?.acquire_with(&patient()).await?;
            let ended = drop_after(lock.acquire_shared_with(&policy), polls, moment).await;
            if let Ended::With(ended) = ended {
                ensure_contended(ended, "a reader")?;
            }
            held.ensure_held()?;
            held.release().await?;
            trial.ensure_free(&holder, lock.name()).await?;
        }
    }
    Ok(())
}

async fn sweep_of_release(trial: Trial) -> CaseResult {
    let (client, next) = trial.two_clients().await?;
    let lock = client.lock("job")?;
    for moment in Moment::ALL {
        for polls in 0..=MOST_POLLS {
            let guard = lock.acquire_with(&patient()).await?;
            match drop_after(guard.release(), polls, moment).await {
                Ended::With(released) => released?,
                Ended::Dropped => {}
            }
            trial.ensure_free(&next, lock.name()).await?;
        }
    }
    Ok(())
}

async fn a_dropped_waiter_is_passed_over(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let [holder, dropped, behind] = &clients[..] else {
        return Err(Stop::failed("the fixture made too few clients"));
    };
    for drops_first in [true, false] {
        let held = holder.lock("job")?.acquire_with(&patient()).await?;
        let (first, second) = (waiting(dropped).await?, waiting(behind).await?);
        if drops_first {
            first.abort();
            held.release().await?;
        } else {
            // The lock may have been granted to a waiter that no longer reads.
            let release = held.release();
            first.abort();
            release.await?;
        }
        // It may have been granted before the abort reached it: its guard is dropped here.
        drop(first.await);
        let guard = soon("the grant to the waiter behind", second).await???;
        guard.release().await?;
        trial
            .ensure_free(holder, behind.lock("job")?.name())
            .await?;
    }
    // The first may have been woken, and is dropped before it tries: the next has to be woken in its place.
    let held = holder.lock("job")?.acquire_with(&patient()).await?;
    let (spy, policy) = (Spy::on(dropped.backend()), patient());
    let lock = Lock::new(spy.clone(), "job")?;
    let mut first = Box::pin(lock.acquire_with(&policy));
    tokio::select! {
        granted = &mut first => {
            drop(granted?);
            return Err(Stop::failed("a waiter was granted a lock that another holds"));
        }
        asleep = spy.sleeps() => asleep?,
    }
    let second = waiting(behind).await?;
    held.release().await?;
    drop(first);
    let guard = soon("the grant to the waiter behind", second).await???;
    guard.release().await?;
    Ok(())
}

async fn aborted_tasks_leave_nothing(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let held = holder.lock("job")?.acquire().await?;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        tasks.push(waiting(&client).await?);
    }
    for task in &tasks {
        task.abort();
    }
    held.ensure_held()?;
    held.release().await?;
    for task in tasks {
        // One may have been granted before the abort reached it: its guard is dropped here.
        drop(task.await);
    }
    trial.ensure_free(&holder, client.lock("job")?.name()).await
}

async fn an_impatient_attempt_leaves_nothing(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let name = name("job")?;
    let held = once(&name);
    let _ = holder.grant(&held).await?;
    for _ in 0..3 {
        other.refused(&once(&name)).await?;
        holder.refused(&once(&name)).await?;
    }
    holder.free(&held).await?;
    // No owner that stopped waiting may have a grant.
    let next = once(&name);
    let _ = holder.grant(&next).await?;
    holder.free(&next).await?;
    trial.ensure_free(&other, &name).await
}

async fn a_withdrawn_owner_is_never_granted(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (held, withdrawn) = (queued(&name), queued(&name));
    let _ = holder.grant(&held).await?;
    other.refused(&withdrawn).await?;
    let wakeups = soon("a subscription", other.backend().subscribe(&withdrawn)).await??;
    other.release(&withdrawn).await?;
    holder.free(&held).await?;
    let next = once(&name);
    let _ = holder.grant(&next).await?;
    if let Some(mut wakeups) = wakeups {
        let told = tokio::time::timeout(crate::verdict::A_WHILE, async {
            loop {
                match wakeups.next().await {
                    portalock_core::Wake::Granted(_) => return,
                    portalock_core::Wake::TryNow => {}
                    _ => std::future::pending().await,
                }
            }
        });
        if told.await.is_ok() {
            return Err(Stop::failed(
                "an owner that had been withdrawn was handed the lock",
            ));
        }
    }
    holder.free(&next).await?;
    trial.ensure_free(&other, &name).await
}

/// A task that waits for the lock, has its place, and listens for its wake-up.
async fn waiting(
    client: &Client,
) -> CaseResult<tokio::task::JoinHandle<Result<Guard<std::sync::Arc<Spy>>, LockError>>> {
    let spy = Spy::on(client.backend());
    let lock = Lock::new(spy.clone(), "job")?;
    // The last try, just before the deadline, would get the lock though nobody woke it.
    let policy = patient().with_timeout(SOON * 2);
    let waiting = crate::spawn(async move { lock.acquire_with(&policy).await });
    spy.sleeps().await?;
    Ok(waiting)
}

/// Whether a swept acquisition got the lock before it could be dropped. Its guard is dropped here.
fn was_granted(ended: Ended<Result<Guard<AnyBackend>, LockError>>) -> CaseResult<bool> {
    match ended {
        Ended::With(Ok(_guard)) => Ok(true),
        Ended::With(Err(error)) => Err(error.into()),
        Ended::Dropped => Ok(false),
    }
}

async fn an_unanswered_attempt_leaves_nothing(trial: Trial) -> CaseResult {
    leaves_nothing(&trial, Fate::Unanswered).await
}

async fn an_attempt_that_arrives_after_its_release_leaves_nothing(trial: Trial) -> CaseResult {
    leaves_nothing(&trial, Fate::Late).await
}

/// Makes and gives up an attempt for a free lock, and one for a held lock. Neither owner holds or waits then.
async fn leaves_nothing(trial: &Trial, fate: Fate) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    for is_held in [false, true] {
        // The session continues, so that nothing is released by the end of the session.
        let kept = client.lock("kept")?.acquire_with(&patient()).await?;
        let held = once(&name);
        if is_held {
            let _ = other.grant(&held).await?;
        }
        let given_up = queued(&name);
        let asked = client.backend();
        let attempt = asked.try_acquire(&given_up);
        fate.meet(trial, &client, attempt, || asked.release(&given_up))
            .await?;
        if is_held {
            other.free(&held).await?;
        }
        let next = once(&name);
        let _ = other.grant(&next).await?;
        other.free(&next).await?;
        trial.ensure_free(&client, &name).await?;
        drop(kept);
    }
    Ok(())
}
