use super::*;
use crate::{
    blockers::{Blockers, Line},
    keys::Weight,
};
use portalock_core::{Wake, WakeSender, Wakeups, wakeups};

fn key(key: &str) -> Watched {
    Watched::Key(key.to_owned())
}

/// Waits for this key, which was seen at `seen`.
fn nearest(key: &str, seen: i64) -> Waiting {
    Waiting {
        blockers: Blockers::Nearest(key.to_owned()),
        seen,
    }
}

/// A waiter with a mailbox.
fn waiter(watches: &Watches, waiting: Waiting) -> (OwnerId, Wakeups) {
    let owner = OwnerId::mint();
    watches.wait(owner, waiting).unwrap();
    let (sender, wakeups): (WakeSender, _) = wakeups();
    watches.listen(owner, sender);
    (owner, wakeups)
}

/// Whether a wake-up is there by now.
async fn woken(wakeups: &mut Wakeups) -> bool {
    let none = std::time::Duration::ZERO;
    tokio::time::timeout(none, wakeups.next()).await.is_ok()
}

#[tokio::test]
async fn a_waiter_whose_session_has_ended_is_told_so_however_late_it_listens() {
    let watches = Watches::default();
    let owner = OwnerId::mint();
    watches.wait(owner, nearest("a", 1)).unwrap();
    watches.fail(&crate::error::session_ended("a test"));
    let (sender, mut wakeups) = wakeups();
    watches.listen(owner, sender);
    assert!(matches!(wakeups.next().await, Wake::Failed(_)));
    assert!(watches.wait(owner, nearest("a", 1)).is_err());
}

#[test]
fn a_watch_lasts_until_nobody_has_waited_for_a_while() {
    let watches = Watches::default();
    let (one, two) = (OwnerId::mint(), OwnerId::mint());
    watches.wait(one, nearest("a", 1)).unwrap();
    watches.wait(two, nearest("a", 1)).unwrap();
    let begun = watches.take_orders();
    assert!(
        matches!(begun[..], [Order::Begin(_, Watched::Key(_))]),
        "{begun:?}"
    );
    watches.leave(one);
    watches.forget_idle();
    assert_eq!(watches.take_orders(), []);
    watches.leave(two);
    // Another comes in time.
    watches.wait(one, nearest("a", 1)).unwrap();
    watches.forget_idle();
    watches.leave(one);
    assert_eq!(watches.take_orders(), []);
    watches.forget_idle();
    assert!(matches!(watches.take_orders()[..], [Order::Cancel(_)]));
    let state = watches.lock();
    assert!(state.watches.is_empty() && state.watched_by_id.is_empty());
    assert!(state.waiters.is_empty() && state.idle.is_empty());
}

#[test]
fn few_keys_are_watched_that_nobody_waits_for() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    for number in 0..3 * MOST_IDLE {
        let waiting = nearest(&number.to_string(), 1);
        watches.wait(owner, waiting).unwrap();
    }
    watches.leave(owner);
    let state = watches.lock();
    assert_eq!(state.watches.len(), MOST_IDLE);
    assert_eq!(state.watched_by_id.len(), MOST_IDLE);
    assert_eq!(state.idle.len(), MOST_IDLE);
}

#[tokio::test]
async fn one_whose_nearest_has_gone_is_told_to_look() {
    let watches = Watches::default();
    let (owner, mut wakeups) = waiter(&watches, nearest("a", 7));
    watches.lock().begun(&key("a"), 7);
    assert!(!woken(&mut wakeups).await, "nothing was missed");
    watches.lock().deleted(&key("a"), b"a", 9);
    assert!(woken(&mut wakeups).await);
    assert!(watches.waiting(owner).is_none());
}

#[tokio::test]
async fn the_deletion_of_a_keys_earlier_use_tells_nothing() {
    let watches = Watches::default();
    let (one, _one) = waiter(&watches, nearest("a", 5));
    watches.lock().begun(&key("a"), 5);
    // It has gone and come again; that it had gone is told late.
    let (two, mut wakeups) = waiter(&watches, nearest("a", 9));
    watches.lock().deleted(&key("a"), b"a", 7);
    assert!(watches.waiting(one).is_none());
    assert!(!woken(&mut wakeups).await);
    watches.lock().deleted(&key("a"), b"a", 10);
    assert!(woken(&mut wakeups).await);
    assert!(watches.waiting(two).is_none());
}

#[tokio::test]
async fn who_looked_before_its_watch_began_looks_again() {
    let watches = Watches::default();
    let (owner, mut wakeups) = waiter(&watches, nearest("a", 7));
    watches.lock().begun(&key("a"), 8);
    assert!(woken(&mut wakeups).await);
    assert!(watches.waiting(owner).is_some(), "it may be as it was");
    // Seen again, at a revision that the watch covers.
    watches.wait(owner, nearest("a", 8)).unwrap();
    assert!(!woken(&mut wakeups).await);
    watches.start_over();
    watches.lock().begun(&key("a"), 8);
    assert!(woken(&mut wakeups).await, "another stream");
}

#[tokio::test]
async fn a_watch_that_is_kept_knows_what_has_gone_since() {
    let watches = Watches::default();
    let (one, _one) = waiter(&watches, nearest("a", 1));
    watches.lock().begun(&key("a"), 1);
    watches.leave(one);
    watches.lock().deleted(&key("a"), b"a", 5);
    // Of a later use of the key.
    let (two, mut wakeups) = waiter(&watches, nearest("a", 7));
    assert!(!woken(&mut wakeups).await);
    watches.leave(two);
    watches.lock().deleted(&key("a"), b"a", 9);
    let (_three, mut wakeups) = waiter(&watches, nearest("a", 8));
    assert!(woken(&mut wakeups).await);
}

#[tokio::test]
async fn what_is_told_before_one_listens_is_not_lost() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    watches.wait(owner, nearest("a", 7)).unwrap();
    watches.lock().begun(&key("a"), 8);
    let (sender, mut wakeups) = wakeups();
    watches.listen(owner, sender);
    assert!(woken(&mut wakeups).await);
}

#[tokio::test]
async fn one_who_waits_for_permits_is_told_once_they_suffice() {
    let watches = Watches::default();
    let weight = |count| Weight { count, capacity: 3 };
    let earlier = [(b"a".to_vec(), weight(1)), (b"b".to_vec(), weight(2))];
    let line = Line {
        queue: "q/".to_owned(),
        earlier: earlier.into(),
        own: weight(2),
    };
    let waiting = Waiting {
        blockers: Blockers::Permits(line),
        seen: 7,
    };
    let (_owner, mut wakeups) = waiter(&watches, waiting);
    let queue = Watched::Queue("q/".to_owned());
    watches.lock().begun(&queue, 7);
    watches.lock().deleted(&queue, b"a", 8);
    assert!(!woken(&mut wakeups).await);
    watches.lock().deleted(&queue, b"b", 9);
    assert!(woken(&mut wakeups).await);
}
