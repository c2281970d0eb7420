//! Locks that are granted, queued, handed over, and lost with the session.

use std::time::{Duration, Instant};

use portalock_core::{LockBackend, LockError, LockName, LockSet, Loss, Policy};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::RedisServer,
};
use tokio::time::timeout;

use crate::fixture::{
    Admin, ENOUGH, client, eventually, granted, lock, patient, settings, settings_at, waiters,
    waiting, without_notice,
};

const MANY: u32 = 200;

/// As after a failover that lost withdrawals: each place is granted in turn to a client that has withdrawn it.
#[tokio::test]
async fn a_hold_that_its_client_does_not_know_is_released_at_once_when_it_is_asked_for() {
    let server = RedisServer::start().unwrap();
    let (former, next) = (client(&server).await, client(&server).await);
    let mut admin = Admin::of(&server).await;
    let mut shortest = ENOUGH;
    for _ in 0..10 {
        let held = lock(&former, "a").acquire().await.unwrap();
        let _: u32 = admin.ask("COPY portalock/lock/a saved REPLACE").await;
        held.release().await.unwrap();
        let _: u32 = admin.ask("COPY saved portalock/lock/a REPLACE").await;
        let begun = Instant::now();
        let guard = lock(&next, "a").acquire().await.unwrap();
        shortest = shortest.min(begun.elapsed());
        guard.release().await.unwrap();
    }
    // A release that has failed is repeated after a second.
    assert!(shortest < Duration::from_secs(1), "{shortest:?}");
}

#[tokio::test]
async fn a_lock_excludes_and_passes_on() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let held = lock(&one, "a").acquire().await.unwrap();
    let error = lock(&two, "a").try_acquire().await.unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
    assert_eq!(error.holder().unwrap().pid, std::process::id());

    let next = waiting(&two, "a").await;
    let first = held.token().unwrap();
    held.release().await.unwrap();
    let second = granted(next).await;
    assert!(second.token().unwrap() > first);
}

#[tokio::test]
async fn a_waiting_writer_goes_before_later_readers() {
    let server = RedisServer::start().unwrap();
    let (one, two, three) = (
        client(&server).await,
        client(&server).await,
        client(&server).await,
    );
    let first = lock(&one, "a").acquire_shared().await.unwrap();
    let second = lock(&two, "a").try_acquire_shared().await.unwrap();
    let writer = waiting(&three, "a").await;
    let error = lock(&one, "a").try_acquire_shared().await.unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
    first.release().await.unwrap();
    second.release().await.unwrap();
    let _writer = granted(writer).await;
}

