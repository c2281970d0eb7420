//! Faults of one server (it stalls, restarts or loses data), of the network, and of an administrator.

use std::time::Duration;

use portalock_core::{
    Attempt, BackendErrorKind, Lock, LockBackend, LockError, LockName, Loss, Mode, Patience,
    Policy, Request, clock::Instant,
};
use portalock_etcd::{EtcdSettings, etcd_client::CompactionOptions};
use portalock_testkit::proxy::Direction;

use crate::support::{Server, patient, until};

fn short_lease(settings: EtcdSettings) -> EtcdSettings {
    settings.with_lease_time(Duration::from_secs(3)).unwrap()
}

#[tokio::test]
async fn a_revoked_lease_is_told_at_once_and_followed_by_a_new_session() {
    let server = Server::start();
    let client = server
        .client_with(|settings| settings.with_lease_time(Duration::from_secs(600)).unwrap())
        .await;
    let lock = Lock::new(client.clone(), "revoked").unwrap();
    let guard = lock.acquire().await.unwrap();
    server.revoke_all().await;
    // The lease's own time would be ten minutes.
    let loss = tokio::time::timeout(Duration::from_secs(60), guard.lost())
        .await
        .unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    let released = guard.release().await;
    assert!(
        matches!(released, Err(LockError::Lost { .. })),
        "{released:?}"
    );
    lock.acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_waiter_whose_lease_is_revoked_queues_again() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "requeued").unwrap();
    let held = lock.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_with(&patient()).await }
    });
    server.waiters("requeued", 1).await;
    server.revoke_all().await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(held.is_lost());
    assert!(!guard.is_lost());
    drop(held);
    guard.ensure_held().unwrap();
    guard.release().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_stalled_server_loses_the_lock_before_it_ends_there() {
    let server = Server::start();
    let client = server.client_with(short_lease).await;
    let lock = Lock::new(client.clone(), "stalled").unwrap();
    let guard = lock.acquire().await.unwrap();
    server.etcd.stall(0).unwrap();
    let loss = guard.lost().await;
    assert_eq!(loss, Loss::Expired);
    // The server is stopped. The lease was not renewed there either, but the server has not deleted the key yet.
    let start = Instant::now();
    let policy = Policy::default().with_timeout(Duration::from_millis(300));
    let error = lock.acquire_with(&policy).await.unwrap_err();
    assert!(!error.is_contention(), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    server.etcd.resume(0).unwrap();
    lock.acquire_with(&patient())
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_restarted_server_keeps_the_lock_and_the_queue() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "restarted").unwrap();
    let guard = lock.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let lock = Lock::new(server.client().await, "restarted").unwrap();
        async move { lock.acquire_with(&patient()).await }
    });
    server.waiters("restarted", 1).await;
    server.restart(&[0]).await;
    guard.ensure_held().unwrap();
    assert!(lock.try_acquire().await.unwrap_err().is_contention());
    let token = guard.token();
    guard.release().await.unwrap();
    let next = waiting.await.unwrap().unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_forgot_everything_ends_the_session() {
    let server = Server::start();
    let client = server
        .client_with(|settings| settings.with_lease_time(Duration::from_secs(600)).unwrap())
        .await;
    let lock = Lock::new(client, "forgotten").unwrap();
    let guard = lock.acquire().await.unwrap();
    server.etcd.kill(0);
    server.etcd.wipe(0).unwrap();
    server.restart(&[0]).await;
    let loss = tokio::time::timeout(Duration::from_secs(60), guard.lost())
        .await
        .unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    lock.acquire_with(&patient())
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_cut_connection_costs_nothing_but_time() {
    let server = Server::start();
    let line = server.line(0);
    let client = server.client_through(&[&line], |settings| settings).await;
    let lock = Lock::new(client.clone(), "cut").unwrap();
    for _ in 0..5 {
        let guard = lock.acquire_with(&patient()).await.unwrap();
        line.cut();
        guard.ensure_held().unwrap();
        guard.release().await.unwrap();
    }
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn no_wake_up_is_lost_to_a_broken_stream_and_a_compaction() {
    let server = Server::start();
    let line = server.line(0);
    let waiter = server.client_through(&[&line], |settings| settings).await;
    let lock = Lock::new(server.client().await, "compacted").unwrap();
    for round in 0..5 {
        let guard = lock.acquire().await.unwrap();
        let waiting = tokio::spawn({
            let lock = Lock::new(waiter.clone(), "compacted").unwrap();
            async move { lock.acquire_with(&patient()).await }
        });
        server.waiters("compacted", 1).await;
        // While the waiter is disconnected, the lock is released and its history is compacted.
        line.refuse(true);
        line.cut();
        guard.release().await.unwrap();
        let mut admin = server.admin().await;
        let revision = admin
            .put("something", "else", None)
            .await
            .unwrap()
            .header()
            .unwrap()
            .revision();
        let options = CompactionOptions::new().with_physical();
        admin.compact(revision, Some(options)).await.unwrap();
        let healed = Instant::now();
        line.heal();
        waiting.await.unwrap().unwrap().release().await.unwrap();
        // Through the wake-up, and not through another read after a minute.
        let elapsed = healed.elapsed();
        assert!(
            elapsed < Duration::from_secs(30),
            "round {round}: {elapsed:?}"
        );
    }
}

#[tokio::test]
async fn a_broken_stream_is_opened_anew_at_once_however_long_the_lease() {
    let server = Server::start();
    let line = server.line(0);
    let waiter = server
        .lasting_client_through(&[&line], Duration::from_secs(5))
        .await;
    let guard = Lock::new(server.client().await, "broken off").unwrap();
    let guard = guard.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let lock = Lock::new(waiter, "broken off").unwrap();
        async move { lock.acquire_with(&patient()).await }
    });
    server.waiters("broken off", 1).await;
    line.cut();
    guard.release().await.unwrap();
    // Through the wake-up, and not through another read after a minute.
    let granted = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    granted.unwrap().unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_request_that_arrives_after_its_release_takes_no_lock() {
    let server = Server::start();
    let (slow, fast) = (server.line(0), server.line(0));
    let client = server
        .lasting_client_through(&[&slow, &fast], Duration::from_secs(2))
        .await;
    let name = LockName::new("late").unwrap();
    for patience in [Patience::Queue, Patience::Once] {
        let request = Request::new(name.clone(), Mode::Exclusive, patience);
        // The request is still in flight on the slow line when the fast line repeats it; it is granted and released
        // there.
        slow.delay(Direction::ToServer, Duration::from_millis(1_600));
        let Attempt::Granted(_) = client.try_acquire(&request).await.unwrap() else {
            panic!("contended by nobody")
        };
        client.release(&request).await.unwrap();
        // It arrives before the end of its connection does.
        until("the slow line is closed", async || {
            assert_eq!(server.lock_keys().await, Vec::<String>::new());
            slow.connections() == 0
        })
        .await;
        assert_eq!(server.lock_keys().await, Vec::<String>::new());
        slow.heal();
        // Make the slow line the one in use again.
        fast.refuse(true);
        fast.cut();
        until("the slow line is in use", async || {
            client.names().await.is_ok() && slow.connections() > 0
        })
        .await;
        fast.heal();
    }
}

#[tokio::test]
async fn a_client_cut_off_from_everything_loses_its_lock_and_nobody_waits_longer_than_the_lease() {
    let server = Server::start();
    let line = server.line(0);
    let client = server.client_through(&[&line], short_lease).await;
    let guard = Lock::new(client, "cut off")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let lock = Lock::new(server.client().await, "cut off").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire_with(&patient()).await });
    server.waiters("cut off", 1).await;
    line.black_hole(Direction::Both);
    let next = waiting.await.unwrap().unwrap();
    assert!(guard.is_lost());
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_crowd_shares_one_lease_and_a_connection_for_each_runtime() {
    let server = Server::start();
    let line = server.line(0);
    let client = server.client_through(&[&line], |settings| settings).await;
    let mut guards = Vec::new();
    for number in 0..2_000 {
        let lock = Lock::new(client.clone(), format!("{number}")).unwrap();
        guards.push(lock.acquire_with(&patient()).await.unwrap());
    }
    // The test's runtime has one, the session thread the other.
    assert_eq!(line.connections(), 2);
    assert_eq!(server.session_keys().await.len(), 1);
    // Longer than the interval of the check for held keys.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(line.connections(), 2);
    assert!(guards.iter().all(|guard| !guard.is_lost()));
    client.close().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_hand_over_costs_the_same_however_many_wait() {
    let server = Server::start();
    let mut per_hand_over = Vec::new();
    for waiters in [4, 32] {
        let name = format!("{waiters} wait");
        let mut clients = Vec::new();
        for _ in 0..waiters {
            clients.push(server.client().await);
        }
        let held = Lock::new(server.client().await, &name)
            .unwrap()
            .acquire()
            .await
            .unwrap();
        let mut tasks = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            let lock = Lock::new(client.clone(), &name).unwrap();
            tasks.push(tokio::spawn(async move {
                let guard = lock.acquire_with(&patient()).await.unwrap();
                guard.release().await.unwrap();
            }));
            server.waiters(&name, number + 1).await;
        }
        let events = "etcd_debugging_mvcc_events_total";
        let before = (server.counter(events).await, server.requests().await);
        held.release().await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        let after = (server.counter(events).await, server.requests().await);
        let count = f64::from(waiters);
        let events = (after.0 - before.0) / count;
        let transactions = f64::from(u32::try_from(after.1.0 - before.1.0).unwrap()) / count;
        println!("{waiters} waiters: {events} events and {transactions} transactions a hand-over");
        per_hand_over.push((events, transactions));
    }
    let [few, many] = per_hand_over[..] else {
        unreachable!()
    };
    assert!(
        many.0 <= few.0 + 1.0 && many.1 <= few.1 + 1.0,
        "{per_hand_over:?}"
    );
}

