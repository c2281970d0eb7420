use super::*;
use crate::{
    blockers::{Ahead, Blockers},
    keys::Weight,
};
use etcd_client::{Client, WatchOptions};
use portalock_testkit::servers::EtcdServer;
use std::time::Duration;
use tokio::time::timeout;

fn key(key: &str) -> Watched {
    Watched::Key(key.to_owned())
}

/// A wait for this key, which was read at `seen`.
fn nearest(key: &str, seen: i64) -> Waiting {
    Waiting {
        blockers: Blockers::Nearest(key.to_owned()),
        seen,
    }
}

/// A new waiter with this wait, which has missed nothing.
fn waiter(watches: &Watches, waiting: Waiting) -> OwnerId {
    let owner = OwnerId::mint();
    assert!(!watches.wait(owner, waiting), "nothing was missed");
    owner
}

#[test]
fn a_watch_lasts_until_nobody_has_waited_for_a_while() {
    let watches = Watches::default();
    let one = waiter(&watches, nearest("a", 1));
    let two = waiter(&watches, nearest("a", 1));
    let begun = watches.take_orders();
    assert!(
        matches!(begun[..], [Order::Begin(_, Watched::Key(_))]),
        "{begun:?}"
    );
    watches.leave(one);
    watches.forget_idle();
    assert_eq!(watches.take_orders(), []);
    watches.leave(two);
    // Another waiter comes in time.
    watches.wait(one, nearest("a", 1));
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
fn one_that_comes_back_keeps_its_own_idle_watch_only() {
    let watches = Watches::default();
    watches.leave(waiter(&watches, nearest("a", 1)));
    watches.leave(waiter(&watches, nearest("b", 1)));
    watches.take_orders();
    waiter(&watches, nearest("b", 1));
    watches.forget_idle();
    assert!(matches!(watches.take_orders()[..], [Order::Cancel(_)]));
    assert!(watches.lock().watches.contains_key(&key("b")));
}

#[test]
fn few_keys_are_watched_that_nobody_waits_for() {
    let (watches, owner) = (Watches::default(), OwnerId::mint());
    for number in 0..3 * MOST_IDLE {
        watches.wait(owner, nearest(&number.to_string(), 1));
    }
    watches.leave(owner);
    let state = watches.lock();
    assert_eq!(state.watches.len(), MOST_IDLE);
    assert_eq!(state.watched_by_id.len(), MOST_IDLE);
    assert_eq!(state.idle.len(), MOST_IDLE);
}

#[test]
fn one_whose_nearest_has_gone_is_told_to_look() {
    let watches = Watches::default();
    let owner = waiter(&watches, nearest("a", 7));
    assert_eq!(watches.lock().tell(&key("a"), 7), [], "nothing was missed");
    assert_eq!(watches.lock().deleted(&key("a"), b"a", 9), [owner]);
    assert!(watches.waiting(owner).is_none());
}

#[test]
fn the_deletion_of_a_keys_earlier_use_tells_nothing() {
    let watches = Watches::default();
    let one = waiter(&watches, nearest("a", 5));
    watches.lock().tell(&key("a"), 5);
    // The key was deleted and put again, and the deletion is reported late.
    let two = waiter(&watches, nearest("a", 9));
    assert_eq!(watches.lock().deleted(&key("a"), b"a", 7), [one]);
    assert!(watches.waiting(one).is_none());
    assert_eq!(watches.lock().deleted(&key("a"), b"a", 10), [two]);
    assert!(watches.waiting(two).is_none());
}

#[test]
fn who_looked_before_its_watch_began_looks_again() {
    let watches = Watches::default();
    let owner = waiter(&watches, nearest("a", 7));
    assert_eq!(watches.lock().tell(&key("a"), 8), [owner]);
    assert!(watches.waiting(owner).is_some(), "it may be as it was");
    // Read again, at a revision that the watch covers.
    assert!(!watches.wait(owner, nearest("a", 8)));
    watches.start_over();
    assert_eq!(watches.lock().tell(&key("a"), 8), [owner], "another stream");
}

#[test]
fn a_watch_that_is_kept_knows_what_has_gone_since() {
    let watches = Watches::default();
    let one = waiter(&watches, nearest("a", 1));
    watches.lock().tell(&key("a"), 1);
    watches.leave(one);
    watches.lock().deleted(&key("a"), b"a", 5);
    // For a later use of the key.
    let two = waiter(&watches, nearest("a", 7));
    watches.leave(two);
    watches.lock().deleted(&key("a"), b"a", 9);
    assert!(watches.wait(OwnerId::mint(), nearest("a", 8)));
}

#[test]
fn one_who_waits_for_permits_is_told_once_they_suffice() {
    let watches = Watches::default();
    let weight = |count| Weight { count, capacity: 3 };
    let earlier = [(b"a".to_vec(), weight(1)), (b"b".to_vec(), weight(2))];
    let ahead = Ahead {
        queue: "q/".to_owned(),
        earlier: earlier.into(),
        own: weight(2),
    };
    let waiting = Waiting {
        blockers: Blockers::Permits(ahead),
        seen: 7,
    };
    let owner = waiter(&watches, waiting);
    let queue = Watched::Queue("q/".to_owned());
    watches.lock().tell(&queue, 7);
    assert_eq!(watches.lock().deleted(&queue, b"a", 8), []);
    assert_eq!(watches.lock().deleted(&queue, b"b", 9), [owner]);
}

#[test]
fn a_new_stream_watches_what_somebody_waits_for_and_nothing_else() {
    let watches = Watches::default();
    watches.leave(waiter(&watches, nearest("a", 1)));
    waiter(&watches, nearest("b", 1));
    watches.start_over();
    let orders = watches.take_orders();
    assert!(
        matches!(&orders[..], [Order::Begin(_, begun)] if *begun == key("b")),
        "{orders:?}"
    );
    let state = watches.lock();
    assert_eq!((state.watches.len(), state.watched_by_id.len()), (1, 1));
    assert!(state.idle.is_empty());
}

#[tokio::test]
async fn the_stream_is_told_of_each_order() {
    let watches = Watches::default();
    let are_told = async || {
        let told = timeout(Duration::ZERO, watches.ordered.notified()).await;
        told.is_ok() && !watches.take_orders().is_empty()
    };
    let owner = OwnerId::mint();
    for number in 0..=MOST_IDLE {
        watches.wait(owner, nearest(&number.to_string(), 1));
        assert!(are_told().await, "a watch begins");
    }
    watches.leave(owner);
    assert!(are_told().await, "one idle watch too many ends");
    watches.forget_idle();
    assert!(are_told().await, "the others end");
    watches.wait(owner, nearest("a", 1));
    assert!(are_told().await, "a watch begins");
    watches.start_over();
    assert!(are_told().await, "and begins again");
}

#[tokio::test]
async fn a_watch_that_the_server_ends_needs_a_new_stream_while_it_is_known() {
    let server = EtcdServer::start().unwrap();
    let client = Client::connect(server.endpoints(), None).await.unwrap();
    let mut store = client.kv_client();
    store.put("a", "", None).await.unwrap();
    let put = store.put("a", "", None).await.unwrap();
    let now = put.header().unwrap().revision();
    store.compact(now, None).await.unwrap();
    let watches = Watches::default();
    waiter(&watches, nearest("a", 1));
    let known = *watches.lock().watched_by_id.keys().next().unwrap();
    let unknown = known + 1;
    for id in [Watches::SESSION_ID, known, unknown] {
        // The server ends a watch that asks for what was compacted.
        let options = WatchOptions::new()
            .with_watch_id(id)
            .with_start_revision(now - 1);
        let mut watching = client.watch_client();
        let mut stream = watching.watch("a", Some(options)).await.unwrap();
        let ended = loop {
            let response = stream.message().await.unwrap().unwrap();
            if response.canceled() {
                break response;
            }
        };
        assert_eq!((ended.watch_id(), ended.created()), (id, false));
        let verdict = if id == unknown {
            Verdict::GoOn(Vec::new())
        } else {
            Verdict::Refused
        };
        assert_eq!(watches.hear(&ended, "own"), verdict);
    }
}

#[tokio::test]
async fn a_mark_and_the_end_of_the_session_are_told_apart() {
    let server = EtcdServer::start().unwrap();
    let client = Client::connect(server.endpoints(), None).await.unwrap();
    let (mut watching, mut store) = (client.watch_client(), client.kv_client());
    let options = WatchOptions::new()
        .with_watch_id(Watches::SESSION_ID)
        .with_prefix();
    let mut stream = watching.watch("own", Some(options)).await.unwrap();
    let watches = Watches::default();
    let mut next = async || loop {
        let response = stream.message().await.unwrap().unwrap();
        if !response.events().is_empty() {
            break watches.hear(&response, "own");
        }
    };
    store.put("own", "", None).await.unwrap();
    assert_eq!(next().await, Verdict::GoOn(Vec::new()));
    store.put("own/mark", "", None).await.unwrap();
    assert_eq!(next().await, Verdict::Marked);
    store.delete("own/mark", None).await.unwrap();
    assert_eq!(next().await, Verdict::GoOn(Vec::new()));
    store.delete("own", None).await.unwrap();
    assert_eq!(next().await, Verdict::SessionGone);
}
