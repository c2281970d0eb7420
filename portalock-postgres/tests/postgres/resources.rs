//! A server without free resources, and statements that the server aborts: the errors are typed, and nothing is left
//! behind.

use std::{fs, os::unix::fs::symlink, time::Duration};

use portalock_core::{
    Attempt, BackendErrorKind, Lock, LockBackend, LockError, LockName, Mode, Patience, Request,
};
use portalock_postgres::PostgresBackend;
use portalock_testkit::servers::PostgresOptions;

use crate::support::{Server, patient, try_connect, until};

fn kind(error: &LockError) -> BackendErrorKind {
    match error {
        LockError::Backend { source, .. } => source.kind(),
        error => panic!("it is none of the server's: {error:?}"),
    }
}

/// The kernel reports that there is no space for the next page of a table. Held locks stay held and can be released.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk() {
    let server = Server::start().await;
    let client =
        PostgresBackend::with_settings(server.settings_with_lease(Duration::from_secs(600)));
    let client = client.await.unwrap();
    let held = Lock::new(client.clone(), "held").unwrap();
    let held = held.acquire().await.unwrap();
    let admin = server.admin().await;
    let file = "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('portalock.queue')";
    let file: String = admin.query_one(file, &[]).await.unwrap().get(0);
    let kept = format!("{file}.kept");
    // So that the server doesn't write to this file when it starts again.
    admin.batch_execute("CHECKPOINT").await.unwrap();
    let (full, spare) = (file.clone(), kept.clone());
    server
        .do_with(move |postgres| {
            postgres.stop();
            fs::rename(&full, spare).unwrap();
            symlink("/dev/full", full).unwrap();
            postgres.restart().unwrap();
        })
        .await;

    let lock = Lock::new(client, "held").unwrap();
    let error = lock.acquire_with(&patient()).await.unwrap_err();
    assert_eq!(kind(&error), BackendErrorKind::OutOfSpace, "{error:?}");
    held.ensure_held().unwrap();
    held.release().await.unwrap();
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.claims").await,
        0
    );

    server
        .do_with(move |postgres| {
            postgres.stop();
            fs::rename(kept, file).unwrap();
            postgres.restart().unwrap();
        })
        .await;
    let guard = lock.acquire_with(&patient()).await.unwrap();
    guard.release().await.unwrap();
}

/// A session survives a time in which its server has no free connection.
#[tokio::test]
async fn no_connection_left_for_a_session_that_lost_its_own() {
    let options = PostgresOptions::new()
        .setting("max_connections", "8")
        .setting("superuser_reserved_connections", "0");
    let server = Server::with(options).await;
    let (line, settings) = server.line();
    let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let held = Lock::new(client.clone(), "held").unwrap();
    let held = held.acquire().await.unwrap();

    line.refuse(true);
    line.cut();
    let mut taken = Vec::new();
    until("every connection is taken", async || {
        // The earlier connections may take a moment to end.
        line.connections() == 0
    })
    .await;
    while taken.len() < 8 {
        taken.extend(try_connect(&server.url).await.ok());
    }
    line.refuse(false);
    let lock = Lock::new(client, "new").unwrap();
    let error = lock.acquire_with(&patient()).await.unwrap_err();
    assert_eq!(kind(&error), BackendErrorKind::Exhausted, "{error:?}");
    assert!(error.is_retryable());
    held.ensure_held().unwrap();

    taken.clear();
    let policy = patient().with_max_failures(1_000);
    let guard = lock.acquire_with(&policy).await.unwrap();
    guard.release().await.unwrap();
    held.ensure_held().unwrap();
    held.release().await.unwrap();
}

/// A process with one runtime needs four connections, as its documents say. A dropped guard and a repeated release use threads of the
/// library.
#[tokio::test]
async fn four_connections_are_enough() {
    let server = Server::start().await;
    let worker =
        "CREATE ROLE worker LOGIN CONNECTION LIMIT 4; GRANT USAGE ON SCHEMA portalock TO worker";
    server.run(worker).await;
    let client = PostgresBackend::connect(server.url_of("worker"));
    let client = client.await.unwrap();
    let is_free = async || {
        let held = "SELECT count(*) FROM portalock.names WHERE owner IS NOT NULL";
        server.number(held).await == 0
    };
    let lock = Lock::new(client.clone(), "a").unwrap();
    drop(lock.acquire_with(&patient()).await.unwrap());
    until("the dropped guard is released", is_free).await;

    let name = LockName::new("a").unwrap();
    let request = Request::new(name, Mode::Exclusive, Patience::Once);
    let attempt = client.try_acquire(&request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
    let admin = server.admin().await;
    let busy = "BEGIN; SELECT portalock.lock_name('a')";
    admin.batch_execute(busy).await.unwrap();
    let releasing = tokio::spawn(async move { client.release(&request).await });
    let cancel = "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                  WHERE usename = 'worker' AND wait_event_type = 'Lock') cancelled";
    until("it is cancelled", async || server.number(cancel).await == 1).await;
    releasing.await.unwrap().unwrap_err();
    admin.batch_execute("ROLLBACK").await.unwrap();
    until("the session has released it", is_free).await;
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'worker'";
    assert_eq!(server.number(connections).await, 4);
}

/// The statement is cancelled, as an administrator or a time limit of the server may do. It is sent again.
#[tokio::test]
async fn a_cancelled_statement() {
    let server = Server::start().await;
    let lock = Lock::new(server.client().await, "a").unwrap();
    let admin = server.admin().await;
    admin
        .batch_execute("BEGIN; SELECT portalock.lock_name('a')")
        .await
        .unwrap();
    let waits = lock.clone();
    let waiting = tokio::spawn(async move { waits.acquire_with(&patient()).await.unwrap() });
    let cancel = "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                  WHERE application_name = 'portalock' AND wait_event_type = 'Lock') cancelled";
    until("it is cancelled", async || server.number(cancel).await == 1).await;
    admin.batch_execute("ROLLBACK").await.unwrap();
    let guard = waiting.await.unwrap();
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.claims").await,
        1
    );
    guard.release().await.unwrap();
}

/// The server aborts transactions because of others: serialization failures and deadlocks. They are tried again.
#[tokio::test]
async fn transactions_that_others_are_in_the_way_of() {
    let server = Server::start().await;
    // The first two of three attempts.
    server
        .run(
            "CREATE SEQUENCE attempts;
             CREATE FUNCTION in_the_way() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 CASE nextval('public.attempts') % 3
                     WHEN 1 THEN RAISE 'in the way' USING ERRCODE = '40001';
                     WHEN 2 THEN RAISE 'in the way' USING ERRCODE = '40P01';
                     ELSE RETURN NEW;
                 END CASE;
             END $$;
             CREATE TRIGGER in_the_way BEFORE INSERT OR UPDATE ON portalock.names FOR EACH ROW
             WHEN (NEW.owner IS NOT NULL) EXECUTE FUNCTION in_the_way()",
        )
        .await;
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "a").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(server.number("SELECT last_value FROM attempts").await, 3);
    for _ in 0..2 {
        let name = "a".parse().unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let error = LockBackend::try_acquire(&client, &request)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
        LockBackend::release(&client, &request).await.unwrap();
    }
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.claims").await,
        0
    );
}
