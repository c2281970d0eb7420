//! A transaction that depends on a lock can't commit after another owner could hold the lock.

use std::time::Duration;

use portalock_core::Lock;
use portalock_postgres::{Fence, PostgresBackend};
use portalock_testkit::{proxy::Direction, servers::PostgresOptions};

use crate::support::{Server, connect, patient, until};

const LEASE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn the_late_write_of_a_stopped_worker_is_refused() {
    let server = Server::start().await;
    server.run("CREATE TABLE report (line text)").await;
    let (line, settings) = server.line();
    let stopped = PostgresBackend::with_settings(settings.with_lease_time(LEASE).unwrap())
        .await
        .unwrap();
    let guard = Lock::new(stopped.clone(), "report")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let fence = stopped.fence(guard.owner()).unwrap();

    // Its writes use another connection. They are like those of a program that is stopped between its last check of the
    // lock and the write.
    let mut writer = connect(&server.url).await;
    let write = writer.transaction().await.unwrap();
    write
        .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
        .await
        .unwrap();
    write
        .execute("INSERT INTO report VALUES ('of the first')", &[])
        .await
        .unwrap();

    line.black_hole(Direction::Both);
    let other = server.client().await;
    let successor = Lock::new(other.clone(), "report").unwrap();
    // The open transaction doesn't keep the lock from passing on either.
    let next = successor.acquire_with(&patient()).await.unwrap();
    assert!(next.token() > guard.token());

    let error = write.commit().await.unwrap_err();
    assert!(Fence::refused(&error), "{error:?}");
    let again = writer
        .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
        .await;
    assert!(Fence::refused(&again.unwrap_err()));

    let fence = other.fence(next.owner()).unwrap();
    let write = writer.transaction().await.unwrap();
    write
        .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
        .await
        .unwrap();
    write
        .execute("INSERT INTO report VALUES ('of the second')", &[])
        .await
        .unwrap();
    write.commit().await.unwrap();
    let lines: Vec<String> = writer
        .query("SELECT line FROM report", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(lines, ["of the second"]);
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.fences").await,
        0
    );
}

/// Between the check at the commit and the commit itself, the lock is granted to no other owner.
#[tokio::test]
async fn a_lock_is_not_passed_on_while_a_transaction_commits_under_it() {
    let server = Server::start().await;
    let client = server.client().await;
    let guard = Lock::new(client.clone(), "a")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let fence = client.fence(guard.owner()).unwrap();

    // A slow commit: it waits for a second deferred trigger, whose row another transaction has locked.
    server
        .run(
            "CREATE TABLE gate (open int); INSERT INTO gate VALUES (0); CREATE TABLE slow (x int);
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM FROM gate FOR UPDATE; RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let keeper = server.admin().await;
    keeper
        .batch_execute("BEGIN; SELECT FROM gate FOR UPDATE")
        .await
        .unwrap();
    let url = server.url.clone();
    let commits = tokio::spawn(async move {
        let mut writer = connect(&url).await;
        let write = writer.transaction().await.unwrap();
        write
            .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
            .await
            .unwrap();
        write
            .execute("INSERT INTO slow VALUES (1)", &[])
            .await
            .unwrap();
        write.commit().await
    });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event_type = 'Lock'";
    until("the commit waits", async || {
        server.number(waiting).await == 1
    })
    .await;

    let releases = tokio::spawn(guard.release());
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%portalock.release%' AND wait_event_type = 'Lock'
                   AND pid <> pg_backend_pid()";
    until("the release waits for the commit", async || {
        server.number(blocked).await == 1
    })
    .await;
    keeper.batch_execute("COMMIT").await.unwrap();
    commits.await.unwrap().unwrap();
    releases.await.unwrap().unwrap();
}

/// Even if the transaction fires no other triggers.
#[tokio::test]
async fn a_transaction_of_a_replica_is_refused_too() {
    let server = Server::start().await;
    let client = server.client().await;
    let guard = Lock::new(client.clone(), "a")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let fence = client.fence(guard.owner()).unwrap();
    let writer = server.admin().await;
    writer
        .batch_execute("SET session_replication_role = replica; BEGIN")
        .await
        .unwrap();
    writer
        .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
        .await
        .unwrap();
    guard.release().await.unwrap();
    let error = writer.batch_execute("COMMIT").await.unwrap_err();
    assert!(Fence::refused(&error), "{error:?}");
}

/// A transaction that is prepared has been checked and will commit: until then the lock passes to nobody, also if the server
/// crashes meanwhile.
#[tokio::test]
async fn a_lock_is_not_passed_on_while_a_transaction_under_it_is_prepared() {
    let options = PostgresOptions::new().setting("max_prepared_transactions", "1");
    let server = Server::with(options).await;
    let (line, settings) = server.line();
    let stopped = PostgresBackend::with_settings(settings.with_lease_time(LEASE).unwrap())
        .await
        .unwrap();
    let guard = Lock::new(stopped.clone(), "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    let fence = stopped.fence(guard.owner()).unwrap();
    let writer = server.admin().await;
    writer.batch_execute("BEGIN").await.unwrap();
    writer
        .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
        .await
        .unwrap();
    writer
        .batch_execute("PREPARE TRANSACTION 'write'")
        .await
        .unwrap();
    line.black_hole(Direction::Both);
    server.do_with(|postgres| postgres.restart().unwrap()).await;

    let successor = Lock::new(server.client().await, "a").unwrap();
    let policy = patient();
    let mut next = std::pin::pin!(successor.acquire_with(&policy));
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%portalock.%' AND wait_event = 'transactionid'";
    let waits = until(
        "the successor waits for the prepared transaction",
        async || server.number(blocked).await > 0,
    );
    tokio::select! {
        granted = &mut next => panic!("granted beside a prepared transaction: {granted:?}"),
        () = waits => {}
    }
    server.run("COMMIT PREPARED 'write'").await;
    assert!(next.await.unwrap().token() > guard.token());
}
