//! The schema is created once, for any number of callers.

use std::{pin::pin, time::Duration};

use futures_util::FutureExt as _;
use portalock_core::{BackendErrorKind, Lock, LockBackend};
use portalock_postgres::{PostgresBackend, migrate, schema_sql, tokio_postgres::Client};
use portalock_testkit::{proxy::Direction, servers::PostgresOptions};

use crate::support::{LONG, Server, connect, until};

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

/// USAGE on the schema is also enough in a database that grants no rights on functions by default.
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

/// A migration that is interrupted changes nothing: the next one does everything.
#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    let server = Server::empty(PostgresOptions::new()).await;
    // A later step fails.
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

/// A migration uses no function of other users, also where they may create some in `public`: it could be a superuser's.
#[tokio::test]
async fn a_migration_uses_no_functions_of_others() {
    let server = Server::empty(PostgresOptions::new()).await;
    server
        .run("CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$;
              CREATE FUNCTION public.is_same(oid, regprocedure) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$;
              CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regprocedure, FUNCTION = public.is_same)")
        .await;
    migrate(&server.settings()).await.unwrap();
}

/// A user who may create schemas has made this one before the migration. None of its functions and triggers is run by the user who
/// migrates.
#[tokio::test]
async fn a_schema_of_somebody_else_is_not_upgraded() {
    let third = third();
    let (tables, _) = third.split_once("CREATE FUNCTION").unwrap();
    for version in [0, 3, 5] {
        let server = Server::empty(PostgresOptions::new()).await;
        server
            .run("CREATE ROLE stranger LOGIN; GRANT CREATE ON DATABASE postgres TO stranger")
            .await;
        let stranger = connect(&server.url_of("stranger")).await;
        stranger
            .batch_execute(&format!(
                "BEGIN; {tables}
                 INSERT INTO portalock.tokens VALUES ('lock', 'a', 7);
                 -- Remains if the transaction is rolled back.
                 CREATE SEQUENCE portalock.caught;
                 CREATE FUNCTION portalock.version() RETURNS integer LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM nextval('portalock.caught'); RETURN {version}; END $$;
                 CREATE FUNCTION portalock.trap() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM nextval('portalock.caught'); RETURN NEW; END $$;
                 CREATE TRIGGER trap BEFORE UPDATE ON portalock.tokens FOR EACH ROW EXECUTE FUNCTION portalock.trap();
                 COMMIT"
            ))
            .await
            .unwrap();
        let migrated = migrate(&server.settings()).await;
        let caught = "SELECT count(*) FROM portalock.caught WHERE is_called";
        assert_eq!(server.number(caught).await, 0, "version {version}");
        if version < 5 {
            let error = migrated.unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::PermissionDenied, "{error}");
        }
    }
}

/// The tables of version 3.
fn third() -> String {
    [
        include_str!("../../src/sql/1_tables.sql"),
        include_str!("../../src/sql/2_operators.sql"),
        include_str!("../../src/sql/3_connections.sql"),
        "CREATE FUNCTION portalock.version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 3';",
    ]
    .concat()
}

