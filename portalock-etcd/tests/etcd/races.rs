//! Calls that overlap, answers that never come, and many requests at once.

use std::{path::Path, pin::pin, time::Duration};

use portalock_core::{
    Attempt, Broken, Holder, Lock, LockBackend, LockName, LockRequest, Loss, Mode, OwnerId,
    Patience, Policy, Released, Request,
};
use portalock_etcd::{
    EtcdBackend,
    etcd_client::{Txn, TxnOp},
};
use portalock_testkit::proxy::Direction;
use tokio::time::timeout;

use crate::support::{Server, patient, until, with_users};

/// The delay of answers in the tests that want late answers.
const LATE: Duration = Duration::from_secs(5);

fn request(name: &str) -> LockRequest {
    let name = LockName::new(name).unwrap();
    Request::new(name, Mode::Exclusive, Patience::Queue)
}

async fn granted(client: &EtcdBackend, request: &LockRequest) {
    let attempt = client.try_acquire(request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
}

#[tokio::test]
async fn a_release_that_is_answered_late_leaves_its_owners_next_place() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(60))
        .await;
    let request = request("again");
    granted(&client, &request).await;
    line.black_hole(Direction::ToServer);
    let release = client.release(&request);
    tokio::time::timeout(Duration::from_millis(100), release)
        .await
        .unwrap_err();
    // The held-back data is lost with its connection. The session releases by itself, and gets the answer late.
    line.refuse(true);
    line.cut();
    until("the connection is gone", async || line.connections() == 0).await;
    line.heal();
    line.delay(Direction::ToClient, LATE);
    until("it is released", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
    line.heal();
    granted(&client, &request).await;
    let key = client.fence(request.owner).unwrap().key;
    tokio::time::sleep(LATE * 2).await;
    assert_eq!(client.fence(request.owner).unwrap().key, key);
    assert_eq!(server.lock_keys().await, [key]);
    assert_eq!(client.release(&request).await.unwrap(), Released::Freed);
    assert!(server.lock_keys().await.is_empty());
}

