use std::{pin::Pin, task::Context};

use super::*;

/// A client, its store, and an owner.
pub(super) fn client() -> (Client<InStore>, Arc<Store>, OwnerId) {
    let store = Arc::new(Store {
        lease: PATIENCE,
        ..Store::default()
    });
    let client = Client::new(InStore(store.clone()));
    (client, store, OwnerId::mint())
}

#[tokio::test]
async fn a_client_holds_releases_and_forgets_what_was_refused() {
    let (client, store, owner) = client();
    store.set(1, Stand::Held(FencingToken::new(7)));
    for _ in 0..2 {
        let attempt = client.attempt(owner, &(1, true)).await.unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)));
    }
    assert_eq!(client.held(owner), Some((1, FencingToken::new(7))));
    assert_eq!(client.release(owner).await.unwrap(), Released::Freed);
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
    assert_eq!(
        store.count(Event::Released(1, false)),
        1,
        "all are answered"
    );

    store.set(2, Stand::Waits);
    let attempt = client.attempt(owner, &(2, false)).await.unwrap();
    assert!(matches!(attempt, Attempt::Contended(contention) if !contention.queued));
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
    let events = store.events.borrow().clone();
    let released = |event: &&Event| matches!(event, Event::Released(..));
    assert_eq!(events.iter().filter(released).count(), 1);

    client.close().await.unwrap();
    store.has_seen(Event::Ended, 1).await;
}

/// Also after it was closed: then only the client keeps its connections.
#[tokio::test]
async fn a_forked_child_drops_nothing_of_a_client() {
    for closes in [false, true] {
        let (mut client, store, owner) = client();
        store.set(1, Stand::Held(FencingToken::new(7)));
        let _ = client.attempt(owner, &(1, true)).await.unwrap();
        let session = Arc::downgrade(&client.session().await.unwrap());
        if closes {
            client.close().await.unwrap();
        }
        client.inherit();
        drop(client);
        tokio::task::yield_now().await;
        assert!(session.upgrade().is_some());
        assert_eq!(store.count(Event::Ended), usize::from(closes));
        assert!(Arc::strong_count(&store) > 1);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap()
}

/// As that of a program whose `main` returns while the service is away, or of a runtime for one job. The clean-up sees it out.
#[test]
fn an_attempt_whose_runtime_has_ended_fails_and_its_timers_do_not_panic() {
    for ends_first in [true, false] {
        let (client, store, owner) = client();
        store.late.store(true, Ordering::Release);
        let (own, other) = (runtime(), runtime());
        let wish = (1, true);
        let mut attempt = Box::pin(client.attempt(owner, &wish));
        let is_sent = async {
            client.session().await.unwrap();
            futures_util::poll!(&mut attempt).is_pending()
        };
        assert!(own.block_on(is_sent));
        if !ends_first {
            let waits = async { futures_util::poll!(&mut attempt).is_pending() };
            assert!(other.block_on(waits));
        }
        drop(own);
        let failed = other.block_on(attempt).unwrap_err();
        assert!(failed.is_retryable(), "{failed}");
        other.block_on(client.release(owner)).unwrap();
        assert_eq!(store.count(Event::Released(1, true)), 1);
    }
}

/// Etcd is asked twice: the second request is the one that refuses what may come late.
#[test]
fn a_release_whose_runtime_has_ended_is_repeated_and_its_timers_do_not_panic() {
    let (client, store, owner) = client();
    store.settles_late.store(true, Ordering::Release);
    let (own, other) = (runtime(), runtime());
    let mut release = Box::pin(client.release(owner));
    own.block_on(async {
        let session = client.session().await.unwrap();
        session.places().expect(owner, || 1).unwrap();
        assert!(futures_util::poll!(&mut release).is_pending());
    });
    drop(own);
    store.settles_late.store(false, Ordering::Release);
    other.block_on(release).unwrap();
    other.block_on(store.has_seen(Event::Settled(1), 1));
}

/// The time after which a waiter must ask again.
fn recheck(attempt: Attempt) -> Duration {
    match attempt {
        Attempt::Contended(contention) => contention.recheck_after.unwrap(),
        Attempt::Granted(_) => panic!("it is contended"),
    }
}

#[tokio::test]
async fn a_waiter_asks_again_if_the_service_says_so_and_is_not_looked_after_at_intervals() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    let waits = client.attempt(owner, &(1, true)).await.unwrap();
    assert_eq!(recheck(waits), RECHECK_AFTER);

    let store = Arc::new(Store {
        lease: LEASE,
        ..Store::default()
    });
    let client = Client::new(InStore::<true>(store.clone()));
    store.set(1, Stand::Waits);
    store.set(2, Stand::Held(FencingToken::new(7)));
    let waits = client.attempt(owner, &(1, true)).await.unwrap();
    assert_eq!(recheck(waits), LOOK_IN);
    let _held = client.attempt(OwnerId::mint(), &(2, true)).await.unwrap();
    store.has_seen(Event::Looked(1), 2).await;
    assert_eq!(store.count(Event::Looked(2)), 0);
    // But the places that may have missed a grant are checked.
    reset(&client.session().await.unwrap());
    store.has_seen(Event::Looked(2), 1).await;
}