/// An upgrade that has to wait for an open transaction does not block the clients, which must renew their leases.
#[tokio::test]
async fn an_upgrade_that_waits_blocks_no_client() {
    let server = Server::empty(PostgresOptions::new()).await;
    server.run(&format!("BEGIN; {} COMMIT", third())).await;
    let open = server.admin().await;
    // As a transaction with a fence does.
    open.batch_execute("BEGIN; SELECT FROM portalock.claims")
        .await
        .unwrap();
    let settings = server.settings();
    let upgrade = tokio::spawn(async move { migrate(&settings).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%Version 4%'";
    for _ in 0..3 {
        until("the upgrade waits", async || {
            server.number(waiting).await == 1
        })
        .await;
        let work = server.number("SELECT count(*) FROM portalock.sessions");
        let done = tokio::time::timeout(Duration::from_secs(20), work).await;
        assert_eq!(done, Ok(0));
    }
    open.batch_execute("COMMIT").await.unwrap();
    upgrade.await.unwrap().unwrap();
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.names").await,
        0
    );
}

/// As a client that renews its lease, with less patience.
async fn renews(client: &Client) {
    let renewal =
        "UPDATE portalock.sessions SET expires = clock_timestamp() + lease WHERE id = 's'";
    client.batch_execute(renewal).await.unwrap();
}

async fn with_third_and_a_session() -> Server {
    let server = Server::empty(PostgresOptions::new()).await;
    let session =
        "INSERT INTO portalock.sessions VALUES ('s', '10 seconds', clock_timestamp() + '1 hour')";
    server
        .run(&format!("BEGIN; {} {session}; COMMIT", third()))
        .await;
    server
}

/// The table of the sessions is locked for the time of one request, however long the way to the server is.
#[tokio::test]
async fn an_upgrade_from_far_away_keeps_no_client_from_its_renewal() {
    let server = with_third_and_a_session().await;
    let (line, settings) = server.line();
    let settings = settings.with_connect_timeout(LONG).unwrap();
    line.delay(Direction::ToServer, Duration::from_secs(1));
    let client = server.admin().await;
    client
        .batch_execute("SET statement_timeout = '3s'")
        .await
        .unwrap();
    let upgrade = tokio::spawn(async move { migrate(&settings).await });
    while !upgrade.is_finished() {
        renews(&client).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    upgrade.await.unwrap().unwrap();
}

/// The task that called `migrate` waits for something else, or its runtime computes.
#[tokio::test]
async fn an_upgrade_that_nobody_polls_goes_on() {
    let server = with_third_and_a_session().await;
    let settings = server.settings();
    let mut upgrade = pin!(migrate(&settings));
    assert!(upgrade.as_mut().now_or_never().is_none());
    until("it is upgraded", async || {
        server.number("SELECT portalock.version()::bigint").await > 3
    })
    .await;
    renews(&server.admin().await).await;
    upgrade.await.unwrap();
}

/// As a migration does.
const ITS_TURN: &str = "SELECT pg_advisory_lock(hashtextextended('portalock.migrate', 1919249516))";

/// A machine that migrates loses its network when it is its turn.
#[tokio::test]
async fn a_migration_whose_machine_is_gone_keeps_no_other_waiting() {
    let server = Server::empty(PostgresOptions::new()).await;
    let another = server.admin().await;
    another.batch_execute(ITS_TURN).await.unwrap();
    let (line, settings) = server.line();
    let cut_off = tokio::spawn(async move { migrate(&settings).await });
    until("it waits for its turn", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
        server.number(waiting).await == 1
    })
    .await;
    line.black_hole(Direction::ToServer);
    another
        .batch_execute("SELECT pg_advisory_unlock_all()")
        .await
        .unwrap();
    migrate(&server.settings()).await.unwrap();
    let error = cut_off.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
}

/// Each start of a program migrates.
#[tokio::test]
async fn a_migration_with_nothing_to_do_waits_for_nobody() {
    let server = Server::start().await;
    let another = server.admin().await;
    another.batch_execute(ITS_TURN).await.unwrap();
    migrate(&server.settings()).await.unwrap();
}

/// A database with version 3 is upgraded while locks are held, shared, wanted and broken in it.
#[tokio::test]
async fn what_is_held_and_wanted_is_taken_over() {
    let server = Server::empty(PostgresOptions::new()).await;
    let third = third();
    server
        .run(&format!(
            "BEGIN; {third}
             INSERT INTO portalock.sessions VALUES ('s', '1 hour', clock_timestamp() + '1 hour');
             INSERT INTO portalock.tokens VALUES ('lock', 'a', 7), ('lock', 'b', 9), ('lock', 'free', 11);
             INSERT INTO portalock.claims (owner, session, kind, name, weight, capacity, place, token, since, who, broken_by)
             VALUES ('holder', 's', 'lock', 'a', 10, 10, NULL, 7, now(), '{{}}', 'operator'),
                    ('waiter', 's', 'lock', 'a', 10, 10, nextval('portalock.places'), NULL, now(), '{{}}', NULL),
                    ('one', 's', 'lock', 'b', 1, 10, NULL, 8, now(), '{{}}', NULL),
                    ('two', 's', 'lock', 'b', 1, 10, NULL, 9, now(), '{{}}', NULL);
             COMMIT"
        ))
        .await;
    let early = PostgresBackend::with_settings(server.settings()).await;
    let error = early.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error}");
    migrate(&server.settings()).await.unwrap();
    let admin = server.admin().await;
    let text = async |sql: &str| -> String { admin.query_one(sql, &[]).await.unwrap().get(0) };
    let claims = "SELECT string_agg(concat_ws(' ', owner, token), ', ' ORDER BY name, token) FROM portalock.claims";
    assert_eq!(text(claims).await, "holder 7, waiter, one 8, two 9");
    let broken = "SELECT array_to_string(broken || broken_by, ' ') FROM portalock.renew('s')";
    assert_eq!(text(broken).await, "holder operator");

    let release = "SELECT portalock.release('s', 'lock', 'a', 'holder')::text";
    assert_eq!(text(release).await, "true");
    let next = "SELECT owner FROM portalock.claims WHERE name = 'a' AND token > 7";
    assert_eq!(text(next).await, "waiter");
    let marks = "SELECT count(*) FROM portalock.marks";
    assert_eq!(server.number(marks).await, 0);
    for (name, outcome) in [("b", "refused"), ("free", "granted")] {
        let acquire = format!(
            "SELECT portalock.acquire('s', 0, 'lock', '{name}', 'new', 10, 10, false, '{{}}')::json->>'outcome'"
        );
        assert_eq!(text(&acquire).await, outcome);
    }
}

