//! A session uses a key again, and a waiter is told by an event: late or lost requests and events do no harm.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    Attempt, BackendErrorKind, Election, Lock, LockBackend, LockName, LockRequest, Mode, Patience,
    Released, Request, Wake,
};
use portalock_etcd::{
    EtcdBackend,
    etcd_client::{DeleteOptions, PutOptions},
};
use portalock_testkit::proxy::Direction;

use crate::support::{Server, patient, until};

fn request(name: &str) -> LockRequest {
    let name = LockName::new(name).unwrap();
    Request::new(name, Mode::Exclusive, Patience::Queue)
}

async fn granted(client: &EtcdBackend, request: &LockRequest) {
    let attempt = client.try_acquire(request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
}

async fn contended(client: &EtcdBackend, request: &LockRequest) {
    let attempt = client.try_acquire(request).await.unwrap();
    assert!(matches!(attempt, Attempt::Contended(_)), "{attempt:?}");
}

/// Waits until the server watches this number of keys.
async fn watchers(server: &Server, count: f64) {
    until("so many keys are watched", async || {
        (server.counter("etcd_debugging_mvcc_watcher_total").await - count).abs() < 0.5
    })
    .await;
}

#[tokio::test]
async fn a_release_that_arrives_late_leaves_the_keys_next_owner() {
    let server = Server::start();
    let (slow, fast) = (server.line(0), server.line(0));
    let client = server
        .lasting_client_through(&[&slow, &fast], Duration::from_secs(2))
        .await;
    let (first, second) = (request("late"), request("late"));
    granted(&client, &first).await;
    let key = client.fence(first.owner).unwrap().key;
    // The release is still in flight on the slow line when the fast line repeats it and gets an answer.
    slow.delay(Direction::ToServer, Duration::from_millis(1_600));
    assert_eq!(client.release(&first).await.unwrap(), Released::Freed);
    // If the session connects again, its check of all places keeps the key in use for a moment.
    until("the second owner has the key of the first", async || {
        granted(&client, &second).await;
        let has_it = client.fence(second.owner).unwrap().key == key;
        if !has_it {
            client.release(&second).await.unwrap();
        }
        has_it
    })
    .await;
    // It arrives before the end of its connection does.
    until("the slow line is closed", async || slow.connections() == 0).await;
    assert_eq!(server.lock_keys().await, [key]);
    contended(&server.client().await, &request("late")).await;
    assert_eq!(client.release(&second).await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn a_key_of_unknown_fate_is_not_used_again_until_that_is_settled() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    let (unknown, next) = (request("unknown"), request("unknown"));
    // The request takes its place, but its answer is lost.
    line.black_hole(Direction::ToClient);
    client.try_acquire(&unknown).await.unwrap_err();
    until("the place is taken", async || {
        server.lock_keys().await.len() == 1
    })
    .await;
    client.release(&unknown).await.unwrap_err();
    line.heal();
    line.cut();
    // Whichever of the two has taken effect by now, this request either waits behind the other or has the lock, with a
    // key of its own.
    let attempt = client.try_acquire(&next).await.unwrap();
    if matches!(attempt, Attempt::Contended(_)) {
        client.release(&unknown).await.unwrap();
        until("the way is free", async || {
            let attempt = client.try_acquire(&next).await.unwrap();
            matches!(attempt, Attempt::Granted(_))
        })
        .await;
    }
    let key = client.fence(next.owner).unwrap().key;
    assert!(key.contains("/1@"), "{key}");
    client.release(&unknown).await.unwrap();
    assert_eq!(server.lock_keys().await, [key]);
    assert_eq!(client.release(&next).await.unwrap(), Released::Freed);
    let last = request("unknown");
    until("the first number is free again", async || {
        granted(&client, &last).await;
        let key = client.fence(last.owner).unwrap().key;
        client.release(&last).await.unwrap();
        key.contains("/0@")
    })
    .await;
}

#[tokio::test]
async fn an_event_grants_nothing_to_one_whose_session_was_revoked_meanwhile() {
    let server = Server::start();
    let line = server.line(0);
    let holder = server.client().await;
    let waiter = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    let (held, waits) = (request("event"), request("event"));
    granted(&holder, &held).await;
    contended(&waiter, &waits).await;
    let mut wakeups = waiter.subscribe(&waits).await.unwrap().unwrap();
    // The keys of both sessions and of the holder.
    watchers(&server, 3.0).await;
    holder.release(&held).await.unwrap();
    assert!(matches!(wakeups.next().await, Wake::TryNow));
    // From now on the client receives no events.
    line.black_hole(Direction::ToClient);
    server.revoke_all().await;
    waiter.try_acquire(&waits).await.unwrap_err();
}

#[tokio::test]
async fn one_who_waited_when_the_whole_queue_was_deleted_holds_by_a_new_place() {
    let server = Server::start();
    let (holder, waiter) = (server.client().await, server.client().await);
    let (held, waits) = (request("wiped"), request("wiped"));
    granted(&holder, &held).await;
    contended(&waiter, &waits).await;
    let mut wakeups = waiter.subscribe(&waits).await.unwrap().unwrap();
    watchers(&server, 3.0).await;
    let options = DeleteOptions::new().with_prefix();
    let wiped = server
        .raw()
        .await
        .delete("portalock//locks/wiped/", Some(options))
        .await
        .unwrap();
    assert_eq!(wiped.deleted(), 2);
    // The event tells it, or a check of the session, if one comes first: the session has just connected.
    let wake = wakeups.next().await;
    assert!(matches!(wake, Wake::TryNow | Wake::Failed(_)), "{wake:?}");
    granted(&waiter, &waits).await;
    assert_eq!(server.lock_keys().await.len(), 1);
    assert_eq!(waiter.release(&waits).await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn one_whose_key_is_deleted_while_it_waits_takes_another_place() {
    let server = Server::start();
    let (holder, client) = (server.client().await, server.client().await);
    let held = request("deleted");
    granted(&holder, &held).await;
    let lock = Lock::new(client, "deleted").unwrap();
    let waiting = [(); 3].map(|()| {
        let lock = lock.clone();
        tokio::spawn(async move { lock.acquire_with(&patient()).await.map(drop) })
    });
    server.waiters("deleted", 3).await;
    let before = server.lock_keys().await;
    let own = holder.fence(held.owner).unwrap().key;
    for key in before.iter().filter(|key| **key != own) {
        server.raw().await.delete(key.as_str(), None).await.unwrap();
    }
    // They get no event. They notice it at their next read.
    server.waiters("deleted", 3).await;
    holder.release(&held).await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    until("nothing is left", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn one_who_gives_up_frees_the_way_for_nobody() {
    let server = Server::start();
    let clients = [
        server.client().await,
        server.client().await,
        server.client().await,
    ];
    let requests = [(); 3].map(|()| request("gives up"));
    granted(&clients[0], &requests[0]).await;
    contended(&clients[1], &requests[1]).await;
    contended(&clients[2], &requests[2]).await;
    let mut wakeups = clients[2].subscribe(&requests[2]).await.unwrap().unwrap();
    clients[1].release(&requests[1]).await.unwrap();
    contended(&clients[2], &requests[2]).await;
    clients[0].release(&requests[0]).await.unwrap();
    // It may be told to read once more than needed.
    until("it holds", async || {
        wakeups.next().await;
        let attempt = clients[2].try_acquire(&requests[2]).await.unwrap();
        matches!(attempt, Attempt::Granted(_))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_served_in_turn_whoever_gives_up() {
    let server = Server::start();
    let (one, two) = (server.client().await, server.client().await);
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for number in 0..60 {
        // Most of them wait in one session.
        let client = if number % 6 == 5 { &two } else { &one };
        let lock = Lock::new(client.clone(), "crowd").unwrap();
        let inside = inside.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..3 {
                let guard = lock.acquire_with(&patient()).await.unwrap();
                // There is no await between these lines, so an aborted task is not inside.
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                std::thread::yield_now();
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                guard.release().await.unwrap();
            }
        }));
    }
    server
        .until("they wait", async || server.lock_keys().await.len() > 20)
        .await;
    for task in tasks.iter().skip(2).step_by(3) {
        task.abort();
    }
    for task in tasks {
        if let Err(error) = task.await {
            assert!(error.is_cancelled(), "{error}");
        }
    }
    server
        .until("nothing is left", async || {
            server.lock_keys().await.is_empty()
        })
        .await;
}

#[tokio::test]
async fn one_who_waits_knows_who_holds_at_each_look() {
    let server = Server::start();
    let (holder, client) = (server.client().await, server.client().await);
    granted(
        &holder,
        &request("crowd").with_label(Some("nightly".into())),
    )
    .await;
    let crowd = [(); 12].map(|()| request("crowd"));
    for request in crowd.iter().chain(&crowd) {
        let attempt = client.try_acquire(request).await.unwrap();
        let Attempt::Contended(contention) = attempt else {
            panic!("{attempt:?}");
        };
        let label = contention.holder.and_then(|holder| holder.label);
        assert_eq!(label.as_deref(), Some("nightly"));
    }
}

#[tokio::test]
async fn one_who_waits_behind_its_own_session_knows_who_holds() {
    let server = Server::start();
    let client = server.client().await;
    let held = request("own").with_label(Some("nightly".into()));
    granted(&client, &held).await;
    let attempt = client.try_acquire(&request("own")).await.unwrap();
    let Attempt::Contended(contention) = attempt else {
        panic!("{attempt:?}");
    };
    let label = contention.holder.and_then(|holder| holder.label);
    assert_eq!(label.as_deref(), Some("nightly"));
}

#[tokio::test]
async fn nobody_waits_for_one_before_it_whose_release_failed() {
    let server = Server::start();
    let line = server.line(0);
    let holder = server.client().await;
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    let held = request("owed");
    granted(&holder, &held).await;
    let crowd = [(); 12].map(|()| request("owed"));
    for request in &crowd {
        contended(&client, request).await;
    }
    let [earlier @ .., before, last] = &crowd;
    line.black_hole(Direction::ToServer);
    client.release(before).await.unwrap_err();
    // The held-back data is lost with its connection. Nobody requests the release again.
    line.refuse(true);
    line.cut();
    until("the connection is gone", async || line.connections() == 0).await;
    line.heal();
    holder.release(&held).await.unwrap();
    for request in earlier {
        client.release(request).await.unwrap();
    }
    until("the last holds", async || {
        let attempt = client.try_acquire(last).await.unwrap();
        matches!(attempt, Attempt::Granted(_))
    })
    .await;
}

/// The first key of a name, and the second. The next hold takes the second while something else uses the first: a check of the
/// session, or a release that is repeated because the session has begun to listen meanwhile.
fn both(first: &str) -> [String; 2] {
    [first.to_owned(), first.replace("/0@", "/1@")]
}

#[tokio::test]
async fn a_key_that_somebody_else_has_put_is_no_place() {
    let server = Server::start();
    let client = server.client().await;
    let first = request("foreign");
    granted(&client, &first).await;
    let key = client.fence(first.owner).unwrap().key;
    client.release(&first).await.unwrap();
    for key in both(&key) {
        server.raw().await.put(key, "by hand", None).await.unwrap();
    }
    let error = client.try_acquire(&request("foreign")).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{error}");
}

/// As after a restore from a snapshot.
#[tokio::test]
async fn a_former_key_that_is_back_in_its_session_ends_the_session() {
    let server = Server::start();
    let client = server.client().await;
    let first = request("back");
    granted(&client, &first).await;
    let key = client.fence(first.owner).unwrap().key;
    client.release(&first).await.unwrap();
    let lease = key.rsplit('@').next().unwrap();
    let lease = i64::from_str_radix(lease, 16).unwrap();
    let mut store = server.raw().await;
    for key in both(&key) {
        let options = PutOptions::new().with_lease(lease);
        store.put(key, "former", Some(options)).await.unwrap();
    }
    let lock = Lock::new(client, "back").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn nobody_leads_behind_a_key_that_somebody_else_has_put() {
    let server = Server::start();
    let client = server.client().await;
    let key = "portalock//locks/led/exclusive/by-hand";
    server.raw().await.put(key, "x", None).await.unwrap();
    let candidate = request("led");
    contended(&client, &candidate).await;
    let mut observer = Election::new(client.clone(), "led").unwrap().observe();
    assert_eq!(observer.next().await.unwrap(), None);
    server.raw().await.delete(key, None).await.unwrap();
    let leads = observer.next().await.unwrap().unwrap();
    granted(&client, &candidate).await;
    let fence = client.fence(candidate.owner).unwrap();
    let token = u64::from(leads.token.unwrap());
    assert_eq!(token, u64::try_from(fence.revision).unwrap());
}

/// etcd tells an observer that fell behind by more than 128 changes of all the others in one message, with the holders' labels.
#[tokio::test]
async fn an_observer_hears_of_each_holder_though_their_labels_are_long() {
    const HOLDERS: usize = 200;
    let server = Server::start();
    let line = server.line(0);
    let observer = server
        .client_through(&[&line], |settings| {
            settings.with_lease_time(Duration::from_secs(600)).unwrap()
        })
        .await;
    let client = server.client().await;
    let name = LockName::new("led").unwrap();
    let mut watch = observer.watch(&name).await.unwrap().unwrap();
    assert_eq!(watch.next().await, Some(None));
    line.black_hole(Direction::ToClient);
    let label: Arc<str> = "x".repeat(100_000).into();
    for _ in 0..HOLDERS {
        let holds = request("led").with_label(Some(label.clone()));
        granted(&client, &holds).await;
        client.release(&holds).await.unwrap();
    }
    line.heal();
    for _ in 0..HOLDERS {
        let told = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
        let holder = told.unwrap().expect("the watch has ended").unwrap();
        assert_eq!(holder.holder.label.as_deref(), Some(&*label));
        assert_eq!(watch.next().await, Some(None));
    }
}

#[tokio::test]
async fn one_who_looks_again_reads_two_keys() {
    let server = Server::start();
    let (holder, client) = (server.client().await, server.client().await);
    granted(&holder, &request("looks")).await;
    let waits = request("looks");
    contended(&client, &waits).await;
    let reads = async || server.counter("etcd_mvcc_range_total").await;
    let before = reads().await;
    for _ in 0..50 {
        contended(&client, &waits).await;
    }
    // And a few reads that check held keys meanwhile.
    let reads = reads().await - before;
    assert!((100.0..200.0).contains(&reads), "{reads}");
}
