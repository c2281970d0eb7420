//! A session is its row: it survives the loss of connections, server processes and servers.

use std::time::Duration;

use portalock_core::{Guard, Lock};
use portalock_postgres::PostgresBackend;
use portalock_testkit::servers::PostgresOptions;

use crate::support::{Server, patient, until};

const TERMINATE: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'portalock'";

/// A holder and a waiter, each with its own client.
async fn pair(
    server: &Server,
    lease: Duration,
) -> (
    Guard<PostgresBackend>,
    tokio::task::JoinHandle<Guard<PostgresBackend>>,
) {
    let settings = server.settings_with_lease(lease);
    let holder = PostgresBackend::with_settings(settings.clone())
        .await
        .unwrap();
    let holder = Lock::new(holder, "a").unwrap();
    let waiter = PostgresBackend::with_settings(settings).await.unwrap();
    let waiter = Lock::new(waiter, "a").unwrap();
    let guard = holder.acquire().await.unwrap();
    // On a busy machine a server takes long to start again.
    let policy = patient().with_max_failures(1_000);
    let waiting = tokio::spawn(async move { waiter.acquire_with(&policy).await.unwrap() });
    until("the other waits", async || {
        holder.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    (guard, waiting)
}

#[tokio::test]
async fn killed_server_processes_cost_nobody_anything() {
    let server = Server::start().await;
    let lease = Duration::from_secs(600);
    let (guard, waiting) = pair(&server, lease).await;
    for _ in 0..3 {
        server.run(TERMINATE).await;
        guard.ensure_held().unwrap();
    }
    // The release goes over a new connection, and the grant arrives over another one.
    let token = guard.token();
    guard.release().await.unwrap();
    let next = waiting.await.unwrap();
    assert!(next.token() > token);
    assert!(!next.is_lost());
    next.release().await.unwrap();
}

/// A grant that was sent while no connection listened is found after the reconnect.
#[tokio::test]
async fn a_grant_that_nobody_heard_is_found() {
    let server = Server::start().await;
    let (line, settings) = server.line();
    let waiter =
        PostgresBackend::with_settings(settings.with_lease_time(Duration::from_secs(600)).unwrap())
            .await
            .unwrap();
    let waiter = Lock::new(waiter, "a").unwrap();
    let holder = Lock::new(server.client().await, "a").unwrap();
    let guard = holder.acquire().await.unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire_with(&patient()).await.unwrap() });
    until("the other waits", async || {
        holder.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    line.refuse(true);
    line.cut();
    guard.release().await.unwrap();
    let granted = holder.inspect().await.unwrap();
    assert_eq!((granted.holders.len(), granted.waiters.len()), (1, 0));
    line.heal();
    // Long before the session's next renewal.
    let found = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    found.unwrap().unwrap().release().await.unwrap();
}

/// This holds for any number of grants: one check reads some hundreds.
#[tokio::test]
async fn as_many_grants_as_there_are_are_found() {
    const NAMES: usize = 700;
    let server = Server::start().await;
    let (line, settings) = server.line();
    let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
    let waits = PostgresBackend::with_settings(settings).await.unwrap();
    let holds = server.client().await;
    let mut guards = Vec::new();
    let mut waiting = Vec::new();
    for number in 0..NAMES {
        let name = format!("name-{number}");
        let lock = Lock::new(holds.clone(), &*name).unwrap();
        guards.push(lock.acquire_with(&patient()).await.unwrap());
        let lock = Lock::new(waits.clone(), &*name).unwrap();
        // When the line is cut, the server may have a place that its client does not know of.
        let tireless = patient().with_max_failures(u32::MAX);
        waiting.push(tokio::spawn(async move {
            lock.acquire_with(&tireless).await.unwrap()
        }));
    }
    let claims = "SELECT count(*) FROM portalock.claims WHERE token IS NULL";
    until("all wait", async || server.number(claims).await == 700).await;
    line.refuse(true);
    line.cut();
    for guard in guards {
        guard.release().await.unwrap();
    }
    line.heal();
    for waiting in waiting {
        waiting.await.unwrap().release().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_comes_back_within_the_lease_knows_everyone() {
    let server = Server::start().await;
    let (guard, waiting) = pair(&server, Duration::from_secs(600)).await;
    server.do_with(|postgres| postgres.restart().unwrap()).await;
    guard.ensure_held().unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    let next = waiting.await.unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_for_longer_than_the_lease_ends_it() {
    let server = Server::start().await;
    let (guard, waiting) = pair(&server, Duration::from_secs(1)).await;
    server
        .do_with(portalock_testkit::servers::PostgresServer::stop)
        .await;
    guard.lost().await;
    server.do_with(|postgres| postgres.restart().unwrap()).await;
    guard.release().await.unwrap_err();
    // It takes a new place, in a new session.
    waiting.await.unwrap().release().await.unwrap();
}

/// Like a restored backup, or a promoted standby that has not received the last grants.
#[tokio::test]
async fn a_server_that_forgot_a_claim_or_a_session_is_noticed() {
    let server = Server::start().await;
    let settings = server.settings_with_lease(Duration::from_secs(6));
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let waits = Lock::new(client.clone(), "waits").unwrap();
    let waits = waits.acquire().await.unwrap();
    let (kept, forgotten) = (
        Lock::new(client.clone(), "kept")
            .unwrap()
            .acquire()
            .await
            .unwrap(),
        Lock::new(client.clone(), "forgotten")
            .unwrap()
            .acquire()
            .await
            .unwrap(),
    );
    server
        .run("UPDATE portalock.names SET owner = NULL WHERE name = 'forgotten'")
        .await;
    server.run(TERMINATE).await;
    forgotten.lost().await;
    kept.ensure_held().unwrap();
    // A waiter that was granted is waiting again, according to that server.
    server
        .run(
            "INSERT INTO portalock.queue (owner, session, kind, name, weight, capacity, place, since, who)
             SELECT owner, session, kind, name, weight, capacity, 1, since, who FROM portalock.claims
             WHERE name = 'waits';
             UPDATE portalock.names SET owner = NULL WHERE name = 'waits'",
        )
        .await;
    waits.lost().await;
    server.run("DELETE FROM portalock.sessions").await;
    kept.lost().await;
    let anew = Lock::new(client, "kept")
        .unwrap()
        .acquire_with(&patient())
        .await
        .unwrap();
    anew.release().await.unwrap();
}

/// If the queue of notifications is full, a lock is not passed on. Postgres keeps it full after everybody has read it.
#[tokio::test]
async fn a_queue_of_notifications_that_was_full_holds_back_no_grant() {
    let server = Server::start().await;
    let version = "SELECT current_setting('server_version_num')::int8";
    if server.number(version).await < 170_000 {
        // The queue of these versions has 8 GB.
        return;
    }
    let small = PostgresOptions::new().setting("max_notify_queue_pages", "64");
    let server = Server::with(small).await;
    let (guard, waiting) = pair(&server, Duration::from_secs(10)).await;
    let reader = server.admin().await;
    reader.batch_execute("LISTEN noise").await.unwrap();
    reader.batch_execute("BEGIN").await.unwrap();
    let admin = server.admin().await;
    let noise = "SELECT pg_notify('noise', repeat('x', 7900))";
    while admin.batch_execute(noise).await.is_ok() {}
    guard.release().await.unwrap_err();
    reader.batch_execute("COMMIT").await.unwrap();
    waiting.await.unwrap().release().await.unwrap();
}
