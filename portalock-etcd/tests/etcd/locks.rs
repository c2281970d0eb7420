//! Locks and semaphores on one real etcd: order, tokens, what is left behind, and what a request costs.

use std::time::Duration;

use crate::support::{Server, patient, until};
use portalock_core::{
    Attempt, Lock, LockBackend, LockError, LockName, Mode, Patience, Policy, Pool, Released,
    Request, clock::Instant,
};
use portalock_etcd::EtcdBackend;

#[tokio::test]
async fn a_lock_is_taken_refused_waited_for_and_handed_over() {
    let server = Server::start();
    let (one, two) = (server.client().await, server.client().await);
    let name = "nightly/report";
    let held = Lock::new(one, name).unwrap().acquire().await.unwrap();
    let other = Lock::new(two, name).unwrap().with_label("other");
    let error = other.try_acquire().await.unwrap_err();
    assert!(
        matches!(&error, LockError::AlreadyLocked { holder: Some(holder), .. } if holder.pid == std::process::id())
    );
    let waiting = tokio::spawn(async move { other.acquire_with(&patient()).await });
    server.waiters(name, 1).await;
    let first = held.token().unwrap();
    let released = Instant::now();
    held.release().await.unwrap();
    let second = waiting.await.unwrap().unwrap();
    // Through the wake-up, and not through another read after a minute.
    assert!(released.elapsed() < Duration::from_secs(30));
    assert!(second.token().unwrap() > first);
    second.release().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn many_tasks_of_many_clients_take_turns() {
    let server = Server::start();
    let inside = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let client = server.client().await;
        for _ in 0..4 {
            let lock = Lock::new(client.clone(), "turns").unwrap();
            let inside = inside.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..10 {
                    let guard = lock.acquire_with(&patient()).await.unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    assert_eq!(inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst), 1);
                    guard.release().await.unwrap();
                }
            }));
        }
    }
    let start = std::time::Instant::now();
    for task in tasks {
        task.await.unwrap();
    }
    println!("160 turns in {:?}", start.elapsed());
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn readers_share_and_a_waiting_writer_is_not_passed() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "shared").unwrap();
    let one = lock.acquire_shared().await.unwrap();
    let two = lock.acquire_shared().await.unwrap();
    assert_ne!(one.token(), two.token());
    let writer = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_with(&patient()).await }
    });
    server.waiters("shared", 1).await;
    assert!(lock.try_acquire_shared().await.is_err());
    let reader = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_shared_with(&patient()).await }
    });
    server.waiters("shared", 2).await;
    let seen = lock.inspect().await.unwrap();
    assert_eq!((seen.holders.len(), seen.waiters.len()), (2, 2));
    one.release().await.unwrap();
    two.release().await.unwrap();
    let writer = writer.await.unwrap().unwrap();
    assert!(!reader.is_finished());
    writer.release().await.unwrap();
    reader.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn repeating_an_attempt_finds_the_same_place() {
    let server = Server::start();
    let client = server.client().await;
    let request = Request::new(
        LockName::new("again").unwrap(),
        Mode::Exclusive,
        Patience::Queue,
    );
    let Attempt::Granted(first) = client.try_acquire(&request).await.unwrap() else {
        panic!("contended")
    };
    let Attempt::Granted(second) = client.try_acquire(&request).await.unwrap() else {
        panic!("contended")
    };
    assert_eq!(first.token, second.token);
    assert_eq!(client.release(&request).await.unwrap(), Released::Freed);
    assert_eq!(client.release(&request).await.unwrap(), Released::NotHeld);
}

#[tokio::test]
async fn a_cancelled_waiter_leaves_no_key_and_its_successor_is_served() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "cancel").unwrap();
    let held = lock.acquire().await.unwrap();
    let spawn = |lock: &Lock<EtcdBackend>| {
        let lock = lock.clone();
        tokio::spawn(async move { lock.acquire_with(&patient()).await })
    };
    let cancelled = spawn(&lock);
    server.waiters("cancel", 1).await;
    let next = spawn(&lock);
    server.waiters("cancel", 2).await;
    cancelled.abort();
    server.waiters("cancel", 1).await;
    held.release().await.unwrap();
    next.await.unwrap().unwrap().release().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn permits_are_counted_and_served_in_order() {
    let server = Server::start();
    let client = server.client().await;
    let pool = Pool::new(client.clone(), "pool", 3).unwrap();
    let one = pool.acquire(1).await.unwrap();
    let two = pool.try_acquire(1).await.unwrap();
    let large = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire_with(3, &patient()).await }
    });
    server.permit_waiters("pool", 1).await;
    // One permit is free, but the large request came first.
    assert!(pool.try_acquire(1).await.is_err());
    let small = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire_with(1, &patient()).await }
    });
    server.permit_waiters("pool", 2).await;
    one.release().await.unwrap();
    assert!(!large.is_finished());
    two.release().await.unwrap();
    let large = large.await.unwrap().unwrap();
    assert!(!small.is_finished());
    large.release().await.unwrap();
    small.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn the_smallest_capacity_before_one_counts() {
    let server = Server::start();
    let client = server.client().await;
    let wide = Pool::new(client.clone(), "limit", 5).unwrap();
    let narrow = Pool::new(client.clone(), "limit", 2).unwrap();
    let one = narrow.acquire(1).await.unwrap();
    let two = wide.acquire(1).await.unwrap();
    assert!(wide.try_acquire(1).await.is_err());
    one.release().await.unwrap();
    let more = wide.acquire(4).await.unwrap();
    assert!(narrow.try_acquire(1).await.is_err());
    drop((two, more));
}

