//! A pooler in front: one that gives each transaction another server process is refused, one that keeps to sessions works.

use portalock_core::{BackendErrorKind, Lock};
use portalock_postgres::PostgresBackend;
use portalock_testkit::servers::Pooler;

use crate::support::{Server, patient, until};

async fn pooler(server: &Server, mode: &'static str) -> Pooler {
    let postgres = server.postgres.clone();
    let start = move || Pooler::start(&postgres.lock().unwrap(), mode);
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_pooler_of_transactions_is_refused() {
    let server = Server::start().await;
    let pooler = pooler(&server, "transaction").await;
    for _ in 0..3 {
        let error = PostgresBackend::connect(pooler.url()).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error:?}");
    }
}

#[tokio::test]
async fn a_pooler_of_sessions_works() {
    let server = Server::start().await;
    let pooler = pooler(&server, "session").await;
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
