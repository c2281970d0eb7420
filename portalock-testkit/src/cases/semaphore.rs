//! Permits are counted: never more than there are, all or none, and none gets lost.

use portalock_core::{
    Attempt, LockError, Patience, PermitGuard, PermitRequest, Permits, Released, Semaphore,
};

use super::{Case, case};
use crate::{
    erased::AnySemaphore,
    section::Section,
    trial::{Client, Trial, patient},
    verdict::{CaseResult, Stop, ensure, rounds, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(
        semaphore::capacity_is_never_exceeded,
        rules[1],
        needs[Semaphore],
        "tasks of several clients never hold more permits together than the capacity"
    ),
    case!(
        semaphore::all_or_none,
        rules[1],
        needs[Semaphore],
        "a request for more permits than are free takes none of them"
    ),
    case!(
        semaphore::many_tries_at_once,
        rules[1],
        needs[Semaphore],
        "if many try at once and there are enough permits for all, every request is granted"
    ),
    case!(semaphore::more_than_there_are_is_refused, rules [], needs [Semaphore],
        "a request for more permits than there are, or for none, is an error at once and not a wait"),
    case!(
        semaphore::every_permit_can_be_held,
        rules[1],
        needs[Semaphore],
        "all permits can be held at once, with single requests and with one request"
    ),
    case!(
        semaphore::permits_come_back,
        rules[4],
        needs[Semaphore],
        "all permits of a guard are free after it was released or dropped"
    ),
    case!(semaphore::a_late_release_gives_back_nothing, rules [2, 4], needs [Semaphore],
        "releasing an owner again, or one that was refused, gives back nobody else's permits"),
    case!(
        semaphore::a_repeated_attempt_counts_once,
        rules[3],
        needs[Semaphore],
        "asking again for an owner that holds permits takes no more of them"
    ),
    case!(
        semaphore::no_request_is_granted_beyond_its_capacity,
        rules[1],
        needs[Semaphore],
        "a request is refused if the held permits would exceed its own capacity, even if others have a larger one"
    ),
    case!(
        semaphore::the_smallest_capacity_binds,
        rules[1],
        needs[FairSemaphore],
        "if the holders have different capacities, the smallest one is never exceeded"
    ),
];

async fn capacity_is_never_exceeded(trial: Trial) -> CaseResult {
    const CAPACITY: u32 = 3;
    let clients = trial.clients(3).await?;
    let section = Section::of_permits(CAPACITY);
    let seed = super::stress::seed();
    let mut tasks = Vec::new();
    for (number, client) in (0_u64..).zip(clients.iter().cycle().take(6)) {
        let (pool, section) = (client.pool("pool", CAPACITY)?, section.clone());
        let mut random = fastrand::Rng::with_seed(seed + number);
        tasks.push(crate::spawn(async move {
            for round in rounds(10) {
                let count = random.u32(1..=CAPACITY);
                let guard = pool.acquire_with(count, &patient()).await?;
                section.visit_with(count).await;
                if round % 2 == 0 {
                    guard.release().await?;
                }
            }
            Ok::<_, Stop>(())
        }));
    }
    for task in tasks {
        soon(format!("everyone's turns, with seed {seed},"), task).await???;
    }
    section.ensure_never_crowded()
}

async fn many_tries_at_once(trial: Trial) -> CaseResult {
    const TRIES: u32 = 64;
    let pool = trial.client().await?.pool("pool", TRIES + TRIES / 4)?;
    let tries: Vec<_> = (0..TRIES)
        .map(|_| {
            let pool = pool.clone();
            crate::spawn(async move { pool.try_acquire(1).await })
        })
        .collect();
    let mut held = Vec::new();
    for tried in tries {
        held.push(soon("the answer to a try", tried).await???);
    }
    for permit in held {
        permit.release().await?;
    }
    Ok(())
}

async fn all_or_none(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (here, there) = (first.pool("pool", 3)?, second.pool("pool", 3)?);
    let two = here.try_acquire(2).await?;
    for refused in [there.try_acquire(2).await, there.try_acquire(3).await] {
        ensure_short(refused)?;
    }
    let one = there.try_acquire(1).await?;
    ensure_short(here.try_acquire(1).await)?;
    two.release().await?;
    one.release().await?;
    Ok(())
}

async fn more_than_there_are_is_refused(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let pool = client.pool("pool", 3)?;
    for count in [0, 4, u32::MAX] {
        for refused in [
            soon("an answer", pool.try_acquire(count)).await?,
            soon("an answer", pool.acquire(count)).await?,
        ] {
            ensure!(
                matches!(refused, Err(LockError::InvalidPermits(_))),
                "{count} of 3 permits were answered with {refused:?}"
            );
        }
    }
    ensure!(
        client.pool("pool", 0).is_err(),
        "a semaphore of no permits was made"
    );
    Ok(())
}

async fn every_permit_can_be_held(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (here, there) = (first.pool("pool", 4)?, second.pool("pool", 4)?);
    let guards = [
        here.try_acquire(1).await?,
        there.try_acquire(1).await?,
        here.try_acquire(1).await?,
        there.try_acquire(1).await?,
    ];
    ensure_short(here.try_acquire(1).await)?;
    ensure_short(there.try_acquire(1).await)?;
    for guard in guards {
        guard.release().await?;
    }
    let all = there.try_acquire(4).await?;
    ensure!(
        all.permits().count() == 4,
        "four permits were asked for, and {} granted",
        all.permits()
    );
    ensure_short(here.try_acquire(1).await)?;
    all.release().await?;
    ensure_all_free(&first, 4).await
}

async fn permits_come_back(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let pool = first.pool("pool", 3)?;
    for count in [1, 2, 3] {
        pool.try_acquire(count).await?.release().await?;
        ensure_all_free(&second, 3).await?;
        drop(pool.acquire_with(count, &patient()).await?);
        ensure_all_free(&second, 3).await?;
    }
    let guard = pool.acquire_with(2, &patient()).await?;
    let signal = guard.lost_signal();
    guard.release().await?;
    ensure!(
        !signal.is_lost(),
        "permits that were given back in good order are lost: {:?}",
        signal.loss()
    );
    Ok(())
}

pub(super) fn request(
    client: &Client,
    count: u32,
    patience: Patience,
) -> CaseResult<PermitRequest> {
    let pool = client.pool("pool", 3)?;
    Ok(PermitRequest::new(
        pool.name().clone(),
        Permits::new(count, 3)?,
        patience,
    ))
}

pub(super) async fn attempt(semaphore: &AnySemaphore, request: &PermitRequest) -> CaseResult<bool> {
    let attempt = soon("the answer to an attempt", semaphore.try_acquire(request)).await??;
    Ok(matches!(attempt, Attempt::Granted(_)))
}

async fn a_late_release_gives_back_nothing(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let semaphore = client.semaphore()?;
    let early = request(&client, 2, Patience::Once)?;
    ensure!(
        attempt(&semaphore, &early).await?,
        "free permits were refused"
    );
    let released = semaphore.release(&early).await?;
    ensure!(
        released == Released::Freed,
        "releasing permits answered {released:?}"
    );
    let held = request(&client, 2, Patience::Once)?;
    ensure!(
        attempt(&semaphore, &held).await?,
        "free permits were refused"
    );
    let refused = request(&client, 2, Patience::Once)?;
    ensure!(
        !attempt(&semaphore, &refused).await?,
        "more permits were granted than there are"
    );
    for gone in [&early, &refused] {
        let released = semaphore.release(gone).await?;
        ensure!(
            released == Released::NotHeld,
            "releasing an owner without permits answered {released:?}"
        );
    }
    ensure_short(client.pool("pool", 3)?.try_acquire(2).await)?;
    semaphore.release(&held).await?;
    ensure_all_free(&client, 3).await
}

async fn a_repeated_attempt_counts_once(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let semaphore = client.semaphore()?;
    let held = request(&client, 1, Patience::Queue)?;
    for _ in 0..4 {
        ensure!(
            attempt(&semaphore, &held).await?,
            "an owner that holds its permit was refused it"
        );
    }
    let rest = client.pool("pool", 3)?.try_acquire(2).await?;
    ensure_short(client.pool("pool", 3)?.try_acquire(1).await)?;
    semaphore.release(&held).await?;
    rest.release().await?;
    ensure_all_free(&client, 3).await
}

async fn no_request_is_granted_beyond_its_capacity(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (small, large) = (first.pool("pool", 2)?, second.pool("pool", 5)?);
    let two = large.try_acquire(2).await?;
    ensure_short(small.try_acquire(1).await)?;
    let three = large.try_acquire(3).await?;
    ensure_short(small.try_acquire(2).await)?;
    two.release().await?;
    three.release().await?;
    small.try_acquire(2).await?.release().await?;
    ensure_all_free(&first, 5).await
}

async fn the_smallest_capacity_binds(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (small, large) = (first.pool("pool", 2)?, second.pool("pool", 5)?);
    let two = small.try_acquire(2).await?;
    ensure_short(large.try_acquire(1).await)?;
    two.release().await?;
    let (one, three) = (large.try_acquire(1).await?, large.try_acquire(3).await?);
    ensure_short(small.try_acquire(1).await)?;
    one.release().await?;
    ensure_short(small.try_acquire(1).await)?;
    three.release().await?;
    small.try_acquire(1).await?.release().await?;
    ensure_all_free(&first, 5).await
}

/// An acquisition that must be refused because too few permits are free.
pub(super) fn ensure_short(acquired: Result<PermitGuard<AnySemaphore>, LockError>) -> CaseResult {
    match acquired {
        Err(error) if error.is_contention() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(guard) => Err(Stop::Failed(format!(
            "{} were granted while too few were free",
            guard.permits()
        ))),
    }
}

/// All permits can be had soon, by one request.
pub(super) async fn ensure_all_free(client: &Client, capacity: u32) -> CaseResult {
    let pool = client.pool("pool", capacity)?;
    let all = pool
        .acquire_with(capacity, &patient())
        .await
        .map_err(|error| {
            Stop::Failed(format!(
                "nobody should hold a permit any more: {}",
                crate::verdict::chain(&error)
            ))
        })?;
    all.release().await?;
    Ok(())
}
