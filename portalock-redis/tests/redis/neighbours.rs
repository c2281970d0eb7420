//! Hand-overs among waiters of one session that are right behind each other: at once, in order, and with nothing lost.

mod contention;

use std::{task::Poll, time::Duration};

use portalock_core::{Broken, FencingToken, Guard, LockBackend as _, LockError, Loss};
use portalock_redis::RedisBackend;
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};
use tokio::{
    task::{JoinHandle, yield_now},
    time::timeout,
};

use crate::fixture::{
    Admin, ENOUGH, client, connected, eventually, granted, lock, replica_of, settings, settings_at,
    waiters, waiting, without_notice,
};

type Waiter = JoinHandle<Result<Guard<RedisBackend>, LockError>>;

/// Starts a waiter, and returns when its client has the answer of the server.
async fn in_line(backend: &RedisBackend) -> Waiter {
    let waiter = waiting(backend, "a").await;
    // This answer comes after the waiter's, over the same connection.
    backend.ping().await.unwrap();
    for _ in 0..10 {
        yield_now().await;
    }
    waiter
}

/// Releases in a task, which may get no answer for some time.
fn releasing(guard: Guard<RedisBackend>) -> JoinHandle<Result<(), LockError>> {
    tokio::spawn(guard.release())
}

async fn tokens_of_waiters(admin: &mut Admin) -> Vec<u64> {
    let claims: Vec<String> = admin.ask("HVALS portalock/lock-waiters/a").await;
    let tokens = claims.iter().map(|claim| claim.split('|').nth(3).unwrap());
    let mut tokens: Vec<u64> = tokens.filter_map(|token| token.parse().ok()).collect();
    tokens.sort_unstable();
    tokens
}

/// Neighbours of one session hold one after the other, although the server says nothing, in both forms.
#[tokio::test]
async fn neighbours_need_no_answer_of_the_server() {
    let server = RedisServer::start().unwrap();
    for backend in [client(&server).await, without_notice(&server).await] {
        let other = client(&server).await;
        let held = lock(&backend, "a").acquire().await.unwrap();
        let line = [in_line(&backend).await, in_line(&backend).await];
        let after = in_line(&other).await;
        let behind = in_line(&backend).await;
        server.stall().unwrap();
        let mut last = held.token();
        let mut releases = vec![releasing(held)];
        for waiter in line {
            let guard = granted(waiter).await;
            assert!(guard.token() > last && !guard.is_lost());
            last = guard.token();
            releases.push(releasing(guard));
        }
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(
            !after.is_finished() && !behind.is_finished(),
            "somebody else is next"
        );
        server.resume().unwrap();
        for release in releases {
            release.await.unwrap().unwrap();
        }
        for waiter in [after, behind] {
            let guard = granted(waiter).await;
            assert!(guard.token() > last);
            last = guard.token();
            guard.release().await.unwrap();
        }
    }
}

/// A grant of the server tells which waiters are right behind.
#[tokio::test]
async fn neighbours_that_waited_behind_another_session_need_no_answer_either() {
    let server = RedisServer::start().unwrap();
    let (backend, other) = (client(&server).await, client(&server).await);
    let held = lock(&other, "a").acquire().await.unwrap();
    let first = in_line(&backend).await;
    let line = [in_line(&backend).await, in_line(&backend).await];
    held.release().await.unwrap();
    let mut guard = granted(first).await;
    server.stall().unwrap();
    let mut releases = Vec::new();
    for waiter in line {
        let last = guard.token();
        releases.push(releasing(guard));
        guard = granted(waiter).await;
        assert!(guard.token() > last);
    }
    server.resume().unwrap();
    for release in releases {
        release.await.unwrap().unwrap();
    }
    guard.release().await.unwrap();
}

/// The release names the neighbour, so the server sends it no message.
#[tokio::test]
async fn a_neighbour_that_has_taken_over_gets_no_message() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let next = in_line(&backend).await;
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("CONFIG RESETSTAT").await;
    held.release().await.unwrap();
    granted(next).await.release().await.unwrap();
    assert_eq!(admin.calls("publish").await, 0);
}