/// A database with version 1 is upgraded while a lock is held in it.
#[tokio::test]
async fn an_earlier_version_is_upgraded() {
    let server = Server::empty(PostgresOptions::new()).await;
    // Two functions of version 1 returned less than today's. The others are replaced by functions with the same
    // signature.
    let first = [
        include_str!("../../src/sql/1_tables.sql"),
        include_str!("../../src/sql/operations.sql"),
        include_str!("../../src/sql/sessions.sql"),
    ]
    .concat();
    server
        .run(&format!(
            "BEGIN; SET LOCAL check_function_bodies = off; {first}
             DROP FUNCTION portalock.renew(text); DROP FUNCTION portalock.inspect(text, text);
             CREATE OR REPLACE FUNCTION portalock.version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1';
             CREATE FUNCTION portalock.renew(_session text, OUT alive boolean, OUT backend integer)
             LANGUAGE sql AS 'SELECT true, 1';
             CREATE FUNCTION portalock.inspect(_kind text, _name text)
             RETURNS TABLE (state text, weight bigint, token bigint, since bigint, who text)
             LANGUAGE sql AS $$ SELECT NULL, NULL::bigint, NULL::bigint, NULL::bigint, NULL WHERE false $$;
             INSERT INTO portalock.sessions VALUES ('old', '1 hour', clock_timestamp() + '1 hour');
             INSERT INTO portalock.claims (owner, session, kind, name, weight, capacity, token, since, who)
             VALUES ('0000000000000001-2-3.0', 'old', 'lock', 'a', 4294967295, 4294967295, 7, now(), '{{\"host\":\"h\",\"pid\":1}}');
             INSERT INTO portalock.tokens VALUES ('lock', 'a', 7); COMMIT"
        ))
        .await;
    let early = PostgresBackend::with_settings(server.settings()).await;
    let error = early.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error}");
    migrate(&server.settings()).await.unwrap();
    let lock = Lock::new(server.client().await, "a").unwrap();
    let seen = lock.inspect().await.unwrap();
    let owner = seen.holders[0].owner.unwrap();
    assert_eq!(owner.to_string().parse(), Ok(owner));
    assert!(lock.try_acquire().await.unwrap_err().is_contention());
    LockBackend::evict(lock.backend(), lock.name(), owner, 7)
        .await
        .unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
}
