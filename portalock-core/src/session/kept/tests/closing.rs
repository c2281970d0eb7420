//! The end of a client and of its session: what whoever closes it is told.

use super::{client::client, *};

/// So that sessions with several servers end beside each other.
#[tokio::test]
async fn a_client_is_closed_before_anybody_waits_for_it() {
    let (client, store, _) = client();
    let session = client.session().await.unwrap();
    let closing = client.close();
    assert!(session.ensure_live().is_err());
    store.has_seen(Event::Ended, 1).await;
    closing.await.unwrap();
    assert_eq!(store.count(Event::Ended), 1);
    assert_eq!(store.count(Event::Connected), 1);
}

#[tokio::test]
async fn who_closes_a_client_is_told_that_the_service_was_not() {
    let (client, store, _) = client();
    client.session().await.unwrap();
    store.ends_with_connection.store(true, Ordering::Release);
    store.first_is_deaf.store(true, Ordering::Release);
    let error = client.close().await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
}

#[tokio::test]
async fn who_closes_a_client_is_told_that_its_service_panicked() {
    let (client, store, _) = client();
    client.session().await.unwrap();
    store.first_is_deaf.store(true, Ordering::Release);
    store.panics.store(true, Ordering::Release);
    let closed = tokio::time::timeout(PATIENCE, client.close()).await;
    let error = closed.expect("nobody hears of the panic").unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Other);
}

#[tokio::test]
async fn who_closes_a_client_does_not_wait_for_a_service_that_hangs() {
    let (client, store, _) = client();
    client.session().await.unwrap();
    store.ends_with_connection.store(true, Ordering::Release);
    store.first_is_deaf.store(true, Ordering::Release);
    store.hangs.store(true, Ordering::Release);
    let closed = tokio::time::timeout(PATIENCE, client.close()).await;
    let error = closed.expect("it waits").unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
}

#[tokio::test]
async fn a_session_whose_connection_breaks_or_hangs_as_it_ends_is_ended_over_another() {
    for hangs in [false, true] {
        let (client, store, _) = client();
        client.session().await.unwrap();
        store.first_is_deaf.store(true, Ordering::Release);
        store.hangs.store(hangs, Ordering::Release);
        client.close().await.unwrap();
        assert_eq!(store.count(Event::GaveUp), 1);
        assert_eq!(store.count(Event::Ended), 1);
    }
}
