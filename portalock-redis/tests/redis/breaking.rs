//! Locks that an operator breaks, and how their holders learn of it.

use std::time::Duration;

use portalock_core::{Broken, Holder, LockBackend, Loss, OwnerId, Released, clock::Instant};
use portalock_redis::RedisBackend;
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};
use tokio::time::timeout;

use crate::fixture::{
    Admin, ENOUGH, client, eventually, granted, is_place, lock, settings, settings_at, waiting,
};

/// The name of the place that holds the lock `a`.
async fn place(admin: &mut Admin) -> String {
    place_at(admin, "a").await
}

async fn place_at(admin: &mut Admin, name: &str) -> String {
    let fields: Vec<String> = admin.ask(&format!("HKEYS portalock/lock/{name}")).await;
    fields.into_iter().find(|field| is_place(field)).unwrap()
}

/// The number of the hold of this lock.
async fn hold_of(admin: &mut Admin, name: &str) -> u64 {
    let place = place_at(admin, name).await;
    place.split_once('.').unwrap().1.parse().unwrap()
}

async fn marks(admin: &mut Admin) -> Vec<String> {
    admin.ask("KEYS portalock/session/*/broken").await
}

#[tokio::test]
async fn a_holder_is_told_by_the_message_and_not_at_its_next_refresh() {
    let server = RedisServer::start().unwrap();
    let long = settings(&server).with_session_ttl(ENOUGH * 10).unwrap();
    let holder = RedisBackend::with_settings(long).await.unwrap();
    let held = lock(&holder, "a").acquire().await.unwrap();
    let operator = lock(&client(&server).await, "a");
    let ended = timeout(ENOUGH, operator.break_holder(held.owner())).await;
    assert_eq!(ended.unwrap().unwrap(), Broken::Released);
    assert!(matches!(held.lost_signal().loss(), Some(Loss::Broken(_))));
}

#[tokio::test]
async fn a_mark_whose_message_was_lost_is_found_by_the_next_refresh() {
    let server = RedisServer::start().unwrap();
    let short = settings(&server)
        .with_session_ttl(Duration::from_secs(3))
        .unwrap();
    let holder = RedisBackend::with_settings(short).await.unwrap();
    let held = lock(&holder, "a").acquire().await.unwrap();
    let next = waiting(&client(&server).await, "a").await;
    let mut admin = Admin::of(&server).await;
    let sessions: Vec<String> = admin.ask("KEYS portalock/session/*").await;
    let by = serde_json::to_string(&Holder::this_process(Some("operator".into()))).unwrap();
    let place = place(&mut admin).await;
    for session in sessions {
        admin
            .ask::<()>(&format!("HSET {session}/broken {place} 0|{by}"))
            .await;
    }
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    let Loss::Broken(by) = loss else {
        panic!("{loss}");
    };
    assert_eq!(by.label.as_deref(), Some("operator"));
    assert!(granted(next).await.token() > held.token());
}

/// A server that has just started grants nothing at first. This includes a lock that its holder releases because of a
/// mark; the session of the holder continues at once.
#[tokio::test]
async fn what_is_given_back_after_a_restart_is_granted_when_the_server_may() {
    const WAIT: Duration = Duration::from_secs(5);
    let mut server = RedisOptions::new().persistent(true).start().unwrap();
    let waits = settings(&server).with_restart_wait(WAIT);
    let holder = RedisBackend::with_settings(waits).await.unwrap();
    let held = lock(&holder, "a").acquire().await.unwrap();
    let next = waiting(&client(&server).await, "a").await;
    server.restart().unwrap();
    let restarted = Instant::now();
    let mut admin = Admin::of(&server).await;
    let sessions: Vec<String> = admin.ask("KEYS portalock/session/*").await;
    let place = place(&mut admin).await;
    for session in sessions {
        admin
            .ask::<()>(&format!("HSET {session}/broken {place} 0|{{}}"))
            .await;
    }
    assert!(timeout(ENOUGH, held.lost()).await.is_ok());
    let _next = granted(next).await;
    // The server was running for some time before it answered.
    assert!(restarted.elapsed() > WAIT / 2, "{:?}", restarted.elapsed());
}

#[tokio::test]
async fn nothing_is_left_of_a_mark_that_was_heeded() {
    let server = RedisServer::start().unwrap();
    let (one, two) = (client(&server).await, client(&server).await);
    let held = lock(&one, "a").acquire().await.unwrap();
    let other = lock(&one, "b").acquire().await.unwrap();
    let broken = lock(&two, "a").break_holder(held.owner()).await.unwrap();
    assert_eq!(broken, Broken::Released);
    assert!(held.is_lost());
    eventually(async || marks(&mut Admin::of(&server).await).await.is_empty()).await;
    other.ensure_held().unwrap();
    other.release().await.unwrap();
}

