//! The checks of places: when they come, and what their answers count for.

use super::*;

/// A look may do more at each call than to read the places that it asks for.
#[tokio::test]
async fn very_many_places_are_looked_after_once_after_a_reconnect() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    for place in 0..=u32::try_from(2 * SEEN_AT_ONCE).unwrap() {
        let owner = OwnerId::mint();
        session.places().expect(owner, || place).unwrap();
        session.places().queued(owner);
    }
    reset(&session);
    store.has_seen(Event::Looked(1), 1).await;
    assert_eq!(store.count(Event::Read(SEEN_AT_ONCE)), 2);
    assert_eq!(store.count(Event::Looked(SEEN_AT_ONCE)), 0);
}

/// One place is held, and the first look after it gets no answer.
async fn start_with_a_look_that_hangs(
    is_patient: bool,
) -> (Arc<Store>, Arc<Kept>, Sessions<Kept>, Grant) {
    let (store, session, sessions) = start_with(PATIENCE * 10).await;
    store.is_patient.store(is_patient, Ordering::Release);
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    let token = FencingToken::new(1);
    let held = session.places().hold(owner, token, 0).unwrap().unwrap();
    store.set(1, Stand::Held(token));
    store.stares.store(true, Ordering::Release);
    session.look_within(Duration::ZERO);
    (store, session, sessions, held)
}

#[tokio::test]
async fn a_look_that_hangs_takes_no_other_connection_with_it_than_its_own() {
    let (store, session, _sessions, _held) = start_with_a_look_that_hangs(false).await;
    store.has_seen(Event::Hung, 1).await;
    reset(&session);
    store.has_seen(Event::Looked(1), 1).await;
    // The look that hangs is given up, and another one follows.
    store.has_seen(Event::Looked(1), 2).await;
    assert_eq!(store.count(Event::GaveUp), 0);
    assert_eq!(store.count(Event::Connected), 2);
}

/// A former server may lack what the new one has, and may have what the new one lacks.
#[tokio::test]
async fn the_answer_of_a_look_over_a_former_connection_does_not_count() {
    let (store, session, _sessions, held) = start_with_a_look_that_hangs(true).await;
    store.has_seen(Event::Hung, 1).await;
    let waiter = OwnerId::mint();
    session.places().expect(waiter, || 2).unwrap();
    session.places().queued(waiter);
    store.set(2, Stand::Waits);
    reset(&session);
    store.has_seen(Event::Looked(2), 1).await;
    let now = std::mem::take(&mut *store.stands.lock().unwrap());
    store.blink.notify_one();
    store.has_seen(Event::Looked(1), 1).await;
    *store.stands.lock().unwrap() = now;
    // Another one shows that its answer has been handled.
    session.look_within(Duration::ZERO);
    store.has_seen(Event::Looked(2), 2).await;
    assert!(!held.lost.is_lost());
}

/// A renewal over it failed, and there is no next connection yet.
#[tokio::test]
async fn the_answer_of_a_look_over_a_connection_that_was_given_up_does_not_count() {
    let (store, session, _sessions, held) = start_with_a_look_that_hangs(true).await;
    store.has_seen(Event::Hung, 1).await;
    store.is_away.store(true, Ordering::Release);
    store.refuses.store(true, Ordering::Release);
    session.renew_now();
    store.has_seen(Event::GaveUp, 1).await;
    let now = std::mem::take(&mut *store.stands.lock().unwrap());
    store.blink.notify_one();
    store.has_seen(Event::Looked(1), 1).await;
    *store.stands.lock().unwrap() = now;
    store.refuses.store(false, Ordering::Release);
    store.is_away.store(false, Ordering::Release);
    session.renew_now();
    // Over the next connection.
    store.has_seen(Event::Looked(1), 2).await;
    assert_eq!(store.count(Event::Connected), 2);
    assert!(!held.lost.is_lost(), "{:?}", held.lost.loss());
}

#[tokio::test]
async fn a_connection_over_which_a_look_hangs_is_replaced() {
    let (store, session, _sessions, _held) = start_with_a_look_that_hangs(false).await;
    store.has_seen(Event::GaveUp, 1).await;
    store.has_seen(Event::Connected, 2).await;
    // A look that fails has used its connection.
    store.has_seen(Event::Looked(1), 1).await;
    store.blinks.store(true, Ordering::Release);
    for looks in [2, 3] {
        session.look_within(Duration::ZERO);
        store.has_seen(Event::Looked(1), looks).await;
    }
    assert_eq!(store.count(Event::GaveUp), 1);
}

#[tokio::test]
async fn a_look_is_repeated_when_the_service_says_so() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.looks_again.store(true, Ordering::Release);
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    session.places().queued(owner);
    store.set(1, Stand::Waits);
    session.look_within(Duration::ZERO);
    store.has_seen(Event::Looked(1), 2).await;
}

#[tokio::test]
async fn a_look_that_is_asked_for_comes_before_one_is_due() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    session.places().queued(owner);
    session.look_within(Duration::ZERO);
    store.has_seen(Event::Looked(1), 1).await;
}

#[tokio::test]
async fn each_place_is_looked_after_also_if_there_are_more_than_one_look_asks_for() {
    let (store, session, _sessions) = start().await;
    let mut signals = Vec::new();
    for place in 0..=u32::try_from(SEEN_AT_ONCE).unwrap() {
        let owner = OwnerId::mint();
        session.places().expect(owner, || place).unwrap();
        let grant = session
            .places()
            .hold(owner, FencingToken::new(1), 0)
            .unwrap()
            .unwrap();
        store.set(place, Stand::Held(FencingToken::new(1)));
        signals.push(grant.lost);
    }
    store.stands.lock().unwrap().clear();
    for signal in signals {
        session.look_within(Duration::ZERO);
        let loss = tokio::time::timeout(PATIENCE, signal.lost()).await;
        assert!(matches!(loss, Ok(Loss::Removed(_))), "{loss:?}");
    }
    store.has_seen(Event::Looked(SEEN_AT_ONCE), 2).await;
}
