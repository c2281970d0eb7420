//! Readers together, writers alone.

use portalock_core::{LockBackend, LockError, Mode};

use super::{Case, case};
use crate::{
    section::Section,
    spy::Spy,
    trial::{Trial, ensure_contended, name, once, once_shared, patient, queued_shared},
    verdict::{CaseResult, Stop, ensure, rounds, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(
        shared::readers_hold_together,
        rules[1],
        needs[Shared],
        "shared locks of one name are held by several clients, and by several acquisitions of one client, at once"
    ),
    case!(
        shared::a_reader_keeps_writers_out,
        rules[1],
        needs[Shared],
        "while the lock is shared, nobody gets it exclusively, until the last reader has released it"
    ),
    case!(shared::a_writer_keeps_readers_out, rules [1, 6], needs [Shared],
        "while one holds the lock exclusively, nobody gets it shared, and who was refused and will not wait leaves no place"),
    case!(shared::one_readers_release_leaves_the_others, rules [2, 4], needs [Shared],
        "of two shared guards from one lock object, dropping one leaves the other's lock held"),
    case!(
        shared::a_repeated_attempt_counts_once,
        rules[3],
        needs[Shared],
        "asking again for an owner that holds shared is answered with its grant, and one release frees it"
    ),
    case!(
        shared::readers_and_writers_never_overlap,
        rules[1],
        needs[Shared],
        "readers and writers of several clients never hold the lock together"
    ),
    case!(
        shared::refused_unless_claimed,
        rules[10],
        needs[NoShared],
        "a backend without shared locks refuses them before it does anything, and never grants exclusively instead"
    ),
];

async fn readers_hold_together(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let lock = first.lock("job")?;
    let guards = [
        lock.acquire_shared().await?,
        lock.acquire_shared().await?,
        second.lock("job")?.try_acquire_shared().await?,
    ];
    for guard in guards {
        ensure!(
            guard.mode() == Mode::Shared,
            "a shared acquisition's guard says {}",
            guard.mode()
        );
        guard.release().await?;
    }
    trial.ensure_free(&first, lock.name()).await
}

async fn a_reader_keeps_writers_out(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let (one, two) = (once_shared(&name), once_shared(&name));
    let _ = first.grant(&one).await?;
    let _ = second.grant(&two).await?;
    first.refused(&once(&name)).await?;
    second.refused(&once(&name)).await?;
    first.free(&one).await?;
    first.refused(&once(&name)).await?;
    second.free(&two).await?;
    let writer = once(&name);
    let _ = first.grant(&writer).await?;
    first.free(&writer).await
}

async fn a_writer_keeps_readers_out(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let writer = once(&name);
    let _ = first.grant(&writer).await?;
    first.refused(&once_shared(&name)).await?;
    second.refused(&once_shared(&name)).await?;
    first.free(&writer).await?;
    let reader = once_shared(&name);
    let _ = second.grant(&reader).await?;
    second.free(&reader).await?;
    trial.ensure_free(&first, &name).await
}

async fn one_readers_release_leaves_the_others(trial: Trial) -> CaseResult {
    let (readers, writer) = trial.two_clients().await?;
    let lock = readers.lock("job")?;
    let (first, second) = (lock.acquire_shared().await?, lock.acquire_shared().await?);
    first.release().await?;
    ensure_contended(
        writer.lock("job")?.try_acquire().await,
        "a writer, after one of two readers had released,",
    )?;
    let third = lock.acquire_shared().await?;
    drop(second);
    ensure_contended(
        writer.lock("job")?.try_acquire().await,
        "a writer, after one of two readers had been dropped,",
    )?;
    third.ensure_held()?;
    third.release().await?;
    trial.ensure_free(&writer, lock.name()).await
}

async fn a_repeated_attempt_counts_once(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let reader = queued_shared(&name);
    let grant = first.grant(&reader).await?;
    let again = first.grant(&reader).await?;
    ensure!(
        again.token == grant.token,
        "the token of one owner changed from {:?} to {:?}",
        grant.token,
        again.token
    );
    first.free(&reader).await?;
    let writer = once(&name);
    let _ = second.grant(&writer).await?;
    second.free(&writer).await
}

async fn readers_and_writers_never_overlap(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let section = Section::of_a_lock();
    let mut tasks = Vec::new();
    for (number, client) in (0..).zip(clients.iter().cycle().take(6)) {
        let (lock, section) = (client.lock("job")?, section.clone());
        tasks.push(crate::spawn(async move {
            for round in rounds(10) {
                let guard = if (number + round) % 3 == 0 {
                    lock.acquire_with(&patient()).await?
                } else {
                    lock.acquire_shared_with(&patient()).await?
                };
                section.visit(guard.mode()).await;
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

async fn refused_unless_claimed(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let spy = Spy::on(client.backend());
    let lock = portalock_core::Lock::new(spy.clone(), "job")?;
    for refused in [lock.try_acquire_shared().await, lock.acquire_shared().await] {
        ensure!(
            matches!(refused, Err(LockError::Unsupported { .. })),
            "a shared lock that is not claimed was answered with {refused:?}"
        );
    }
    ensure!(
        spy.seen().calls == 0,
        "the backend was called {} times for what it does not claim",
        spy.seen().calls
    );
    // Calls the backend directly.
    match client
        .backend()
        .try_acquire(&once_shared(lock.name()))
        .await
    {
        Err(error) if error.kind() == portalock_core::BackendErrorKind::Unsupported => Ok(()),
        other => Err(Stop::Failed(format!(
            "the backend itself answered a shared request with {other:?}, and not that it has no shared locks"
        ))),
    }
}
