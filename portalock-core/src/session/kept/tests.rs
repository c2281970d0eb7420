mod client;
mod closing;
mod leftovers;
mod looks;
mod panics;
mod store;

use std::{
    collections::HashMap,
    sync::{
        Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use async_trait::async_trait;

use self::store::*;
use super::*;
use crate::{
    Attempt, FencingToken, Grant, OwnerId, Released, Wake,
    session::{
        Answered, Client, Entered, Leaving, Looked, Stand, client::RECHECK_AFTER, starts::Sessions,
    },
};

/// Long enough for a busy machine, short enough for a test to wait for its end.
const LEASE: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_IN: Duration = Duration::from_millis(500);
const SLOW: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_reset_costs_nobody_a_lock_and_a_grant_that_was_not_heard_is_found() {
    let (store, session, _sessions) = start().await;
    let (holder, waiter) = (OwnerId::mint(), OwnerId::mint());
    let places = session.places();
    places.expect(holder, || 1).unwrap();
    let held = places
        .hold(holder, FencingToken::new(1), 0)
        .unwrap()
        .unwrap();
    store.set(1, Stand::Held(FencingToken::new(1)));
    places.expect(waiter, || 2).unwrap();
    places.queued(waiter);
    let mut line = places.listen(waiter);

    store.set(2, Stand::Held(FencingToken::new(2)));
    reset(&session);
    store.has_seen(Event::Connected, 2).await;
    let Ok(Wake::Granted(grant)) = tokio::time::timeout(PATIENCE, line.next()).await else {
        panic!("there should be a grant");
    };
    assert_eq!(grant.token, Some(FencingToken::new(2)));
    assert!(!held.lost.is_lost());
}

/// A service that was restored from old data may have lost a hold. It may grant the lock to another owner when the
/// lease that it knows has ended.
#[tokio::test]
async fn what_a_service_has_lost_is_known_before_the_lease_is_prolonged_over_a_new_connection() {
    let (store, session, _sessions) = start().await;
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    let held = session
        .places()
        .hold(owner, FencingToken::new(1), 0)
        .unwrap()
        .unwrap();
    store.set(1, Stand::Held(FencingToken::new(1)));
    // Over a new connection, each renewal gets an answer and no look does.
    store.blind.store(true, Ordering::Release);
    reset(&session);
    store.has_seen(Event::Connected, 2).await;
    let deadline = session.lease().deadline();
    let renewed = store.count(Event::Renewed);
    store.has_seen(Event::Renewed, renewed + 2).await;
    assert_eq!(session.lease().deadline(), deadline);
    store.stands.lock().unwrap().clear();
    store.blind.store(false, Ordering::Release);
    let loss = tokio::time::timeout(PATIENCE, held.lost.lost()).await;
    assert!(
        matches!(loss, Ok(Loss::Removed(_) | Loss::Expired)),
        "{loss:?}"
    );
}

/// With very many places, or a slow service, one renewal may be too short to check all of them.
#[tokio::test]
async fn a_renewal_goes_on_with_the_places_that_the_one_before_did_not_come_to() {
    let (store, session, _sessions) = start_with(PATIENCE).await;
    store.blinks.store(true, Ordering::Release);
    for place in 0..=u32::try_from(2 * SEEN_AT_ONCE).unwrap() {
        let owner = OwnerId::mint();
        session.places().expect(owner, || place).unwrap();
        let _held = session
            .places()
            .hold(owner, FencingToken::new(1), 0)
            .unwrap()
            .unwrap();
        store.set(place, Stand::Held(FencingToken::new(1)));
    }
    let deadline = session.lease().deadline();
    reset(&session);
    tokio::time::timeout(PATIENCE, async {
        while session.lease().deadline() == deadline {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    session.ensure_live().unwrap();
    assert_eq!(store.count(Event::Connected), 2);
}

/// Runs `act` while the session thread does nothing else.
async fn beside_no_session<T>(act: impl FnOnce() -> T) -> T {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (waits, is_waiting) = tokio::sync::oneshot::channel();
    let _task = spawn(async move {
        let _ = waits.send(());
        let _ = gone.recv();
    });
    is_waiting.await.unwrap();
    let done = act();
    drop(go);
    done
}

#[tokio::test]
async fn a_session_that_ends_with_its_connection_is_not_taken_up_over_another() {
    for asks_first in [false, true] {
        let (store, session, _sessions) = start_with(PATIENCE * 10).await;
        store.ends_with_connection.store(true, Ordering::Release);
        if asks_first {
            // A renewal notices this before the connection's end is reported.
            let connection = session.connection().unwrap();
            connection.is_open.store(false, Ordering::Release);
            drop(connection);
            session.renew_now();
        } else {
            session.connection_ended();
            session.ensure_live().unwrap();
            let check = || {
                reset(&session);
                session.ensure_live().is_err()
            };
            assert!(beside_no_session(check).await);
        }
        let loss = tokio::time::timeout(PATIENCE, session.lease().signal().lost()).await;
        assert!(matches!(loss, Ok(Loss::SessionEnded(_))), "{loss:?}");
        session.finished().await.unwrap();
        assert_eq!(store.count(Event::Connected), 1);
        assert_eq!(store.count(Event::Ended), 0);
    }
}

#[tokio::test]
async fn a_connection_may_call_its_session_when_it_is_dropped() {
    for ends in [false, true] {
        let (store, session, _sessions) = start_with(PATIENCE * 10).await;
        store.ends_with_connection.store(ends, Ordering::Release);
        let renewed = store.count(Event::Renewed);
        reset(&session);
        if ends {
            let finished = tokio::time::timeout(PATIENCE, session.finished()).await;
            finished.expect("it waits for itself").unwrap();
        } else {
            store.has_seen(Event::Renewed, renewed + 1).await;
        }
    }
}

#[tokio::test]
async fn a_session_that_ends_with_its_connection_keeps_one_that_does_not_answer() {
    let (store, session, _sessions) = start_with(LEASE * 2).await;
    store.ends_with_connection.store(true, Ordering::Release);
    store.hangs.store(true, Ordering::Release);
    tokio::time::sleep(LEASE).await;
    store.hangs.store(false, Ordering::Release);
    let renewed = store.count(Event::Renewed);
    store.has_seen(Event::Renewed, renewed + 1).await;
    session.ensure_live().unwrap();
    assert_eq!(store.count(Event::Connected), 1);
}

#[tokio::test]
async fn a_release_that_is_refused_holds_up_no_other() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.stuck.lock().unwrap().push(1);
    for place in [1, 2, 1, 3] {
        let owner = OwnerId::mint();
        session.places().expect(owner, || place).unwrap();
        drop(session.places().release(owner).unwrap());
    }
    session.look_within(Duration::ZERO);
    for place in [2, 3] {
        store.has_seen(Event::Released(place, true), 1).await;
    }
    assert_eq!(session.places().due().len(), 2);
}

/// As on a server where another transaction keeps a name for itself.
#[tokio::test]
async fn a_release_that_gets_no_answer_holds_up_no_other_for_good() {
    // As many, so that it is unlikely that by chance all of the others come first.
    const SILENT: u32 = 4;
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.silent.lock().unwrap().extend(0..SILENT);
    for place in 0..2 * SILENT {
        let owner = OwnerId::mint();
        session.places().expect(owner, || place).unwrap();
        drop(session.places().release(owner).unwrap());
    }
    session.look_within(Duration::ZERO);
    for place in SILENT..2 * SILENT {
        store.has_seen(Event::Released(place, true), 1).await;
    }
}

/// As after an outage during which many guards were dropped.
#[tokio::test]
async fn a_holder_hears_of_its_loss_though_very_many_releases_are_due() {
    const MANY: u32 = 2_000;
    let lease = SLOW * 50;
    let (store, session, _sessions) = start_with(lease).await;
    store.releases_slowly.store(true, Ordering::Release);
    let places = session.places();
    let holder = OwnerId::mint();
    places.expect(holder, || MANY).unwrap();
    let token = FencingToken::new(1);
    let held = places.hold(holder, token, 0).unwrap().unwrap();
    for place in 0..MANY {
        let owner = OwnerId::mint();
        places.expect(owner, || place).unwrap();
        drop(places.release(owner).unwrap());
    }
    session.look_within(Duration::ZERO);
    let told = tokio::time::timeout(PATIENCE, held.lost.lost()).await;
    assert!(matches!(told, Ok(Loss::Removed(_))), "{told:?}");
    assert!(!places.due().is_empty(), "all were released before");
    store.releases_slowly.store(false, Ordering::Release);
    for place in 0..MANY {
        store.has_seen(Event::Released(place, true), 1).await;
    }
}

/// As when an administrator breaks a thousand locks of one client that is far from the service: their waiters wait for it.
#[tokio::test]
async fn releases_that_are_due_do_not_wait_for_each_other() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.releases_hang.store(true, Ordering::Release);
    let places = session.places();
    for place in 0..10 {
        let owner = OwnerId::mint();
        places.expect(owner, || place).unwrap();
        drop(places.release(owner).unwrap());
    }
    store.is_patient.store(true, Ordering::Release);
    session.look_within(Duration::ZERO);
    store.has_seen(Event::Hung, 10).await;
}

/// Some, as Postgres with a full queue of notifications; or all, as without a free connection: then the others would dial in vain, too.
#[tokio::test]
async fn releases_that_the_service_has_no_means_for_end_a_round_only_if_nothing_else_succeeds() {
    const MANY: u32 = 100;
    for refused in [MANY / 2, MANY] {
        let (store, session, _sessions) = start_with(PATIENCE * 10).await;
        let every = MANY / refused;
        *store.full.lock().unwrap() = (0..MANY).step_by(every as usize).collect();
        let places = session.places();
        for place in 0..MANY {
            let owner = OwnerId::mint();
            places.expect(owner, || place).unwrap();
            drop(places.release(owner).unwrap());
        }
        let waiter = OwnerId::mint();
        places.expect(waiter, || MANY).unwrap();
        places.queued(waiter);
        store.set(MANY, Stand::Waits);
        session.look_within(Duration::ZERO);
        store.has_seen(Event::Full, refused as usize).await;
        // The places are checked before each round.
        let mut events = store.events.borrow().clone();
        events.retain(|event| matches!(event, Event::Full | Event::Looked(1)));
        let rounds = events.split(|event| *event == Event::Looked(1));
        let rounds: Vec<_> = rounds
            .map(<[Event]>::len)
            .filter(|tried| *tried > 0)
            .collect();
        let expected = if refused == MANY {
            PAID_AT_ONCE
        } else {
            refused as usize
        };
        assert_eq!(rounds[0], expected, "{rounds:?}");
    }
}

/// It goes over another connection than the session's, which may have to wait until it may be used.
#[tokio::test]
async fn a_release_that_hangs_is_no_reason_to_give_up_the_sessions_connection() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.releases_hang.store(true, Ordering::Release);
    let places = session.places();
    for place in [1, 2] {
        let owner = OwnerId::mint();
        places.expect(owner, || place).unwrap();
        drop(places.release(owner).unwrap());
    }
    let waiter = OwnerId::mint();
    places.expect(waiter, || 3).unwrap();
    places.queued(waiter);
    store.set(3, Stand::Waits);
    session.look_within(Duration::ZERO);
    // Both are tried again, and the places are checked before.
    store.has_seen(Event::Hung, 4).await;
    assert_eq!(store.count(Event::GaveUp), 0);
    assert!(store.count(Event::Looked(1)) > 0);
    store.releases_hang.store(false, Ordering::Release);
    for place in [1, 2] {
        store.has_seen(Event::Released(place, true), 1).await;
    }
}

#[tokio::test]
async fn what_the_service_has_and_nobody_knows_of_is_released() {
    let (store, session, _sessions) = start().await;
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    session.places().found_unknown(owner, 9);
    session.places().found_unknown(OwnerId::mint(), 2);
    store.has_seen(Event::Released(2, false), 1).await;
    assert!(!session.places().is_leaving(owner));
}

#[tokio::test]
async fn what_is_left_when_a_session_ends_is_known() {
    let (store, session, _sessions) = start().await;
    session.places().expect(OwnerId::mint(), || 4).unwrap();
    assert!(session.places().left().is_empty());
    session.end(Loss::Expired);
    store.has_seen(Event::Ended, 1).await;
    assert_eq!(store.count(Event::Left(4)), 1);
}

#[tokio::test]
async fn a_connection_that_ended_is_replaced_before_a_renewal_is_due() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    reset(&session);
    store.has_seen(Event::Connected, 2).await;
}

#[tokio::test]
async fn connections_that_end_at_once_are_made_anew_ever_more_rarely() {
    let (store, session, _sessions) = start_with(PATIENCE * 10).await;
    store.ends_connections.store(true, Ordering::Release);
    let start = Instant::now();
    reset(&session);
    // The pauses grow no further than to the longest.
    store.has_seen(Event::Connected, 9).await;
    assert!(start.elapsed() > LONGEST_PAUSE * 2);
    session.ensure_live().unwrap();
}

#[tokio::test]
async fn a_session_that_was_ended_is_not_live() {
    let (_store, session, _sessions) = start().await;
    session.ensure_live().unwrap();
    assert!(format!("{session:?}").contains("KeptSession { service: InStore("));
    session.end(Loss::Expired);
    let error = session.ensure_live().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::SessionEnded);
}

