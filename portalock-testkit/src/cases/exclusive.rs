//! One holder, for any number of requests and requesters.

use std::time::Duration;

use portalock_core::{LockName, Mode};

use super::{Case, case};
use crate::{
    crowd::{Doorway, crowd},
    helper::Helper,
    section::Section,
    trial::{Client, Trial, ensure_contended, name, once, patient, queued},
    verdict::{CaseResult, Stop, ensure, rounds, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(exclusive::one_holder_among_clients, rules [1, 10], needs [],
        "while one client holds a name exclusively, no other client and no other request of the same client gets it"),
    case!(exclusive::a_repeated_attempt_keeps_the_grant, rules [3], needs [],
        "asking again for an owner that holds is answered with its grant and the same token, and one release frees it"),
    case!(exclusive::one_lock_object_acquires_once, rules [1, 2], needs [],
        "a lock that is held refuses a second acquisition through the same lock object, its clone, or another object"),
    case!(exclusive::other_names_stay_free, rules [1, 7], needs [],
        "holding one name keeps nobody from another"),
    case!(exclusive::tasks_never_overlap, rules [1], needs [],
        "tasks of several clients that hold the lock for a real time are never inside together"),
    case!(exclusive::threads_never_overlap, rules [1], needs [],
        "six threads, each with a client and a runtime of its own, are never inside together: no lock is had by way of a lock that was just removed"),
    case!(exclusive::processes_exclude_each_other, rules [1], needs [BeyondProcess, Helper],
        "while another process holds the lock it is refused here, and the other way round"),
    case!(exclusive::processes_never_overlap, rules [1], needs [BeyondProcess, Helper],
        "six processes that take the lock as fast as they can are never inside together"),
];

/// Processes that crowd at a lock.
const PROCESSES: usize = 6;

async fn one_holder_among_clients(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let held = once(&name);
    let _ = first.grant(&held).await?;
    first.refused(&once(&name)).await?;
    second.refused(&once(&name)).await?;
    first.free(&held).await?;
    let next = once(&name);
    let _ = second.grant(&next).await?;
    first.refused(&once(&name)).await?;
    second.free(&next).await
}

async fn a_repeated_attempt_keeps_the_grant(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let held = queued(&name);
    let grant = first.grant(&held).await?;
    for _ in 0..3 {
        let again = first.grant(&held).await?;
        ensure!(
            again.token == grant.token,
            "the token of one owner changed from {:?} to {:?}",
            grant.token,
            again.token
        );
    }
    second.refused(&once(&name)).await?;
    first.free(&held).await?;
    let next = once(&name);
    let _ = second.grant(&next).await?;
    second.free(&next).await
}

async fn one_lock_object_acquires_once(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let lock = client.lock("job")?;
    let guard = lock.acquire().await?;
    ensure_contended(lock.try_acquire().await, "the same lock object")?;
    ensure_contended(lock.clone().try_acquire().await, "its clone")?;
    ensure_contended(
        client.lock("job")?.try_acquire().await,
        "another lock object",
    )?;
    guard.release().await?;
    lock.try_acquire().await?.release().await?;
    Ok(())
}

async fn other_names_stay_free(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let held = first.lock("job")?.acquire().await?;
    first.lock("other")?.try_acquire().await?.release().await?;
    second.lock("third")?.try_acquire().await?.release().await?;
    held.release().await?;
    Ok(())
}

async fn tasks_never_overlap(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let section = Section::of_a_lock();
    let mut tasks = Vec::new();
    for client in clients.iter().cycle().take(6) {
        let (lock, section) = (client.lock("job")?, section.clone());
        tasks.push(crate::spawn(async move {
            for round in rounds(12) {
                let guard = lock.acquire_with(&patient()).await?;
                section.visit(Mode::Exclusive).await;
                // Both ways to release, alternating.
                if round % 2 == 0 {
                    guard.release().await?;
                }
            }
            Ok::<_, Stop>(())
        }));
    }
    for task in tasks {
        soon("everyone's turns", task).await???;
    }
    section.ensure_never_crowded()
}

async fn threads_never_overlap(trial: Trial) -> CaseResult {
    let section = Section::of_a_lock();
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let (trial, section) = (trial.clone(), section.clone());
            tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| Stop::Failed(error.to_string()))?;
                runtime.block_on(async {
                    let client = trial.client().await?;
                    crowd(client.backend(), "job", || {
                        section.visit_blocking(Mode::Exclusive);
                        Ok(())
                    })
                    .await
                })
            })
        })
        .collect();
    for thread in threads {
        soon("every thread's turns", thread).await???;
    }
    section.ensure_never_crowded()
}

async fn processes_exclude_each_other(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut helper = Helper::start(&trial).await?;
    helper.acquire(1, &name, Mode::Exclusive).await?;
    refused_here(&client, &name).await?;
    let wrong = helper.release(1).await?;
    ensure!(
        wrong.is_none(),
        "the other process could not release: {wrong:?}"
    );
    let guard = client.lock(&name)?.acquire_with(&patient()).await?;
    helper.ask(2, &name, Mode::Exclusive).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    guard.ensure_held()?;
    guard.release().await?;
    helper.granted(2).await?;
    refused_here(&client, &name).await
}

async fn processes_never_overlap(trial: Trial) -> CaseResult {
    let doorway = Doorway::new();
    let mut helpers = Vec::new();
    for _ in 0..PROCESSES {
        helpers.push(Helper::start(&trial).await?);
    }
    for helper in &mut helpers {
        helper.crowd(&name("job")?, doorway.path()).await?;
    }
    let (mut visits, mut overlaps) = (0, 0);
    for helper in &mut helpers {
        let (its_visits, its_overlaps) = helper.crowded().await?;
        visits += its_visits;
        overlaps += its_overlaps;
    }
    ensure!(
        overlaps == 0,
        "processes that exclude each other were inside together {overlaps} times in {visits} visits"
    );
    Ok(())
}

async fn refused_here(client: &Client, name: &LockName) -> CaseResult {
    let lock = client.lock(name)?;
    ensure_contended(lock.try_acquire().await, "this process")?;
    Ok(())
}
