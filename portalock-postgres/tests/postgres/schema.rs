//! The schema comes into the database once, whoever brings it.

use portalock_core::Lock;
use portalock_postgres::{PostgresBackend, migrate, schema_sql};
use portalock_testkit::servers::PostgresOptions;

use crate::support::Server;

#[tokio::test]
async fn many_migrate_at_once_and_again() {
    let server = Server::empty(PostgresOptions::new()).await;
    let mut migrations = Vec::new();
    for _ in 0..8 {
        let settings = server.settings();
        migrations.push(tokio::spawn(async move { migrate(&settings).await }));
    }
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    let lock = Lock::new(server.client().await, "a").unwrap();
    let guard = lock.acquire().await.unwrap();
    migrate(&server.settings()).await.unwrap();
    guard.ensure_held().unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn the_files_are_all_there_is() {
    let server = Server::empty(PostgresOptions::new()).await;
    server.run(&format!("BEGIN; {} COMMIT", schema_sql())).await;
    migrate(&server.settings()).await.unwrap();
    let lock = Lock::new(server.client().await, "a").unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
}

/// USAGE on the schema is enough also in a database whose functions are nobody's by default.
#[tokio::test]
async fn a_database_that_gives_no_rights_by_itself_needs_no_more() {
    let server = Server::empty(PostgresOptions::new()).await;
    server
        .run("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
        .await;
    migrate(&server.settings()).await.unwrap();
    server
        .run("CREATE ROLE worker LOGIN; GRANT USAGE ON SCHEMA portalock TO worker")
        .await;
    let worker = PostgresBackend::connect(server.url_of("worker")).await;
    let lock = Lock::new(worker.unwrap(), "a").unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
}

/// A migration that is cut off half-way leaves nothing: the next one does it all.
#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    let server = Server::empty(PostgresOptions::new()).await;
    // Something is in the way of a later step.
    server
        .run("CREATE FUNCTION public.stop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'stop'; END $$;
              CREATE EVENT TRIGGER stop ON ddl_command_end WHEN TAG IN ('CREATE FUNCTION') EXECUTE FUNCTION public.stop()")
        .await;
    migrate(&server.settings()).await.unwrap_err();
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'portalock'";
    assert_eq!(server.number(schemas).await, 0);
    server.run("DROP EVENT TRIGGER stop").await;
    migrate(&server.settings()).await.unwrap();
}
