//! Permits: in order, all or none, and with limits that change.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use portalock_core::{ClaimKind, LockError, PermitGuard, Pool};
use portalock_redis::RedisBackend;
use portalock_testkit::servers::RedisServer;
use tokio::task::JoinHandle;

use crate::fixture::{Admin, ENOUGH, client, eventually, patient, settings};

type Permits = PermitGuard<RedisBackend>;

fn pool(backend: &RedisBackend, capacity: u32) -> Pool<RedisBackend> {
    Pool::new(backend.clone(), "p", capacity)
        .unwrap()
        .with_policy(patient())
}

async fn waiting(
    backend: &RedisBackend,
    capacity: u32,
    count: u32,
) -> JoinHandle<Result<Permits, LockError>> {
    let before = waiters(backend).await;
    let pool = pool(backend, capacity);
    let task = tokio::spawn(async move { pool.acquire(count).await });
    eventually(async || waiters(backend).await > before).await;
    task
}

async fn waiters(backend: &RedisBackend) -> usize {
    portalock_core::Semaphore::inspect(backend, &"p".parse().unwrap())
        .await
        .unwrap()
        .waiters
        .len()
}

async fn granted(waiter: JoinHandle<Result<Permits, LockError>>) -> Permits {
    tokio::time::timeout(ENOUGH, waiter)
        .await
        .expect("permits should have been granted by now")
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn permits_never_exceed_the_capacity() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let first = pool(&one, 3).try_acquire(2).await.unwrap();
    assert!(
        pool(&two, 3)
            .try_acquire(2)
            .await
            .unwrap_err()
            .is_contention()
    );
    let second = pool(&two, 3).try_acquire(1).await.unwrap();
    assert!(second.token() > first.token());
    first.release().await.unwrap();
    let _third = pool(&two, 3).try_acquire(2).await.unwrap();
}

#[tokio::test]
async fn a_large_request_is_not_overtaken_by_small_ones() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let small = pool(&one, 3).try_acquire(1).await.unwrap();
    let large = waiting(&two, 3, 3).await;
    assert!(
        pool(&one, 3)
            .try_acquire(1)
            .await
            .unwrap_err()
            .is_contention()
    );
    let behind = waiting(&one, 3, 1).await;
    small.release().await.unwrap();
    let large = granted(large).await;
    assert!(!behind.is_finished());
    large.release().await.unwrap();
    granted(behind).await.release().await.unwrap();
}

#[tokio::test]
async fn a_waiter_that_goes_away_lets_those_behind_it_pass() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let _held = pool(&one, 3).try_acquire(1).await.unwrap();
    let large = waiting(&two, 3, 3).await;
    let small = waiting(&one, 3, 1).await;
    large.abort();
    let _small = granted(small).await;
}

#[tokio::test]
async fn the_smallest_capacity_among_those_present_counts() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    // A lower limit applies from the first grant that asks with it, and takes no permits from holders.
    let wide = pool(&one, 5).try_acquire(4).await.unwrap();
    assert!(
        pool(&two, 2)
            .try_acquire(1)
            .await
            .unwrap_err()
            .is_contention()
    );
    wide.release().await.unwrap();
    let narrow = pool(&two, 2).try_acquire(1).await.unwrap();
    let second = pool(&one, 5).try_acquire(1).await.unwrap();
    assert!(
        pool(&one, 5)
            .try_acquire(1)
            .await
            .unwrap_err()
            .is_contention()
    );
    // A higher limit applies when the last holder with a lower limit has released.
    narrow.release().await.unwrap();
    let _rest = pool(&one, 5).try_acquire(4).await.unwrap();
    second.release().await.unwrap();
}

#[tokio::test]
async fn raising_the_limit_wakes_those_it_lets_in() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let narrow = pool(&one, 1).try_acquire(1).await.unwrap();
    let first = waiting(&two, 3, 2).await;
    let second = waiting(&one, 3, 1).await;
    narrow.release().await.unwrap();
    let (_first, _second) = (granted(first).await, granted(second).await);
}

#[tokio::test]
async fn a_semaphore_and_a_lock_of_one_name_do_not_meet() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let _lock = crate::fixture::lock(&backend, "p")
        .try_acquire()
        .await
        .unwrap();
    let _permit = pool(&backend, 1).try_acquire(1).await.unwrap();
}

#[tokio::test]
async fn crashed_clients_give_their_permits_back() {
    let server = RedisServer::start().unwrap();
    let (doomed, other) = (client(&server).await, client(&server).await);
    let held = pool(&doomed, 2).try_acquire(2).await.unwrap();
    let first = waiting(&other, 2, 1).await;
    let second = waiting(&other, 2, 1).await;
    let doomed = Arc::new(doomed);
    portalock_core::Semaphore::close(&doomed).await.unwrap();
    assert!(held.is_lost());
    let (_first, _second) = (granted(first).await, granted(second).await);
}

async fn checking_every(server: &RedisServer, tick: Duration) -> RedisBackend {
    let settings = settings(server).with_tick_interval(tick).unwrap();
    RedisBackend::with_settings(settings).await.unwrap()
}

#[tokio::test]
async fn many_waiters_do_not_each_read_many_holders() {
    const CHECKS: usize = 500;
    let server = RedisServer::start().unwrap();
    let holders = client(&server).await;
    let others = checking_every(&server, Duration::from_millis(10)).await;
    let last = checking_every(&server, ENOUGH * 10).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(pool(&holders, 40).acquire(1).await.unwrap());
    }
    let mut line = Vec::new();
    for _ in 0..40 {
        line.push(waiting(&others, 40, 1).await);
    }
    // It hardly ever checks, so what is counted are the checks of the others.
    line.push(waiting(&last, 40, 1).await);
    let mut admin = Admin::of(&server).await;
    let start = Instant::now();
    admin.ask::<()>("CONFIG RESETSTAT").await;
    eventually(async || Admin::of(&server).await.calls("zrevrank").await >= CHECKS).await;
    // A check that reads the holders records its time, and asks for its own rank twice.
    let reading = admin.calls("hset").await;
    let checks = admin.calls("zrevrank").await - reading;
    // At most one each 200 ms. Some do, in case nobody checks for the last place.
    let most = start.elapsed().as_millis() / 200 + 2;
    println!("{reading} of {checks} checks read the holders, at most {most} may");
    assert!(reading > 0 && reading as u128 <= most);
    for permit in held {
        permit.release().await.unwrap();
    }
    for waiter in line {
        granted(waiter).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn who_has_all_permits_is_seen_with_their_number() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let _all = pool(&backend, 2).try_acquire(2).await.unwrap();
    let seen = portalock_core::Semaphore::inspect(&backend, &"p".parse().unwrap()).await;
    let kinds = seen.unwrap().holders.into_iter().map(|claim| claim.kind);
    assert_eq!(kinds.collect::<Vec<_>>(), [ClaimKind::Permits(2)]);
}
