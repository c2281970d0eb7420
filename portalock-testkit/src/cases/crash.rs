//! What a crash leaves behind passes on by itself, within the time that the backend declares.

use portalock_core::{LockError, Mode, clock::Instant};

use super::{Case, case};
use crate::{
    helper::Helper,
    spy::Spy,
    trial::{Client, Trial, ensure_contended, name},
    verdict::{CaseResult, SOON, Stop, ensure, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(crash::a_killed_process_frees_its_lock, rules [10], needs [CrashRelease, Helper],
        "a lock held by a process that is killed with SIGKILL passes on to a waiter within the declared time"),
    case!(crash::a_process_that_leaves_frees_its_lock, rules [10], needs [CrashRelease, Helper],
        "a lock held by a process that exits without releasing it passes on within the declared time"),
    case!(crash::a_killed_reader_frees_its_share, rules [10], needs [CrashRelease, Shared, Helper],
        "a shared lock held by a killed process does not keep a writer out beyond the declared time"),
    case!(crash::a_killed_waiter_is_passed_over, rules [10], needs [CrashRelease, Helper],
        "a process that is killed while it waits, first in line, holds up the waiters behind it for no longer than the declared time"),
    case!(crash::a_crashed_client_frees_its_lock, rules [10], needs [CrashRelease, Crash],
        "a lock held by a client that crashes passes on to a waiter within the declared time, and its other locks are free"),
    case!(crash::a_crashed_waiter_is_passed_over, rules [10], needs [CrashRelease, Crash],
        "a client that crashes while it waits, first in line, holds up the waiters behind it for no longer than the declared time"),
    case!(crash::a_crash_frees_nobody_elses_lock, rules [1, 2], needs [Crash],
        "when a client crashes, the locks of other clients stay held"),
];

async fn a_killed_process_frees_its_lock(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, &name, Mode::Exclusive).await?;
    passes_on(&trial, &client, helper.kill()).await
}

async fn a_process_that_leaves_frees_its_lock(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, &name, Mode::Exclusive).await?;
    passes_on(&trial, &client, helper.leave()).await
}

async fn a_killed_reader_frees_its_share(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, &name, Mode::Shared).await?;
    passes_on(&trial, &client, helper.kill()).await
}

async fn a_killed_waiter_is_passed_over(trial: Trial) -> CaseResult {
    let (holder, behind) = trial.two_clients().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    let held = holder.lock(&name)?.acquire().await?;
    helper.ask(1, &name, Mode::Exclusive).await?;
    sees_a_waiter(&trial, &holder).await?;
    let waiting = waits(&trial, &behind).await?;
    helper.kill().await?;
    held.release().await?;
    let guard = within(
        trial.crash_limit(),
        "the grant to the waiter behind a dead one",
        waiting,
    )
    .await???;
    guard.release().await?;
    trial.ensure_free(&holder, &name).await
}