#[tokio::test]
async fn an_owner_whose_release_is_due_is_released_before_it_asks_again() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    store.set(2, Stand::Held(FencingToken::new(7)));
    let waits = client.attempt(owner, &(1, true)).await.unwrap();
    assert!(matches!(waits, Attempt::Contended(_)));
    drop(client.session().await.unwrap().places().release(owner));
    let attempt = client.attempt(owner, &(2, true)).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)));
    assert_eq!(store.count(Event::Released(1, false)), 1);
}

/// As one whose lock is broken before it has heard of its grant, behind others. The engine would poll if its line were only closed:
/// with the check interval of its policy, which may be an hour.
#[tokio::test]
async fn a_waiter_whose_place_was_released_is_told_to_listen_to_its_next_one() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    store.set(2, Stand::Waits);
    let _waits = client.attempt(owner, &(1, true)).await.unwrap();
    let mut line = client.subscribe(owner).unwrap();
    let session = client.session().await.unwrap();
    let places = session.places();
    assert!(places.broken(owner, &Loss::Expired, |at| *at == 1));
    assert!(matches!(line.next().await, Wake::TryNow));
    let _waits = client.attempt(owner, &(2, true)).await.unwrap();
    places.granted(owner, FencingToken::new(7), |at| *at == 2);
    let told = line.next().await;
    let Wake::Failed(error) = told else {
        panic!("{told:?}");
    };
    assert!(error.is_retryable(), "{error}");
    let heard = client.subscribe(owner).unwrap().next().await;
    assert!(matches!(heard, Wake::Granted(grant) if !grant.lost.is_lost()));
}

/// As one whose key in etcd was deleted, while etcd refuses new ones.
#[tokio::test]
async fn a_waiter_whose_place_was_refused_is_told_to_listen_to_its_next_one() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    let _waits = client.attempt(owner, &(1, true)).await.unwrap();
    let mut line = client.subscribe(owner).unwrap();
    let _refused = client.attempt(owner, &(1, false)).await.unwrap();
    let told = line.next().await;
    assert!(
        matches!(&told, Wake::Failed(error) if error.is_retryable()),
        "{told:?}"
    );
}

#[tokio::test]
async fn the_places_are_checked_when_an_owner_ahead_may_be_dead() {
    let store = Arc::new(Store {
        lease: PATIENCE * 10,
        ..Store::default()
    });
    let client: Client<InStore> = Client::new(InStore(store.clone()));
    store.set(1, Stand::Waits);
    let waits = client.attempt(OwnerId::mint(), &(1, true)).await.unwrap();
    assert_eq!(recheck(waits), RECHECK_AFTER);
    store.has_seen(Event::Looked(1), 1).await;
}

/// Its answer says that it waits. It was granted since, and no connection received the grant.
#[tokio::test]
async fn an_attempt_that_was_under_way_when_a_connection_was_made_is_made_again() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    let session = client.session().await.unwrap();
    store.gate.store(true, Ordering::Release);
    let attempt = client.attempt(owner, &(1, true));
    let meanwhile = async {
        store.has_seen(Event::Asked, 1).await;
        let renewed = store.count(Event::Renewed);
        reset(&session);
        // The renewal comes after the session has counted the connection.
        store.has_seen(Event::Renewed, renewed + 1).await;
        store.gate.store(false, Ordering::Release);
    };
    let (waits, ()) = tokio::join!(attempt, meanwhile);
    assert_eq!(recheck(waits.unwrap()), Duration::ZERO);
}

