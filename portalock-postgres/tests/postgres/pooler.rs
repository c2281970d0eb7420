//! A pooler in front of the server: one in session mode works, and the others are refused.

use portalock_core::{BackendErrorKind, Lock};
use portalock_postgres::PostgresBackend;
use portalock_testkit::servers::Pooler;

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
