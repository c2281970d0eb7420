//! Each feature of portalocker 4.4.2's `RedisLock`, with its counterpart here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::{ClaimKind, Lock, LockError, Loss, Policy, clock::Instant};
use portalock_redis::RedisBackend;
use portalock_testkit::servers::{RedisOptions, RedisServer};
use tokio::{sync::oneshot, time::timeout};

use crate::fixture::{Admin, ENOUGH, client, lock, settings, settings_at, without_notice};

/// `timeout`, `fail_when_locked`.
#[tokio::test]
async fn acquire_waits_for_its_timeout_or_fails_when_locked() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let _held = lock(&one, "channel").acquire().await.unwrap();
    let brief = Duration::from_millis(200);
    let start = Instant::now();
    let error = lock(&two, "channel")
        .acquire_with(&Policy::new().with_timeout(brief))
        .await
        .unwrap_err();
    assert!(matches!(error, LockError::Timeout { .. }), "{error}");
    assert!(start.elapsed() >= brief);
    let error = lock(&two, "channel")
        .acquire_with(&Policy::new().with_fail_when_locked(true))
        .await
        .unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
}

/// `flags=LockFlags.SHARED`.
#[tokio::test]
async fn shared_flags_let_readers_in_and_keep_writers_out() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let _one = lock(&one, "channel").acquire_shared().await.unwrap();
    let _two = lock(&two, "channel").acquire_shared().await.unwrap();
    let error = lock(&two, "channel").try_acquire().await.unwrap_err();
    assert!(error.is_contention(), "{error}");
}

/// `ensure_held()` and `LockLostError`, `lost`.
#[tokio::test]
async fn ensure_held_raises_once_the_connection_was_killed() {
    let server = RedisServer::start().unwrap();
    let backend = without_notice(&server).await;
    let held = lock(&backend, "channel").acquire().await.unwrap();
    held.ensure_held().unwrap();
    Admin::of(&server).await.kill_sessions().await;
    timeout(ENOUGH, held.lost()).await.unwrap();
    let error = held.ensure_held().unwrap_err();
    assert!(
        matches!(
            error,
            LockError::Lost {
                loss: Loss::SessionEnded(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(held.release().await, Err(LockError::Lost { .. })));
}

/// `on_lost=callback`.
#[tokio::test]
async fn on_lost_is_a_task_that_awaits_the_signal() {
    let server = RedisServer::start().unwrap();
    let backend = without_notice(&server).await;
    let held = lock(&backend, "channel").acquire().await.unwrap();
    let (tell, told) = oneshot::channel();
    let signal = held.lost_signal();
    tokio::spawn(async move { tell.send(signal.lost().await) });
    Admin::of(&server).await.kill_sessions().await;
    let loss = timeout(ENOUGH, told).await.unwrap().unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
}

/// `interrupt_on_lost`.
#[tokio::test]
async fn interrupt_on_lost_stops_the_work() {
    let server = RedisServer::start().unwrap();
    let backend = without_notice(&server).await;
    let held = lock(&backend, "channel").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    let finished = Arc::new(AtomicBool::new(false));
    let work = {
        let finished = finished.clone();
        async move {
            admin.kill_sessions().await;
            tokio::time::sleep(ENOUGH * 2).await;
            finished.store(true, Ordering::Relaxed);
        }
    };
    let ran = timeout(ENOUGH, held.run(work)).await.unwrap();
    assert!(matches!(ran, Err(LockError::Lost { .. })), "{ran:?}");
    assert!(!finished.load(Ordering::Relaxed));
}

/// `fencing=True`, `fence_token`.
#[tokio::test]
async fn every_grant_has_a_fence_token_that_grows() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let mut last = None;
    for round in 0..100 {
        let lock = lock(&backend, "channel");
        let held = if round % 2 == 0 {
            lock.acquire().await.unwrap()
        } else {
            lock.acquire_shared().await.unwrap()
        };
        assert!(held.token() > last);
        last = held.token();
        held.release().await.unwrap();
    }
}

/// `connection`, `redis_kwargs`.
#[tokio::test]
async fn a_connection_has_its_own_settings() {
    let server = RedisOptions::new()
        .setting("requirepass", "hunter2")
        .start()
        .unwrap();
    let settings = settings_at(&format!("redis://:hunter2@{}/4", server.addr()))
        .with_connect_timeout(ENOUGH)
        .unwrap()
        .with_response_timeout(Duration::from_secs(2))
        .unwrap();
    let backend = RedisBackend::with_settings(settings).await.unwrap();
    let _held = lock(&backend, "channel").acquire().await.unwrap();
}

/// `probe()`, `client_name`.
#[tokio::test]
async fn probe_tells_who_holds() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let _held = lock(&one, "channel")
        .with_label("reader")
        .acquire_shared()
        .await
        .unwrap();
    let found = lock(&two, "channel").inspect().await.unwrap();
    let [claim] = &found.holders[..] else {
        panic!("{found:?}");
    };
    assert_eq!(claim.kind, ClaimKind::Shared);
    assert_eq!(claim.holder.label.as_deref(), Some("reader"));
    assert_eq!(claim.holder.pid, std::process::id());
    assert!(found.last_token.is_some());
}

/// `__del__`.
#[tokio::test]
async fn a_dropped_lock_is_released() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    drop(lock(&one, "channel").acquire().await.unwrap());
    let _next = lock(&two, "channel").acquire().await.unwrap();
}

/// Two instances in one process are two holders.
#[tokio::test]
async fn two_locks_of_one_client_exclude_each_other() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let _held = lock(&backend, "channel").acquire().await.unwrap();
    let error = lock(&backend, "channel").try_acquire().await.unwrap_err();
    assert!(error.is_contention(), "{error}");
}

/// `with RedisLock(...)`, from synchronous code.
#[test]
fn a_blocking_program_needs_no_runtime_of_its_own() {
    let server = RedisServer::start().unwrap();
    let backend = RedisBackend::new(settings(&server));
    let lock = portalock_core::blocking::Lock::new(backend, "channel").unwrap();
    let held = lock.acquire().unwrap();
    assert!(lock.try_acquire().unwrap_err().is_contention());
    held.release().unwrap();
    drop(lock.acquire().unwrap());
}

/// A channel's name may be anything.
#[tokio::test]
async fn odd_names_are_locks_of_their_own() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let names = [
        "a",
        "a ",
        "A",
        "a/b",
        "{a}",
        "a*",
        "é",
        "e\u{301}",
        "line\nbreak",
        "a|b",
    ];
    let mut held = Vec::new();
    for name in names {
        let lock = Lock::new(backend.clone(), name).unwrap();
        held.push(lock.try_acquire().await.unwrap());
    }
    let mut found = portalock_core::LockBackend::names(&backend).await.unwrap();
    let mut expected = names.map(|name| name.parse().unwrap()).to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}
