//! Calls that their callers don't poll for a while.

use std::pin::pin;

use futures_util::FutureExt as _;
use portalock_core::{Lock, LockBackend as _};

use crate::support::{Server, patient};

/// More than a connection reads at once.
const MANY: usize = 5000;

/// `MANY` waiters for `name`, or for as many names that begin so.
fn waiters(name: &str) -> String {
    format!(
        "INSERT INTO portalock.queue (owner, session, kind, name, weight, capacity, place, since, who)
         SELECT {name} || n, s.id, 'lock', {name}, 10, 10, nextval('portalock.places'), now(), '{{\"host\":\"h\",\"pid\":1}}'
         FROM generate_series(1, {MANY}) n, portalock.sessions s"
    )
}

/// All calls of a runtime share a connection, and the answer to this one is long.
#[tokio::test]
async fn an_inspection_that_nobody_polls_keeps_no_other_call_waiting() {
    let server = Server::start().await;
    let client = server.client().await;
    let lock = |name| Lock::new(client.clone(), name).unwrap();
    let guard = lock("other").acquire_with(&patient()).await.unwrap();
    server.run(&waiters("'long'")).await;
    let long = lock("long");
    let mut inspecting = pin!(long.inspect());
    assert!(inspecting.as_mut().now_or_never().is_none());
    guard.release().await.unwrap();
    assert_eq!(inspecting.await.unwrap().waiters.len(), MANY);
}

#[tokio::test]
async fn a_list_of_names_that_nobody_polls_keeps_no_other_call_waiting() {
    let server = Server::start().await;
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "other").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    server.run(&waiters("'name' || n")).await;
    let mut listing = pin!(client.names());
    assert!(listing.as_mut().now_or_never().is_none());
    guard.release().await.unwrap();
    assert!(listing.await.unwrap().len() >= MANY);
}
