//! Permits while connections break, clients crash and the service stalls.

use portalock_core::{Patience, Policy, Semaphore};

use super::{
    Case, case,
    given_up::Fate,
    loss::ensure_told_within,
    semaphore::{attempt, ensure_all_free, ensure_short, request},
};
use crate::{
    trial::{Trial, crash_limit, notice, patient},
    verdict::{A_WHILE, CaseResult, SOON, ensure, within},
};

pub(super) const CASES: &[Case] = &[
    case!(
        semaphore::an_unanswered_attempt_leaves_nothing,
        rules[5],
        needs[Semaphore, LoseAnswers],
        "if an attempt for permits took effect but its answer was lost, a release of its owner leaves no permit and no waiter"
    ),
    case!(
        semaphore::an_attempt_that_arrives_after_its_release_leaves_nothing,
        rules[5],
        needs[Semaphore, DelayRequests],
        "if an attempt for permits reaches the store after the release of its owner, it leaves no permit and no waiter"
    ),
    case!(semaphore::a_crash_frees_its_permits, rules [10], needs [Semaphore, PermitCrashRelease, Crash],
        "the permits of a client that crashes come back within the declared time, and its waiters hold nobody up"),
    case!(semaphore::a_cut_off_holder_is_told, rules [10], needs [Semaphore, PermitLossNotice, PermitCrashRelease, CutOff],
        "a holder of permits that is cut off from the store learns that they are lost, before another is granted them or within the time the backend declares, and gives back nothing later"),
    case!(semaphore::a_stalled_service_ends_the_lease, rules [10], needs [Semaphore, PermitLossNotice, PermitCrashRelease, Stall],
        "while the service does not answer, a holder of permits either keeps them, or is told that it lost them before another is granted them"),
];

async fn an_unanswered_attempt_leaves_nothing(trial: Trial) -> CaseResult {
    leaves_nothing(&trial, Fate::Unanswered).await
}

async fn an_attempt_that_arrives_after_its_release_leaves_nothing(trial: Trial) -> CaseResult {
    leaves_nothing(&trial, Fate::Late).await
}

/// Makes and gives up an attempt for free permits, and one for held ones. Neither owner holds or waits then.
async fn leaves_nothing(trial: &Trial, fate: Fate) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let (here, pool) = (client.semaphore()?, other.pool("pool", 3)?);
    for are_held in [false, true] {
        // The session continues, so that nothing is released by the end of the session.
        let kept = client.pool("kept", 1)?.acquire_with(1, &patient()).await?;
        let held = if are_held {
            Some(pool.try_acquire(2).await?)
        } else {
            None
        };
        let given_up = request(&client, 2, Patience::Queue)?;
        let attempt = here.try_acquire(&given_up);
        fate.meet(trial, &client, attempt, || here.release(&given_up))
            .await?;
        if let Some(held) = held {
            held.release().await?;
        }
        ensure_all_free(&other, 3).await?;
        drop(kept);
    }
    Ok(())
}

async fn a_crash_frees_its_permits(trial: Trial) -> CaseResult {
    let (doomed, client) = trial.two_clients().await?;
    let lost = doomed.pool("pool", 3)?.acquire(2).await?;
    let waits = request(&doomed, 2, Patience::Queue)?;
    ensure!(
        !attempt(&doomed.semaphore()?, &waits).await?,
        "more permits were granted than there are"
    );
    trial.crash(&doomed).await?;
    let pool = client.pool("pool", 3)?;
    let limit = crash_limit(&client.semaphore()?.capabilities());
    let guard = within(
        limit,
        "the return of a crashed client's permits",
        pool.acquire_with(3, &Policy::new().with_timeout(SOON + limit)),
    )
    .await??;
    drop(lost);
    guard.release().await?;
    Ok(())
}

async fn a_cut_off_holder_is_told(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let guard = holder.pool("pool", 3)?.acquire(2).await?;
    let cut = trial.cut_off(&holder).await?;
    let pool = waiter.pool("pool", 3)?;
    let claims = waiter.semaphore()?.capabilities();
    let policy = Policy::new().with_timeout(SOON + crash_limit(&claims));
    let next = pool.acquire_with(2, &policy).await?;
    // Read before anything else is awaited.
    let known = guard.is_lost();
    ensure_told_within(notice(&claims), &guard.lost_signal(), known).await?;
    next.ensure_held()?;
    cut.now().await?;
    // When the earlier holder is heard again, it gives back nothing.
    drop(guard.release().await);
    next.release().await?;
    let all = pool.acquire_with(3, &patient()).await?;
    ensure_short(pool.try_acquire(1).await)?;
    all.release().await?;
    Ok(())
}

async fn a_stalled_service_ends_the_lease(trial: Trial) -> CaseResult {
    let (holder, waiter) = trial.two_clients().await?;
    let guard = holder.pool("pool", 3)?.acquire(2).await?;
    let claims = waiter.semaphore()?.capabilities();
    let limit = crash_limit(&claims);
    let stall = trial.stall_service().await?;
    tokio::time::sleep(limit.min(SOON)).await;
    stall.now().await?;
    let pool = waiter.pool("pool", 3)?;
    let policy = Policy::new().with_timeout(SOON + limit);
    let taken = tokio::select! {
        taken = pool.acquire_with(2, &policy) => taken,
        // It kept its permits, so nobody else may be granted them.
        () = tokio::time::sleep(A_WHILE * 2), if !guard.is_lost() => {
            guard.ensure_held()?;
            guard.release().await?;
            return Ok(());
        }
    };
    let known = guard.is_lost();
    let next = taken?;
    ensure_told_within(notice(&claims), &guard.lost_signal(), known).await?;
    next.release().await?;
    Ok(())
}