#[tokio::test]
async fn closing_frees_everything_at_once_and_a_later_call_starts_anew() {
    let server = Server::start();
    let (one, two) = (server.client().await, server.client().await);
    let held = Lock::new(one.clone(), "close")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let other = Lock::new(two, "close").unwrap();
    let waiting = tokio::spawn(async move { other.acquire_with(&patient()).await });
    server.waiters("close", 1).await;
    one.close().await.unwrap();
    assert!(held.is_lost());
    waiting.await.unwrap().unwrap().release().await.unwrap();
    let again = Lock::new(one, "close").unwrap().acquire().await.unwrap();
    again.release().await.unwrap();
}

#[tokio::test]
async fn dropping_the_last_clone_revokes_the_lease() {
    let server = Server::start();
    let client = server.client().await;
    let held = Lock::new(client.clone(), "drop")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let policy = Policy::default().with_timeout(Duration::from_secs(30));
    let other = Lock::new(server.client().await, "drop").unwrap();
    std::mem::forget(held);
    // The forgotten guard keeps a clone, so the backend is never dropped, as if it had leaked. This close replaces the
    // drop of the last clone.
    client.close().await.unwrap();
    other
        .acquire_with(&policy)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let third = server.client().await;
    let key_count = server.session_keys().await.len();
    drop(third);
    server
        .until("the session's key is gone", async || {
            server.session_keys().await.len() < key_count
        })
        .await;
}

#[tokio::test]
async fn names_and_prefixes_do_not_meet() {
    let server = Server::start();
    let client = server.client().await;
    let nested = server
        .client_with(|settings| settings.with_prefix("portalock/locks").unwrap())
        .await;
    let mut guards = Vec::new();
    for name in ["a", "a/b", "a%2fb", "exclusive", "locks", "/", "..", "Ä\n"] {
        guards.push(
            Lock::new(client.clone(), name)
                .unwrap()
                .try_acquire()
                .await
                .unwrap(),
        );
        guards.push(
            Lock::new(nested.clone(), name)
                .unwrap()
                .try_acquire()
                .await
                .unwrap(),
        );
    }
    let mut names: Vec<String> = client
        .names()
        .await
        .unwrap()
        .into_iter()
        .map(String::from)
        .collect();
    names.sort();
    let mut wanted = ["a", "a/b", "a%2fb", "exclusive", "locks", "/", "..", "Ä\n"];
    wanted.sort_unstable();
    assert_eq!(names, wanted);
}

#[tokio::test]
async fn a_fence_holds_exactly_as_long_as_the_lock() {
    use portalock_etcd::etcd_client::{Txn, TxnOp};
    let server = Server::start();
    let client = server.client().await;
    let guard = Lock::new(client.clone(), "fence")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let fence = client.fence(guard.owner()).unwrap();
    assert_eq!(
        u64::try_from(fence.revision).unwrap(),
        guard.token().unwrap().get()
    );
    let write = Txn::new()
        .when([fence.compare()])
        .and_then([TxnOp::put("mine", "1", None)]);
    assert!(
        server
            .raw()
            .await
            .txn(write.clone())
            .await
            .unwrap()
            .succeeded()
    );
    let owner = guard.owner();
    guard.release().await.unwrap();
    assert!(!server.raw().await.txn(write).await.unwrap().succeeded());
    assert_eq!(client.fence(owner), None);
}

#[tokio::test]
async fn a_lock_is_taken_by_one_transaction_and_given_back_by_one() {
    let server = Server::start();
    let client = server.client().await;
    // A new session begins to listen over a connection of its own. An attempt that is under way then is repeated.
    until("the session listens", async || {
        server.counter("etcd_debugging_mvcc_watcher_total").await >= 1.0
    })
    .await;
    let lock = Lock::new(client, "cheap").unwrap();
    let start = Instant::now();
    lock.acquire().await.unwrap().release().await.unwrap();
    let before = server.requests().await;
    for _ in 0..10 {
        lock.acquire().await.unwrap().release().await.unwrap();
    }
    let after = server.requests().await;
    // On a slow machine there is a check of the held key, one a second.
    let checks = start.elapsed().as_secs();
    let transactions = after.0 - before.0;
    assert!((20..=20 + checks).contains(&transactions), "{transactions}");
    assert_eq!(after.1 - before.1, 0, "other deletions");
}

#[tokio::test]
async fn a_lock_is_refused_by_one_transaction() {
    let server = Server::start();
    let holder = Lock::new(server.client().await, "cheap").unwrap();
    let _held = holder.acquire_with(&patient()).await.unwrap();
    let other = Lock::new(server.client().await, "cheap").unwrap();
    let before = server.requests().await.0;
    for _ in 0..50 {
        assert!(other.try_acquire().await.unwrap_err().is_contention());
    }
    // And a few transactions that check the held key meanwhile.
    let transactions = server.requests().await.0 - before;
    assert!((50..100).contains(&transactions), "{transactions}");
}

#[tokio::test]
async fn a_name_is_locked_again_by_the_same_key() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client.clone(), "again").unwrap();
    let mut keys = std::collections::HashSet::new();
    for _ in 0..10 {
        let guard = lock.acquire().await.unwrap();
        keys.insert(client.fence(guard.owner()).unwrap().key);
        guard.release().await.unwrap();
    }
    // While a check of the session uses the released key for a moment, the next hold takes another.
    assert!(keys.len() <= 2, "{keys:?}");
    let one = lock.acquire_shared().await.unwrap();
    let two = lock.acquire_shared().await.unwrap();
    assert_ne!(
        client.fence(one.owner()).unwrap().key,
        client.fence(two.owner()).unwrap().key
    );
    one.release().await.unwrap();
    let seen = lock.inspect().await.unwrap();
    assert_eq!((seen.holders.len(), seen.waiters.len()), (1, 0));
    two.ensure_held().unwrap();
}
