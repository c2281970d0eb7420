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
    for unread_is_a_row in [true, false] {
        crash_behind_a_pooler(&server, unread_is_a_row).await;
    }
}

async fn crash_behind_a_pooler(server: &Server, unread_is_a_row: bool) {
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
    let unread = async {
        let one = async {
            let lock = "SELECT pg_advisory_lock(1)";
            if unread_is_a_row {
                drop(crashing.batch_execute(lock).await);
            } else {
                drop(crashing.query_typed(lock, &[]).await);
            }
        };
        let later = crashing.batch_execute("SELECT pg_advisory_lock(2)");
        tokio::join!(one, later)
    };
    tokio::select! {
        biased;
        answer = read => answer.unwrap(),
        _ = unread => unreachable!("both are locked"),
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
