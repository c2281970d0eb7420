//! Requests that can't work fail with a typed error, within the deadline, and the error says what to do.

use std::{error::Error, sync::Mutex, time::Duration};

use portalock_core::{BackendError, BackendErrorKind, Lock, LockError, clock::Instant};
use portalock_postgres::{PostgresBackend, PostgresSettings};
use portalock_testkit::servers::PostgresOptions;

use crate::support::{Server, connect, patient, try_connect, until};

async fn refused(url: &str) -> BackendError {
    let settings = PostgresSettings::from_url(url)
        .unwrap()
        .with_request_timeout(Duration::from_secs(5))
        .unwrap()
        .with_connect_timeout(Duration::from_secs(5))
        .unwrap();
    let start = Instant::now();
    let error = PostgresBackend::with_settings(settings).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(30), "{error}");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    println!("{text}");
    assert!(!text.contains("hunter2"), "{text}");
    error
}

#[tokio::test]
async fn nobody_at_the_address() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let error = refused(&format!("postgres://u:hunter2@{address}/app")).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn somebody_silent_at_the_address() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = refused(&format!("postgres://u:hunter2@{address}/app")).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn users_passwords_and_databases() {
    let server = Server::with(PostgresOptions::new().passwords()).await;
    server
        .run("CREATE ROLE worker LOGIN PASSWORD 'hunter2'")
        .await;
    server
        .run("CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0")
        .await;

    let error = refused(&server.url_of("worker:hunter22")).await;
    assert_eq!(error.kind(), BackendErrorKind::PermissionDenied);
    let error = refused(&server.url_of("worker")).await;
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "no password");
    let error = refused(&server.url_of("nobody:hunter2")).await;
    assert_eq!(error.kind(), BackendErrorKind::PermissionDenied);
    let error = refused(&server.url_of("worker:hunter2")).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::PermissionDenied,
        "no privileges"
    );
    let error = refused(
        &server
            .url
            .replace("/postgres", "/elsewhere")
            .replace("//elsewhere", "//postgres"),
    )
    .await;
    assert_eq!(error.kind(), BackendErrorKind::NotFound);
    let error = refused(&format!("{}latin", server.url.trim_end_matches("postgres"))).await;
    assert_eq!(error.kind(), BackendErrorKind::Unsupported);
}

