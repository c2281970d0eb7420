use super::{crowd::CROWD, idle::MOST_IDLE, *};
use portalock_core::{Wake, wakeups};

#[tokio::test]
async fn a_waiter_whose_session_has_ended_is_told_so_however_late_it_listens() {
    let watches = Watches::default();
    let owner = OwnerId::mint();
    watches
        .wait(owner, Blockers::Last("a".to_owned()), 1)
        .unwrap();
    watches.fail(&crate::error::session_ended("a test"));
    let (sender, mut wakeups) = wakeups();
    watches.listen(owner, sender);
    assert!(matches!(wakeups.next().await, Wake::Failed(_)));
    assert!(
        watches
            .wait(owner, Blockers::Last("a".to_owned()), 1)
            .is_err()
    );
}

#[test]
fn a_watch_lasts_a_little_longer_than_somebody_waits() {
    let watches = Watches::default();
    let (one, two) = (OwnerId::mint(), OwnerId::mint());
    let wait = |owner, key: &str| watches.wait(owner, Blockers::Last(key.to_owned()), 1);
    wait(one, "a").unwrap();
    wait(two, "a").unwrap();
    let begun = watches.take_orders();
    assert!(
        matches!(begun[..], [Order::Begin(_, Watched::Key(_))]),
        "{begun:?}"
    );
    watches.lock().confirmed(&key("a"), 1);
    watches.leave(one);
    watches.forget_idle();
    watches.forget_idle();
    assert_eq!(watches.take_orders(), []);
    watches.leave(two);
    watches.forget_idle();
    // Another comes in time.
    wait(one, "a").unwrap();
    watches.forget_idle();
    watches.leave(one);
    assert_eq!(watches.take_orders(), []);
    watches.forget_idle();
    watches.forget_idle();
    assert!(matches!(watches.take_orders()[..], [Order::Cancel(_)]));
    assert!(watches.lock().watches.is_empty());
    // What was not sent yet need not be taken back.
    wait(one, "b").unwrap();
    wait(one, "c").unwrap();
    watches.leave(one);
    assert_eq!(watches.take_orders(), []);
}

fn key(key: &str) -> Watched {
    Watched::Key(key.to_owned())
}

fn last(key: &str) -> Blockers {
    Blockers::Last(key.to_owned())
}

fn far() -> Blockers {
    Blockers::Far {
        nearest: "near".to_owned(),
        second: "second".to_owned(),
    }
}

#[test]
fn the_last_one_before_frees_the_way() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    watches.wait(owner, last("a"), 7).unwrap();
    assert_ne!(watches.advice(owner), Advice::Hold);
    watches.lock().confirmed(&key("a"), 7);
    assert_eq!(watches.advice(owner), Advice::Look);
    watches.lock().deleted(&key("a"), b"a", 9);
    assert_eq!(watches.advice(owner), Advice::Hold);
    watches.misplaced(owner);
    assert_eq!(watches.advice(owner), Advice::Look, "in another place");
}

#[test]
fn the_deletion_of_a_keys_earlier_use_frees_nothing() {
    let (watches, [one, two]) = (Watches::default(), [(); 2].map(|()| OwnerId::mint()));
    watches.wait(one, last("a"), 5).unwrap();
    assert_ne!(watches.advice(one), Advice::Hold);
    watches.lock().confirmed(&key("a"), 5);
    // It has gone and come again; that it had gone is told late.
    watches.wait(two, last("a"), 9).unwrap();
    assert_ne!(watches.advice(two), Advice::Hold);
    watches.lock().deleted(&key("a"), b"a", 7);
    assert_eq!(watches.advice(one), Advice::Hold);
    assert_eq!(watches.advice(two), Advice::Look);
    watches.lock().deleted(&key("a"), b"a", 10);
    assert_eq!(watches.advice(two), Advice::Hold);
}

#[test]
fn a_watch_that_began_late_is_no_proof() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    watches.wait(owner, last("a"), 7).unwrap();
    assert_ne!(watches.advice(owner), Advice::Hold);
    watches.lock().confirmed(&key("a"), 8);
    assert_eq!(watches.advice(owner), Advice::Confirm(last("a")));
    // Seen again, at a revision that the watch covers.
    watches.wait(owner, last("a"), 8).unwrap();
    assert_ne!(watches.advice(owner), Advice::Hold);
    assert_eq!(watches.advice(owner), Advice::Look);
    watches.start_over();
    watches.lock().confirmed(&key("a"), 8);
    assert_eq!(watches.advice(owner), Advice::Confirm(last("a")));
}

