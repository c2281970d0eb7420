use futures_util::FutureExt as _;

use super::*;
use crate::Lease;
use crate::Wake;

/// Each place has a number of its own.
type Book = Places<u32>;

fn book() -> (Book, Lease, OwnerId) {
    let lease = Lease::unbounded();
    (Places::new(lease.signal()), lease, OwnerId::mint())
}

fn token(number: u64) -> FencingToken {
    FencingToken::new(number)
}

#[test]
fn nobody_asks_beside_a_release_of_what_it_had() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    assert!(!places.is_leaving(owner));
    let releasing = places.release(owner).unwrap();
    assert!(places.is_leaving(owner));
    assert!(places.expect(owner, || 2).is_err());
    assert!(places.release_due(owner).is_none(), "somebody does it");
    let told = || places.owed.notified().now_or_never().is_some();
    assert!(!told());
    drop(releasing);
    assert!(told(), "the session makes it");
    assert_eq!(places.due(), [owner]);
    assert!(places.expect(owner, || 2).is_err());
    places.release_due(owner).unwrap().done();
    assert!(!told(), "it is done");
    assert_eq!(places.expect(owner, || 2).unwrap().at, 2);
}

#[test]
fn a_release_that_is_answered_late_leaves_what_came_after_it() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    let late = places.release(owner).unwrap();
    let dropped = places.release(owner).unwrap();
    places.release(owner).unwrap().done();
    places.expect(owner, || 2).unwrap();
    places.hold(owner, token(2), 0).unwrap();
    late.done();
    drop(dropped);
    assert_eq!(places.held(owner), Some((2, token(2))));
    assert!(places.due().is_empty());
}

#[test]
fn a_release_that_began_before_a_reconnect_is_repeated() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    let releasing = places.release(owner).unwrap();
    places.reconnected();
    releasing.done();
    assert_eq!(places.due(), [owner]);
    places.release_due(owner).unwrap().done();
    assert!(!places.is_leaving(owner));
}

#[tokio::test]
async fn a_waiter_is_woken_and_told_that_it_waits_in_vain_if_it_is_the_one_that_is_meant() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 2).unwrap();
    let mut line = places.listen(owner);
    let error = || BackendError::new(BackendErrorKind::Unavailable, "unconfirmed");
    places.failed(owner, error(), |at| *at == 1);
    assert!(line.next().now_or_never().is_none());
    places.wake(owner);
    assert!(matches!(line.next().await, Wake::TryNow));
    places.failed(owner, error(), |at| *at == 2);
    assert!(matches!(line.next().await, Wake::Failed(_)));
}

#[test]
fn a_grant_told_late_is_not_the_next_places() {
    let (places, lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.release(owner).unwrap().done();
    places.expect(owner, || 2).unwrap();
    places.granted(owner, token(1), |at| *at == 1);
    assert!(places.held(owner).is_none());
    lease.end(Loss::Expired);
    places.granted(owner, token(2), |at| *at == 2);
    assert!(places.held(owner).is_none(), "nothing is certain any more");
}

#[tokio::test]
async fn a_grant_that_comes_before_the_waiter_listens_is_kept_and_told_once() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.queued(owner);
    places.granted(owner, token(7), |_| true);
    places.granted(owner, token(8), |_| true);
    let mut line = places.listen(owner);
    let Wake::Granted(grant) = line.next().await else {
        panic!("there should be a grant");
    };
    assert_eq!(grant.token, Some(token(7)));
    drop(places);
    assert!(matches!(line.next().await, Wake::Silent));
}

/// A waiter that was told of a failure asks again, and then listens again.
#[test]
fn a_grant_that_comes_before_the_waiter_listens_again_is_kept() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.queued(owner);
    drop(places.listen(owner));
    places.wake(owner);
    places.granted(owner, token(7), |_| true);
    let mut line = places.listen(owner);
    let Some(Wake::Granted(grant)) = line.next().now_or_never() else {
        panic!("there should be a grant");
    };
    assert_eq!(grant.token, Some(token(7)));
    assert!(matches!(line.next().now_or_never(), Some(Wake::TryNow)));
}

#[test]
fn an_answer_that_comes_after_the_grant_is_older_than_it() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.granted(owner, token(7), |_| true);
    places.queued(owner);
    assert_eq!(places.held(owner), Some((1, token(7))));
}