/// The session reconnects and checks its locks while the server still waits for the release of the owner ahead.
#[test]
fn a_check_knows_a_hold_that_was_taken_over_before_the_release_has_come() {
    let server = RedisServer::start().unwrap();
    let main = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let slow = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let backend = main.block_on(client(&server));
    let held = slow.block_on(lock(&backend, "a").acquire()).unwrap();
    let (owner, token) = (held.owner(), held.token());
    let next = main.block_on(in_line(&backend));
    let mut release = Box::pin(held.release());
    // The connection of this runtime sends nothing after this.
    let begun = std::future::poll_fn(|context| Poll::Ready(release.as_mut().poll(context)));
    assert!(slow.block_on(begun).is_pending());
    let next = main.block_on(async {
        let next = granted(next).await;
        assert!(next.token() > token);
        let mut admin = Admin::of(&server).await;
        admin.ask::<()>("CONFIG RESETSTAT").await;
        admin.kill_sessions().await;
        // The check reads claims by `HMGET`.
        eventually(async || Admin::of(&server).await.calls("hmget").await > 0).await;
        for _ in 0..20 {
            next.ensure_held().unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let found = lock(&backend, "a").inspect().await.unwrap();
        assert_eq!(found.holders[0].owner, Some(owner));
        next
    });
    slow.block_on(release).unwrap();
    main.block_on(next.release()).unwrap();
}

/// The release of the owner ahead is lost with its connection, and so is the session's connection.
#[tokio::test]
async fn a_hold_that_was_taken_over_survives_a_reset_that_loses_the_release() {
    let server = RedisServer::start().unwrap();
    let proxy = FaultProxy::start(server.addr()).unwrap();
    let url = format!("redis://{}", proxy.addr());
    let long = settings_at(&url).with_session_ttl(Duration::from_secs(20));
    let backend = RedisBackend::with_settings(long.unwrap()).await.unwrap();
    let other = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let first = held.owner();
    let line = [in_line(&backend).await, in_line(&backend).await];
    let after = in_line(&other).await;
    proxy.drop_bytes(Direction::ToServer);
    let release = releasing(held);
    let [second, third] = line;
    let second = granted(second).await;
    proxy.cut();
    let holder = async || {
        let found = lock(&other, "a").inspect().await.unwrap();
        found.holders.first().and_then(|claim| claim.owner)
    };
    // Before the release is repeated, the server says that the first owner holds.
    assert!(
        holder()
            .await
            .is_some_and(|owner| owner == first || owner == second.owner())
    );
    proxy.heal();
    release.await.unwrap().unwrap();
    eventually(async || holder().await == Some(second.owner())).await;
    // Another reset, of the session alone: the waiter learns of its grant in another way.
    Admin::of(&server).await.kill_sessions().await;
    second.ensure_held().unwrap();
    assert!(!third.is_finished() && !after.is_finished());
    let last = second.token();
    second.release().await.unwrap();
    let third = granted(third).await;
    assert!(third.token() > last);
    let last = third.token();
    third.release().await.unwrap();
    assert!(granted(after).await.token() > last);
}

#[tokio::test]
async fn after_a_session_that_ended_tokens_are_larger_than_all_that_its_waiters_had() {
    let server = RedisServer::start().unwrap();
    let (backend, other) = (client(&server).await, client(&server).await);
    let held = lock(&backend, "a").acquire().await.unwrap();
    let _line = [in_line(&backend).await, in_line(&backend).await];
    let next = in_line(&other).await;
    let mut admin = Admin::of(&server).await;
    let tokens = tokens_of_waiters(&mut admin).await;
    assert_eq!(tokens.len(), 2);
    let found = lock(&other, "a").inspect().await.unwrap();
    assert!(found.waiters.iter().all(|waiter| waiter.token.is_none()));
    let state: Vec<String> = admin.ask("HVALS portalock/lock/a").await;
    let claim = state.iter().find(|value| value.contains('{')).unwrap();
    let session = claim.split('|').next().unwrap();
    admin
        .ask::<u32>(&format!("DEL portalock/session/{session}"))
        .await;
    assert!(granted(next).await.token() > Some(FencingToken::new(tokens[1])));
    timeout(ENOUGH, held.lost()).await.unwrap();
}

#[tokio::test]
async fn a_holder_that_is_broken_passes_on_by_the_server() {
    let server = RedisServer::start().unwrap();
    let (backend, operator) = (client(&server).await, client(&server).await);
    let held = lock(&backend, "a").acquire().await.unwrap();
    let next = in_line(&backend).await;
    let third = in_line(&backend).await;
    let owner = held.owner();
    let broken = lock(&operator, "a").break_holder(owner).await.unwrap();
    assert_eq!(broken, Broken::Released);
    assert!(matches!(held.lost_signal().loss(), Some(Loss::Broken(_))));
    let next = granted(next).await;
    assert!(next.token() > held.token());
    // One that has just taken over can be broken as soon as the server has the release.
    let owner = next.owner();
    next.release().await.unwrap();
    let third = granted(third).await;
    let broken = lock(&operator, "a").break_holder(owner).await.unwrap();
    assert_eq!(broken, Broken::NotHeld);
    third.ensure_held().unwrap();
    let owner = third.owner();
    let broken = lock(&operator, "a").break_holder(owner).await.unwrap();
    assert_eq!(broken, Broken::Released);
    assert!(third.is_lost());
}

/// The waiter's call is dropped when it has been granted the lock, and before it knows.
#[tokio::test]
async fn a_call_that_is_dropped_after_it_took_over_passes_on() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let mut line = Vec::new();
    for _ in 0..3 {
        line.push(in_line(&backend).await);
    }
    let third = line.pop().unwrap();
    for waiter in line {
        // The waiters are on this runtime, which has one thread: none of them runs before it is aborted.
        waiter.abort();
    }
    held.release().await.unwrap();
    granted(third).await.release().await.unwrap();
    eventually(async || {
        let found = lock(&backend, "a").inspect().await.unwrap();
        !found.held && found.waiters.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_neighbour_behind_one_that_gives_up_waits_for_the_holder() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let (second, third) = (in_line(&backend).await, in_line(&backend).await);
    second.abort();
    eventually(async || waiters(&backend, "a").await == 1).await;
    backend.ping().await.unwrap();
    for _ in 0..10 {
        yield_now().await;
    }
    assert!(!third.is_finished(), "the lock is held");
    held.release().await.unwrap();
    granted(third).await.release().await.unwrap();
}

/// Its place was deleted, and in the new queue somebody else is ahead of it.
#[tokio::test]
async fn a_waiter_that_takes_its_place_anew_is_nobodys_neighbour_any_more() {
    let server = RedisServer::start().unwrap();
    let (backend, other) = (client(&server).await, client(&server).await);
    let held = lock(&backend, "a").acquire().await.unwrap();
    let next = in_line(&backend).await;
    let line = async || lock(&other, "a").inspect().await.unwrap().waiters;
    let its = line().await[0].owner;
    let mut admin = Admin::of(&server).await;
    let first = loop {
        admin.ask::<u32>("DEL portalock/lock-waiters/a").await;
        let first = in_line(&other).await;
        eventually(async || line().await.len() == 2).await;
        if line().await[0].owner != its {
            break first;
        }
        // It was quicker than the other one.
        first.abort();
        eventually(async || line().await.len() == 1).await;
    };
    // The answer comes before that of the server to this, over the same connection.
    backend.ping().await.unwrap();
    for _ in 0..10 {
        yield_now().await;
    }
    held.release().await.unwrap();
    let first = granted(first).await;
    assert!(!next.is_finished(), "two hold");
    first.release().await.unwrap();
    granted(next).await.release().await.unwrap();
}

#[tokio::test]
async fn where_replicas_confirm_nobody_takes_over_before_they_have() {
    let server = RedisOptions::new()
        .setting("repl-diskless-sync-delay", "0")
        .start()
        .unwrap();
    let replica = replica_of(&server).await;
    let demanding = settings(&server)
        .with_wait_replicas(1)
        .with_session_ttl(ENOUGH)
        .unwrap();
    let backend = connected(demanding).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let next = in_line(&backend).await;
    replica.stall().unwrap();
    held.release().await.unwrap();
    backend.ping().await.unwrap();
    for _ in 0..10 {
        yield_now().await;
    }
    assert!(!next.is_finished(), "no replica has its grant");
    replica.resume().unwrap();
    granted(next).await.release().await.unwrap();
}

/// The tokens of waiters are larger than the holder's, and are not granted yet.
#[tokio::test]
async fn an_observer_that_begins_while_neighbours_wait_sees_their_terms() {
    let server = RedisServer::start().unwrap();
    let (backend, observer) = (client(&server).await, client(&server).await);
    let held = lock(&backend, "a").acquire().await.unwrap();
    let line = [in_line(&backend).await, in_line(&backend).await];
    let name = lock(&observer, "a").name().clone();
    let found = observer.inspect(&name).await.unwrap();
    assert_eq!(found.last_token, held.token());
    let mut watch = observer.watch(&name).await.unwrap().unwrap();
    let mut seen = async || {
        let change = timeout(ENOUGH, watch.next()).await.unwrap().unwrap();
        change.and_then(|claim| claim.token)
    };
    assert_eq!(seen().await, held.token());
    let mut last = held;
    for waiter in line {
        last.release().await.unwrap();
        last = granted(waiter).await;
        assert_eq!(seen().await, last.token());
    }
    last.release().await.unwrap();
    assert_eq!(seen().await, None);
}

/// The server no longer knows who is next, and grants the lock to another client. The check tells the waiter that took over.
#[tokio::test]
async fn one_that_took_over_is_told_if_somebody_has_deleted_the_queue() {
    let server = RedisServer::start().unwrap();
    // The waiter doesn't ask again, which would give it a new place.
    let rare = settings(&server).with_tick_interval(ENOUGH).unwrap();
    let backend = RedisBackend::with_settings(rare).await.unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    let next = in_line(&backend).await;
    let mut admin = Admin::of(&server).await;
    assert_eq!(admin.ask::<u32>("DEL portalock/lock-queue/a").await, 1);
    held.release().await.unwrap();
    let next = granted(next).await;
    let other = lock(&client(&server).await, "a").acquire().await.unwrap();
    assert!(other.token() > next.token());
    timeout(ENOUGH, next.lost()).await.unwrap();
    let _ = next.release().await;
    other.ensure_held().unwrap();
    other.release().await.unwrap();
}
