//! Who comes first is served first, where the backend says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::{Guard, Lock, LockError, Mode, Policy};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Case, case};
use crate::{
    spy::Spy,
    trial::{
        Client, Trial, ensure_contended, name, once, once_shared, patient, queued, queued_shared,
    },
    verdict::{CaseResult, Stop, ensure, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(fairness::one_clients_waiters_are_served_in_order, rules [3, 10], needs [Order],
        "tasks of one client that wait for a lock are granted it in the order in which they came"),
    case!(fairness::all_clients_waiters_are_served_in_order, rules [3, 10], needs [FirstCome],
        "waiters of several clients are granted the lock in the order in which they came"),
    case!(
        fairness::a_repeated_attempt_keeps_its_place,
        rules[3],
        needs[FirstCome],
        "a waiter that tries again, any number of times, keeps its place"
    ),
    case!(
        fairness::a_try_does_not_overtake,
        rules[10],
        needs[FirstCome],
        "a try_acquire does not get a lock that has a waiter"
    ),
    case!(fairness::a_place_that_was_given_up_moves_the_others_up, rules [4, 5], needs [FirstCome],
        "when a waiter leaves, those behind it keep their order, and the next one is served"),
    case!(fairness::a_waiting_writer_stops_new_readers, rules [10], needs [FirstCome, Shared],
        "a reader that comes after a waiting writer waits, and a writer that leaves lets it in"),
    case!(fairness::a_writer_is_not_starved, rules [10], needs [FirstCome, Shared],
        "a writer is granted the lock while readers keep coming and overlapping"),
    case!(fairness::readers_behind_a_writer_go_together, rules [10], needs [FirstCome, Shared],
        "readers that waited behind a writer hold the lock together after it"),
    case!(fairness::every_waiter_is_served, rules [], needs [],
        "of many waiters of several clients each is granted the lock as it is passed on: no wake-up gets lost for good"),
];

type Waiting = JoinHandle<Result<Guard<Arc<Spy>>, LockError>>;

/// A task that waits, and is known to have its place.
async fn waits(client: &Client, mode: Mode) -> CaseResult<Waiting> {
    let spy = Spy::on(client.backend());
    let lock = Lock::new(spy.clone(), "job")?;
    // Longer than any case watches: the last look before a deadline would find what no wake-up told.
    let policy = Policy::new().with_timeout(Duration::from_secs(300));
    let waiting = crate::spawn(async move {
        match mode {
            Mode::Exclusive => lock.acquire_with(&policy).await,
            Mode::Shared => lock.acquire_shared_with(&policy).await,
        }
    });
    spy.sleeps().await?;
    Ok(waiting)
}

async fn one_clients_waiters_are_served_in_order(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    in_order(&client, std::slice::from_ref(&client)).await
}

async fn all_clients_waiters_are_served_in_order(trial: Trial) -> CaseResult {
    let holder = trial.client().await?;
    let clients = trial.clients(3).await?;
    in_order(&holder, &clients).await
}

async fn in_order(holder: &Client, clients: &[Client]) -> CaseResult {
    let held = holder.lock("job")?.acquire().await?;
    let (tell, mut told) = mpsc::unbounded_channel();
    for (number, client) in clients.iter().cycle().take(8).enumerate() {
        let waiting = waits(client, Mode::Exclusive).await?;
        let tell = tell.clone();
        crate::spawn(async move {
            let outcome = match waiting.await {
                // Recorded before the lock passes on, so the recorded order is the order of grants.
                Ok(Ok(guard)) => {
                    let _ = tell.send(Ok(number));
                    guard.release().await.map_err(Stop::from)
                }
                Ok(Err(error)) => Err(error.into()),
                Err(ended) => Err(Stop::from(ended)),
            };
            if let Err(stop) = outcome {
                let _ = tell.send(Err(stop));
            }
        });
    }
    held.release().await?;
    let mut order = Vec::new();
    for _ in 0..8 {
        let next = soon(
            format!("a grant to the next waiter, after {order:?},"),
            told.recv(),
        )
        .await?;
        order.push(next.ok_or_else(|| Stop::failed("a waiter went away"))??);
    }
    ensure!(
        order.is_sorted(),
        "eight waiters were served in the order {order:?}"
    );
    Ok(())
}

async fn a_repeated_attempt_keeps_its_place(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    // If a repeated attempt changed the place, the last waiter that tries would be at the end or at the head of the
    // queue.
    for first_looks_last in [true, false] {
        let (held, first, second) = (once(&name), queued(&name), queued(&name));
        let _ = client.grant(&held).await?;
        client.refused(&first).await?;
        other.refused(&second).await?;
        for _ in 0..4 {
            client.refused(&first).await?;
            other.refused(&second).await?;
            other.refused(&second).await?;
        }
        if first_looks_last {
            client.refused(&first).await?;
        }
        client.free(&held).await?;
        other.refused(&second).await?;
        let _ = client.granted_soon(&first).await?;
        other.refused(&second).await?;
        client.free(&first).await?;
        let _ = other.granted_soon(&second).await?;
        other.free(&second).await?;
    }
    Ok(())
}

async fn a_try_does_not_overtake(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (held, waits) = (once(&name), queued(&name));
    let _ = client.grant(&held).await?;
    other.refused(&waits).await?;
    client.free(&held).await?;
    client.refused(&once(&name)).await?;
    ensure_contended(
        client.lock("job")?.try_acquire().await,
        "one who only tried",
    )?;
    let _ = other.granted_soon(&waits).await?;
    other.free(&waits).await?;
    trial.ensure_free(&client, &name).await
}

async fn a_place_that_was_given_up_moves_the_others_up(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (held, leaves, stays, last) = (once(&name), queued(&name), queued(&name), queued(&name));
    let _ = client.grant(&held).await?;
    other.refused(&leaves).await?;
    client.refused(&stays).await?;
    other.refused(&last).await?;
    other.release(&leaves).await?;
    client.free(&held).await?;
    other.refused(&last).await?;
    let _ = client.granted_soon(&stays).await?;
    client.free(&stays).await?;
    let _ = other.granted_soon(&last).await?;
    other.free(&last).await
}

async fn a_waiting_writer_stops_new_readers(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let name = name("job")?;
    let (reader, writer) = (once_shared(&name), queued(&name));
    let _ = client.grant(&reader).await?;
    other.refused(&writer).await?;
    let late = queued_shared(&name);
    client.refused(&once_shared(&name)).await?;
    client.refused(&late).await?;
    other.release(&writer).await?;
    let _ = client.granted_soon(&late).await?;
    client.free(&late).await?;
    // One that sleeps must be woken, although nobody has released the lock.
    let writer = queued(&name);
    other.refused(&writer).await?;
    let late = waits(&client, Mode::Shared).await?;
    other.release(&writer).await?;
    let late = soon("the grant to a reader behind a writer that left", late).await???;
    late.release().await?;
    client.free(&reader).await?;
    trial.ensure_free(&other, &name).await
}

async fn a_writer_is_not_starved(trial: Trial) -> CaseResult {
    let (readers, writer) = trial.two_clients().await?;
    let done = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for number in 0..4_u64 {
        let (lock, done) = (readers.lock("job")?, done.clone());
        tasks.push(crate::spawn(async move {
            // At different times, so that there is nearly always a reader.
            tokio::time::sleep(Duration::from_millis(number * 3)).await;
            while !done.load(Ordering::Acquire) {
                let guard = lock.acquire_shared_with(&patient()).await?;
                tokio::time::sleep(Duration::from_millis(12)).await;
                guard.release().await?;
            }
            Ok::<_, Stop>(())
        }));
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    let lock = writer.lock("job")?;
    for _ in 0..3 {
        let guard = soon(
            "the writer's grant, with readers coming and going,",
            lock.acquire_with(&patient()),
        )
        .await??;
        guard.release().await?;
    }
    done.store(true, Ordering::Release);
    for task in tasks {
        soon("the readers' end", task).await???;
    }
    Ok(())
}

async fn readers_behind_a_writer_go_together(trial: Trial) -> CaseResult {
    let (client, other) = trial.two_clients().await?;
    let held = client.lock("job")?.acquire().await?;
    let readers = [
        waits(&client, Mode::Shared).await?,
        waits(&other, Mode::Shared).await?,
        waits(&client, Mode::Shared).await?,
    ];
    held.release().await?;
    let mut guards = Vec::new();
    for reader in readers {
        // No permit is released before all are granted.
        let guard = soon("every reader's grant after the writer", reader).await???;
        guards.push(guard);
    }
    for guard in guards {
        guard.release().await?;
    }
    Ok(())
}

async fn every_waiter_is_served(trial: Trial) -> CaseResult {
    let clients = trial.clients(4).await?;
    let held = clients[0].lock("job")?.acquire().await?;
    let mut waiting = Vec::new();
    for client in clients.iter().cycle().take(24) {
        waiting.push(waits(client, Mode::Exclusive).await?);
    }
    held.release().await?;
    let served: Vec<_> = waiting
        .into_iter()
        .map(|waiting| {
            crate::spawn(async move {
                waiting.await??.release().await?;
                Ok::<_, Stop>(())
            })
        })
        .collect();
    for (number, served) in served.into_iter().enumerate() {
        soon(format!("the grant to waiter {number}"), served).await???;
    }
    trial
        .ensure_free(&clients[0], clients[0].lock("job")?.name())
        .await
}