#[test]
fn a_request_without_an_answer_may_arrive_until_all_are_answered() {
    let (places, _lease, owner) = book();
    assert!(!places.expect(owner, || 1).unwrap().unsure);
    // Dropped before its answer. The answer to another attempt says nothing about it.
    assert!(places.expect(owner, || 1).unwrap().unsure);
    assert!(places.answered(owner, &1, true));
    assert!(places.release(owner).unwrap().leaving().unsure);

    let other = OwnerId::mint();
    places.expect(other, || 1).unwrap();
    assert!(places.answered(other, &1, false));
    assert!(!places.release(other).unwrap().leaving().unsure);
}

#[test]
fn what_an_attempt_took_after_its_release_is_released_again() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.release(owner).unwrap().done();
    assert!(!places.answered(owner, &1, false));
    assert!(places.owed.notified().now_or_never().is_some());
    let releasing = places.release_due(owner).unwrap();
    assert!(releasing.leaving().unsure);
    // This one was sent before the release was answered.
    assert!(!places.answered(owner, &1, false));
    releasing.done();
    assert_eq!(places.due(), [owner]);
}

#[test]
fn one_who_asks_again_for_what_it_holds_hears_of_its_loss() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    let first = places.hold(owner, token(1), 0).unwrap().unwrap();
    let again = places.hold(owner, token(1), 0).unwrap().unwrap();
    let [asked] = places.standing(true).try_into().unwrap();
    places.found(&asked, Stand::Gone, "a table");
    assert!(first.lost.is_lost() && again.lost.is_lost());
}

#[test]
fn what_is_gone_is_lost_and_what_has_happened_meanwhile_counts() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    assert!(places.standing(true).is_empty(), "it is not answered yet");
    let grant = places.hold(owner, token(1), 0).unwrap().unwrap();
    let [asked] = places.standing(true).try_into().unwrap();
    places.found(&asked, Stand::Held(token(1)), "a table");
    assert!(!grant.lost.is_lost());

    let releasing = places.release(owner).unwrap();
    places.found(&asked, Stand::Gone, "a table");
    assert!(!grant.lost.is_lost(), "it is being released");
    releasing.done();

    // It was granted while the service was asked for its state.
    let waiter = OwnerId::mint();
    places.expect(waiter, || 1).unwrap();
    places.queued(waiter);
    let [asked] = places.standing(true).try_into().unwrap();
    let grant = places.hold(waiter, token(2), 0).unwrap().unwrap();
    places.found(&asked, Stand::Waits, "a table");
    assert!(!grant.lost.is_lost());
    places.forget(waiter);

    for stand in [Stand::Gone, Stand::Waits, Stand::Held(token(3))] {
        let owner = OwnerId::mint();
        places.expect(owner, || 1).unwrap();
        let grant = places.hold(owner, token(2), 0).unwrap().unwrap();
        let [asked] = places.standing(true).try_into().unwrap();
        places.found(&asked, stand, "a table");
        assert!(
            matches!(grant.lost.loss(), Some(Loss::Removed(_))),
            "{stand:?}"
        );
        places.forget(owner);
    }
}

#[tokio::test]
async fn a_look_finds_a_grant_that_was_not_heard_and_a_place_that_is_gone() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.queued(owner);
    let mut line = places.listen(owner);
    let [asked] = places.standing(true).try_into().unwrap();
    places.found(&asked, Stand::Waits, "a table");
    places.found(&asked, Stand::Held(token(5)), "a table");
    assert!(matches!(line.next().await, Wake::Granted(_)));

    let other = OwnerId::mint();
    places.forget(owner);
    places.expect(other, || 1).unwrap();
    places.queued(other);
    let mut line = places.listen(other);
    let [asked] = places.standing(true).try_into().unwrap();
    places.found(&asked, Stand::Gone, "a table");
    assert!(matches!(line.next().await, Wake::Failed(_)));
}

