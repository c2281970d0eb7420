//! The defaults of a role for its sessions, such as time limits for web requests, neither harm locks nor end a migration.

use portalock_core::Lock;
use portalock_postgres::{PostgresBackend, PostgresSettings, migrate};
use portalock_testkit::servers::PostgresOptions;

use crate::support::{Server, patient, until};

/// These connections don't use a role's defaults, such as a statement timeout for web requests, or serializable
/// transactions, in which the functions don't work.
#[tokio::test]
async fn a_roles_own_defaults_do_no_harm() {
    let server = Server::start().await;
    // Long enough to connect on a busy machine, and shorter than the statement and the pause below.
    server
        .run(
            "CREATE ROLE worker LOGIN; GRANT USAGE ON SCHEMA portalock TO worker;
             ALTER ROLE worker SET statement_timeout = '500ms';
             ALTER ROLE worker SET default_transaction_isolation = 'serializable';
             DO $$ BEGIN IF current_setting('server_version_num')::int >= 140000 THEN
                 ALTER ROLE worker SET idle_session_timeout = '500ms';
             END IF; IF current_setting('server_version_num')::int >= 170000 THEN
                 ALTER ROLE worker SET transaction_timeout = '500ms';
             END IF; END $$;
             ALTER ROLE worker SET synchronous_commit = 'off';
             ALTER ROLE worker SET search_path = 'nowhere'",
        )
        .await;
    let url = server.url_of("worker");
    // Their connections stay open until the end of the test.
    let mut locks = Vec::new();
    for _ in 0..2 {
        let client = PostgresBackend::connect(&url).await.unwrap();
        locks.push(Lock::new(client, "a").unwrap());
    }
    let workers: Vec<_> = locks
        .iter()
        .cloned()
        .map(|lock| {
            tokio::spawn(async move {
                for _ in 0..20 {
                    let guard = lock.acquire_with(&patient()).await.unwrap();
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }

    // A statement that takes long, and then connections that do nothing.
    let admin = server.admin().await;
    let take = "BEGIN; SELECT portalock.lock_name('a')";
    admin.batch_execute(take).await.unwrap();
    let lock = locks[0].clone();
    let waits = tokio::spawn(async move {
        let guard = lock.acquire_with(&patient().with_max_failures(1)).await?;
        guard.release().await
    });
    let waiting = async || -> Vec<String> {
        let asked = "SELECT query_start::text FROM pg_stat_activity
             WHERE usename = 'worker' AND wait_event = 'advisory'";
        // Within a transaction, the server reads the activity only once.
        let again = "SELECT pg_stat_clear_snapshot()";
        admin.batch_execute(again).await.unwrap();
        let rows = admin.query(asked, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let mut since = waiting().await;
    while since.is_empty() {
        since = waiting().await;
    }
    admin.batch_execute("SELECT pg_sleep(0.8)").await.unwrap();
    assert_eq!(waiting().await, since, "the statement was cut off");
    admin.batch_execute("ROLLBACK").await.unwrap();
    waits.await.unwrap().unwrap();
    let connected = "SELECT pid FROM pg_stat_activity WHERE usename = 'worker' ORDER BY pid";
    let pids = async || -> Vec<i32> {
        let rows = admin.query(connected, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let before = pids().await;
    assert!(!before.is_empty());
    admin.batch_execute("SELECT pg_sleep(1.2)").await.unwrap();
    assert_eq!(pids().await, before);
}

/// A migration may wait for another one, longer than the role's defaults allow.
#[tokio::test]
async fn a_roles_own_defaults_do_not_end_a_migration() {
    let server = Server::empty(PostgresOptions::new()).await;
    let admin = server.admin().await;
    admin
        .batch_execute(
            "CREATE ROLE migrator LOGIN; GRANT CREATE ON DATABASE postgres TO migrator;
             ALTER ROLE migrator SET statement_timeout = '500ms';
             ALTER ROLE migrator SET lock_timeout = '500ms';
             DO $$ BEGIN IF current_setting('server_version_num')::int >= 170000 THEN
                 ALTER ROLE migrator SET transaction_timeout = '500ms';
             END IF; END $$;
             SELECT pg_advisory_lock(hashtextextended('portalock.migrate', 1919249516))",
        )
        .await
        .unwrap();
    let settings = PostgresSettings::from_url(&server.url_of("migrator")).unwrap();
    let migrating = tokio::spawn(async move { migrate(&settings).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'migrator' AND wait_event = 'advisory'";
    until("it waits", async || {
        migrating.is_finished() || server.number(waiting).await == 1
    })
    .await;
    admin
        .batch_execute("SELECT pg_sleep(0.8), pg_advisory_unlock_all()")
        .await
        .unwrap();
    migrating.await.unwrap().unwrap();
}