/// This is all that a program needs, and all that the front page tells users to grant.
#[tokio::test]
async fn usage_on_the_schema_is_enough() {
    let server = Server::with(PostgresOptions::new().passwords()).await;
    server
        .run("CREATE ROLE worker LOGIN PASSWORD 'hunter2'; GRANT USAGE ON SCHEMA portalock TO worker")
        .await;
    let url = server.url_of("worker:hunter2");
    let one = PostgresBackend::connect(&url).await.unwrap();
    let two = Lock::new(PostgresBackend::connect(&url).await.unwrap(), "a").unwrap();
    let lock = Lock::new(one.clone(), "a").unwrap();
    let guard = lock.acquire().await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire_with(&patient()).await });
    crate::support::until("the other waits", async || {
        lock.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    let fence = one.fence(guard.owner()).unwrap();
    let worker = connect(&url).await;
    worker
        .query(
            "SELECT portalock.ensure_held($1, $2)",
            &[&fence.owner, &fence.token],
        )
        .await
        .unwrap();
    worker
        .query("SELECT portalock.clean(100)", &[])
        .await
        .unwrap();
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();

    // The program may not use the tables, nor the internal functions.
    for statement in [
        "SELECT * FROM portalock.sessions",
        "SELECT * FROM portalock.claims",
        "UPDATE portalock.names SET owner = NULL",
        "SELECT portalock.serve('lock', 'a', NULL)",
        "SELECT portalock.hold('s', 'lock', 'a', 'o', 1, 1, '{}')",
        "SELECT portalock.queue_up('s', 0, 'lock', 'a', 'o', 1, 1, true, '{}')",
        "SELECT portalock.leave('s', 'lock', 'a', 'o')",
    ] {
        let error = worker.batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{statement}");
    }
}

/// The functions run with the rights of their owner, so they must use no operator, no function and no type of the caller.
#[tokio::test]
async fn a_callers_own_operators_are_not_used() {
    let server = Server::start().await;
    server
        .run(
            "CREATE ROLE worker LOGIN; GRANT USAGE ON SCHEMA portalock TO worker;
             CREATE SCHEMA trap AUTHORIZATION worker",
        )
        .await;
    let worker = connect(&server.url_of("worker")).await;
    for (name, left, right) in [
        ("=", "text", "text"),
        ("=", "bigint", "bigint"),
        ("||", "text", "text"),
        ("+", "bigint", "integer"),
        ("*", "float8", "integer"),
        (">", "timestamptz", "timestamptz"),
    ] {
        let made = worker
            .batch_execute(&format!(
                "CREATE OR REPLACE FUNCTION trap.caught({left}, {right}) RETURNS {left} LANGUAGE plpgsql
                 AS $$ BEGIN RAISE 'caught'; END $$;
                 CREATE OPERATOR trap.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = trap.caught)"
            ))
            .await;
        made.unwrap();
    }
    for (name, of) in [
        ("pg_advisory_xact_lock", "bigint"),
        ("clock_timestamp", ""),
        ("date_part", "text, timestamptz"),
        ("hashtextextended", "text, bigint"),
    ] {
        let made = worker
            .batch_execute(&format!(
                "CREATE FUNCTION trap.{name}({of}) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$"
            ))
            .await;
        made.unwrap();
    }
    worker
        .batch_execute(
            "CREATE FUNCTION trap.caught(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$;
             CREATE DOMAIN trap.text AS text CHECK (trap.caught(VALUE));
             SET search_path = trap, pg_catalog",
        )
        .await
        .unwrap();
    worker
        .batch_execute("SELECT 'a'::text || 'b'::text")
        .await
        .unwrap_err();
    worker
        .batch_execute("SELECT portalock.open_session('s', 60000, '{}', false)")
        .await
        .unwrap();
    let acquire = |owner: &str| {
        format!(
            "SELECT portalock.acquire('s', 0, 'lock', 'a', '{owner}', 10, 10, true, '{{}}')::json->>'outcome'"
        )
    };
    let release = |owner: &str| {
        format!("SELECT portalock.release('s', 'lock', 'a', '{owner}')::pg_catalog.text")
    };
    // A new name, a known one, one that is held, and one that is wanted.
    for (statement, expected) in [
        (acquire("o"), "granted"),
        (release("o"), "true"),
        (acquire("p"), "granted"),
        (acquire("q"), "queued"),
        (release("p"), "true"),
        (acquire("q"), "granted"),
        (
            "SELECT freed::pg_catalog.text FROM portalock.release_for_good('s', 'lock', 'a', 'q')"
                .into(),
            "true",
        ),
    ] {
        let row = worker.query_one(&statement, &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), expected, "{statement}");
    }
}

/// Nor does the trigger of the fence: on a table of the caller, its statements would use casts of the caller.
#[tokio::test]
async fn a_callers_own_table_has_no_fence() {
    let server = Server::start().await;
    server
        .run("CREATE ROLE worker LOGIN; GRANT USAGE ON SCHEMA portalock TO worker")
        .await;
    let worker = connect(&server.url_of("worker")).await;
    let error = worker
        .batch_execute(
            "CREATE TYPE pg_temp.trap AS ENUM ('x');
             CREATE FUNCTION pg_temp.caught(pg_temp.trap) RETURNS bigint LANGUAGE plpgsql
             AS $$ BEGIN RAISE 'caught as %', current_user; END $$;
             CREATE CAST (pg_temp.trap AS bigint) WITH FUNCTION pg_temp.caught(pg_temp.trap) AS IMPLICIT;
             CREATE TEMPORARY TABLE fences (id pg_temp.trap, owner text, token bigint);
             CREATE TRIGGER fence AFTER INSERT ON fences FOR EACH ROW EXECUTE FUNCTION portalock.hold_fence();
             SELECT portalock.open_session('s', 60000, '{}', false);
             SELECT portalock.acquire('s', 0, 'lock', 'a', 'o', 10, 10, true, '{}');
             SELECT portalock.ensure_held('o/lock/a', (SELECT token FROM portalock.inspect('lock', 'a') WHERE state = 'holds'));
             INSERT INTO fences VALUES ('x', 'o/lock/a', 1)",
        )
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501", "{error:?}");
}

