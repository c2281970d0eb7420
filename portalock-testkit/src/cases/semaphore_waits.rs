//! Those who wait for permits: how long, in which order, and what is left when they go.

use std::time::Duration;

use portalock_core::{
    Attempt, BackendErrorKind, ClaimKind, FencingToken, Inspect, Patience, PermitRequest, Policy,
    Semaphore, Tokens, clock::Instant,
};

use super::{
    Case, case,
    semaphore::{attempt, ensure_all_free, ensure_short, request},
};
use crate::{
    erased::AnySemaphore,
    sweep::{Ended, Moment, drop_after, drop_beside},
    trial::{Trial, eager, patient},
    verdict::{CaseResult, IN_VAIN, Stop, ensure, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(semaphore::a_wait_lasts_its_timeout, rules [], needs [Semaphore],
        "a wait for permits that stay held lasts its timeout, and then leaves nothing behind"),
    case!(semaphore::a_release_ends_the_wait, rules [], needs [Semaphore],
        "a waiter gets its permits when they come back, long before its timeout"),
    case!(
        semaphore::sweep_of_permits,
        rules[5],
        needs[Semaphore],
        "an acquisition of permits, dropped after any number of polls, leaves all permits free"
    ),
    case!(
        semaphore::a_large_request_is_not_starved,
        rules[10],
        needs[FairSemaphore],
        "a request for many permits is served although small ones keep coming"
    ),
    case!(
        semaphore::waiters_are_served_in_order,
        rules[10],
        needs[FairSemaphore],
        "a small request does not overtake a large one that waits, not even if it only tries, and whoever asks again keeps its place"
    ),
    case!(
        semaphore::sweep_against_a_release,
        rules[5],
        needs[Semaphore],
        "a wait for permits that is dropped while they are being released to it does not keep them"
    ),
    case!(semaphore::its_claims_hold, rules [3, 10], needs [Semaphore],
        "permits are granted with larger and larger tokens, and a look tells who holds how many, where the semaphore claims it"),
];

async fn a_wait_lasts_its_timeout(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let held = first.pool("pool", 3)?.try_acquire(2).await?;
    let policy = Policy::new().with_timeout(IN_VAIN);
    let started = Instant::now();
    let pool = second.pool("pool", 3)?;
    let refused = soon("the wait's end", pool.acquire_with(2, &policy)).await?;
    let lasted = started.elapsed();
    ensure_short(refused)?;
    ensure!(
        lasted >= IN_VAIN,
        "a wait of {IN_VAIN:?} gave up after {lasted:?}"
    );
    held.release().await?;
    ensure_all_free(&first, 3).await
}

async fn a_release_ends_the_wait(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let held = first.pool("pool", 3)?.try_acquire(3).await?;
    let pool = second.pool("pool", 3)?;
    let policy = Policy::new().with_timeout(Duration::from_secs(300));
    let waiting = crate::spawn(async move { pool.acquire_with(2, &policy).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    held.release().await?;
    let guard = soon("the waiter's permits", waiting).await???;
    guard.release().await?;
    Ok(())
}

async fn sweep_of_permits(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let pool = client.pool("pool", 3)?;
    let policy = eager()?;
    for moment in Moment::ALL {
        for polls in 0..8 {
            drop(drop_after(pool.acquire_with(2, &policy), polls, moment).await);
            ensure_all_free(&holder, 3).await?;
            let held = holder.pool("pool", 3)?.acquire_with(2, &patient()).await?;
            let ended = drop_after(pool.acquire_with(2, &policy), polls, moment).await;
            if let Ended::With(ended) = ended {
                ensure_short(ended)?;
            }
            held.release().await?;
            ensure_all_free(&holder, 3).await?;
        }
    }
    Ok(())
}

async fn sweep_against_a_release(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let pool = client.pool("pool", 3)?;
    let policy = eager()?;
    for moment in Moment::ALL {
        for polls in 0..8 {
            let held = holder.pool("pool", 3)?.acquire_with(2, &patient()).await?;
            let (released, ended) =
                drop_beside(held.release(), pool.acquire_with(2, &policy), polls, moment).await;
            released?;
            if let Ended::With(granted) = ended {
                drop(granted?);
            }
            ensure_all_free(&holder, 3).await?;
        }
    }
    Ok(())
}

async fn a_large_request_is_not_starved(trial: Trial) -> CaseResult {
    let (small, large) = trial.two_clients().await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut tasks = Vec::new();
    for number in 0..4_u64 {
        let (pool, stopped) = (small.pool("pool", 4)?, stopped.clone());
        tasks.push(crate::spawn(async move {
            tokio::time::sleep(Duration::from_millis(number * 3)).await;
            while !*stopped.borrow() {
                let guard = pool.acquire_with(1, &patient()).await?;
                tokio::time::sleep(Duration::from_millis(12)).await;
                guard.release().await?;
            }
            Ok::<_, Stop>(())
        }));
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    let pool = large.pool("pool", 4)?;
    for _ in 0..3 {
        let guard = soon(
            "all permits at once, with small requests coming and going,",
            pool.acquire_with(4, &patient()),
        )
        .await??;
        guard.release().await?;
    }
    stop.send_replace(true);
    for task in tasks {
        soon("the small requests' end", task).await???;
    }
    Ok(())
}

async fn waiters_are_served_in_order(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (here, there) = (first.semaphore()?, second.semaphore()?);
    let held = request(&first, 2, Patience::Once)?;
    ensure!(attempt(&here, &held).await?, "free permits were refused");
    let large = request(&second, 3, Patience::Queue)?;
    ensure!(
        !attempt(&there, &large).await?,
        "more permits were granted than there are"
    );
    let small = request(&first, 1, Patience::Queue)?;
    let overtook = "a small request overtook a large one that waits";
    ensure!(!attempt(&here, &small).await?, "{overtook}");
    let tries = request(&first, 1, Patience::Once)?;
    ensure!(
        !attempt(&here, &tries).await?,
        "a try overtook a request that waits"
    );
    // Whoever asks again keeps its place.
    ensure!(!attempt(&there, &large).await?, "too few were free");
    ensure!(!attempt(&here, &small).await?, "{overtook}");
    ensure!(!attempt(&there, &large).await?, "too few were free");
    ensure!(!attempt(&here, &small).await?, "{overtook}");
    here.release(&held).await?;
    let granted = async {
        while !attempt(&there, &large).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok::<_, Stop>(())
    };
    soon("the grant to the large request", granted).await??;
    there.release(&large).await?;
    let granted = async {
        while !attempt(&here, &small).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok::<_, Stop>(())
    };
    soon("the grant to the small request behind it", granted).await??;
    here.release(&small).await?;
    ensure_all_free(&first, 3).await
}

async fn its_claims_hold(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (here, there) = (first.semaphore()?, second.semaphore()?);
    let claims = here.capabilities();
    let mut before = None;
    for round in 0..6 {
        let (client, semaphore) = match round % 2 {
            0 => (&first, &here),
            _ => (&second, &there),
        };
        let asked = request(client, 1, Patience::Once)?;
        let token = granted(semaphore, &asked).await?;
        let again = granted(semaphore, &asked).await?;
        ensure!(
            again == token,
            "the token of one owner changed from {token:?} to {again:?}"
        );
        let is_claimed = claims.tokens != Tokens::None;
        ensure!(
            token.is_some() == is_claimed && (!is_claimed || token > before),
            "tokens are claimed as {:?}, and permits were granted with token {token:?} after {before:?}",
            claims.tokens
        );
        before = token;
        semaphore.release(&asked).await?;
    }
    let pool = first.pool("pool", 3)?;
    let others = first.pool("pool/2", 3)?.acquire(1).await?;
    let held = second
        .pool("pool", 3)?
        .with_label("nightly")
        .acquire(2)
        .await?;
    if claims.inspect == Inspect::None {
        let look = here.inspect(pool.name()).await;
        ensure!(
            matches!(&look, Err(error) if error.kind() == BackendErrorKind::Unsupported),
            "a look at permits that is not claimed was answered with {look:?}"
        );
    } else {
        let seen = soon("a look", pool.inspect()).await??;
        let told: Vec<_> = seen
            .holders
            .iter()
            .map(|claim| (claim.kind, claim.holder.label.as_deref()))
            .collect();
        ensure!(
            seen.held && told == [(ClaimKind::Permits(2), Some("nightly"))],
            "one holds two permits, and these are told: {seen:?}"
        );
    }
    held.release().await?;
    others.release().await?;
    if claims.inspect >= Inspect::Holders {
        let seen = soon("a look", pool.inspect()).await??;
        ensure!(
            !seen.held && seen.holders.is_empty(),
            "permits that were released look held: {seen:?}"
        );
    }
    Ok(())
}

/// The token of permits that must be granted.
async fn granted(
    semaphore: &AnySemaphore,
    request: &PermitRequest,
) -> CaseResult<Option<FencingToken>> {
    let answer = soon("the answer to an attempt", semaphore.try_acquire(request)).await??;
    match answer {
        Attempt::Granted(grant) => Ok(grant.token),
        Attempt::Contended(_) => Err(Stop::failed("free permits were refused")),
    }
}
