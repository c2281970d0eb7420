//! A session uses a key again, and a waiter is granted by an event: what goes astray meanwhile harms nobody.

use std::time::Duration;

use portalock_core::{
    Attempt, LockBackend, LockName, LockRequest, Mode, Patience, Released, Request, Wake,
};
use portalock_etcd::{EtcdBackend, etcd_client::DeleteOptions};
use portalock_testkit::proxy::Direction;

use crate::support::{Server, until};

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

/// Until the server watches so many keys.
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
        .client_through(&[&slow, &fast], |settings| {
            settings
                .with_request_timeout(Duration::from_secs(2))
                .unwrap()
                .with_lease_time(Duration::from_secs(600))
                .unwrap()
        })
        .await;
    let (first, second) = (request("late"), request("late"));
    granted(&client, &first).await;
    let key = client.fence(first.owner).unwrap().key;
    // The release is still under way on the slow line when it is repeated by the fast one, and answered.
    slow.delay(Direction::ToServer, Duration::from_millis(1_600));
    assert_eq!(client.release(&first).await.unwrap(), Released::Freed);
    granted(&client, &second).await;
    assert_eq!(client.fence(second.owner).unwrap().key, key);
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
        .client_through(&[&line], |settings| {
            settings
                .with_request_timeout(Duration::from_secs(1))
                .unwrap()
                .with_lease_time(Duration::from_secs(600))
                .unwrap()
        })
        .await;
    let (unknown, next) = (request("unknown"), request("unknown"));
    // It takes its place, and doesn't hear of it.
    line.black_hole(Direction::ToClient);
    client.try_acquire(&unknown).await.unwrap_err();
    until("the place is taken", async || {
        server.lock_keys().await.len() == 1
    })
    .await;
    client.release(&unknown).await.unwrap_err();
    line.heal();
    line.cut();
    // Whatever of the two has taken effect by now, it waits behind the other or has the lock, by a key of its own.
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
    // Now the first is free again.
    let last = request("unknown");
    granted(&client, &last).await;
    let key = client.fence(last.owner).unwrap().key;
    assert!(key.contains("/0@"), "{key}");
}

#[tokio::test]
async fn the_next_in_line_is_granted_by_the_event_alone() {
    let server = Server::start();
    let line = server.line(0);
    let holder = server.client().await;
    let waiter = server.client_through(&[&line], |settings| settings).await;
    let (held, waits) = (request("event"), request("event"));
    granted(&holder, &held).await;
    contended(&waiter, &waits).await;
    let mut wakeups = waiter.subscribe(&waits).await.unwrap().unwrap();
    // Both sessions', and the holder's key.
    watchers(&server, 3.0).await;
    // From now on it can ask nothing.
    line.black_hole(Direction::ToServer);
    holder.release(&held).await.unwrap();
    assert!(matches!(wakeups.next().await, Wake::TryNow));
    granted(&waiter, &waits).await;
    contended(&holder, &request("event")).await;
}

#[tokio::test]
async fn one_who_is_granted_by_the_deletion_of_the_whole_queue_is_told_that_its_key_has_gone() {
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
    assert!(matches!(wakeups.next().await, Wake::TryNow));
    let Attempt::Granted(grant) = waiter.try_acquire(&waits).await.unwrap() else {
        panic!("the one before it has gone")
    };
    let lost = grant.lost.lost();
    tokio::time::timeout(Duration::from_secs(60), lost)
        .await
        .unwrap();
    assert_eq!(waiter.release(&waits).await.unwrap(), Released::NotHeld);
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
    // It may be told to look once more than needed.
    until("it holds", async || {
        wakeups.next().await;
        let attempt = clients[2].try_acquire(&requests[2]).await.unwrap();
        matches!(attempt, Attempt::Granted(_))
    })
    .await;
}
