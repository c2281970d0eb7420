//! Network and server faults: killed, stalled, cut off, restarted, forgotten.

use std::time::Duration;

use portalock_core::{
    BackendErrorKind, FencingToken, LockBackend, LockError, Loss, Policy, clock::Instant,
};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};
use tokio::time::timeout;

use crate::fixture::{
    Admin, ENOUGH, client, eventually, granted, lock, settings_at, waiters, waiting, without_notice,
};

/// A session so short that a test can wait for its end.
const SHORT: Duration = Duration::from_secs(4);

fn short_lived(url: &str) -> RedisSettings {
    settings_at(url).with_session_ttl(SHORT).unwrap()
}

/// A client with short sessions, and the proxy between it and the server.
async fn on_a_line(server: &RedisServer) -> (RedisBackend, FaultProxy) {
    let proxy = FaultProxy::start(server.addr()).unwrap();
    let url = format!("redis://{}", proxy.addr());
    let backend = RedisBackend::with_settings(short_lived(&url))
        .await
        .unwrap();
    (backend, proxy)
}

#[tokio::test]
async fn without_notice_a_waiter_whose_session_is_killed_takes_a_place_in_a_new_one() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (without_notice(&server).await, without_notice(&server).await);
    let held = lock(&one, "a").acquire().await.unwrap();
    let next = waiting(&two, "a").await;
    Admin::of(&server).await.kill_sessions().await;
    let next = granted(next).await;
    assert!(held.is_lost() && !next.is_lost());
}

#[tokio::test]
async fn a_new_session_ends_the_one_before_at_the_server() {
    let server = RedisServer::start().unwrap();
    let backend = without_notice(&server).await;
    let mut admin = Admin::of(&server).await;
    let first = admin.keys().await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    admin.kill_sessions().await;
    timeout(ENOUGH, held.lost()).await.unwrap();
    let _next = lock(&backend, "b").acquire().await.unwrap();
    let keys = admin.keys().await;
    assert!(!keys.contains(&first[0]), "{first:?} {keys:?}");
    assert_eq!(keys.len(), 3, "{keys:?}");
}

#[tokio::test]
async fn a_cut_off_holder_is_told_before_the_next_is_granted() {
    let server = RedisServer::start().unwrap();
    let (holder, proxy) = on_a_line(&server).await;
    let other = client(&server).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let lost = held.lost_signal();
    let cut = Instant::now();
    proxy.black_hole(Direction::Both);
    let next = lock(&other, "a").acquire().await.unwrap();
    assert!(
        lost.is_lost(),
        "granted to another before the loss was known"
    );
    assert_eq!(lost.loss(), Some(Loss::Expired));
    assert!(next.token() > held.token());
    assert!(
        cut.elapsed() > SHORT / 4,
        "the signs of life should have counted"
    );

    // Commands that arrive late from the dead connection change nothing.
    proxy.heal();
    holder.ping().await.unwrap();
    next.ensure_held().unwrap();
    assert!(
        lock(&holder, "a")
            .try_acquire()
            .await
            .unwrap_err()
            .is_contention()
    );
}

/// A lost link delivers nothing, not even the end of the connection. This also holds while there is no leader whose end
/// could be checked.
#[tokio::test]
async fn a_watch_over_a_lost_link_ends() {
    let server = RedisServer::start().unwrap();
    let (observer, proxy) = on_a_line(&server).await;
    let lock = lock(&client(&server).await, "a");
    let mut watch = observer.watch(lock.name()).await.unwrap().unwrap();
    assert_eq!(watch.next().await, Some(None));
    proxy.black_hole(Direction::Both);
    let _leads = lock.acquire().await.unwrap();
    let ends = timeout(ENOUGH, watch.next()).await;
    assert_eq!(ends.expect("a watch that hears nothing ends"), None);
}