/// Its answer says that it holds. The service was restored from older data since, and may have granted the lock to another
/// owner. The check of the places after the reconnect did not know of this one.
#[tokio::test]
async fn a_grant_that_was_under_way_when_a_connection_was_made_is_asked_for_again() {
    let (client, store, owner) = client();
    store.set(1, Stand::Held(FencingToken::new(7)));
    let session = client.session().await.unwrap();
    store.gate.store(true, Ordering::Release);
    let attempt = client.attempt(owner, &(1, true));
    let meanwhile = async {
        store.has_seen(Event::Asked, 1).await;
        store.set(1, Stand::Waits);
        let renewed = store.count(Event::Renewed);
        reset(&session);
        store.has_seen(Event::Renewed, renewed + 1).await;
        store.gate.store(false, Ordering::Release);
    };
    let (attempt, ()) = tokio::join!(attempt, meanwhile);
    assert!(matches!(attempt.unwrap(), Attempt::Contended(_)));
    assert_eq!(store.count(Event::Asked), 2);
}

/// Its answer says that the service does not know the session. It may be of a server that the session has left since. Only the
/// answer to the repeated attempt counts.
#[tokio::test]
async fn an_end_that_was_under_way_when_a_connection_was_made_is_asked_for_again() {
    for knows in [true, false] {
        let (client, store, owner) = client();
        let session = client.session().await.unwrap();
        store.gate.store(true, Ordering::Release);
        let attempt = client.attempt(owner, &(1, true));
        let meanwhile = async {
            store.has_seen(Event::Asked, 1).await;
            if knows {
                store.set(1, Stand::Held(FencingToken::new(7)));
            }
            let renewed = store.count(Event::Renewed);
            reset(&session);
            store.has_seen(Event::Renewed, renewed + 1).await;
            store.gate.store(false, Ordering::Release);
        };
        let (attempt, ()) = tokio::join!(attempt, meanwhile);
        match attempt {
            Ok(attempt) => assert!(knows && matches!(attempt, Attempt::Granted(_))),
            Err(error) => {
                assert!(!knows, "{error}");
                assert_eq!(error.kind(), BackendErrorKind::SessionEnded);
            }
        }
        assert_eq!(session.ensure_live().is_ok(), knows);
        assert_eq!(store.count(Event::Asked), 2);
    }
}

/// A message has told of the grant over the new connection, so it is certain.
#[tokio::test]
async fn a_grant_that_the_new_connection_has_told_of_is_not_asked_for_again() {
    let (client, store, owner) = client();
    let token = FencingToken::new(7);
    store.set(1, Stand::Held(token));
    let session = client.session().await.unwrap();
    store.gate.store(true, Ordering::Release);
    let attempt = client.attempt(owner, &(1, true));
    let meanwhile = async {
        store.has_seen(Event::Asked, 1).await;
        let renewed = store.count(Event::Renewed);
        reset(&session);
        store.has_seen(Event::Renewed, renewed + 1).await;
        session.places().granted(owner, token, |_| true);
        store.gate.store(false, Ordering::Release);
    };
    let (attempt, ()) = tokio::join!(attempt, meanwhile);
    assert!(matches!(attempt.unwrap(), Attempt::Granted(_)));
    assert_eq!(store.count(Event::Asked), 1);
}

#[tokio::test]
async fn a_release_that_was_sent_twice_freed_what_was_held() {
    let (client, store, owner) = client();
    store.set(1, Stand::Held(FencingToken::new(7)));
    let held = client.attempt(owner, &(1, true)).await.unwrap();
    assert!(matches!(held, Attempt::Granted(_)));
    // The first of the two tries has freed it.
    store.stands.lock().unwrap().clear();
    store.repeats.store(true, Ordering::Release);
    assert_eq!(client.release(owner).await.unwrap(), Released::Freed);
    // A waiter held nothing that a try could have freed.
    store.set(2, Stand::Waits);
    let waits = client.attempt(owner, &(2, true)).await.unwrap();
    assert!(matches!(waits, Attempt::Contended(_)));
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
    // With one try, nobody has freed what the service does not have.
    store.repeats.store(false, Ordering::Release);
    store.set(3, Stand::Held(FencingToken::new(8)));
    let held = client.attempt(owner, &(3, true)).await.unwrap();
    assert!(matches!(held, Attempt::Granted(_)));
    store.stands.lock().unwrap().clear();
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
}

