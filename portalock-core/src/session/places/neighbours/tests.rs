use futures_util::FutureExt as _;

use super::super::{Asked, Places, Stand};
use crate::{FencingToken, Lease, Loss, OwnerId, Wake, Wakeups};

type Book = Places<u32>;

fn token(number: u64) -> FencingToken {
    FencingToken::new(number)
}

/// A session, and an owner that holds with token 1 at place 1.
fn held() -> (Book, Lease, OwnerId) {
    let lease = Lease::unbounded();
    let places = Book::new(lease.signal());
    let owner = OwnerId::mint();
    places.expect(owner, || 1).unwrap();
    places.hold(owner, token(1), 0).unwrap();
    (places, lease, owner)
}

/// A waiter at this place.
fn waits(places: &Book, at: u32) -> (OwnerId, Wakeups) {
    let owner = OwnerId::mint();
    places.expect(owner, || at).unwrap();
    places.queued(owner);
    (owner, places.listen(owner))
}

/// `owner` comes right behind `ahead`, which has the place before.
fn follow(places: &Book, owner: OwnerId, at: u32, ahead: OwnerId) {
    let is_of = |place: &u32| [at - 1, at].contains(place);
    places.follow(owner, token(at.into()), ahead, is_of, places.reconnects());
}

fn grant(line: &mut Wakeups) -> Option<FencingToken> {
    match line.next().now_or_never()? {
        Wake::Granted(grant) => grant.token,
        _ => None,
    }
}

/// Releases, and returns the place that took over.
fn release(places: &Book, owner: OwnerId) -> Option<u32> {
    let releasing = places.release(owner).unwrap();
    let next = releasing.leaving().next;
    releasing.done();
    next
}

#[test]
fn a_waiter_takes_over_when_the_owner_right_ahead_releases() {
    let (places, _lease, first) = held();
    let (second, mut second_line) = waits(&places, 2);
    let (third, mut third_line) = waits(&places, 3);
    follow(&places, third, 3, second);
    follow(&places, second, 2, first);
    let releasing = places.release(first).unwrap();
    assert_eq!(releasing.leaving().next, Some(2), "the service is told");
    assert_eq!(grant(&mut second_line), Some(token(2)), "before the answer");
    assert_eq!(grant(&mut third_line), None);
    // The service grants it the same, later or never.
    places.granted(second, token(2), |_| true);
    // The release of the second may be answered first.
    assert_eq!(release(&places, second), Some(3));
    releasing.done();
    assert_eq!(grant(&mut third_line), Some(token(3)));
    assert_eq!(release(&places, third), None);
}

#[test]
fn one_whose_answer_comes_late_takes_over_from_a_release_in_flight() {
    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 2);
    let releasing = places.release(first).unwrap();
    follow(&places, second, 2, first);
    assert_eq!(grant(&mut line), Some(token(2)));
    // Only one takes over.
    let (other, mut line) = waits(&places, 2);
    follow(&places, other, 2, first);
    assert_eq!(grant(&mut line), None);
    releasing.done();

    // After the answer it is the service that has granted to the next.
    let (third, mut line) = waits(&places, 3);
    release(&places, second);
    follow(&places, third, 3, second);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn nobody_takes_over_from_one_who_gives_up_or_has_lost_its_lock() {
    let (places, _lease, first) = held();
    let (second, _) = waits(&places, 2);
    let (third, mut line) = waits(&places, 3);
    follow(&places, second, 2, first);
    follow(&places, third, 3, second);
    let gives_up = places.release(second).unwrap();
    assert_eq!(gives_up.leaving().next, None, "it never held");
    assert_eq!(grant(&mut line), None);
    assert_eq!(release(&places, first), None, "the second waits no more");
    gives_up.done();

    let (places, _lease, first) = held();

    let (fourth, mut line) = waits(&places, 2);
    follow(&places, fourth, 2, first);
    let mut standing = places.standing(false);
    let asked = standing.pop().unwrap();
    places.found(&asked, Stand::Gone, "a table");
    assert_eq!(release(&places, first), None, "somebody took it away");
    assert_eq!(grant(&mut line), None);

    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 2);
    follow(&places, second, 2, first);
    places.broken(first, &Loss::Expired, |_| true);
    assert_eq!(release(&places, first), None, "it was broken");
    assert_eq!(grant(&mut line), None);
}

#[test]
fn a_release_that_failed_passes_nothing_on() {
    let (places, _lease, first) = held();
    drop(places.release(first).unwrap());
    let (second, mut line) = waits(&places, 2);
    follow(&places, second, 2, first);
    assert_eq!(places.release_due(first).unwrap().leaving().next, None);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn a_reconnect_ends_all_turns() {
    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 2);
    let before = places.reconnects();
    follow(&places, second, 2, first);
    assert_eq!(places.reconnected().len(), 2);
    // An answer from before it counts no more.
    places.follow(second, token(2), first, |_| true, before);
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn an_answer_that_names_nobody_ends_a_turn() {
    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 2);
    follow(&places, second, 2, first);
    places.follow_nobody(second);
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn nobody_follows_another_place_of_the_owner_ahead() {
    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 3);
    follow(&places, second, 3, first);
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);

    // Nor one that is no longer right ahead.
    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 3);
    let (other, _) = waits(&places, 2);
    places.follow(second, token(3), first, |_| true, places.reconnects());
    follow(&places, second, 3, other);
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);

    // Nor its next place.
    let (places, _lease, first) = held();
    let (second, mut line) = waits(&places, 2);
    follow(&places, second, 2, first);
    places.forget(first);
    places.expect(first, || 9).unwrap();
    places.hold(first, token(9), 0).unwrap();
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn a_late_message_for_an_earlier_place_of_a_waiter_does_not_count() {
    let (places, _lease, first) = held();
    let (second, _) = waits(&places, 2);
    places.forget(second);
    // Its next place has others ahead of it.
    places.expect(second, || 9).unwrap();
    places.queued(second);
    let mut line = places.listen(second);
    follow(&places, second, 2, first);
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn nobody_takes_over_after_the_sessions_end() {
    let (places, lease, first) = held();
    let (second, mut line) = waits(&places, 2);
    follow(&places, second, 2, first);
    lease.end(Loss::Expired);
    assert_eq!(release(&places, first), None);
    assert_eq!(grant(&mut line), None);
}

#[test]
fn a_check_finds_one_that_took_over_still_waiting() {
    let (places, _lease, first) = held();
    let (second, _line) = waits(&places, 2);
    let found = |asked: &[Asked<u32>], stand| places.found(&asked[0], stand, "a table");
    follow(&places, second, 2, first);
    release(&places, first);
    let asked = places.standing(true);
    let kept = |asked: &[Asked<u32>]| asked[0].held && places.held(second).is_some();
    assert!(kept(&asked));
    found(&asked, Stand::Follows(token(2)));
    found(&asked, Stand::Held(token(2)));
    let lost = places.hold(second, token(2), 0).unwrap().unwrap().lost;
    assert!(!lost.is_lost());
    found(&asked, Stand::Follows(token(3)));
    assert!(lost.is_lost(), "it waits with another token");

    // One that waits has not been granted by its token.
    let (third, mut line) = waits(&places, 3);
    let waiting: Vec<_> = places.standing(true);
    let asked = waiting.iter().find(|asked| asked.owner == third).unwrap();
    places.found(asked, Stand::Follows(token(3)), "a table");
    assert_eq!(grant(&mut line), None);
}