#[tokio::test]
async fn a_session_whose_backend_was_dropped_while_it_started_is_ended() {
    let server = Server::start();
    let line = server.line(0);
    line.delay(Direction::ToClient, Duration::from_millis(500));
    let lines = [&line];
    let starting = server.lasting_client_through(&lines, Duration::from_secs(60));
    tokio::select! {
        _ = starting => panic!("it starts before its answers come"),
        () = until("the session is there", async || {
            !server.session_keys().await.is_empty()
        }) => {}
    }
    // The lease's own time would be ten minutes.
    until("its lease is revoked", async || {
        server.session_keys().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_login_that_is_never_answered_does_not_hold_up_the_next() {
    let server = Server::with_cheap_passwords();
    with_users(&server).await;
    let line = server.line(0);
    let settings = portalock_etcd::EtcdSettings::new([line.addr().to_string()])
        .unwrap()
        .with_user("billing", "hunter2")
        .with_prefix("billing")
        .unwrap()
        .with_request_timeout(Duration::from_secs(2))
        .unwrap();
    let client = EtcdBackend::new(settings).unwrap();
    let request = request("login");
    // The end of the connection doesn't arrive either, as after a machine has lost its power.
    line.delay(Direction::ToClient, Duration::from_secs(3_600));
    client.try_acquire(&request).await.unwrap_err();
    line.heal();
    until("it is granted", async || {
        matches!(client.try_acquire(&request).await, Ok(Attempt::Granted(_)))
    })
    .await;
}

/// Copies a member's data while the member does not run.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_restore_ends_the_sessions_and_brings_no_released_lock_back() {
    let server = Server::start();
    let (line, saved) = (server.line(0), tempfile::tempdir().unwrap());
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(2))
        .await;
    let other = server
        .client_with(|settings| settings.with_lease_time(Duration::from_secs(600)).unwrap())
        .await;
    let lock = |client: &EtcdBackend, name: &str| Lock::new(client.clone(), name).unwrap();
    let kept = lock(&client, "kept").acquire().await.unwrap();
    let released = lock(&client, "released").acquire().await.unwrap();
    server.etcd.kill(0);
    copy(server.etcd.data(0), saved.path());
    server.restart(&[0]).await;

    released.release().await.unwrap();
    let free = lock(&client, "free");
    for _ in 0..10 {
        drop(free.acquire_with(&patient()).await.unwrap());
    }
    let forgotten = lock(&client, "forgotten");
    let forgotten = forgotten.acquire_with(&patient()).await.unwrap();
    // A lost answer makes the client modify its session's key.
    line.black_hole(Direction::ToClient);
    let brief = Policy::default().with_timeout(Duration::from_millis(200));
    free.acquire_with(&brief).await.unwrap_err();
    line.heal();
    line.cut();
    drop(free.acquire_with(&patient()).await.unwrap());
    let waiting = lock(&other, "kept");
    let waiting = tokio::spawn(async move { waiting.acquire_with(&patient()).await });
    server.waiters("kept", 1).await;

    server.etcd.kill(0);
    server.etcd.wipe(0).unwrap();
    copy(saved.path(), server.etcd.data(0));
    server.restart(&[0]).await;
    // This may come before the session has read its key.
    let again = lock(&client, "released").acquire_with(&patient()).await;
    again.unwrap().release().await.unwrap();
    for guard in [&kept, &forgotten] {
        let loss = tokio::time::timeout(Duration::from_secs(60), guard.lost());
        let loss = loss.await.unwrap();
        assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    }
    for name in ["free", "released"] {
        for client in [&client, &other] {
            let lock = lock(client, name);
            lock.acquire_with(&patient())
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
        }
    }
    waiting.await.unwrap().unwrap().release().await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_longest_names_are_listed_however_many_there_are() {
    let server = Server::start();
    let client = server
        .client_with(|settings| settings.with_prefix("p".repeat(100)).unwrap())
        .await;
    let name = |number: usize| LockName::new(format!("{number:05}{}", "/".repeat(250))).unwrap();
    let first = request(name(0).as_str());
    granted(&client, &first).await;
    let key = client.fence(first.owner).unwrap().key;
    let numbers: Vec<usize> = (1..6_000).collect();
    let mut store = server.raw().await;
    for some in numbers.chunks(100) {
        let puts = some.iter().map(|number| {
            let key = key.replacen("00000", &format!("{number:05}"), 1);
            TxnOp::put(key, "", None)
        });
        let puts: Vec<_> = puts.collect();
        store.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    let names = client.names().await.unwrap();
    assert_eq!(names.len(), 6_000);
    assert_eq!(names[5_999], name(5_999));
}

#[tokio::test]
async fn one_who_asks_again_for_what_it_held_is_told_that_it_was_deleted() {
    let server = Server::start();
    let client = server.client().await;
    let request = request("deleted");
    let Attempt::Granted(grant) = client.try_acquire(&request).await.unwrap() else {
        panic!("contended by nobody")
    };
    let key = client.fence(request.owner).unwrap().key;
    server.raw().await.delete(key, None).await.unwrap();
    granted(&client, &request).await;
    assert!(grant.lost.is_lost());
}

#[tokio::test]
async fn of_a_crowd_that_comes_at_once_few_look_at_the_queue() {
    const CROWD: u64 = 100;
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(60))
        .await;
    granted(&client, &request("crowd")).await;
    let before = server.requests().await.0;
    // All requests are answered at once.
    line.delay(Direction::ToClient, Duration::from_secs(1));
    let crowd: Vec<_> = (0..CROWD)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.try_acquire(&request("crowd")).await })
        })
        .collect();
    for attempt in crowd {
        let attempt = attempt.await.unwrap().unwrap();
        assert!(matches!(attempt, Attempt::Contended(_)), "{attempt:?}");
    }
    let transactions = server.requests().await.0 - before;
    println!("{transactions} transactions");
    assert!((CROWD..CROWD + CROWD / 4).contains(&transactions));
}

#[tokio::test]
async fn a_lock_that_was_broken_leaves_neither_its_key_nor_the_mark() {
    let server = Server::start();
    let client = server.client().await;
    let lock = Lock::new(client, "broken").unwrap();
    let guard = lock.acquire().await.unwrap();
    let breaker = Lock::new(server.client().await, "broken").unwrap();
    breaker.break_holder(guard.owner()).await.unwrap();
    assert!(matches!(guard.lost().await, Loss::Broken(_)));
    // The keys of both sessions stay.
    until("nothing is left", async || {
        server.lock_keys().await.is_empty() && server.session_keys().await.len() == 2
    })
    .await;
}

