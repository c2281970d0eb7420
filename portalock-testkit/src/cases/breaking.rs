//! An operator takes a lock away: from the holder that was meant, who is told by whom.

use portalock_core::{
    BackendErrorKind, Broken, FencingToken, Guard, Holder, Lock, LockBackend, LockError, Loss,
    Mode, OwnerId, Released,
};

use super::{Case, case, loss::ensure_told};
use crate::{
    erased::AnyBackend,
    helper::Helper,
    spy::Spy,
    trial::{Client, Trial, name, once, queued},
    verdict::{A_WHILE, CaseResult, SOON, Stop, ensure, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(
        breaking::the_holder_is_told_who,
        rules[12],
        needs[Breaks],
        "if a lock is broken by the owner that inspect returned, its holder is told by whom, and its release reports the loss"
    ),
    case!(
        breaking::told_before_another_is_granted,
        rules[1, 12],
        needs[Breaks],
        "the holder of a broken lock knows of it before a waiter is granted the lock, or within the time that the backend declares"
    ),
    case!(
        breaking::a_holder_that_lingers_keeps_nobody_out,
        rules[12],
        needs[Breaks],
        "a broken lock is free for others although its holder keeps the guard, and dropping that guard affects no other holder"
    ),
    case!(
        breaking::the_token_grows,
        rules[12],
        needs[Breaks, Tokens],
        "after a break, the next grant has a larger token than the broken hold"
    ),
    case!(
        breaking::the_waiters_keep_their_places,
        rules[12],
        needs[Breaks, FirstCome],
        "waiters of a broken lock are served first come, first served"
    ),
    case!(
        breaking::an_owner_that_is_gone_hits_nobody,
        rules[12],
        needs[Breaks],
        "breaking an owner that has released the lock, waits for it, or holds another name, reports that it holds nothing, and affects no other owner"
    ),
    case!(
        breaking::an_owner_that_holds_anew_keeps_its_hold,
        rules[1, 12],
        needs[Breaks],
        "if an owner holds the lock anew after its hold was broken, ending the former hold by force affects it not, and the hold has a mark of its own"
    ),
    case!(
        breaking::one_reader_is_taken_out,
        rules[12],
        needs[Breaks, Shared],
        "breaking one of several shared holds leaves the others"
    ),
    case!(
        breaking::a_second_break_is_harmless,
        rules[12],
        needs[Breaks],
        "if two operators break one hold at once, both succeed, the holder is told of one of them, and the next holder is not affected"
    ),
    case!(
        breaking::a_mark_stays_until_it_is_found,
        rules[1, 12],
        needs[Breaks, CutOff],
        "if the holder can't be reached when its lock is broken, and then can, it knows of the break before another is granted the lock, or within the time that the backend declares"
    ),
    case!(
        breaking::a_holder_that_does_not_respond_is_evicted,
        rules[1, 12],
        needs[Breaks, CrashRelease, CutOff],
        "if the holder can't be reached, a break succeeds when the holder's lease is over, and by then the holder knows"
    ),
    case!(
        breaking::a_stopped_process_is_evicted,
        rules[12],
        needs[Breaks, CrashRelease, BeyondProcess, Helper],
        "if the holder's process is stopped, a break succeeds within the time of a crash, and the process knows of it when it runs again"
    ),
    case!(
        breaking::refused_unless_claimed,
        rules[10],
        needs[NoBreaks],
        "a backend that doesn't claim to break locks refuses a break before it does anything"
    ),
];

/// Breaks what `owner` holds, as an operator called `label`.
async fn break_as(client: &Client, label: &str, owner: OwnerId) -> CaseResult<Broken> {
    let lock = client.lock("job")?.with_label(label);
    Ok(soon("the end of a break", lock.break_holder(owner)).await??)
}

/// Breaks a hold that is there.
async fn broken(client: &Client, owner: OwnerId) -> CaseResult {
    let ended = break_as(client, "operator", owner).await?;
    ensure!(
        ended != Broken::NotHeld,
        "breaking a lock that was held says that its owner holds nothing"
    );
    Ok(())
}

/// The loss of a guard whose lock was broken, which must say by whom.
async fn ensure_told_by(guard: &Guard<AnyBackend>, labels: &[&str]) -> CaseResult {
    let loss = soon("the lost signal of a lock that was broken", guard.lost()).await?;
    let by = match &loss {
        Loss::Broken(by) => by.label.as_deref().unwrap_or_default(),
        _ => "",
    };
    ensure!(
        labels.contains(&by),
        "the lock was broken by {labels:?}, and its holder was told {loss:?}"
    );
    Ok(())
}

async fn the_holder_is_told_who(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    let look = operator.lock("job")?.inspect().await?;
    let owner = look.holders.first().and_then(|claim| claim.owner);
    ensure!(
        owner == Some(guard.owner()),
        "the holder's owner is {}, and a look tells {owner:?}",
        guard.owner()
    );
    broken(&operator, guard.owner()).await?;
    ensure_told_by(&guard, &["operator"]).await?;
    let released = guard.release().await;
    ensure!(
        matches!(released, Err(LockError::Lost { .. })),
        "releasing a lock that was broken answered {released:?}"
    );
    trial.ensure_free(&operator, &name("job")?).await
}

async fn told_before_another_is_granted(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let [holder, waiter, operator] = &clients[..] else {
        return Err(Stop::failed("the fixture made too few clients"));
    };
    for _ in 0..5 {
        let guard = holder.lock("job")?.acquire_with(&trial.patience()).await?;
        let spy = Spy::on(waiter.backend());
        let lock = Lock::new(spy.clone(), "job")?;
        let (signal, policy) = (guard.lost_signal(), trial.patience());
        let waiting = crate::spawn(async move {
            let next = lock.acquire_with(&policy).await?;
            // Read before anything else is awaited.
            let known = signal.is_lost();
            Ok::<_, Stop>((next, known))
        });
        spy.contended(1).await?;
        broken(operator, guard.owner()).await?;
        let (next, known) = soon("the waiter's grant", waiting).await???;
        ensure_told(&trial, &guard.lost_signal(), known).await?;
        next.ensure_held()?;
        next.release().await?;
    }
    Ok(())
}

async fn a_holder_that_lingers_keeps_nobody_out(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let lock = operator.lock("job")?;
    for releases in [true, false] {
        let guard = holder.lock("job")?.acquire_with(&trial.patience()).await?;
        broken(&operator, guard.owner()).await?;
        let next = lock.acquire_with(&trial.patience()).await?;
        if releases {
            // The release reports the loss; its effect on others is what matters.
            drop(guard.release().await);
        } else {
            drop(guard);
        }
        tokio::time::sleep(A_WHILE).await;
        next.ensure_held()?;
        holder.refused(&once(lock.name())).await?;
        next.release().await?;
    }
    Ok(())
}

async fn the_token_grows(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    broken(&operator, guard.owner()).await?;
    let next = operator
        .lock("job")?
        .acquire_with(&trial.patience())
        .await?;
    ensure!(
        next.token() > guard.token(),
        "the lock was broken under token {:?}, and was granted with token {:?} after that",
        guard.token(),
        next.token()
    );
    next.release().await?;
    Ok(())
}

async fn the_waiters_keep_their_places(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (held, first, second) = (once(&name), queued(&name), queued(&name));
    let grant = client.grant(&held).await?;
    other.refused(&first).await?;
    client.refused(&second).await?;
    broken(&other, held.owner).await?;
    soon("word of the break", grant.lost.lost()).await?;
    let _ = other.granted_soon(&first).await?;
    client.refused(&second).await?;
    other.free(&first).await?;
    let _ = client.granted_soon(&second).await?;
    client.free(&second).await?;
    let released = client.release(&held).await?;
    ensure!(
        released == Released::NotHeld,
        "releasing a lock that was broken answered {released:?}"
    );
    trial.ensure_free(&other, &name).await
}

async fn an_owner_that_is_gone_hits_nobody(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    let former = lock.acquire().await?;
    let gone = former.owner();
    former.release().await?;
    let unheard_of = break_as(&second, "operator", OwnerId::mint()).await?;
    let unheld = break_as(&second, "operator", gone).await?;
    let guard = second.lock("job")?.acquire_with(&trial.patience()).await?;
    let waiter = queued(lock.name());
    first.refused(&waiter).await?;
    let succeeded = break_as(&first, "operator", gone).await?;
    let waiting = break_as(&second, "operator", waiter.owner).await?;
    let other = first.lock("other")?;
    let elsewhere = other.break_holder(guard.owner());
    let elsewhere = soon("the end of a break", elsewhere).await??;
    for (ended, who) in [
        (unheard_of, "of an owner that never was"),
        (unheld, "of an owner that has released"),
        (succeeded, "of an owner that another has followed"),
        (waiting, "of an owner that waits"),
        (elsewhere, "of an owner that holds another name"),
    ] {
        ensure!(
            ended == Broken::NotHeld,
            "the break {who} ended with {ended:?}"
        );
    }
    // The owner may have released between its mark and its eviction.
    let hold = guard.token().map_or(0, FencingToken::get);
    let backend = first.backend();
    let evicting = backend.evict(lock.name(), gone, hold);
    let evicted = soon("an eviction", evicting).await??;
    ensure!(
        evicted == Released::NotHeld,
        "the eviction of an owner that another has followed answered {evicted:?}"
    );
    tokio::time::sleep(A_WHILE).await;
    guard.ensure_held()?;
    guard.release().await?;
    let _ = first.granted_soon(&waiter).await?;
    first.free(&waiter).await?;
    trial.ensure_free(&second, lock.name()).await
}

/// As a waiter that never heard of its grant: it asks again after its place was broken.
async fn an_owner_that_holds_anew_keeps_its_hold(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let request = queued(&name("job")?);
    let (backend, by) = (operator.backend(), Holder::this_process(None));
    let mark = async || {
        let marking = backend.mark_broken(&request.name, request.owner, &by);
        Ok::<_, Stop>(soon("the answer to a break", marking).await??)
    };
    let former = holder.grant(&request).await?;
    let first = mark().await?.map(|marked| marked.hold);
    let first = first.ok_or_else(|| Stop::failed("a break did not find the holder"))?;
    soon("word of the break", former.lost.lost()).await?;
    let anew = holder.granted_soon(&request).await?;
    let evicting = backend.evict(&request.name, request.owner, first);
    let evicted = soon("an eviction", evicting).await??;
    ensure!(
        evicted == Released::NotHeld,
        "the eviction of an owner's former hold answered {evicted:?}"
    );
    tokio::time::sleep(A_WHILE).await;
    ensure!(
        !anew.lost.is_lost(),
        "an owner that holds the lock anew lost it by a break of its former hold"
    );
    operator.refused(&once(&request.name)).await?;
    let second = mark().await?.map(|marked| marked.hold);
    ensure!(
        second.is_some_and(|second| second != first),
        "two holds of one owner have the number {first}: {second:?}"
    );
    soon("word of the second break", anew.lost.lost()).await?;
    let _ = holder.release(&request).await?;
    trial.ensure_free(&operator, &request.name).await
}

async fn one_reader_is_taken_out(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    let (stays, goes) = (lock.acquire_shared().await?, lock.acquire_shared().await?);
    broken(&second, goes.owner()).await?;
    ensure_told_by(&goes, &["operator"]).await?;
    tokio::time::sleep(A_WHILE).await;
    stays.ensure_held()?;
    second.refused(&once(lock.name())).await?;
    stays.release().await?;
    trial.ensure_free(&second, lock.name()).await
}

async fn a_second_break_is_harmless(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    let owner = guard.owner();
    let (one, other) = tokio::join!(
        break_as(&operator, "one", owner),
        break_as(&holder, "other", owner)
    );
    let (one, other) = (one?, other?);
    ensure!(
        one != Broken::NotHeld || other != Broken::NotHeld,
        "neither of two breaks found the holder"
    );
    ensure_told_by(&guard, &["one", "other"]).await?;
    let next = operator
        .lock("job")?
        .acquire_with(&trial.patience())
        .await?;
    let late = break_as(&holder, "late", owner).await?;
    ensure!(
        late == Broken::NotHeld,
        "a break of a hold that was broken before ended with {late:?}"
    );
    tokio::time::sleep(A_WHILE).await;
    next.ensure_held()?;
    next.release().await?;
    Ok(())
}

async fn a_mark_stays_until_it_is_found(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    let lock = operator.lock("job")?;
    let cut = trial.cut_off(&holder).await?;
    let by = Holder::this_process(Some("operator".into()));
    let backend = operator.backend();
    let marked = backend.mark_broken(lock.name(), guard.owner(), &by);
    soon("the answer to a break", marked).await??;
    cut.now().await?;
    let breaking = {
        let (lock, owner) = (lock.clone(), guard.owner());
        crate::spawn(async move { lock.break_holder(owner).await })
    };
    let next = lock.acquire_with(&trial.patience()).await?;
    // Read before anything else is awaited.
    let known = guard.is_lost();
    ensure_told(&trial, &guard.lost_signal(), known).await?;
    let limit = trial.crash_limit() + SOON;
    within(limit, "the end of a break", breaking).await???;
    next.ensure_held()?;
    next.release().await?;
    Ok(())
}

async fn a_holder_that_does_not_respond_is_evicted(trial: Trial) -> CaseResult {
    let (holder, operator) = trial.two_clients().await?;
    let guard = holder.lock("job")?.acquire().await?;
    let cut = trial.cut_off(&holder).await?;
    let lock = operator.lock("job")?;
    let breaking = {
        let (lock, owner) = (lock.clone(), guard.owner());
        crate::spawn(async move { lock.break_holder(owner).await })
    };
    let next = lock.acquire_with(&trial.patience()).await?;
    // Read before anything else is awaited.
    let known = guard.is_lost();
    ensure_told(&trial, &guard.lost_signal(), known).await?;
    let limit = trial.crash_limit() + SOON;
    within(
        limit,
        "the end of a break of a silent holder's lock",
        breaking,
    )
    .await???;
    cut.now().await?;
    drop(guard);
    tokio::time::sleep(A_WHILE).await;
    next.ensure_held()?;
    next.release().await?;
    Ok(())
}

async fn a_stopped_process_is_evicted(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let lock = client.lock("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, lock.name(), Mode::Exclusive).await?;
    let seen = lock.inspect().await?;
    let owner = seen.holders.first().and_then(|claim| claim.owner);
    let owner = owner.ok_or_else(|| Stop::failed("a look tells no owner of the holder"))?;
    helper.freeze()?;
    let limit = trial.crash_limit();
    let what = "the end of a break of a stopped process's lock";
    within(limit, what, lock.break_holder(owner)).await??;
    let next = lock.acquire_with(&trial.patience()).await?;
    helper.thaw()?;
    soon("word to a process that was stopped", helper.lost(1)).await??;
    tokio::time::sleep(A_WHILE).await;
    next.ensure_held()?;
    next.release().await?;
    Ok(())
}

async fn refused_unless_claimed(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let spy = Spy::on(client.backend());
    let lock = Lock::new(spy.clone(), "job")?;
    let owner = OwnerId::mint();
    let refused = lock.break_holder(owner).await;
    ensure!(
        matches!(refused, Err(LockError::Unsupported { .. })),
        "a break that is not claimed was answered with {refused:?}"
    );
    ensure!(
        spy.seen().calls == 0,
        "the backend was called for what it does not claim"
    );
    match client.backend().evict(lock.name(), owner, 0).await {
        Err(error) if error.kind() == BackendErrorKind::Unsupported => Ok(()),
        other => Err(Stop::Failed(format!(
            "the backend itself answered an eviction that it does not claim with {other:?}"
        ))),
    }
}