async fn a_crashed_client_frees_its_lock(trial: Trial) -> CaseResult {
    let (doomed, client) = trial.two_clients().await?;
    // Nobody waits for this one: whoever looks must see that it is free.
    let unwanted = doomed.lock("unwanted")?.acquire().await?;
    let guard = doomed.lock("job")?.acquire().await?;
    let shares = if trial.capabilities().shared {
        let its_own = doomed.lock("shared")?.acquire_shared().await?;
        Some((its_own, client.lock("shared")?.acquire_shared().await?))
    } else {
        None
    };
    let anothers = client.lock("another's")?.acquire().await?;
    passes_on(&trial, &client, trial.crash(&doomed)).await?;
    anothers.ensure_held()?;
    anothers.release().await?;
    if let Some((its_own, others)) = shares {
        let tried = trial.client().await?.lock("shared")?.try_acquire().await;
        // Checked first, because a holder whose lease has ended may be replaced.
        others.ensure_held()?;
        ensure_contended(tried, "a writer, while one of two readers lives,")?;
        others.release().await?;
        drop(its_own);
    }
    if trial.capabilities().inspect >= portalock_core::Inspect::Holders {
        let look = client.lock("unwanted")?;
        let seen = async {
            while look.inspect().await?.held {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            Ok::<_, LockError>(())
        };
        // A backend may declare a longer time than `soon` waits, and free each lock at another moment of it.
        let limit = trial.crash_limit() + SOON;
        within(limit, "a look that no longer tells a crashed holder", seen).await??;
    }
    for crashed in [guard, unwanted] {
        let name = crashed.name().clone();
        drop(crashed);
        let next = client.lock(&name)?.acquire_with(&trial.patience()).await?;
        next.release().await?;
        trial.ensure_free(&client, &name).await?;
    }
    Ok(())
}

async fn a_crashed_waiter_is_passed_over(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let [holder, doomed, behind] = &clients[..] else {
        return Err(Stop::failed("the fixture made too few clients"));
    };
    let held = holder.lock("job")?.acquire().await?;
    let dead = waits(&trial, doomed).await?;
    let waiting = waits(&trial, behind).await?;
    trial.crash(doomed).await?;
    held.release().await?;
    let guard = within(
        trial.crash_limit(),
        "the grant to the waiter behind a dead one",
        waiting,
    )
    .await???;
    dead.abort();
    guard.release().await?;
    trial.ensure_free(behind, behind.lock("job")?.name()).await
}

async fn a_crash_frees_nobody_elses_lock(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let [doomed, holder, other] = &clients[..] else {
        return Err(Stop::failed("the fixture made too few clients"));
    };
    let lost = doomed.lock("its own")?.acquire().await?;
    let guard = holder.lock("job")?.acquire().await?;
    trial.crash(doomed).await?;
    guard
        .run(tokio::time::sleep(crate::verdict::A_WHILE))
        .await?;
    ensure_contended(
        other.lock("job")?.try_acquire().await,
        "somebody, after another client had crashed,",
    )?;
    drop(lost);
    guard.release().await?;
    Ok(())
}

/// Somebody waits for the lock; its holder dies; the waiter must be granted it within what the backend declares.
async fn passes_on(
    trial: &Trial,
    client: &Client,
    death: impl Future<Output = CaseResult>,
) -> CaseResult {
    let waiting = waits(trial, client).await?;
    ensure!(
        !waiting.is_finished(),
        "a lock that is held was granted to a waiter"
    );
    death.await?;
    let died = Instant::now();
    let guard = within(
        trial.crash_limit(),
        format!(
            "the grant to the waiter, declared as {:?},",
            trial.capabilities().crash_release
        ),
        waiting,
    )
    .await???;
    guard.ensure_held()?;
    guard.release().await?;
    println!("passed on {:?} after the crash", died.elapsed());
    Ok(())
}

type Waiting =
    tokio::task::JoinHandle<Result<portalock_core::Guard<std::sync::Arc<Spy>>, LockError>>;

/// A task that waits for the lock, and is known to have its place.
async fn waits(trial: &Trial, client: &Client) -> CaseResult<Waiting> {
    let spy = Spy::on(client.backend());
    let lock = portalock_core::Lock::new(spy.clone(), "job")?;
    let policy = trial.patience();
    let waiting = crate::spawn(async move { lock.acquire_with(&policy).await });
    spy.contended(1).await?;
    Ok(waiting)
}

/// The helper process has its place: seen where the backend can tell, else most likely so after a moment.
async fn sees_a_waiter(trial: &Trial, client: &Client) -> CaseResult {
    if trial.capabilities().inspect < portalock_core::Inspect::HoldersAndWaiters {
        tokio::time::sleep(crate::verdict::A_WHILE).await;
        return Ok(());
    }
    let lock = client.lock("job")?;
    let seen = async {
        while lock.inspect().await?.waiters.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Ok::<_, LockError>(())
    };
    soon("the helper process showing up as a waiter", seen).await??;
    Ok(())
}