#[tokio::test]
async fn a_database_without_the_schema_and_one_with_another_version() {
    let server = Server::empty(PostgresOptions::new()).await;
    let error = refused(&server.url).await;
    assert_eq!(error.kind(), BackendErrorKind::NotFound);
    assert!(
        error.to_string().contains("run `with_lock migrate`"),
        "{error}"
    );

    portalock_postgres::migrate(&server.settings())
        .await
        .unwrap();
    for (version, advice) in [(0, "upgrade"), (99, "update this program")] {
        server
            .run(&format!(
                "CREATE OR REPLACE FUNCTION portalock.version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT {version}'"
            ))
            .await;
        let error = refused(&server.url).await;
        assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
        assert!(error.to_string().contains(advice), "{error}");
    }
    let error = portalock_postgres::migrate(&server.settings())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_server_that_takes_no_writes() {
    let server = Server::start().await;
    server
        .run("CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA portalock TO reader; ALTER ROLE reader SET default_transaction_read_only = on")
        .await;
    let error = refused(&server.url_of("reader")).await;
    assert_eq!(error.kind(), BackendErrorKind::ReadOnly);
}

#[tokio::test]
async fn no_connection_left() {
    let server = Server::with(
        PostgresOptions::new()
            .setting("max_connections", "5")
            .setting("superuser_reserved_connections", "0"),
    )
    .await;
    let taken = Mutex::new(Vec::new());
    // The connections that made the schema may not have ended yet.
    until("all connections are taken", async || {
        let one = try_connect(&server.url).await;
        let mut taken = taken.lock().unwrap();
        taken.extend(one);
        taken.len() == 5
    })
    .await;
    let error = refused(&server.url).await;
    assert_eq!(error.kind(), BackendErrorKind::Exhausted);
    assert!(error.is_retryable());
}

/// Whatever keeps the server from executing a statement, the caller gets an error in time, and the error may be
/// retried.
#[tokio::test]
async fn a_statement_that_does_not_get_its_turn() {
    let server = Server::start().await;
    let settings = server
        .settings()
        .with_request_timeout(Duration::from_secs(1))
        .unwrap();
    let client = PostgresBackend::new(settings);
    // On a busy machine a session may need more than one start. A hold keeps it.
    let others = patient().with_max_failures(u32::MAX);
    let first = Lock::new(client.clone(), "b").unwrap();
    let first = first.acquire_with(&others).await.unwrap();
    // Another connection holds the lock of the name, like a server process that was stopped during a statement.
    let admin = server.admin().await;
    admin
        .batch_execute("BEGIN; SELECT portalock.lock_name('a')")
        .await
        .unwrap();
    let lock = Lock::new(client, "a").unwrap();
    let policy = patient().with_max_failures(2);
    let error = lock.acquire_with(&policy).await.unwrap_err();
    let LockError::Backend { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), BackendErrorKind::Unavailable);
    admin.batch_execute("ROLLBACK").await.unwrap();
    // The failed request has been withdrawn.
    let guard = lock.acquire_with(&others).await.unwrap();
    guard.release().await.unwrap();
    drop(first);
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_trusts_the_authority_it_is_given_and_no_other() {
    use portalock_testkit::servers::ServerIdentity;

    let dir = tempfile::tempdir().unwrap();
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let identity = ServerIdentity {
        authority: certificate.clone(),
        certificate: certificate.clone(),
        key,
    };
    let server = Server::empty(PostgresOptions::new().tls(identity)).await;

    let url = format!("{}?sslrootcert={}", server.url, certificate.display());
    portalock_postgres::migrate(&PostgresSettings::from_url(&url).unwrap())
        .await
        .unwrap();
    let client = PostgresBackend::connect(&url).await.unwrap();
    let guard = Lock::new(client, "a").unwrap().acquire().await.unwrap();
    guard.release().await.unwrap();

    let error = refused(&format!("{}?sslmode=require", server.url)).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::Misconfigured,
        "another authority"
    );
    let elsewhere = url.replace("127.0.0.1", "localhost");
    let error = refused(&elsewhere).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::Misconfigured,
        "another name"
    );
    let error = refused(&server.url).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::PermissionDenied,
        "TLS required"
    );

    let plain = Server::start().await;
    let error = refused(&format!("{}?sslmode=require", plain.url)).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::Misconfigured,
        "no TLS there"
    );
}

#[tokio::test]
async fn of_two_servers_the_error_that_no_retry_mends_is_told() {
    let server = Server::start().await;
    let (away, _) = server.line();
    away.refuse(true);
    let (here, away) = (server.postgres.lock().unwrap().addr(), away.addr());
    for [first, second] in [[here, away], [away, here]] {
        let url = format!("postgres://postgres@{first},{second}/elsewhere");
        let error = refused(&url).await;
        assert_eq!(error.kind(), BackendErrorKind::NotFound, "{error}");
    }
}
