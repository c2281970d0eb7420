//! Observers of a lock's holder, when a connection breaks and when rows disappear.

use std::time::Duration;

use portalock_core::{FencingToken, Guard, HolderWatch, Lock, LockBackend, LockName};
use portalock_postgres::PostgresBackend;

use crate::support::{Server, until};

/// The next change that a watch reports, or its end.
async fn next(watch: &mut HolderWatch) -> Option<Option<FencingToken>> {
    let told = tokio::time::timeout(Duration::from_secs(30), watch.next());
    let told = told
        .await
        .expect("a watch tells its first state, or ends")?;
    Some(told.and_then(|claim| claim.token))
}

/// A server, a client that observes with a short lease, and a lock that another client holds.
async fn held_and_observed() -> (Server, PostgresBackend, LockName, Guard<PostgresBackend>) {
    let server = Server::start().await;
    let settings = server.settings_with_lease(Duration::from_secs(3));
    let observer = PostgresBackend::with_settings(settings).await.unwrap();
    let name = LockName::new("a").unwrap();
    let lock = Lock::new(server.client().await, name.clone()).unwrap();
    let guard = lock.acquire().await.unwrap();
    (server, observer, name, guard)
}

/// An observer starts a new watch as soon as its watch has ended, which is before the next connection listens.
#[tokio::test]
async fn a_watch_that_begins_before_a_new_connection_listens_is_told_or_ends() {
    let (server, observer, name, guard) = held_and_observed().await;
    let held = Some(guard.token());
    for _ in 0..5 {
        let mut watch = observer.watch(&name).await.unwrap().unwrap();
        while next(&mut watch).await != held {
            watch = observer.watch(&name).await.unwrap().unwrap();
        }
        // All connections of the observer, except that of this runtime.
        server
            .run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'portalock' AND query NOT LIKE '%portalock.observe(%'",
            )
            .await;
        while next(&mut watch).await.is_some() {}
    }
    until("no observer's row is left", async || {
        server
            .number("SELECT count(*) FROM portalock.observers")
            .await
            == 0
    })
    .await;
}

/// When the claims of a dead holder are removed, its observers are told.
#[tokio::test]
async fn an_observer_is_told_of_a_holder_whose_session_was_cleaned_up() {
    let (server, observer, name, guard) = held_and_observed().await;
    let mut watch = observer.watch(&name).await.unwrap().unwrap();
    assert!(
        next(&mut watch)
            .await
            .is_some_and(|holder| holder.is_some())
    );
    server
        .run(
            "DELETE FROM portalock.sessions WHERE id = (SELECT session FROM portalock.claims);
             SELECT portalock.clean(100)",
        )
        .await;
    assert_eq!(next(&mut watch).await, Some(None));
    drop(guard);
}
