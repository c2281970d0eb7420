//! `wait_replicas`: what replicas have not confirmed does not count. `waiting.rs` and `refusals.rs` test grants and refreshes.

use std::time::Duration;

use portalock_core::{LockBackend, Policy, clock::Instant};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisClusterOptions, RedisOptions, RedisServer},
};

use crate::{
    cluster::{slot_of, start},
    cluster_half_way::{SHORT, half_way, short},
    fixture::{
        Admin, ENOUGH, client, connected, eventually, granted, lock, replica_of, settings_at,
        waiters,
    },
};

fn server() -> RedisServer {
    let at_once = RedisOptions::new().setting("repl-diskless-sync-delay", "0");
    at_once.start().unwrap()
}

/// The grant comes between the session's refresh, which a replica has, and the check of its places.
#[tokio::test]
async fn a_grant_that_is_found_after_a_reset_counts_once_a_replica_has_it() {
    const LATE: Duration = Duration::from_millis(500);
    let server = server();
    let replica = replica_of(&server).await;
    let line = FaultProxy::start(server.addr()).unwrap();
    let settings = settings_at(&format!("redis://{}", line.addr())).with_wait_replicas(1);
    let settings = settings.with_session_ttl(ENOUGH).unwrap();
    let settings = settings.with_tick_interval(ENOUGH * 10).unwrap();
    let demanding = connected(settings).await;
    let other = client(&server).await;
    let held = lock(&other, "a").acquire().await.unwrap();
    let waits = Policy::forever().with_max_failures(u32::MAX);
    let waits = lock(&demanding, "a").with_policy(waits);
    let waiter = tokio::spawn(async move { waits.acquire().await });
    eventually(async || waiters(&other, "a").await == 1).await;

    let before = confirmations(&server).await;
    line.delay(Direction::ToServer, LATE);
    line.cut();
    eventually(async || confirmations(&server).await > before).await;
    replica.stall().unwrap();
    held.release().await.unwrap();
    tokio::time::sleep(LATE * 4).await;
    let seen = LockBackend::inspect(&other, &"a".parse().unwrap()).await;
    assert!(seen.unwrap().held);
    assert!(!waiter.is_finished(), "told before a replica has the grant");
    line.heal();
    replica.resume().unwrap();
    granted(waiter).await.release().await.unwrap();
}

/// How many commands have waited for replicas.
async fn confirmations(server: &RedisServer) -> usize {
    Admin::of(server).await.calls("wait").await
}

/// It has taken over the data of another primary, which lacks a grant.
#[tokio::test]
async fn a_server_that_was_a_replica_for_a_while_waits_before_it_grants_over_an_old_connection() {
    const TIME: Duration = Duration::from_secs(6);
    let (one, two) = (server(), server());
    let line = FaultProxy::start(one.addr()).unwrap();
    let settings = |url: &str| RedisSettings::new(url).unwrap().with_session_ttl(TIME);
    let behind = settings(&format!("redis://{}", line.addr())).unwrap();
    let (holder, other) = tokio::join!(
        RedisBackend::with_settings(behind),
        RedisBackend::with_settings(settings(&one.url()).unwrap()),
    );
    let (holder, other) = (holder.unwrap(), other.unwrap());
    // Their calls have connections now.
    holder.ping().await.unwrap();
    other.ping().await.unwrap();
    let (mut admin, mut at_two) = (Admin::of(&one).await, Admin::of(&two).await);
    let follows = async |admin: &mut Admin, server: &RedisServer| {
        let command = format!("REPLICAOF 127.0.0.1 {}", server.port());
        admin.ask::<()>(&command).await;
        while !(admin.ask::<String>("INFO replication").await).contains("master_link_status:up") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    follows(&mut at_two, &one).await;
    at_two.ask::<()>("REPLICAOF NO ONE").await;

    let held = lock(&holder, "a").acquire().await.unwrap();
    line.black_hole(Direction::Both);
    follows(&mut admin, &two).await;
    eventually(async || other.ping().await.is_err()).await;
    admin.ask::<()>("REPLICAOF NO ONE").await;
    let policy = Policy::new()
        .with_timeout(ENOUGH)
        .with_max_failures(u32::MAX);
    let next = lock(&other, "a").acquire_with(&policy).await.unwrap();
    assert!(
        held.is_lost(),
        "granted to another before the holder was told"
    );
    next.release().await.unwrap();
}

/// The old primary may go on until its replicas have left it for the new one.
#[tokio::test]
async fn a_promoted_server_waits_from_when_a_replica_follows_it() {
    const WAIT: Duration = Duration::from_secs(4);
    let server = server();
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("REPLICAOF 127.0.0.1 1").await;
    admin.ask::<()>("REPLICAOF NO ONE").await;
    let settings = RedisSettings::new(&server.url()).unwrap();
    let settings = settings.with_restart_wait(WAIT).with_wait_replicas(1);
    let begun = Instant::now();
    while begun.elapsed() < WAIT * 3 / 2 {
        let error = RedisBackend::with_settings(settings.clone()).await;
        assert!(error.unwrap_err().is_retryable());
    }
    let followed = Instant::now();
    let _replica = replica_of(&server).await;
    RedisBackend::with_settings(settings).await.unwrap();
    assert!(followed.elapsed() > WAIT / 2, "{:?}", followed.elapsed());
}

#[tokio::test]
async fn a_refresh_at_the_other_node_of_a_move_counts_once_its_replica_has_it() {
    let cluster = start(RedisClusterOptions::new()).await;
    let holder = connected(short(&cluster).with_wait_replicas(1)).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let (cluster, moving) = half_way(cluster, slot, |key| key.contains("/session/")).await;
    tokio::time::sleep(SHORT * 2).await;
    held.ensure_held().unwrap();
    // The nodes from the fourth on are the replicas, in the order of their primaries.
    cluster.node(3 + moving.to()).stall().unwrap();
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
}