/// The holder has released the lock before the mark is sent again. A break first reads who holds, so only the answer after
/// that may be lost.
#[tokio::test]
async fn a_hold_whose_mark_got_no_answer_is_told_as_broken() {
    let server = Server::start();
    let held = Lock::new(server.client().await, "broken").unwrap();
    let held = held.acquire().await.unwrap();
    let owner = held.owner();
    let line = server.line(0);
    let breaker = server
        .lasting_client_through(&[&line], Duration::from_secs(60))
        .await;
    let breaker = Lock::new(breaker, "broken").unwrap();
    // Opens the connection.
    let nothing = breaker.break_holder(OwnerId::mint()).await;
    assert_eq!(nothing.unwrap(), Broken::NotHeld);
    let way = Duration::from_secs(1);
    line.delay(Direction::ToServer, way);
    let breaks = tokio::spawn(async move { breaker.break_holder(owner).await });
    tokio::time::sleep(way * 3 / 2).await;
    line.drop_bytes(Direction::ToClient);
    assert!(matches!(held.lost().await, Loss::Broken(_)));
    until("it is released", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
    line.heal();
    line.cut();
    assert_eq!(breaks.await.unwrap().unwrap(), Broken::Released);
}

#[tokio::test]
async fn a_request_under_way_takes_no_other_place_after_its_lock_was_broken() {
    let server = Server::start();
    let (holder, client) = (server.client().await, server.client().await);
    let (first, broken) = (request("broken"), request("broken"));
    granted(&holder, &first).await;
    // Opens the connection, so that the request is sent by the first poll.
    granted(&client, &request("another")).await;
    let mut attempt = pin!(client.try_acquire(&broken));
    let polled_once = timeout(Duration::ZERO, &mut attempt).await;
    assert!(polled_once.is_err());
    server.waiters("broken", 1).await;
    holder.release(&first).await.unwrap();
    // Now it holds, without having heard the answer.
    let operator = Holder::this_process(None);
    let breaks = holder.mark_broken(&first.name, broken.owner, &operator);
    assert!(breaks.await.unwrap().is_some());
    let keys = async || {
        let found = server.lock_keys().await;
        found.iter().filter(|key| key.contains("/broken/")).count()
    };
    until("it is released", async || keys().await == 0).await;
    // The session has the answer too, and has forgotten the owner.
    until("that is settled", async || {
        client.release(&broken).await.unwrap() == Released::NotHeld
    })
    .await;
    let outcome = attempt.await;
    assert!(outcome.is_err(), "{outcome:?}");
    until("it is released again", async || keys().await == 0).await;
    granted(&client, &broken).await;
}

/// Their number would take the session's time, one round trip after the other.
#[tokio::test]
async fn a_check_of_many_places_is_sent_at_once() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(60))
        .await;
    let mut guards = Vec::new();
    for number in 0..450 {
        let lock = Lock::new(client.clone(), format!("{number}")).unwrap();
        guards.push(lock.acquire_with(&patient()).await.unwrap());
    }
    line.black_hole(Direction::ToClient);
    let before = server.begun("Txn").await;
    until("all parts of a check have reached etcd", async || {
        server.begun("Txn").await >= before + 5
    })
    .await;
    line.heal();
    assert!(guards.iter().all(|guard| !guard.is_lost()));
}

/// They came while it was cut off.
#[tokio::test]
async fn a_session_reads_its_marks_however_long_they_are() {
    let server = Server::start();
    let line = server.line(0);
    let client = server.client_through(&[&line], |settings| settings).await;
    let lock = Lock::new(client, "marked").unwrap();
    let guard = lock.acquire().await.unwrap();
    let [session] = &server.session_keys().await[..] else {
        panic!("there is one session")
    };
    line.black_hole(Direction::Both);
    let mut store = server.raw().await;
    for number in 0..6 {
        let mark = format!("{session}/{number}");
        store
            .put(mark, vec![b'x'; 1024 * 1024], None)
            .await
            .unwrap();
    }
    line.heal();
    line.cut();
    until("they are read and removed", async || {
        server.session_keys().await.len() == 1
    })
    .await;
    guard.ensure_held().unwrap();
    guard.release().await.unwrap();
}