#[test]
fn one_who_looks_ahead_misses_nothing_meanwhile() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    watches.wait(owner, far(), 7).unwrap();
    assert_ne!(watches.advice(owner), Advice::Hold);
    watches.lock().confirmed(&key("second"), 7);
    watches.lock().deleted(&key("second"), b"second", 8);
    assert_eq!(watches.advice(owner), Advice::LookAhead);
    // While it looks.
    watches.lock().confirmed(&key("near"), 8);
    watches.lock().deleted(&key("near"), b"near", 10);
    assert_eq!(
        watches.advice(owner),
        Advice::LookAhead,
        "there may be others"
    );
    // It saw the nearest alone, before that went.
    watches.wait(owner, last("near"), 9).unwrap();
    assert_eq!(watches.advice(owner), Advice::Hold);
}

#[test]
fn few_keys_are_watched_that_nobody_waits_for() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    for number in 0..3 * MOST_IDLE {
        let name = number.to_string();
        watches.wait(owner, last(&name), 1).unwrap();
        watches.lock().confirmed(&key(&name), 1);
        watches.leave(owner);
    }
    let state = watches.lock();
    assert_eq!(state.watches.len(), MOST_IDLE);
    assert_eq!(state.watched_by_id.len(), MOST_IDLE);
    assert_eq!(state.idle.len(), MOST_IDLE);
}

#[test]
fn a_watch_that_is_kept_knows_what_has_gone_since() {
    let (watches, [one, two]) = (Watches::default(), [(); 2].map(|()| OwnerId::mint()));
    watches.wait(one, last("a"), 1).unwrap();
    assert_ne!(watches.advice(one), Advice::Hold);
    watches.lock().confirmed(&key("a"), 1);
    watches.leave(one);
    watches.lock().deleted(&key("a"), b"a", 5);
    // Of a later use of the key.
    watches.wait(two, last("a"), 7).unwrap();
    assert_ne!(watches.advice(two), Advice::Hold);
    watches.leave(two);
    watches.lock().deleted(&key("a"), b"a", 9);
    watches.wait(two, last("a"), 8).unwrap();
    assert_eq!(watches.advice(two), Advice::Hold);
}

#[test]
fn one_in_a_crowd_looks_when_the_one_before_it_has_its_turn() {
    let watches = Watches::default();
    let owners = [(); CROWD + 3].map(|()| OwnerId::mint());
    for (place, owner) in (10..).zip(&owners) {
        let led = watches.follow(*owner, "x/", place).unwrap();
        assert_eq!(led, place >= 10 + i64::try_from(CROWD).unwrap());
    }
    let [.., before, last] = owners;
    // Of another queue.
    assert!(!watches.follow(OwnerId::mint(), "y/", 99).unwrap());
    assert_eq!(watches.advice(last), Advice::Stay);
    watches.leave(owners[0]);
    assert_eq!(watches.advice(last), Advice::Stay);
    watches.leave(before);
    assert_eq!(watches.advice(last), Advice::LookAhead);
    for owner in owners {
        watches.leave(owner);
    }
    assert_eq!(watches.lock().rows.len(), 1);
}

#[test]
fn one_who_has_lost_its_place_leads_nobody() {
    let watches = Watches::default();
    let owners = [(); CROWD + 1].map(|()| OwnerId::mint());
    for (place, owner) in (10..).zip(&owners) {
        watches.follow(*owner, "x/", place).unwrap();
    }
    let [.., before, last] = owners;
    assert_eq!(watches.advice(last), Advice::Stay);
    watches.misplaced(before);
    assert_eq!(watches.advice(last), Advice::LookAhead);
    assert_eq!(watches.advice(before), Advice::Look);
    // It comes back behind it.
    assert!(watches.follow(before, "x/", 99).unwrap());
    watches.misplaced(before);
    assert_eq!(watches.advice(before), Advice::Look);
}
