//! The rows in the tables while locks are taken and released.

use std::time::Duration;

use futures_util::future::join_all;
use portalock_core::{Lock, LockBackend, Patience, Pool, Request};
use portalock_postgres::PostgresBackend;

use crate::support::{Server, patient, until};

const CLAIMS: &str = "SELECT count(*) FROM portalock.claims";
const SESSIONS: &str = "SELECT count(*) FROM portalock.sessions";

#[tokio::test]
async fn a_released_lock_leaves_its_token_only() {
    let server = Server::start().await;
    let client = server.client().await;
    let guard = Lock::new(client.clone(), "a")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let permits = Pool::new(client.clone(), "a", 3)
        .unwrap()
        .acquire(2)
        .await
        .unwrap();
    assert_eq!(server.number(CLAIMS).await, 2);
    guard.release().await.unwrap();
    permits.release().await.unwrap();
    assert_eq!(server.number(CLAIMS).await, 0);
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.names").await,
        2
    );
    client.close().await.unwrap();
    assert_eq!(server.number(SESSIONS).await, 0);
}

#[tokio::test]
async fn a_dropped_backend_ends_its_session() {
    let server = Server::start().await;
    let holder = Lock::new(server.client().await, "a").unwrap();
    let waiter = Lock::new(server.client().await, "a").unwrap();
    let guard = holder.acquire().await.unwrap();
    let waiting = tokio::spawn(async move {
        let guard = waiter.acquire_with(&patient()).await.unwrap();
        guard.release().await.unwrap();
    });
    until("the other waits", async || server.number(CLAIMS).await == 2).await;
    // The guard releases nothing: the end of the session must do it.
    std::mem::forget(guard);
    drop(holder);
    server.run("DELETE FROM portalock.sessions WHERE id = (SELECT session FROM portalock.claims WHERE token IS NOT NULL)")
        .await;
    waiting.await.unwrap();
    until("both sessions are gone", async || {
        server.number(SESSIONS).await == 0
    })
    .await;
}

#[tokio::test]
async fn close_frees_what_is_held_for_those_who_wait() {
    let server = Server::start().await;
    let client = server.client().await;
    let other = server.client().await;
    let mut guards = Vec::new();
    let mut waiting = Vec::new();
    // More names than one call of `bury` removes.
    for number in 0..120 {
        let name = format!("name-{number}");
        guards.push(
            Lock::new(client.clone(), &*name)
                .unwrap()
                .acquire()
                .await
                .unwrap(),
        );
        let lock = Lock::new(other.clone(), &*name).unwrap();
        waiting.push(tokio::spawn(
            async move { lock.acquire_with(&patient()).await },
        ));
    }
    until("all wait", async || server.number(CLAIMS).await == 240).await;
    client.close().await.unwrap();
    // The end that `close` waits for did this; the other sessions did not have to find it dead.
    let waits = "SELECT count(*) FROM portalock.claims WHERE token IS NULL";
    assert_eq!(server.number(waits).await, 0);
    assert!(guards.iter().all(portalock_core::Guard::is_lost));
    for waiting in waiting {
        waiting.await.unwrap().unwrap().release().await.unwrap();
    }
}

/// Only the message can tell a waiter before its session's next check, which is minutes away.
#[tokio::test]
async fn a_grant_is_pushed() {
    let server = Server::start().await;
    let settings = server.settings_with_lease(Duration::from_secs(600));
    let client = async || {
        let client = PostgresBackend::with_settings(settings.clone()).await;
        Lock::new(client.unwrap(), "a").unwrap()
    };
    let (holder, waiter) = (client().await, client().await);
    let guard = holder.acquire().await.unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire_with(&patient()).await.unwrap() });
    until("the other waits", async || server.number(CLAIMS).await == 2).await;
    guard.release().await.unwrap();
    let pushed = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    pushed.unwrap().unwrap().release().await.unwrap();
}

