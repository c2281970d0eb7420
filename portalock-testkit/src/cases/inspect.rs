//! Who holds and who waits: what people are told of a lock.

use std::time::{Duration, SystemTime};

use portalock_core::{BackendErrorKind, ClaimKind, Holder, LockBackend, LockError, Policy, clock};

use super::{Case, case};
use crate::{
    spy::Spy,
    trial::{Trial, ensure_contended, patient},
    verdict::{CaseResult, IN_VAIN, Stop, ensure, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(
        inspect::contention_names_the_holder,
        rules[10],
        needs[Holders],
        "an error that says a lock is held names the holder: host, process, label, and since when"
    ),
    case!(
        inspect::the_holders_are_told,
        rules[10],
        needs[Holders],
        "inspect returns the holders of a name and their mode, none of another name, and no holder after the release"
    ),
    case!(inspect::every_reader_is_told, rules [10], needs [Holders, Shared],
        "inspect tells each of several shared holders"),
    case!(
        inspect::the_waiters_are_told,
        rules[10],
        needs[Waiters],
        "inspect returns the waiters of a name, in order"
    ),
    case!(inspect::looking_changes_nothing, rules [], needs [Holders],
        "looking at a name that nobody uses finds nobody, and leaves it free"),
    case!(
        inspect::refused_unless_claimed,
        rules[10],
        needs[NoInspect],
        "a backend that doesn't claim inspect refuses it before it does anything"
    ),
];

fn ensure_me(holder: &Holder, label: &str, asked: SystemTime) -> CaseResult {
    let me = Holder::this_process(Some(label.into()));
    ensure!(
        holder.pid == me.pid && holder.host == me.host && holder.label == me.label,
        "the holder is called {holder}, and is {me}"
    );
    let since = holder.since;
    // A store may keep whole seconds, or milliseconds.
    let earliest = asked - Duration::from_secs(2);
    ensure!(
        since >= earliest && since <= clock::wall_clock() + Duration::from_secs(2),
        "the holder is said to hold since {since:?}, and was granted the lock just now"
    );
    Ok(())
}

async fn contention_names_the_holder(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let asked = clock::wall_clock();
    for label in ["nightly", "an odd label: 日本 \"x\"\n{}"] {
        let held = first
            .lock("job")?
            .with_label(label)
            .acquire_with(&patient())
            .await?;
        let brief = Policy::new().with_timeout(IN_VAIN);
        for refused in [
            second.lock("job")?.try_acquire().await,
            second.lock("job")?.acquire_with(&brief).await,
        ] {
            let error = ensure_contended(refused, "another client")?;
            let Some(holder) = error.holder() else {
                return Err(Stop::Failed(format!("no holder is named by: {error}")));
            };
            ensure_me(holder, label, asked)?;
        }
        held.release().await?;
    }
    Ok(())
}

async fn the_holders_are_told(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    // A store that reads by prefix finds these too.
    let others = [
        first.lock("job/2")?.acquire().await?,
        first.lock("job:2")?.acquire().await?,
    ];
    let asked = clock::wall_clock();
    let guard = first.lock("job")?.with_label("nightly").acquire().await?;
    let look = second.lock("job")?;
    let seen = look.inspect().await?;
    ensure!(seen.held, "a lock that is held looks free");
    let [claim] = &seen.holders[..] else {
        return Err(Stop::Failed(format!(
            "one client holds, and these are told: {:?}",
            seen.holders
        )));
    };
    ensure!(
        claim.kind == ClaimKind::Exclusive,
        "an exclusive holder is told as {:?}",
        claim.kind
    );
    ensure_me(&claim.holder, "nightly", asked)?;
    ensure!(
        seen.last_token.is_none() || seen.last_token == guard.token(),
        "the last token is told as {:?}, and is {:?}",
        seen.last_token,
        guard.token()
    );
    guard.release().await?;
    let seen = look.inspect().await?;
    ensure!(
        !seen.held && seen.holders.is_empty(),
        "a lock that was released looks held: {seen:?}"
    );
    for other in others {
        other.release().await?;
    }
    Ok(())
}

async fn every_reader_is_told(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    let guards = [
        lock.clone().with_label("one").acquire_shared().await?,
        lock.clone().with_label("two").acquire_shared().await?,
        second
            .lock("job")?
            .with_label("three")
            .acquire_shared()
            .await?,
    ];
    let seen = lock.inspect().await?;
    let mut labels: Vec<_> = seen
        .holders
        .iter()
        .filter(|claim| claim.kind == ClaimKind::Shared)
        .filter_map(|claim| claim.holder.label.as_deref())
        .collect();
    labels.sort_unstable();
    ensure!(
        labels == ["one", "three", "two"],
        "three readers hold, and these are told: {:?}",
        seen.holders
    );
    for guard in guards {
        guard.release().await?;
    }
    Ok(())
}

async fn the_waiters_are_told(trial: Trial) -> CaseResult {
    let (holder, client) = trial.two_clients().await?;
    let held = holder.lock("job")?.acquire().await?;
    let mut waiting = Vec::new();
    for label in ["first", "second", "third"] {
        let spy = Spy::on(client.backend());
        let lock = portalock_core::Lock::new(spy.clone(), "job")?.with_label(label);
        waiting.push(crate::spawn(
            async move { lock.acquire_with(&patient()).await },
        ));
        spy.contended(1).await?;
    }
    let seen = holder.lock("job")?.inspect().await?;
    let labels: Vec<_> = seen
        .waiters
        .iter()
        .filter_map(|claim| claim.holder.label.as_deref())
        .collect();
    ensure!(
        labels == ["first", "second", "third"],
        "three wait, and these are told: {:?}",
        seen.waiters
    );
    ensure!(
        seen.holders.len() == 1,
        "one holds, and these are told: {:?}",
        seen.holders
    );
    held.release().await?;
    for waiting in waiting {
        soon("a waiter's grant", waiting).await???.release().await?;
    }
    let seen = holder.lock("job")?.inspect().await?;
    ensure!(
        seen.waiters.is_empty(),
        "everyone was served, and these still wait: {:?}",
        seen.waiters
    );
    Ok(())
}

async fn looking_changes_nothing(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    for _ in 0..3 {
        let seen = lock.inspect().await?;
        ensure!(
            !seen.held && seen.holders.is_empty() && seen.waiters.is_empty(),
            "a name that nobody has used looks used: {seen:?}"
        );
    }
    let guard = second.lock("job")?.try_acquire().await?;
    lock.inspect().await?;
    guard.ensure_held()?;
    guard.release().await?;
    Ok(())
}

async fn refused_unless_claimed(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let spy = Spy::on(client.backend());
    let refused = portalock_core::Lock::new(spy.clone(), "job")?
        .inspect()
        .await;
    ensure!(
        matches!(refused, Err(LockError::Unsupported { .. })),
        "a look that is not claimed was answered with {refused:?}"
    );
    ensure!(
        spy.seen().calls == 0,
        "the backend was called for what it does not claim"
    );
    let lock = client.lock("job")?;
    match client.backend().inspect(lock.name()).await {
        Err(error) if error.kind() == BackendErrorKind::Unsupported => Ok(()),
        other => Err(Stop::Failed(format!(
            "the backend itself answered a look that it does not claim with {other:?}"
        ))),
    }
}
