//! Behind sentinels: those who hold no lock follow the primary too. They observe, inspect, and break locks.
//!
//! In each test, the former primary continues, and so do their connections to it.

use std::time::Duration;

use portalock_core::{Broken, Election, FencingToken, Loss, Observer, Policy};
use portalock_redis::RedisBackend;
use portalock_testkit::{proxy::Direction, servers::SentinelOptions};
use tokio::time::timeout;

use crate::{
    fixture::{ENOUGH, connected, eventually, lock, settings_at},
    sentinel::{acquired, by_lines, lasting, on, on_server, part, replicated, start, with_user},
};

/// How long the client of a former primary pauses: checks are much rarer.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until the observer tells of the term with this token.
async fn told_of(observer: &mut Observer<RedisBackend>, token: Option<FencingToken>) {
    let told = async {
        // After an error it starts a new watch.
        while !matches!(observer.next().await, Ok(Some(term)) if term.token == token) {}
    };
    timeout(ENOUGH, told).await.expect("it does not tell");
}

/// Only a session looks all the time.
#[tokio::test]
async fn a_backend_without_a_session_follows_the_primary() {
    let mut group = start(SentinelOptions::new()).await;
    let url = with_user(&mut group).await;
    let holder = connected(lasting(&url)).await;
    let [watching, operator] = [(); 2].map(|()| RedisBackend::new(settings_at(&url)));
    let held = lock(&holder, "a").acquire().await.unwrap();
    let mut observer = Election::new(watching, "a").unwrap().observe();
    // Its connection leads to the former primary.
    assert!(lock(&operator, "a").inspect().await.unwrap().held);
    told_of(&mut observer, held.token()).await;
    replicated(&group.servers()[0]).await;
    part(&group.servers()[0]).await;
    let (mut group, primary) = on(group, |group| group.until_moved_from(0)).await;

    on_server(&holder, &group.servers()[primary]).await;
    let _there = acquired(&holder, "c").await;
    let others = lock(&operator, "c");
    eventually(async || others.inspect().await.is_ok_and(|seen| seen.held)).await;
    let broken = lock(&operator, "a").break_holder(held.owner()).await;
    assert_eq!(broken.unwrap(), Broken::Released);
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::Broken(_)), "{loss}");
    let next = acquired(&holder, "a").await;
    told_of(&mut observer, next.token()).await;
}

/// Its last look is not old enough for another one.
#[tokio::test]
async fn a_break_reaches_the_holder_at_the_new_primary() {
    let mut group = start(SentinelOptions::new()).await;
    let url = with_user(&mut group).await;
    let holder = connected(lasting(&url)).await;
    let rarely = settings_at(&url).with_session_ttl(ENOUGH * 10).unwrap();
    let operator = lock(&RedisBackend::new(rarely), "a");
    let held = lock(&holder, "a").acquire().await.unwrap();
    assert!(operator.inspect().await.unwrap().held);
    replicated(&group.servers()[0]).await;
    part(&group.servers()[0]).await;
    let (mut group, primary) = on(group, |group| group.until_moved_from(0)).await;
    on_server(&holder, &group.servers()[primary]).await;
    let broken = operator.break_holder(held.owner()).await;
    assert_eq!(broken.unwrap(), Broken::Released);
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::Broken(_)), "{loss}");
}

/// It asks all sentinels first, and the engine does not wait long.
#[tokio::test]
async fn a_sentinel_that_is_away_keeps_no_break_from_the_holder() {
    let mut group = start(SentinelOptions::new()).await;
    let url = with_user(&mut group).await;
    let holder = connected(lasting(&url)).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let (behind, lines) = by_lines(&group);
    let patient = settings_at(&behind).with_session_ttl(ENOUGH).unwrap();
    let at_once = Policy::new().with_max_failures(0);
    let operator = lock(&RedisBackend::new(patient), "a").with_policy(at_once);
    assert!(operator.inspect().await.unwrap().held);
    lines[0].black_hole(Direction::Both);
    let broken = operator.break_holder(held.owner()).await;
    assert_eq!(broken.unwrap(), Broken::Released);
}

/// Clients that reach no sentinel go on at the former primary for a while, and it sends their changes.
#[tokio::test]
async fn messages_of_a_former_primary_keep_no_observer_there() {
    let mut group = start(SentinelOptions::new()).await;
    let url = with_user(&mut group).await;
    let client = connected(lasting(&url)).await;
    let mut observer = Election::new(client.clone(), "a").unwrap().observe();
    assert!(observer.next().await.unwrap().is_none());
    // This one asks no sentinel.
    let former = format!("redis://client:c@{}", group.servers()[0].addr());
    let cut_off = connected(settings_at(&former)).await;
    let busy = tokio::spawn(async move {
        loop {
            // Not exclusive: an observer tells of no term that is older than one that it has told of.
            let held = lock(&cut_off, "a").acquire_shared().await.unwrap();
            held.release().await.unwrap();
            tokio::time::sleep(PAUSE).await;
        }
    });
    part(&group.servers()[0]).await;
    let (mut group, primary) = on(group, |group| group.until_moved_from(0)).await;

    on_server(&client, &group.servers()[primary]).await;
    let leads = acquired(&client, "a").await;
    told_of(&mut observer, leads.token()).await;
    assert!(!busy.is_finished());
    busy.abort();
}