#[tokio::test]
async fn a_session_that_the_service_no_longer_knows_is_followed_by_another() {
    let (client, store, owner) = client();
    let first = client.session().await.unwrap();
    let error = client.attempt(owner, &(1, true)).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::SessionEnded);
    assert!(first.ensure_live().is_err());
    store.set(1, Stand::Held(FencingToken::new(1)));
    let attempt = client.attempt(owner, &(1, true)).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)));
    assert!(!Arc::ptr_eq(&first, &client.session().await.unwrap()));
}

#[tokio::test]
async fn who_never_asked_has_nothing_to_wait_in() {
    let (client, _store, owner) = client();
    assert!(client.subscribe(owner).is_err());
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_release_succeeds_before_what_may_come_late_is_refused_and_the_session_makes_up_for_it() {
    let (client, store, owner) = client();
    let session = client.session().await.unwrap();
    store.set(1, Stand::Held(FencingToken::new(7)));
    store.repeats.store(true, Ordering::Release);
    store.cannot_settle.store(true, Ordering::Release);
    let held = client.attempt(owner, &(1, true)).await.unwrap();
    assert!(matches!(held, Attempt::Granted(_)));
    assert_eq!(client.release(owner).await.unwrap(), Released::Freed);
    // Until then the owner can't take another place.
    let error = client.attempt(owner, &(1, true)).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    // Another release doesn't have to wait for that one.
    let other = OwnerId::mint();
    session.places().expect(other, || 2).unwrap();
    session.places().answered(other, &2, false);
    drop(session.places().release(other));
    store.has_seen(Event::Released(2, false), 1).await;
    store.has_seen(Event::Released(1, true), 3).await;
    store.cannot_settle.store(false, Ordering::Release);
    store.has_seen(Event::Settled(1), 1).await;
    let settled = |event: &Event| matches!(event, Event::Settled(_));
    assert_eq!(
        store
            .events
            .borrow()
            .iter()
            .filter(|it| settled(it))
            .count(),
        1
    );
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that its wake-up drops, as some executors do that have ended.
struct DroppedWhenWoken(Mutex<Option<Task>>);

impl std::task::Wake for DroppedWhenWoken {
    fn wake(self: Arc<Self>) {
        let task = self.0.lock().unwrap().take();
        drop(task);
    }
}

/// The task also has an attempt without an answer: the session notes that its outcome is unknown.
#[tokio::test]
async fn a_wake_up_may_drop_an_attempt() {
    /// Of a waiter, and of the holder right ahead of it.
    type News = fn(&Places<u32>, OwnerId, OwnerId);
    let news: [News; 9] = [
        |places, waiter, _| places.granted(waiter, FencingToken::new(2), |_| true),
        |places, waiter, _| places.wake(waiter),
        |places, waiter, _| {
            let error = BackendError::new(BackendErrorKind::SessionEnded, "told to");
            places.failed(waiter, error, |_| true);
        },
        |places, waiter, _| places.forget(waiter),
        |places, waiter, _| places.release(waiter).unwrap().done(),
        |places, waiter, _| drop(places.listen(waiter)),
        |places, _, holder| assert!(places.broken(holder, &Loss::Expired, |_| true)),
        |places, _, holder| places.retake(holder, "the store"),
        |places, _, holder| drop(places.release(holder)),
    ];
    for (number, news) in news.into_iter().enumerate() {
        let (client, store, waiter) = client();
        let (client, holder) = (Arc::new(client), OwnerId::mint());
        store.set(1, Stand::Waits);
        store.set(2, Stand::Held(FencingToken::new(1)));
        let _waits = client.attempt(waiter, &(1, true)).await.unwrap();
        let Attempt::Granted(held) = client.attempt(holder, &(2, true)).await.unwrap() else {
            panic!("it is held");
        };
        let session = client.session().await.unwrap();
        let next = FencingToken::new(2);
        session.places().follow(waiter, next, holder, |_| true, 0);
        let mut line = client.subscribe(waiter).unwrap();
        store.hangs.store(true, Ordering::Release);
        let mut task: Task = Box::pin(async move {
            let attempt = client.attempt(OwnerId::mint(), &(3, true));
            drop(futures_util::join!(line.next(), held.lost.lost(), attempt));
        });
        let dropped = Arc::new(DroppedWhenWoken(Mutex::default()));
        let waker = dropped.clone().into();
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        *dropped.0.lock().unwrap() = Some(task);
        let (told, is_told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            news(session.places(), waiter, holder);
            told.send(())
        });
        assert_eq!(is_told.recv_timeout(PATIENCE), Ok(()), "{number}");
        assert!(dropped.0.lock().unwrap().is_none(), "{number}");
    }
}