/// The session that waits behind a dead one makes the server grant the lock, even if no other request for the name
/// comes.
#[tokio::test]
async fn a_dead_holder_is_noticed_when_its_lease_ends() {
    let server = Server::start().await;
    let lease = Duration::from_secs(2);
    let (line, settings) = server.line();
    let dies = PostgresBackend::with_settings(settings.with_lease_time(lease).unwrap())
        .await
        .unwrap();
    let guard = Lock::new(dies, "a").unwrap().acquire().await.unwrap();
    // By itself it would check once in 20 s.
    let waits = server.settings_with_lease(Duration::from_secs(60));
    let waiter = Lock::new(PostgresBackend::with_settings(waits).await.unwrap(), "a").unwrap();
    let waiting = tokio::spawn(async move {
        let guard = waiter.acquire_with(&patient()).await.unwrap();
        (portalock_core::clock::Instant::now(), guard)
    });
    until("the other waits", async || server.number(CLAIMS).await == 2).await;
    line.refuse(true);
    line.cut();
    let crashed = portalock_core::clock::Instant::now();
    let (noticed, next) = waiting.await.unwrap();
    assert!(guard.is_lost());
    assert!(
        noticed - crashed < lease + Duration::from_secs(4),
        "{:?}",
        noticed - crashed
    );
    next.release().await.unwrap();
}

/// A client whose answers are lost neither holds nor waits in the end.
#[tokio::test]
async fn a_request_without_an_answer_is_given_up() {
    let server = Server::start().await;
    let (line, settings) = server.line();
    let settings = settings
        .with_request_timeout(Duration::from_secs(1))
        .unwrap()
        .with_lease_time(Duration::from_secs(600))
        .unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    Lock::new(client.clone(), "a")
        .unwrap()
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    line.black_hole(portalock_testkit::proxy::Direction::ToClient);
    let request = Request::new(
        "a".parse().unwrap(),
        portalock_core::Mode::Exclusive,
        Patience::Queue,
    );
    client.try_acquire(&request).await.unwrap_err();
    assert_eq!(server.number(CLAIMS).await, 1, "it was carried out");
    client.release(&request).await.unwrap_err();
    line.heal();
    // Only the session repeats the release.
    until("it is given up", async || server.number(CLAIMS).await == 0).await;
    assert_eq!(
        server.number("SELECT epoch FROM portalock.sessions").await,
        1
    );
    // A server that has lost the last change, as a promoted standby can, is no problem either.
    server.run("UPDATE portalock.sessions SET epoch = 0").await;
    let guard = Lock::new(client, "a")
        .unwrap()
        .acquire_with(&patient())
        .await
        .unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn an_attempt_that_is_stale_is_made_again_in_its_session() {
    let server = Server::start().await;
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "held").unwrap();
    let held = lock.acquire_with(&patient()).await.unwrap();
    // A release does this if a request of its owner may still arrive.
    server
        .run("UPDATE portalock.sessions SET epoch = epoch + 1")
        .await;
    let other = Lock::new(client, "other").unwrap();
    let other = other.acquire_with(&patient()).await.unwrap();
    held.ensure_held().unwrap();
    other.ensure_held().unwrap();
}

/// If a session could not end itself at the server, the client's next session ends it and serves those that wait behind
/// it.
#[tokio::test]
async fn a_former_session_is_cleared_up() {
    let server = Server::start().await;
    let (line, settings) = server.line();
    let settings = settings.with_lease_time(Duration::from_secs(2)).unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let guard = Lock::new(client.clone(), "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    // A waiter that never checks.
    server
        .run(
            "SELECT portalock.open_session('s', 600000, '{}', false);
             SELECT portalock.acquire('s', 0, 'lock', 'a', 'o', 4294967295, 4294967295, true, '{}')",
        )
        .await;
    line.refuse(true);
    line.cut();
    guard.lost().await;
    let waits = "SELECT count(*) FROM portalock.claims WHERE token IS NULL";
    assert_eq!(server.number(waits).await, 1);
    line.heal();
    let other = Lock::new(client, "other").unwrap();
    let policy = patient().with_max_failures(1_000);
    let other = other.acquire_with(&policy).await.unwrap();
    until("the other is served", async || {
        server.number(waits).await == 0
    })
    .await;
    other.release().await.unwrap();
}

/// One in so many starts removes rows that nobody needs any more, so short-lived programs do their share too.
#[tokio::test]
async fn short_sessions_remove_what_is_over() {
    let server = Server::start().await;
    server
        .run("INSERT INTO portalock.names VALUES ('lock', 'old', 1)")
        .await;
    let tokens = "SELECT count(*) FROM portalock.names";
    until("it is removed", async || {
        let sessions = (0..20).map(async |_| server.client().await.close().await.unwrap());
        join_all(sessions).await;
        server.number(tokens).await == 0
    })
    .await;
}