#[tokio::test]
async fn an_attempt_stuck_in_a_dead_connection_is_void_when_it_arrives() {
    let server = RedisServer::start().unwrap();
    let (backend, proxy) = on_a_line(&server).await;
    proxy.black_hole(Direction::ToServer);
    let error = lock(&backend, "a")
        .acquire_with(&Policy::new().with_timeout(SHORT * 2))
        .await
        .unwrap_err();
    assert!(!error.is_contention(), "{error}");
    proxy.heal();
    let other = client(&server).await;
    // The stuck bytes arrive, then the end of the connection. In a new session, the engine withdraws the attempt that
    // got no answer.
    eventually(async || proxy.connections() <= 3).await;
    let _free = lock(&other, "a").acquire().await.unwrap();
    let left = Admin::of(&server).await.keys().await;
    assert!(
        !left.contains(&"portalock/lock-queue/a".to_owned()),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_stalled_server_fails_calls_on_time_and_loses_locks_by_the_clock() {
    let server = RedisServer::start().unwrap();
    let backend = RedisBackend::with_settings(short_lived(&server.url()))
        .await
        .unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    server.stall().unwrap();
    let asked = Instant::now();
    let error = lock(&backend, "b")
        .acquire_with(&Policy::new().with_timeout(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert!(matches!(error, LockError::Timeout { .. }), "{error}");
    assert!(asked.elapsed() < ENOUGH / 4);
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert_eq!(loss, Loss::Expired);
    server.resume().unwrap();
    let _again = lock(&backend, "a").acquire().await.unwrap();
}

#[tokio::test]
async fn a_server_that_stalls_within_the_session_loses_nothing() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    server.stall().unwrap();
    let waiting = tokio::spawn({
        let lock = lock(&backend, "b");
        async move { lock.acquire().await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.resume().unwrap();
    let _other = granted(waiting).await;
    held.ensure_held().unwrap();
    held.release().await.unwrap();
}

#[tokio::test]
async fn a_restart_without_data_loses_locks_and_keeps_tokens_growing() {
    let mut server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let before: Option<FencingToken> = held.token();
    server.restart().unwrap();
    timeout(ENOUGH, held.lost()).await.unwrap();
    let again = lock(&backend, "a").acquire().await.unwrap();
    assert!(again.token() > before);
}

#[tokio::test]
async fn without_notice_a_restart_with_data_brings_no_dead_session_back() {
    let mut server = RedisOptions::new().persistent(true).start().unwrap();
    let (one, two) = (without_notice(&server).await, without_notice(&server).await);
    let held = lock(&one, "a").acquire().await.unwrap();
    let waiter = waiting(&two, "a").await;
    let before = held.token();
    server.restart().unwrap();
    let restored = Admin::of(&server).await.keys().await;
    assert!(
        restored.contains(&"portalock/lock/a".to_owned()),
        "{restored:?}"
    );
    let next = granted(waiter).await;
    assert!(next.token() > before);
    assert!(held.is_lost());
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_taken_up_again() {
    let mut server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    server.stop();
    let error = lock(&backend, "a").try_acquire().await.unwrap_err();
    let LockError::Backend { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(source.is_retryable(), "{source:?}");
    server.restart().unwrap();
    let _held = lock(&backend, "a").acquire().await.unwrap();
}

#[tokio::test]
async fn without_notice_an_overflowing_output_buffer_ends_the_session_and_says_so() {
    let server = RedisOptions::new()
        .setting("client-output-buffer-limit", "pubsub 64kb 64kb 1")
        .start()
        .unwrap();
    let backend = without_notice(&server).await;
    let mut admin = Admin::of(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let channels: Vec<String> = admin.ask("PUBSUB CHANNELS *").await;
    let flood = "x".repeat(1 << 20);
    let _: u32 = admin.ask(&format!("PUBLISH {} {flood}", channels[0])).await;
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    let _again = lock(&backend, "a").acquire().await.unwrap();
}

#[tokio::test]
async fn a_flushed_script_cache_is_normal() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let mut admin = Admin::of(&server).await;
    for _ in 0..3 {
        admin.ask::<()>("SCRIPT FLUSH").await;
        let held = lock(&one, "a").acquire().await.unwrap();
        admin.ask::<()>("SCRIPT FLUSH").await;
        let next = waiting(&two, "a").await;
        admin.ask::<()>("SCRIPT FLUSH").await;
        held.release().await.unwrap();
        granted(next).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_lock_removed_behind_its_holders_back_is_lost_alone() {
    let server = RedisServer::start().unwrap();
    let backend = RedisBackend::with_settings(short_lived(&server.url()))
        .await
        .unwrap();
    let removed = lock(&backend, "a").acquire().await.unwrap();
    let spoiled = lock(&backend, "b").acquire().await.unwrap();
    let kept = lock(&backend, "c").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("DEL portalock/lock/a").await;
    admin.ask::<()>("SET portalock/lock/b spoiled").await;
    for guard in [&removed, &spoiled] {
        let loss = timeout(ENOUGH, guard.lost()).await.unwrap();
        assert!(matches!(loss, Loss::Removed(_)), "{loss}");
    }
    tokio::time::sleep(SHORT).await;
    kept.ensure_held().unwrap();
}

#[tokio::test]
async fn a_flushed_server_ends_the_session() {
    let server = RedisServer::start().unwrap();
    let backend = RedisBackend::with_settings(short_lived(&server.url()))
        .await
        .unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    Admin::of(&server).await.ask::<()>("FLUSHALL").await;
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    let _again = lock(&backend, "a").acquire().await.unwrap();
}

#[tokio::test]
async fn a_session_is_kept_alive_for_longer_than_it_lives() {
    let server = RedisServer::start().unwrap();
    let holder = RedisBackend::with_settings(short_lived(&server.url()))
        .await
        .unwrap();
    let other = client(&server).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let error = lock(&other, "a")
        .acquire_with(&Policy::new().with_timeout(SHORT * 3))
        .await
        .unwrap_err();
    assert!(error.is_contention(), "{error}");
    held.ensure_held().unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_an_error_that_can_be_retried() {
    let server = RedisServer::start().unwrap();
    let (backend, proxy) = on_a_line(&server).await;
    proxy.refuse(true);
    proxy.cut();
    let error = LockBackend::inspect(&backend, &"a".parse().unwrap())
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(
        matches!(
            error.kind(),
            BackendErrorKind::Unavailable | BackendErrorKind::SessionEnded
        ),
        "{error:?}"
    );
    proxy.heal();
    let _held = lock(&backend, "a").acquire().await.unwrap();
}

/// With many behind it, a waiter looks rarely. When they have gone, it is the last, and looks after one tick.
#[tokio::test]
async fn who_becomes_the_last_in_line_soon_notices_a_crash() {
    // Thirty ticks are longer than the test waits.
    const TICK: Duration = Duration::from_millis(2_500);
    let server = RedisServer::start().unwrap();
    let proxy = FaultProxy::start(server.addr()).unwrap();
    let crashes = settings_at(&format!("redis://{}", proxy.addr()));
    let crashes = crashes.with_release_without_notice(true);
    let holder = RedisBackend::with_settings(crashes).await.unwrap();
    let _held = lock(&holder, "a").acquire().await.unwrap();
    let settings = settings_at(&server.url()).with_tick_interval(TICK).unwrap();
    let backend = RedisBackend::with_settings(settings).await.unwrap();
    let waits = lock(&backend, "a").with_policy(Policy::forever());
    let first = tokio::spawn(async move { waits.acquire().await });
    let mut behind = Vec::new();
    for place in 0..6 {
        eventually(async || waiters(&backend, "a").await == place + 1).await;
        behind.push(waiting(&backend, "a").await);
    }
    // It has looked, and knows of those behind it.
    tokio::time::sleep(TICK * 2).await;
    behind.iter().for_each(tokio::task::JoinHandle::abort);
    eventually(async || waiters(&backend, "a").await == 1).await;
    proxy.refuse(true);
    proxy.cut();
    granted(first).await.release().await.unwrap();
}
