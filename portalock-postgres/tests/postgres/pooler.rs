//! A pooler in front of the server: one in session mode works, and the others are refused.

use portalock_core::{BackendErrorKind, Lock};
use portalock_postgres::PostgresBackend;
use portalock_testkit::servers::Pooler;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::support::{Server, connect, patient, until};

async fn pooler(server: &Server, settings: &'static [(&str, &str)]) -> Pooler {
    let postgres = server.postgres.clone();
    let start = move || Pooler::start(&postgres.lock().unwrap(), settings);
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_pooler_of_transactions_or_statements_is_refused() {
    let server = Server::start().await;
    let poolers: [&[_]; 3] = [
        &[("pool_mode", "statement")],
        &[("pool_mode", "transaction")],
        &[("pool_mode", "transaction"), ("default_pool_size", "1")],
    ];
    for settings in poolers {
        let pooler = pooler(&server, settings).await;
        for _ in 0..3 {
            let error = PostgresBackend::connect(pooler.url()).await.unwrap_err();
            assert_eq!(
                error.kind(),
                BackendErrorKind::Unsupported,
                "{settings:?}: {error:?}"
            );
        }
    }
}

/// The prepared statements of another program have the same names.
#[tokio::test]
async fn a_pooler_that_has_served_another_process_is_refused() {
    let server = Server::start().await;
    let pooler = pooler(
        &server,
        &[("pool_mode", "transaction"), ("default_pool_size", "1")],
    )
    .await;
    let other = connect(&pooler.url()).await;
    for number in 0..200 {
        let statement = format!("PREPARE s{number} AS SELECT 1");
        other.batch_execute(&statement).await.unwrap();
    }
    let error = PostgresBackend::connect(pooler.url()).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error:?}");
}

#[tokio::test]
async fn a_pooler_of_sessions_works() {
    let server = Server::start().await;
    let pooler = pooler(&server, &[("pool_mode", "session")]).await;
    let one = Lock::new(PostgresBackend::connect(pooler.url()).await.unwrap(), "a").unwrap();
    let two = Lock::new(PostgresBackend::connect(pooler.url()).await.unwrap(), "a").unwrap();
    let guard = one.acquire().await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire_with(&patient()).await });
    until("the other waits", async || {
        one.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();
}

/// The pooler gives the server process of a crashed client to the next one, which then hears the answer to the first.
#[tokio::test]
async fn an_answer_to_a_crashed_client_is_not_taken_for_ones_own() {
    let server = Server::start().await;
    let a_row = "SELECT pg_advisory_lock(1)";
    let without_columns = "SELECT FROM pg_advisory_lock(1)";
    let divided_by_zero = "SELECT 1 / length(pg_advisory_lock(1)::text)";
    for (unread, is_simple) in [
        (a_row, true),
        (a_row, false),
        (without_columns, true),
        (divided_by_zero, true),
    ] {
        crash_behind_a_pooler(&server, unread, is_simple).await;
    }
}

async fn crash_behind_a_pooler(server: &Server, unread: &str, is_simple: bool) {
    let settings: &[_] = &[
        ("pool_mode", "session"),
        ("admin_users", "postgres"),
        // The pooler would take the answer for one to a statement of its own.
        ("server_reset_query", ""),
    ];
    let pooler = pooler(server, settings).await;
    let url = format!("{}?application_name=portalock", pooler.url());
    let console = connect(&format!("postgres://postgres@{}/pgbouncer", pooler.addr())).await;
    let is_in_use = async || {
        let servers = console.simple_query("SHOW SERVERS").await.unwrap();
        servers.iter().any(|message| {
            matches!(message, SimpleQueryMessage::Row(row) if row.get("state") == Some("active"))
        })
    };
    let admin = server.admin().await;
    let locks = "SELECT pg_advisory_lock(1), pg_advisory_lock(2)";
    admin.batch_execute(locks).await.unwrap();

    let connected = tokio_postgres::connect(&url, NoTls).await;
    let (crashing, connection) = connected.unwrap();
    let driver = tokio::spawn(connection);
    let read = crashing.batch_execute("SELECT 'the only answer that it reads'");
    let both = async {
        let one = async {
            if is_simple {
                drop(crashing.batch_execute(unread).await);
            } else {
                drop(crashing.query_typed(unread, &[]).await);
            }
        };
        let later = crashing.batch_execute("SELECT pg_advisory_lock(2)");
        tokio::join!(one, later)
    };
    tokio::select! {
        biased;
        answer = read => answer.unwrap(),
        _ = both => unreachable!("both are locked"),
    };
    driver.abort();
    until("the pooler believes that all was answered", async || {
        !is_in_use().await
    })
    .await;

    let connecting = tokio::spawn(async move { PostgresBackend::connect(url).await });
    until("the next client has the process", is_in_use).await;
    let unlock = "SELECT pg_advisory_unlock(1)";
    admin.batch_execute(unlock).await.unwrap();
    until("the next client was given the answer", async || {
        let at = "SELECT FROM pg_stat_activity WHERE query = 'SELECT pg_advisory_lock(2)'";
        !admin.query(at, &[]).await.unwrap().is_empty()
    })
    .await;
    let unlock = "SELECT pg_advisory_unlock(2)";
    admin.batch_execute(unlock).await.unwrap();
    let lock = Lock::new(connecting.await.unwrap().unwrap(), "a").unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn what_a_pooler_says_at_the_first_request_is_the_reason() {
    let server = Server::start().await;
    let settings: &[_] = &[
        ("pool_mode", "session"),
        ("default_pool_size", "1"),
        ("query_wait_timeout", "1"),
    ];
    let pooler = pooler(&server, settings).await;
    // The first client keeps the only server process.
    let first = connect(&pooler.url()).await;
    first.batch_execute("SELECT 1").await.unwrap();
    let url = format!("{}?connect_timeout=60", pooler.url());
    let error = PostgresBackend::connect(url).await.unwrap_err();
    assert!(
        format!("{error:?}").contains("query_wait_timeout"),
        "{error:?}"
    );
}