/// A failover or a restart can lose a mark. Then the holder's refreshes don't find it, and extend the session.
#[tokio::test]
async fn a_holder_is_told_first_although_its_first_mark_was_lost() {
    const SESSION: Duration = Duration::from_secs(4);
    let server = RedisServer::start().unwrap();
    let on_a_line = async |session| {
        let line = FaultProxy::start(server.addr()).unwrap();
        let settings = settings_at(&format!("redis://{}", line.addr()));
        let settings = settings.with_session_ttl(session).unwrap();
        (RedisBackend::with_settings(settings).await.unwrap(), line)
    };
    let (holder, heard) = on_a_line(SESSION).await;
    // It waits long for answers, so that its next commands are under way when its line is healed.
    let (breaker, line) = on_a_line(ENOUGH).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let lost = held.lost_signal();
    let next = waiting(&client(&server).await, "a").await;
    let mut admin = Admin::of(&server).await;

    // The mark is lost before the holder hears of it, and the next one comes late.
    heard.black_hole(Direction::ToClient);
    let owner = held.owner();
    let breaks = tokio::spawn(async move {
        let lock = lock(&breaker, "a");
        while let Err(error) = lock.break_holder(owner).await {
            assert!(error.is_retryable(), "{error:?}");
        }
    });
    eventually(async || !marks(&mut Admin::of(&server).await).await.is_empty()).await;
    line.black_hole(Direction::Both);
    for mark in marks(&mut admin).await {
        admin.ask::<u32>(&format!("DEL {mark}")).await;
    }
    heard.heal();
    tokio::time::sleep(SESSION * 2).await;
    held.ensure_held().unwrap();
    heard.delay(Direction::ToClient, SESSION / 10);
    line.heal();

    let _next = granted(next).await;
    assert!(
        lost.is_lost(),
        "granted to another before the holder was told"
    );
    breaks.await.unwrap();
}

/// This is the state after a failover to a replica that lacked the release.
#[tokio::test]
async fn a_hold_that_its_client_does_not_know_is_broken_at_once() {
    let server = RedisServer::start().unwrap();
    let lasting = settings(&server).with_session_ttl(ENOUGH * 10).unwrap();
    let holder = RedisBackend::with_settings(lasting).await.unwrap();
    let held = lock(&holder, "a").acquire().await.unwrap();
    let owner = held.owner();
    let mut admin = Admin::of(&server).await;
    let fields: Vec<String> = admin.ask("HGETALL portalock/lock/a").await;
    held.release().await.unwrap();
    for field in fields.chunks(2) {
        let words = ["HSET", "portalock/lock/a", &field[0], &field[1]];
        admin.ask_words::<u32>(&words).await;
    }
    let breaks = lock(&client(&server).await, "a");
    let broken = timeout(ENOUGH, breaks.break_holder(owner)).await.unwrap();
    assert_eq!(broken.unwrap(), Broken::Released);
}

/// The holder has released the lock before the mark is sent again.
#[tokio::test]
async fn a_hold_whose_mark_got_no_answer_is_told_as_broken() {
    let server = RedisServer::start().unwrap();
    let line = FaultProxy::start(server.addr()).unwrap();
    let on_a_line = settings_at(&format!("redis://{}", line.addr()));
    let breaker = RedisBackend::with_settings(on_a_line).await.unwrap();
    let held = lock(&client(&server).await, "a").acquire().await.unwrap();
    let owner = held.owner();
    // Opens the connection.
    let nothing = lock(&breaker, "a").break_holder(OwnerId::mint()).await;
    assert_eq!(nothing.unwrap(), Broken::NotHeld);
    line.black_hole(Direction::ToClient);
    let breaks = tokio::spawn(async move { lock(&breaker, "a").break_holder(owner).await });
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::Broken(_)), "{loss}");
    is_free(&server).await;
    line.refuse(true);
    line.cut();
    eventually(async || line.connections() == 0).await;
    line.heal();
    assert_eq!(breaks.await.unwrap().unwrap(), Broken::Released);
}

/// Waits until nobody holds the lock `a`.
async fn is_free(server: &RedisServer) {
    eventually(async || {
        let fields: Vec<String> = Admin::of(server).await.ask("HKEYS portalock/lock/a").await;
        !fields.iter().any(|field| is_place(field))
    })
    .await;
}

#[tokio::test]
async fn a_hold_that_was_ended_without_an_answer_is_told_as_ended() {
    let server = RedisServer::start().unwrap();
    let line = FaultProxy::start(server.addr()).unwrap();
    let on_a_line = settings_at(&format!("redis://{}", line.addr()));
    let breaker = RedisBackend::with_settings(on_a_line).await.unwrap();
    let lasting = settings(&server).with_session_ttl(ENOUGH * 10).unwrap();
    let holder = RedisBackend::with_settings(lasting).await.unwrap();
    let held = lock(&holder, "a").acquire().await.unwrap();
    let other = lock(&holder, "b").acquire().await.unwrap();
    let (name, owner) = ("a".parse().unwrap(), held.owner());
    let nothing = LockBackend::evict(&breaker, &name, OwnerId::mint(), 0).await;
    assert_eq!(nothing.unwrap(), Released::NotHeld);

    let mut admin = Admin::of(&server).await;
    let (number, its) = (
        hold_of(&mut admin, "a").await,
        hold_of(&mut admin, "b").await,
    );
    for session in admin.ask::<Vec<String>>("KEYS portalock/session/*").await {
        admin.ask::<u32>(&format!("PEXPIRE {session} 300")).await;
    }
    // It waits for the end of the session.
    let waited = LockBackend::evict(&breaker, &"b".parse().unwrap(), other.owner(), its).await;
    assert_eq!(waited.unwrap(), Released::Freed);
    line.black_hole(Direction::ToClient);
    let ended =
        tokio::spawn(async move { LockBackend::evict(&breaker, &name, owner, number).await });
    is_free(&server).await;
    line.refuse(true);
    line.cut();
    eventually(async || line.connections() == 0).await;
    line.heal();
    assert_eq!(ended.await.unwrap().unwrap(), Released::Freed);
}
