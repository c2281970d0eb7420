//! Sessions that end with their connection, with `release_without_notice`.

use std::time::Duration;

use portalock_core::{Lock, LockBackend, LossNotice};
use portalock_postgres::{PostgresBackend, PostgresSettings};

use crate::support::{Server, patient, until};

/// Longer than any test: nothing here happens because a lease ended.
const LEASE: Duration = Duration::from_secs(600);

async fn without_notice(settings: PostgresSettings) -> PostgresBackend {
    let settings = settings
        .with_lease_time(LEASE)
        .unwrap()
        .with_release_without_notice(true);
    PostgresBackend::with_settings(settings).await.unwrap()
}

/// This also holds for a waiter whose own session outlives its connection.
#[tokio::test]
async fn a_crashed_clients_lock_passes_on_at_once() {
    let server = Server::start().await;
    let (line, settings) = server.line();
    let dies = without_notice(settings).await;
    let claims = LockBackend::capabilities(&dies);
    assert_eq!(claims.loss, LossNotice::Within(LEASE));
    let doomed = Lock::new(dies, "a").unwrap();
    let doomed = doomed.acquire_with(&patient()).await.unwrap();
    let waits = server.settings_with_lease(LEASE);
    let waiter = Lock::new(PostgresBackend::with_settings(waits).await.unwrap(), "a").unwrap();
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.acquire_with(&patient()).await.unwrap() }
    });
    until("the other waits", async || {
        waiter.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    // As long as it lives, no other session takes its lock, however often they check.
    tokio::time::sleep(Duration::from_secs(1)).await;
    doomed.ensure_held().unwrap();
    line.refuse(true);
    line.cut();
    let next = waiting.await.unwrap();
    assert!(next.token() > doomed.token());
    doomed.lost().await;
    next.release().await.unwrap();
}

/// The holder is told, even if nobody else wants the lock; and a request that doesn't wait notices it too.
#[tokio::test]
async fn a_killed_server_process_ends_the_session() {
    let server = Server::start().await;
    let client = without_notice(server.settings()).await;
    let lock = Lock::new(client.clone(), "a").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    server
        .run("SELECT pg_terminate_backend(backend) FROM portalock.sessions")
        .await;
    until("it is told", async || guard.is_lost()).await;
    let other = Lock::new(server.client().await, "a").unwrap();
    until("another has it", async || match other.try_acquire().await {
        Ok(next) => next.release().await.is_ok(),
        Err(_) => false,
    })
    .await;
    // The next session starts automatically.
    let again = lock.acquire_with(&patient()).await.unwrap();
    assert!(again.token() > guard.token());
    again.release().await.unwrap();
}

/// The line is dead and neither side knows it: the lease decides, as for every session.
#[tokio::test]
async fn a_client_that_is_cut_off_is_told_first() {
    let server = Server::start().await;
    let (line, settings) = server.line();
    let settings = settings
        .with_lease_time(Duration::from_secs(2))
        .unwrap()
        .with_release_without_notice(true);
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let guard = Lock::new(client, "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    let other = Lock::new(server.client().await, "a").unwrap();
    line.black_hole(portalock_testkit::proxy::Direction::Both);
    let next = other.acquire_with(&patient()).await.unwrap();
    assert!(guard.is_lost());
    next.release().await.unwrap();
}

/// A renewal over another connection, as after a reconnect, doesn't extend such a session.
#[tokio::test]
async fn a_session_is_not_renewed_over_another_connection() {
    let server = Server::start().await;
    let (one, other) = (server.admin().await, server.admin().await);
    one.batch_execute("SELECT portalock.open_session('s', 60000, '{}', true)")
        .await
        .unwrap();
    for (connection, renewed) in [(&one, true), (&other, false)] {
        let sign = connection
            .query_one("SELECT * FROM portalock.renew('s')", &[])
            .await
            .unwrap();
        assert_eq!(sign.get::<_, bool>("alive"), renewed);
    }
}