#[tokio::test]
async fn a_connection_over_which_a_renewal_fails_or_hangs_is_given_up() {
    let (store, session, _sessions) = start().await;
    for (fault, connections) in [(&store.refuses, 2), (&store.hangs, 3)] {
        fault.store(true, Ordering::Release);
        store.has_seen(Event::GaveUp, connections - 1).await;
        store.has_seen(Event::Connected, connections).await;
        fault.store(false, Ordering::Release);
        let renewed = store.events.borrow().clone();
        let renewed = renewed.iter().filter(|it| **it == Event::Renewed).count();
        store.has_seen(Event::Renewed, renewed + 1).await;
        session.ensure_live().unwrap();
    }
    let is_look = |event: &Event| matches!(event, Event::Looked(_));
    assert!(
        !store.events.borrow().iter().any(is_look),
        "there is no place"
    );
}

#[tokio::test]
async fn a_release_that_was_dropped_is_made_by_the_session() {
    let (store, session, _sessions) = start().await;
    let owner = OwnerId::mint();
    let places = session.places();
    places.expect(owner, || 5).unwrap();
    drop(places.release(owner).unwrap());
    store.has_seen(Event::Released(5, true), 1).await;
    tokio::time::timeout(PATIENCE, async {
        while places.expect(owner, || 6).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_session_that_ends_tells_its_waiters_and_the_service() {
    let (store, session, sessions) = start().await;
    let owner = OwnerId::mint();
    session.places().expect(owner, || 1).unwrap();
    let mut line = session.places().listen(owner);
    let weak: Weak<Kept> = Arc::downgrade(&session);
    drop(session);
    drop(sessions);
    assert!(matches!(line.next().await, Wake::Failed(_)));
    store.has_seen(Event::Ended, 1).await;
    tokio::time::timeout(PATIENCE, async {
        while weak.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nothing keeps it");
}

#[tokio::test]
async fn a_session_that_could_not_begin_is_none() {
    let service = InStore::default();
    service.0.refuses.store(true, Ordering::Release);
    let session = Kept::start(service, None).await;
    assert_eq!(session.unwrap_err().kind(), BackendErrorKind::Unavailable);
}

#[tokio::test]
async fn a_session_that_is_over_before_it_has_begun_is_none() {
    let service = InStore::default();
    service.0.ends_at_begin.store(true, Ordering::Release);
    let error = Kept::start(service, None).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::SessionEnded);
}