#[tokio::test]
async fn a_session_that_is_over_tells_its_waiters_and_takes_no_more() {
    let (places, lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    let mut line = places.listen(owner);
    lease.end(Loss::Expired);
    places.close();
    assert!(matches!(line.next().await, Wake::Failed(_)));
    let over = places.expect(OwnerId::mint(), || 2).unwrap_err();
    assert_eq!(over.kind(), BackendErrorKind::SessionEnded);
    assert!(places.hold(owner, token(1), 0).is_err());
    assert!(places.release(owner).is_none());
    let mut late = places.listen(owner);
    assert!(matches!(late.next().await, Wake::Failed(_)));
}

#[test]
fn a_place_that_is_broken_is_lost_and_due_and_the_owners_next_one_is_not() {
    let loss = Loss::Removed("broken".into());
    for is_heard in [true, false] {
        let (places, _lease, owner) = book();
        places.expect(owner, || 1).unwrap();
        let grant = is_heard.then(|| places.hold(owner, token(1), 0).unwrap().unwrap());
        assert!(!places.broken(owner, &loss, |at| *at == 2));
        assert!(places.due().is_empty(), "it was another place");
        for _ in 0..2 {
            assert!(places.broken(owner, &loss, |at| *at == 1));
        }
        let grant = grant.unwrap_or_else(|| places.hold(owner, token(1), 0).unwrap().unwrap());
        assert_eq!(grant.lost.loss(), Some(loss.clone()));
        assert_eq!(places.due(), [owner]);
        places.release_due(owner).unwrap().done();
        places.expect(owner, || 2).unwrap();
        assert!(!places.broken(owner, &loss, |at| *at == 1));
        let next = places.hold(owner, token(2), 0).unwrap().unwrap();
        assert_eq!(next.lost.loss(), None);
    }
}

#[tokio::test]
async fn a_waiter_whose_place_is_broken_asks_again() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.queued(owner);
    let mut line = places.listen(owner);
    assert!(places.broken(owner, &Loss::Expired, |_| true));
    assert!(matches!(line.next().now_or_never(), Some(Wake::TryNow)));
}

#[test]
fn a_place_that_is_broken_in_its_release_is_released_once() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    let releasing = places.release(owner).unwrap();
    assert!(places.broken(owner, &Loss::Expired, |_| true));
    releasing.done();
    assert!(places.due().is_empty());
}

#[test]
fn a_place_that_nobody_here_knows_is_due_and_the_session_is_told() {
    let (places, _lease, owner) = book();
    places.found_unknown(owner, 1);
    assert_eq!(places.due(), [owner]);
    assert!(places.unknown.notified().now_or_never().is_some());
}

#[tokio::test]
async fn one_who_is_told_to_ask_again_hears_of_it_also_if_it_listens_later() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.wake(owner);
    let mut line = places.listen(owner);
    assert!(matches!(line.next().await, Wake::TryNow));
    places.queued(owner);
    assert!(line.next().now_or_never().is_none(), "it is told once");
    places.wake(owner);
    assert!(matches!(line.next().await, Wake::TryNow));
    places.hold(owner, token(1), 0).unwrap();
    places.wake(owner);
    assert!(line.next().now_or_never().is_none(), "it waits no more");
}

#[test]
fn one_who_takes_its_place_anew_is_not_told_of_an_earlier_grant() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    places.granted(owner, token(1), |_| true);
    places.retake(owner, "a table");
    let mut line = places.listen(owner);
    assert!(line.next().now_or_never().is_none());
}

#[test]
fn one_who_takes_its_place_anew_has_lost_what_it_held_and_holds_by_the_new_one() {
    let (places, _lease, owner) = book();
    places.expect(owner, || 1).unwrap();
    let first = places.hold(owner, token(1), 0).unwrap().unwrap();
    places.retake(owner, "a table");
    assert!(matches!(first.lost.loss(), Some(Loss::Removed(_))));
    assert!(places.held(owner).is_none());
    let second = places.hold(owner, token(2), 0).unwrap().unwrap();
    assert!(!second.lost.is_lost());
    assert_eq!(places.held(owner), Some((1, token(2))));

    drop(places.release(owner).unwrap());
    places.retake(owner, "a table");
    assert!(!second.lost.is_lost(), "it is being released");
    assert_eq!(places.due(), [owner]);
}

#[test]
fn a_look_is_told_who_holds() {
    let (places, _lease, holder) = book();
    let waiter = OwnerId::mint();
    places.expect(holder, || 1).unwrap();
    places.hold(holder, token(1), 0).unwrap();
    places.expect(waiter, || 2).unwrap();
    places.queued(waiter);
    let mut asked = places.standing(true);
    asked.sort_by_key(|asked| asked.at);
    let held: Vec<_> = asked.iter().map(|asked| asked.held).collect();
    assert_eq!(held, [true, false]);
}
