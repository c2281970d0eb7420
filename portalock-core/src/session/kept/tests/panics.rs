//! Panics of a service, and of the log.

use super::*;
use crate::wakeups::tests::PanicsAt;

#[tokio::test]
async fn a_panic_in_a_chore_ends_the_session_and_tells_its_waiters() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    let waiter = OwnerId::mint();
    session.places().expect(waiter, || 1).unwrap();
    session.places().queued(waiter);
    let mut line = session.places().listen(waiter);
    store.chore_panics.notify_one();
    let told = tokio::time::timeout(PATIENCE, line.next()).await.unwrap();
    assert!(matches!(told, Wake::Failed(_)), "{told:?}");
    let finished = tokio::time::timeout(PATIENCE, session.finished()).await;
    finished
        .expect("nobody hears that the session is over")
        .unwrap();
    assert!(matches!(
        session.lease().loss(),
        Some(Loss::SessionEnded(_))
    ));
}

/// As one that writes to a pipe that was closed.
#[tokio::test]
async fn a_session_ends_in_good_order_though_the_log_and_its_chores_panic() {
    const WHY: &str = "its log panics at this";
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.explodes.store(true, Ordering::Release);
    // Until then its chores have begun.
    let renewed = store.count(Event::Renewed);
    session.renew_now();
    store.has_seen(Event::Renewed, renewed + 1).await;
    let waiter = OwnerId::mint();
    session.places().expect(waiter, || 1).unwrap();
    let mut line = session.places().listen(waiter);
    let log = || std::mem::forget(PanicsAt(WHY).install());
    crate::session::run(async move { log() }).await.unwrap();
    session.end(Loss::SessionEnded(WHY.into()));
    let told = tokio::time::timeout(PATIENCE, line.next()).await.unwrap();
    assert!(matches!(told, Wake::Failed(_)), "{told:?}");
    let finished = tokio::time::timeout(PATIENCE, session.finished()).await;
    finished.expect("nobody hears of its end").unwrap();
    assert_eq!(store.count(Event::Ended), 1);
}

#[tokio::test]
async fn a_session_whose_end_panics_when_it_is_dropped_tells_its_waiters_too() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.end_hangs.store(true, Ordering::Release);
    session.end(Loss::SessionEnded("the test ends it".into()));
    // Another connection is tried when half of the time is over.
    store.has_seen(Event::Connected, 2).await;
    store.explodes.store(true, Ordering::Release);
    let finished = tokio::time::timeout(PATIENCE, session.finished()).await;
    finished.expect("nobody hears of its end").unwrap_err();
}

#[tokio::test]
async fn a_panic_in_a_reconnect_is_a_failure_like_any_other() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.connect_panics.store(true, Ordering::Release);
    let renewed = store.count(Event::Renewed);
    reset(&session);
    store.has_seen(Event::Connected, 3).await;
    store.has_seen(Event::Renewed, renewed + 1).await;
    session.ensure_live().unwrap();
}

/// A slot of a Redis Cluster that moves: both need a connection to its other node.
#[tokio::test]
async fn a_panic_in_a_renewal_or_a_look_is_a_failure_like_any_other() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    let held = session.places().hold(owner, FencingToken::new(1), 0);
    let held = held.unwrap().unwrap();
    store.set(1, Stand::Held(FencingToken::new(1)));
    store.panics.store(true, Ordering::Release);
    let renewed = store.count(Event::Renewed);
    session.renew_now();
    store.has_seen(Event::Renewed, renewed + 1).await;
    assert!(!store.panics.load(Ordering::Acquire));
    // That of the reconnect.
    store.has_seen(Event::Looked(1), 1).await;
    store.look_panics.store(true, Ordering::Release);
    session.look_within(Duration::ZERO);
    store.has_seen(Event::Looked(1), 2).await;
    assert!(!store.look_panics.load(Ordering::Acquire));
    assert!(!held.lost.is_lost());
}
