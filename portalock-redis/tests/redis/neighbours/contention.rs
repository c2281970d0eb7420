//! Many neighbours at once, of several sessions and runtimes, and while connections are reset.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{Guard, Lock};
use portalock_redis::RedisBackend;
use portalock_testkit::servers::RedisServer;
use tokio::task::{JoinSet, yield_now};

use crate::fixture::{Admin, client, lock};

/// What the holders of one lock saw.
#[derive(Debug, Default)]
struct Witness {
    is_held: AtomicBool,
    token: AtomicU64,
}

impl Witness {
    async fn see(&self, guard: Guard<RedisBackend>) {
        assert!(!self.is_held.swap(true, Ordering::AcqRel), "two hold");
        let token = guard.token().unwrap().get();
        let last = self.token.swap(token, Ordering::AcqRel);
        assert!(last < token, "{last}, then {token}");
        if fastrand::bool() {
            yield_now().await;
        }
        guard.ensure_held().unwrap();
        assert!(self.is_held.swap(false, Ordering::AcqRel));
        guard.release().await.unwrap();
    }
}

/// So many tasks acquire and release the lock again and again. Each task returns how often it was served before the
/// first task was done.
async fn contend(locks: Vec<Lock<RedisBackend>>, times: u32, seen: Arc<Witness>) -> Vec<u32> {
    let done = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for lock in locks {
        let (seen, done) = (seen.clone(), done.clone());
        tasks.spawn(async move {
            let mut served = 0;
            while served < times && !done.load(Ordering::Acquire) {
                seen.see(lock.acquire().await.unwrap()).await;
                served += 1;
            }
            done.store(true, Ordering::Release);
            served
        });
    }
    let mut served = Vec::new();
    while let Some(task) = tasks.join_next().await {
        served.push(task.unwrap());
    }
    served
}

#[tokio::test]
async fn many_tasks_of_one_session_and_two_other_sessions_are_served_in_turn() {
    const TIMES: u32 = 30;
    let server = RedisServer::start().unwrap();
    let crowd = client(&server).await;
    let mut locks: Vec<_> = (0..64).map(|_| lock(&crowd, "a")).collect();
    for _ in 0..2 {
        locks.push(lock(&client(&server).await, "a"));
    }
    let turns = contend(locks, TIMES, Arc::default()).await;
    // Everyone waits in one queue. But the requests of many tasks travel together, so that those of other sessions can arrive a
    // few turns earlier.
    assert!(turns.iter().all(|had| had * 2 >= TIMES), "{turns:?}");
}

/// Each runtime has a connection of its own, so a release can overtake the one ahead.
#[test]
fn tasks_on_several_runtimes_are_neighbours_too() {
    let server = RedisServer::start().unwrap();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let runtimes = [runtime(), runtime(), runtime()];
    let shared = runtimes[0].block_on(client(&server));
    let other = runtimes[2].block_on(client(&server));
    let seen = Arc::new(Witness::default());
    let running: Vec<_> = runtimes
        .iter()
        .zip([(&shared, 8), (&shared, 8), (&other, 1)])
        .map(|(runtime, (backend, tasks))| {
            let locks = (0..tasks).map(|_| lock(backend, "a")).collect();
            runtime.spawn(contend(locks, 60, seen.clone()))
        })
        .collect();
    for (runtime, running) in runtimes.iter().zip(running) {
        let turns = runtime.block_on(running).unwrap();
        assert!(turns.iter().all(|had| *had > 0), "{turns:?}");
    }
}

#[tokio::test]
async fn neighbours_lose_nothing_by_resets() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let mut locks: Vec<_> = (0..12).map(|_| lock(&backend, "a")).collect();
    locks.push(lock(&client(&server).await, "a"));
    let running = tokio::spawn(contend(locks, 100, Arc::default()));
    let mut admin = Admin::of(&server).await;
    while !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..60))).await;
        let kind = if fastrand::bool() { "pubsub" } else { "normal" };
        let kill = format!("CLIENT KILL TYPE {kind} SKIPME yes");
        admin.ask::<u32>(&kill).await;
    }
    running.await.unwrap();
}
