//! A primary of a cluster that the other nodes replace although it runs: it is cut off from them or stalled, and goes on
//! afterwards.

use std::time::Duration;

use portalock_core::{Guard, clock::Instant};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{RedisCluster, RedisClusterOptions};

use crate::{
    cluster::{on, slot_of, start},
    cluster_moves::{assert_no_overlap, contender, under_load},
    fixture::{Admin, ENOUGH, connected, lock},
};

/// The nodes, and a user for a client that can be shut out of nodes.
fn options() -> RedisClusterOptions {
    let user = "holder on >h ~* &* +@all";
    RedisClusterOptions::new()
        .can_be_cut()
        .setting("user", user)
}

/// Longer than it takes to replace a node, so that sessions continue at the new one.
const SESSION: Duration = Duration::from_secs(6);

/// The settings of a client that waits as long as the defaults say before it relies on a node that was promoted.
fn settings(url: &str) -> RedisSettings {
    let settings = RedisSettings::new(url).unwrap();
    settings.with_session_ttl(SESSION).unwrap()
}

/// Waits for the lock, and retries after each retryable error.
async fn acquired(backend: &RedisBackend, name: &str) -> Guard<RedisBackend> {
    let begun = Instant::now();
    loop {
        match lock(backend, name).acquire().await {
            Ok(guard) => return guard,
            Err(error) => assert!(
                error.is_retryable() && begun.elapsed() < ENOUGH,
                "{error:?}"
            ),
        }
    }
}

/// A holder that reaches no other node than the primary of its lock, and this primary.
async fn holder(cluster: &RedisCluster, replicas: u32) -> (RedisBackend, u16, usize) {
    let url = cluster.url().replace("://", "://holder:h@");
    let holder = connected(settings(&url).with_wait_replicas(replicas)).await;
    // Its calls and its session have a connection now.
    let held = lock(&holder, "a").acquire().await.unwrap();
    held.release().await.unwrap();
    let slot = slot_of(cluster, "a").await;
    let primary = cluster.owner(slot).unwrap();
    for node in (0..cluster.len()).filter(|node| *node != primary) {
        let mut admin = Admin::of(cluster.node(node)).await;
        admin.ask::<()>("ACL SETUSER holder off").await;
        admin.ask::<u32>("CLIENT KILL USER holder").await;
    }
    (holder, slot, primary)
}

/// The old primary refuses requests by the time that another is promoted, so its holder is told although it sees no other
/// node. Behind sentinels there would be two holders.
#[tokio::test]
async fn a_grant_of_a_primary_that_is_cut_off_is_told_first() {
    let cluster = start(options()).await;
    let other = connected(settings(&cluster.url())).await;
    // Its session is on the replica, and continues at once when that is promoted.
    let held = lock(&other, "a").acquire().await.unwrap();
    held.release().await.unwrap();
    let (holder, slot, former) = holder(&cluster, 0).await;
    let (cluster, ()) = on(cluster, move |cluster| cluster.cut_off(former)).await;
    // No other node knows of this grant.
    let held = lock(&holder, "a").acquire().await.unwrap();
    let lost = held.lost_signal();
    let (cluster, _) = on(cluster, move |cluster| {
        cluster.until_moved_from(slot, former)
    })
    .await;
    let next = acquired(&other, "a").await;
    assert!(
        lost.is_lost(),
        "granted to another before the holder was told"
    );
    assert!(next.token() > held.token());

    // The old primary comes back, with its claim, and becomes a replica.
    let (_cluster, ()) = on(cluster, move |cluster| cluster.rejoin(former)).await;
    drop(held);
    tokio::time::sleep(SESSION / 2).await;
    next.ensure_held().unwrap();
}

#[tokio::test]
async fn a_primary_that_is_cut_off_grants_nothing_where_replicas_confirm() {
    let cluster = start(options().replicas(2)).await;
    let (holder, slot, former) = holder(&cluster, 1).await;
    let other = connected(settings(&cluster.url()).with_wait_replicas(1)).await;
    let held = lock(&holder, "a").acquire_shared().await.unwrap();
    let lost = held.lost_signal();
    let (cluster, ()) = on(cluster, move |cluster| cluster.cut_off(former)).await;
    let error = lock(&holder, "a").try_acquire_shared().await.unwrap_err();
    assert!(error.is_retryable() && !error.is_contention(), "{error:?}");
    let (_cluster, _) = on(cluster, move |cluster| {
        cluster.until_moved_from(slot, former)
    })
    .await;
    let next = acquired(&other, "a").await;
    assert!(
        lost.is_lost(),
        "granted to another before the holder was told"
    );
    assert!(next.token() > held.token());
}

/// In turn cuts off and stalls the primary of a slot until it is replaced, and lets it go on.
fn replace(cluster: &mut RedisCluster, slots: [u16; 2], number: usize) -> std::io::Result<()> {
    cluster.until_whole()?;
    let slot = slots[number % 2];
    let owner = cluster.owner(slot).unwrap();
    if number.is_multiple_of(2) {
        cluster.cut_off(owner)?;
        cluster.until_moved_from(slot, owner)?;
        cluster.rejoin(owner)
    } else {
        cluster.stall(owner)?;
        cluster.until_moved_from(slot, owner)?;
        cluster.resume(owner)
    }
}

/// How often a primary is replaced: set by `PORTALOCK_SWITCHES`.
fn rounds() -> usize {
    std::env::var("PORTALOCK_SWITCHES").map_or(2, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_twice_when_a_primary_that_was_replaced_goes_on() {
    let witness = under_load(start(options()).await, contender, rounds(), replace).await;
    assert_no_overlap(&witness);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_replicas_confirm_nobody_holds_twice_when_a_replaced_primary_goes_on() {
    let cluster = start(options().replicas(2)).await;
    let confirmed = |cluster: &RedisCluster| contender(cluster).with_wait_replicas(1);
    let witness = under_load(cluster, confirmed, rounds(), replace).await;
    assert_no_overlap(&witness);
}

/// Counts what happens without the wait.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and only counts: PORTALOCK_SWITCHES=10"]
async fn without_the_wait() {
    let no_wait = |cluster: &RedisCluster| contender(cluster).with_restart_wait(Duration::ZERO);
    under_load(start(options()).await, no_wait, rounds(), replace).await;
}
