//! What an attempt may have left at the service, and who releases it.

use super::{client::client, *};

#[tokio::test]
async fn what_an_attempt_without_an_answer_may_have_left_is_made_void() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    client.session().await.unwrap();
    store.refuses.store(true, Ordering::Release);
    assert!(client.attempt(owner, &(1, true)).await.is_err());
    store.refuses.store(false, Ordering::Release);
    let attempt = client.attempt(owner, &(1, true)).await.unwrap();
    assert!(matches!(attempt, Attempt::Contended(contention) if contention.queued));
    client.release(owner).await.unwrap();
    store.has_seen(Event::Released(1, true), 1).await;

    // Refused, but an earlier try of the attempt may still arrive.
    store.set(2, Stand::Waits);
    store.repeats.store(true, Ordering::Release);
    let refused = client.attempt(owner, &(2, false)).await.unwrap();
    assert!(matches!(refused, Attempt::Contended(_)));
    store.has_seen(Event::Released(2, true), 1).await;
}

/// Otherwise the release could free the place after a later attempt was granted with it.
#[tokio::test]
async fn a_place_of_one_that_does_not_wait_is_released_and_not_used_again_if_that_fails() {
    let (client, store, owner) = client();
    *store.answers.lock().unwrap() = Some(|| Entered::Contended(None));
    let contended = client.attempt(owner, &(1, false)).await.unwrap();
    assert!(matches!(contended, Attempt::Contended(contention) if !contention.queued));
    // Nothing is in flight that would have to be refused.
    assert_eq!(store.count(Event::Released(1, false)), 1);
    assert_eq!(store.count(Event::Settled(1)), 0);
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);

    store.silent.lock().unwrap().push(2);
    client.attempt(owner, &(2, false)).await.unwrap_err();
    *store.answers.lock().unwrap() = Some(|| Entered::Granted(FencingToken::new(7)));
    // As long as the release has no answer.
    client.attempt(owner, &(3, false)).await.unwrap_err();
    assert_eq!(client.held(owner), None);
    store.silent.lock().unwrap().clear();
    let granted = client.attempt(owner, &(3, false)).await.unwrap();
    assert!(matches!(granted, Attempt::Granted(_)));
    // By the session, perhaps.
    store.has_seen(Event::Released(2, false), 1).await;
    assert_eq!(client.held(owner).unwrap().0, 3);
}

#[tokio::test]
async fn what_a_failed_request_may_have_left_stays_until_its_owner_is_released() {
    fn failed(left: bool) -> Entered {
        let error = BackendError::new(BackendErrorKind::OutOfSpace, "full");
        Entered::Failed { error, left }
    }
    let (client, store, owner) = client();
    *store.answers.lock().unwrap() = Some(|| failed(true));
    let error = client.attempt(owner, &(1, true)).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::OutOfSpace);
    *store.answers.lock().unwrap() = None;
    // It was executed nevertheless.
    store.set(1, Stand::Held(FencingToken::new(7)));
    let granted = client.attempt(owner, &(2, true)).await.unwrap();
    assert!(matches!(granted, Attempt::Granted(_)));
    assert_eq!(client.held(owner).unwrap().0, 1);
    assert_eq!(client.release(owner).await.unwrap(), Released::Freed);
    assert_eq!(store.count(Event::Released(1, false)), 1);

    *store.answers.lock().unwrap() = Some(|| failed(true));
    client.attempt(owner, &(3, true)).await.unwrap_err();
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
    assert_eq!(store.count(Event::Released(3, false)), 1);
    // Also if the last one certainly left nothing.
    for left in [|| failed(true), || failed(false)] as [fn() -> Entered; 2] {
        *store.answers.lock().unwrap() = Some(left);
        client.attempt(owner, &(5, true)).await.unwrap_err();
    }
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
    assert_eq!(store.count(Event::Released(5, false)), 1);
    // Of a request that certainly left nothing, nothing is released.
    *store.answers.lock().unwrap() = Some(|| failed(false));
    client.attempt(owner, &(4, true)).await.unwrap_err();
    assert_eq!(client.release(owner).await.unwrap(), Released::NotHeld);
    assert_eq!(store.count(Event::Released(4, false)), 0);
}

/// A waiter repeats its attempt, and the service refuses that for a reason of its own: its rights were revoked meanwhile.
#[tokio::test]
async fn the_place_of_a_waiter_whose_next_attempt_left_nothing_is_released_with_its_owner() {
    let (client, store, owner) = client();
    store.set(1, Stand::Waits);
    let waits = client.attempt(owner, &(1, true)).await.unwrap();
    assert!(matches!(waits, Attempt::Contended(contention) if contention.queued));
    *store.answers.lock().unwrap() = Some(|| Entered::Failed {
        error: BackendError::new(BackendErrorKind::PermissionDenied, "revoked"),
        left: false,
    });
    client.attempt(owner, &(1, true)).await.unwrap_err();
    client.release(owner).await.unwrap();
    assert_eq!(store.count(Event::Released(1, false)), 1);
}