#[tokio::test]
async fn without_notice_a_killed_connection_loses_its_locks_and_the_next_call_opens_another() {
    let server = RedisServer::start().unwrap();
    let backend = without_notice(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    Admin::of(&server).await.kill_sessions().await;
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    assert!(held.is_lost() && held.ensure_held().is_err());

    let again = lock(&backend, "a").try_acquire().await.unwrap();
    assert!(held.release().await.is_err(), "what was lost says so");
    assert!(again.ensure_held().is_ok(), "the successor's stays");
}

#[tokio::test]
async fn a_session_that_is_closed_or_dropped_frees_at_once_and_tells_its_guards() {
    let server = RedisServer::start().unwrap();
    // This client checks so rarely that only a message can be in time.
    let rarely = settings(&server).with_tick_interval(ENOUGH * 10).unwrap();
    let two = RedisBackend::with_settings(rarely).await.unwrap();
    for closes in [true, false] {
        let one = client(&server).await;
        let held = lock(&one, "a").acquire().await.unwrap();
        let patient = lock(&two, "a").with_policy(Policy::forever());
        let next = tokio::spawn(async move { patient.acquire().await });
        eventually(async || waiters(&two, "a").await == 1).await;
        if closes {
            LockBackend::close(&one).await.unwrap();
            assert!(held.is_lost());
        } else {
            drop((one, held));
        }
        granted(next).await.release().await.unwrap();
    }
}

/// One release after the other would take longer than a session has for its end.
#[tokio::test]
async fn a_session_with_many_locks_is_closed_in_time_over_a_long_line() {
    let server = RedisServer::start().unwrap();
    let line = FaultProxy::start(server.addr()).unwrap();
    let settings = settings_at(&format!("redis://{}", line.addr()));
    let long = Duration::from_secs(8);
    let settings = settings.with_session_ttl(long).unwrap();
    let far = RedisBackend::with_settings(settings).await.unwrap();
    let name = |number: u32| format!("lock {number}");
    let mut held = Vec::new();
    for number in 0..MANY {
        held.push(lock(&far, &name(number)).acquire().await.unwrap());
    }
    let rarely = settings_at(&server.url());
    let rarely = rarely.with_tick_interval(ENOUGH * 10).unwrap();
    let near = RedisBackend::with_settings(rarely).await.unwrap();
    let mut waiters = Vec::new();
    for number in 0..MANY {
        waiters.push(waiting(&near, &name(number)).await);
    }
    line.delay(Direction::ToClient, long / MANY);
    LockBackend::close(&far).await.unwrap();
    for waiter in waiters {
        granted(waiter).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn what_has_ended_is_closed_without_the_server() {
    let mut server = RedisServer::start().unwrap();
    let backend = without_notice(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    Admin::of(&server).await.kill_sessions().await;
    timeout(ENOUGH, held.lost()).await.unwrap();
    server.stop();
    LockBackend::close(&backend).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_but_the_last_token() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let held = lock(&one, "a").acquire().await.unwrap();
    let next = waiting(&two, "a").await;
    held.release().await.unwrap();
    let next = granted(next).await;
    next.release().await.unwrap();
    LockBackend::close(&one).await.unwrap();
    LockBackend::close(&two).await.unwrap();

    let mut admin = Admin::of(&server).await;
    assert_eq!(admin.keys().await, ["portalock/lock/a"]);
    let fields: Vec<String> = admin.ask("HKEYS portalock/lock/a").await;
    assert_eq!(fields, ["token"]);
    let left: i64 = admin.ask("TTL portalock/lock/a").await;
    assert!((3600..=7200).contains(&left), "{left} s");
}

/// The server lists its keys in pages, in an order of its own.
#[tokio::test]
async fn the_list_of_locks_is_whole_and_sorted_also_among_many_other_keys() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let others = "for n = 1, 5000 do redis.call('SET', 'other' .. n, '') end";
    let mut admin = Admin::of(&server).await;
    admin.ask_words::<()>(&["EVAL", others, "0"]).await;
    let names: Vec<_> = (10..40).map(|number| number.to_string()).collect();
    let set = LockSet::new(backend.clone(), &names).unwrap();
    let held = set.acquire_with(&patient()).await;
    let listed = backend.names().await.unwrap();
    let listed: Vec<_> = listed.iter().map(LockName::as_str).collect();
    assert_eq!(listed, names);
    held.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_key_of_another_program_does_not_spoil_the_list() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let _held = lock(&backend, "a").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("SET portalock/lock/b text").await;
    let not_text = r"redis.call('HSET', 'portalock/lock/\255', 'field', 'value')";
    admin.ask_words::<()>(&["EVAL", not_text, "0"]).await;
    let listed = backend.names().await.unwrap();
    assert_eq!(listed, [lock(&backend, "a").name().clone()]);
}

#[tokio::test]
async fn settings_reach_the_server() {
    let server = RedisServer::start().unwrap();
    let mut configured = settings(&server).with_prefix("billing").unwrap();
    configured = configured.with_label("nightly");
    let backend = RedisBackend::with_settings(configured).await.unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    let error = lock(&backend, "a").try_acquire().await.unwrap_err();
    assert_eq!(error.holder().unwrap().label.as_deref(), Some("nightly"));
    let keys = Admin::of(&server).await.keys().await;
    assert!(
        keys.iter().all(|key| key.starts_with("billing/")),
        "{keys:?}"
    );
    held.release().await.unwrap();
}

/// The next primary waits from when the first client connects to it.
#[tokio::test]
async fn who_waits_at_a_new_primary_leaves_it_soon_when_it_is_gone() {
    let mut server = RedisServer::start().unwrap();
    let settings = RedisSettings::new(&server.url()).unwrap();
    let settings = settings.with_restart_wait(ENOUGH * 10);
    let connecting = tokio::spawn(RedisBackend::with_settings(settings));
    let waits = async || {
        let keys = Admin::of(&server).await.keys().await;
        keys.contains(&"portalock/primary".to_owned())
    };
    eventually(waits).await;
    server.stop();
    let connected = timeout(ENOUGH, connecting).await.unwrap().unwrap();
    assert!(connected.unwrap_err().is_retryable());
}