#[tokio::test]
async fn a_full_server_is_a_typed_error_and_locks_can_still_be_given_back() {
    let server = Server::with("--quota-backend-bytes=4194304");
    let client = server.client().await;
    let guard = Lock::new(client.clone(), "full")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let mut store = server.raw().await;
    let load = vec![0_u8; 1024 * 1024];
    for number in 0..100 {
        if store
            .put(format!("load/{number}"), load.clone(), None)
            .await
            .is_err()
        {
            break;
        }
    }
    let error = Lock::new(client.clone(), "another")
        .unwrap()
        .acquire()
        .await
        .unwrap_err();
    let LockError::Backend { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), BackendErrorKind::OutOfSpace, "{error:?}");
    guard.release().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_release_that_nobody_heard_of_is_owed_until_it_is_heard() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    let name = LockName::new("owed").unwrap();
    let request = Request::new(name, Mode::Exclusive, Patience::Queue);
    let Attempt::Granted(_) = client.try_acquire(&request).await.unwrap() else {
        panic!("contended by nobody")
    };
    line.black_hole(Direction::ToServer);
    let error = client.release(&request).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    // The held-back data is lost with its connection.
    line.refuse(true);
    line.cut();
    until("the connection is gone", async || line.connections() == 0).await;
    assert_eq!(server.lock_keys().await.len(), 1);
    line.heal();
    // Nobody requests the release again, and the lease is long.
    until("the key is gone", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_grant_that_arrives_after_the_session_has_ended_is_none() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .client_through(&[&line], |settings| {
            short_lease(settings)
                .with_request_timeout(Duration::from_secs(60))
                .unwrap()
        })
        .await;
    let request = |name| {
        let name = LockName::new(name).unwrap();
        Request::new(name, Mode::Exclusive, Patience::Queue)
    };
    // Open this runtime's connection before the answers are late.
    let warm = request("warm");
    drop(client.try_acquire(&warm).await.unwrap());
    client.release(&warm).await.unwrap();
    line.delay(Direction::ToClient, Duration::from_secs(6));
    let error = client.try_acquire(&request("late")).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::SessionEnded, "{error}");
}

#[tokio::test]
async fn a_deleted_key_is_told_though_it_could_not_be_looked_for_at_first() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    let guard = Lock::new(client.clone(), "deleted")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    line.black_hole(Direction::Both);
    let key = client.fence(guard.owner()).unwrap().key;
    server.raw().await.delete(key, None).await.unwrap();
    // Longer than the interval of the check for held keys, which gets no answer.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!guard.is_lost());
    line.cut();
    line.heal();
    let loss = tokio::time::timeout(Duration::from_secs(60), guard.lost())
        .await
        .unwrap();
    assert!(matches!(loss, Loss::Removed(_)), "{loss}");
}

#[tokio::test]
async fn one_that_closes_is_told_if_the_lease_lives_on() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    line.refuse(true);
    line.cut();
    let error = client.close().await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_connection_is_kept_alive() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client, "idle").unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
    let remote = format!(":{:04X}", server.etcd.port(0));
    until("each connection has a keepalive timer", async || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let mut timers = table.lines().filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_open = fields[2].ends_with(&remote) && fields[3] == "01";
            is_open.then(|| fields[5].starts_with("02:"))
        });
        timers.next() == Some(true) && timers.all(|timer| timer)
    })
    .await;
}
